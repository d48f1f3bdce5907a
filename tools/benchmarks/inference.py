"""From image tensor to panoptic map, against Detectron2's stock PanopticFPN R50."""

import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.structures import Instances
from torch import Tensor, nn

from seamless_d2.engine.dry_run import count_flops
from seamless_d2.modeling import SeamlessPanoptic
from seamless_d2.modeling.ops.fold import compile_network

from .machine import floor_note
from .measure import Case, case_of_times, measure_times, synchronize
from .models import SCORE_THRESH, build_for_inference, our_config, stock_config, street_image

CONFIG = "cityscapes/seamless_R_50_FPN"
Panoptic = tuple[Tensor, list[dict]]


@contextmanager
def _outputs(model: SeamlessPanoptic, outputs: tuple[str, ...]) -> Iterator[None]:
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
        with _outputs(self.model, ("instances", "sem_seg", "panoptic_seg")):
            self.model([{"image": self.image}])

    def network_seconds(self, repeats: int) -> list[float]:
        """Of the last so many calls."""
        return self.network_times[-max(repeats, 1) :]


def agreement(first: Panoptic, second: Panoptic) -> float:
    """Share of pixels, in 0..1, that two panoptic maps put into the same segment.

    A segment of the first corresponds to the one of the same class in the second that it overlaps most; void
    corresponds to void.
    """
    (a, a_info), (b, b_info) = first, second
    rows, columns = len(a_info) + 1, len(b_info) + 1
    counts = torch.bincount((a.long() * columns + b.long()).flatten(), minlength=rows * columns).view(rows, columns)
    a_kinds, b_kinds = ([None, *((s["isthing"], s["category_id"]) for s in info)] for info in (a_info, b_info))
    same = torch.tensor([[x == y for y in b_kinds] for x in a_kinds])
    return float((counts.cpu() * same).amax(dim=1).sum()) / a.numel()


def _variants(cfg: CfgNode, image: Tensor) -> dict[str, Inference]:
    """Ours in other layouts and precisions."""

    def make(dtype: torch.dtype | None, channels_last: bool = True, compiled: bool = False) -> Inference:
        model = build_for_inference(cfg)
        if not channels_last:
            model.to(memory_format=torch.contiguous_format)
        return Inference(compile_network(model) if compiled else model, image, dtype)

    if not image.is_cuda:
        return {"fp32 channels-first": make(None, channels_last=False), "bf16": make(torch.bfloat16)}
    return {
        "fp32 channels-first": make(None, channels_last=False),
        "bf16 channels-first": make(torch.bfloat16, channels_last=False),
        "bf16": make(torch.bfloat16),
        "bf16 compiled": make(torch.bfloat16, compiled=True),
    }


def benchmark_inference(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """The whole way and the network alone at 1024x2048 with 100 detections, and ours in other precisions."""
    height, width = (128, 256) if quick else (1024, 2048)
    gpu = device.startswith("cuda")
    repeats = 0 if quick else 20 if gpu else 3
    cfg = our_config(CONFIG, device, quick)
    image = street_image(height, width, device)
    ours = Inference(build_for_inference(cfg), image)
    other = Inference(build_for_inference(stock_config(cfg)), image) if against else None
    variants = _variants(cfg, image)
    runs = [ours, ours.with_all_outputs, *variants.values(), *([other] if other else [])]
    times = measure_times(runs, device, repeats)
    stock = times[-1] if other else None
    detections = f"ours {ours.detections}" + (f"; other {other.detections}" if other else "")
    size = f"{height}x{width}"
    networks = ours.network_seconds(repeats), other.network_seconds(repeats) if other else None
    cases = [
        case_of_times(f"{size} fp32, whole", times[0], stock, detections, None if gpu or quick else 1.5),
        case_of_times(f"{size} fp32, network alone", *networks),
        case_of_times(f"{size} fp32, all outputs", times[1], stock, "ours with instances and sem_seg too"),
    ]
    with _outputs(ours.model, ("instances", "sem_seg")):  # the network, without the fusion
        flops = 2 * count_flops(ours.model, {"image": image})  # fvcore counts multiply-adds
    floor, note = floor_note(flops, device, torch.float32, quick)
    floors = [Case(f"{size} fp32, network against its floor", statistics.median(networks[0]), floor, note=note)]
    for (name, run), seconds in zip(variants.items(), times[2:], strict=False):
        note = f"{100 * agreement(ours.panoptic, run.panoptic):.2f} % of pixels as in fp32"
        target = 3.0 if gpu and run.dtype and not quick else None
        cases.append(case_of_times(f"{size} {name}, whole", seconds, stock, f"other in fp32; {note}", target))
        network = statistics.median(run.network_seconds(repeats))
        floor, note = floor_note(flops, device, run.dtype or torch.float32, quick)
        floors.append(Case(f"{size} {name}, network against its floor", network, floor, note=note))
    return cases + floors
