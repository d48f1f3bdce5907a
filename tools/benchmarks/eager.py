"""A model in eager mode on one image."""

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.structures import Instances
from torch import Tensor, nn

from seamless_d2.modeling import SeamlessPanoptic

from .measure import synchronize
from .models import SCORE_THRESH

Panoptic = tuple[Tensor, list[dict]]


@contextmanager
def outputs_of(model: SeamlessPanoptic, outputs: tuple[str, ...]) -> Iterator[None]:
    before, model.outputs = model.outputs, outputs
    try:
        yield
    finally:
        model.outputs = before


class Inference:
    """One model on one image; each call notes how long the network took and keeps the map."""

    def __init__(self, model: nn.Module, image: Tensor, dtype: torch.dtype | None = None) -> None:
        """
        Args:
            model: ours or PanopticFPN.
            image: (3, H, W) uint8.
            dtype: of autocast; default none.
        """
        self.model, self.image, self.dtype = model, image, dtype
        self.network_times: list[float] = []
        self.panoptic: Panoptic | None = None
        self.detections = ""
        self._start = 0.0
        if not isinstance(model, SeamlessPanoptic):
            # Ours has two methods; Detectron2's network ends with its ROI heads.
            model.roi_heads.register_forward_hook(lambda _module, _inputs, result: self._end_network(result[0][0]))

    def _end_network(self, detections: Instances) -> None:
        synchronize(str(self.image.device))
        self.network_times.append(time.perf_counter() - self._start)
        if not self.detections:
            share = float(detections.pred_boxes.area().sum()) / self.image[0].numel()
            sure = int((detections.scores > SCORE_THRESH).sum())
            self.detections = f"{sure} detections above {SCORE_THRESH} covering {share:.2f} images"

    @torch.no_grad()
    def __call__(self) -> None:
        self._start = time.perf_counter()
        batch = [{"image": self.image}]
        with torch.autocast(self.image.device.type, self.dtype, enabled=self.dtype is not None):
            if isinstance(self.model, SeamlessPanoptic):
                output = self.model.run_network(batch)[0]
                self._end_network(output.detections)
                self.panoptic = self.model.postprocess(output, output.image_size)["panoptic_seg"]
            else:
                self.panoptic = self.model(batch)[0]["panoptic_seg"]

    def with_all_outputs(self) -> None:
        """A call of ours that returns everything that ``OUTPUTS`` can list."""
        with outputs_of(self.model, ("instances", "sem_seg", "panoptic_seg")):
            self.model([{"image": self.image}])

    def network_seconds(self, repeats: int) -> list[float]:
        """Of the last so many calls."""
        return self.network_times[-max(repeats, 1) :]
