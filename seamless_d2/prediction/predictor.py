"""A model ready for images."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..checkpoint import load_weights
from ..config import load_config
from ..data.transforms import build_resize, to_tensor
from ..errors import UserError
from ..io import read_image
from ..modeling.ops.fold import compile_network, prepare_for_inference
from ..modeling.panoptic import NetworkOutput
from ..seamseg.raw import make_raw
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from .result import PanopticResult
from .tiles import DEFAULT_OVERLAP, Stitcher, plan_tiles
from .tta import averaged_output

logger = logging.getLogger(__name__)
ImageLike = np.ndarray | str | Path


@dataclass
class Prepared:
    """An image on its way through the network.

    ``image`` is (H, W, 3) uint8 RGB, ``tensor`` (3, h, w) uint8 as the network wants it, None where that is made piece
    by piece.
    """

    image: np.ndarray
    tensor: Tensor | None


@dataclass
class Fused:
    """A finished map, where the network's stage already includes the fusion."""

    panoptic_seg: np.ndarray
    segments: list[SegmentInfo]


class Predictor:
    """A model ready for images.

    >>> predictor = Predictor("output/config.yaml", "output/model_final.pth")
    >>> result = predictor.predict("street.jpg")
    """

    def __init__(
        self,
        config: str | Path | CfgNode,
        weights: str | Path | None = None,
        device: str | None = None,
        *,
        batch_size: int = 1,
        amp: bool = False,
        short_side: int | None = None,
        tile: tuple[int, int] | None = None,
        overlap: int = DEFAULT_OVERLAP,
        tta: Sequence[float] = (),
        raw: bool = False,
        compile: bool = False,
    ) -> None:
        """
        Args:
            config: yaml file, name of a shipped config, or a configuration.
            weights: checkpoint; default the config's MODEL.WEIGHTS.
            device: "cpu", "cuda", ...; default the config's, or the CPU where there is no GPU.
            batch_size: most images that go through the network together; only those of equal size do, so that results
                do not depend on it.
            amp: compute in bfloat16 where PyTorch finds it safe.
            short_side: pixels to which the shorter side is resized; default the config's INPUT.MIN_SIZE_TEST
                (INPUT.MAX_SIZE_TEST changes in proportion).
            tile: width and height, in pixels of the image, of the pieces that larger images are cut into; pieces
                are not resized unless ``short_side`` is given.
            overlap: pixels that neighbouring pieces share.
            tta: scales at which the image is seen, each also mirrored, and the outputs averaged; empty = once.
            compile: run the network through ``torch.compile``: the first image of each size takes a minute or more,
                the others less. Needs a C++ compiler.
            raw: whether results keep the network's outputs (``PanopticResult.raw``).

        Raises:
            UserError: config or weights missing, unreadable or not made for each other; an option out of range.
        """
        cfg = prediction_config(
            config,
            weights,
            device,
            batch_size=batch_size,
            short_side=short_side,
            tile=tile,
            overlap=overlap,
            tta=tta,
            raw=raw,
        )
        self.cfg = cfg
        self.batch_size, self.amp, self.tile, self.overlap, self.tta, self.raw = (
            batch_size,
            amp,
            tile,
            overlap,
            tta,
            raw,
        )
        self.model = build_model(cfg).eval()
        load_weights(self.model, cfg.MODEL.WEIGHTS)
        prepare_for_inference(self.model)
        if compile:
            compile_network(self.model)
        self.classes = Classes.from_config(cfg) or _numbered_classes(cfg)
        self.resize = build_resize(cfg, is_train=False)

    def predict(self, image: ImageLike | Sequence[ImageLike]) -> PanopticResult | list[PanopticResult]:
        """Segment one image, or a list of them.

        Args:
            image: (H, W, 3) uint8 RGB array, or a file; a list gives a list of results.

        Raises:
            UserError: an unreadable file, or an array of another form.
        """
        if isinstance(image, (np.ndarray, str, Path)):
            return next(self._results([self.prepare(image)]))
        results = []
        for start in range(0, len(image), self.batch_size):
            prepared = [self.prepare(i) for i in image[start : start + self.batch_size]]
            results += self._results(prepared)
        return results

    def _results(self, prepared: list[Prepared]) -> Iterator[PanopticResult]:
        for _, group in groupby(prepared, key=shape_of):
            group = list(group)
            for item, output in zip(group, self.network(group), strict=True):
                yield self.finish(item, output)

    # Prediction has three stages, which prediction of many files runs at the same time.

    def prepare(self, image: ImageLike) -> Prepared:
        """First stage: read and resize. Errors as ``predict``."""
        array = image if isinstance(image, np.ndarray) else read_image(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise UserError(
                f"an image must be a (height, width, 3) uint8 RGB array, not {array.shape} {array.dtype}; convert it"
            )
        cut = self._is_cut(array)
        if not cut and min(self._network_size(array)) < 1:
            raise UserError(
                f"an image of {array.shape[1]} x {array.shape[0]} pixels is too narrow: nothing would be left of its "
                "shorter side in the network (INPUT.MAX_SIZE_TEST); use tiles (--tile) or cut it"
            )
        return Prepared(array, None if self.tta or cut else self._tensor(array))

    def network(self, prepared: list[Prepared]) -> list[NetworkOutput | Fused]:
        """Second stage: the network, on images of equal ``shape_of``."""
        if self.tta:
            sizes = [self._network_size(p.image) for p in prepared]
            with self._autocast():
                return [
                    averaged_output(self.model, p.image, size, self.tta, self.cfg.INPUT.FORMAT)
                    for p, size in zip(prepared, sizes, strict=True)
                ]
        if prepared[0].tensor is None:
            return [self._predict_tiles(p.image) for p in prepared]
        inputs = [{"image": p.tensor} for p in prepared]
        with self._autocast():
            return self.model.network(inputs, everything=self.raw)

    def finish(self, prepared: Prepared, output: NetworkOutput | Fused) -> PanopticResult:
        """Third stage: the fusion at the image's size."""
        if isinstance(output, Fused):
            return PanopticResult.from_fusion(prepared.image, output.panoptic_seg, output.segments, self.classes)
        panoptic_seg, segments = self.model.postprocess(output, prepared.image.shape[:2])["panoptic_seg"]
        raw = None
        if self.raw:
            detections = output.detections
            raw = make_raw(
                output.scores()[0].argmax(dim=0),
                detections.pred_boxes.tensor,
                detections.pred_classes,
                detections.scores,
                detections.mask_logits,
            )
        return PanopticResult.from_fusion(prepared.image, panoptic_seg.cpu().numpy(), segments, self.classes, raw)

    def _is_cut(self, image: np.ndarray) -> bool:
        return self.tile is not None and (image.shape[1] > self.tile[0] or image.shape[0] > self.tile[1])

    def _network_size(self, image: np.ndarray) -> tuple[int, int]:
        """(height, width) that the network sees of an image."""
        transform = self.resize.get_transform(image)
        return getattr(transform, "new_h", image.shape[0]), getattr(transform, "new_w", image.shape[1])

    def _tensor(self, image: np.ndarray) -> Tensor:
        resized = self.resize.get_transform(image).apply_image(image)
        return to_tensor(resized, self.cfg.INPUT.FORMAT)

    def _autocast(self) -> torch.autocast | nullcontext:
        device = self.model.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.amp else nullcontext()

    def _predict_tiles(self, image: np.ndarray) -> Fused:
        """The image piece by piece; instances that several pieces show become one."""
        stitcher = Stitcher(image.shape[:2], self.classes.num_stuff)
        for tile in plan_tiles(image.shape[:2], self.tile, self.overlap):
            piece = image[tile.y0 : tile.y1, tile.x0 : tile.x1]
            with self._autocast():
                output = self.model.network([{"image": self._tensor(piece)}])[0]
            # A piece may hold little of a large segment: the threshold applies to the whole.
            fused = self.model.postprocess(output, piece.shape[:2], stuff_area_thresh=0)
            panoptic_seg, segments = fused["panoptic_seg"]
            stitcher.add(tile, panoptic_seg.cpu().numpy(), segments)
        return Fused(*stitcher.finish(self.model.combine_stuff_area_thresh))


def shape_of(prepared: Prepared) -> tuple[int, ...]:
    """What images must share to go through the network together."""
    return () if prepared.tensor is None else tuple(prepared.tensor.shape)


def prediction_config(
    config: str | Path | CfgNode,
    weights: str | Path | None = None,
    device: str | None = None,
    *,
    batch_size: int = 1,
    short_side: int | None = None,
    tile: tuple[int, int] | None = None,
    overlap: int = DEFAULT_OVERLAP,
    tta: Sequence[float] = (),
    raw: bool = False,
) -> CfgNode:
    """The configuration that a ``Predictor`` builds its model from; arguments and errors are the constructor's."""
    cfg = config.clone() if isinstance(config, CfgNode) else load_config(config)
    cfg.defrost()
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
    if device or (cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()):
        cfg.MODEL.DEVICE = _checked_device(device or "cpu")
    cfg.MODEL.WEIGHTS = str(weights or cfg.MODEL.WEIGHTS)
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    if not (0 <= combine.INSTANCES_CONFIDENCE_THRESH <= 1 and 0 <= combine.OVERLAP_THRESH <= 1):
        raise UserError(
            "the score and overlap thresholds (--score-thresh, --overlap-thresh) must be between 0 and 1; mend "
            "MODEL.PANOPTIC_FPN.COMBINE"
        )
    if batch_size < 1 or (short_side is not None and short_side < 1):
        raise UserError("batch_size (--batch-size) and short_side (--short-side) must be at least 1")
    if raw and (tile or tta):
        raise UserError("raw outputs exist for whole images seen once; leave out raw, or tile (--tile) and tta (--tta)")
    if tile and tta:
        raise UserError("tile (--tile) and tta (--tta) cannot be used together; leave out one of them")
    if any(not 0.1 <= scale <= 4 for scale in tta):
        raise UserError(f"scales of tta (--tta) must be between 0.1 and 4, not {', '.join(map(str, tta))}")
    if tile:
        plan_tiles((1, 1), tile, overlap)  # checks both
    if short_side:
        ratio = short_side / cfg.INPUT.MIN_SIZE_TEST if cfg.INPUT.MIN_SIZE_TEST else 1.0
        cfg.INPUT.MIN_SIZE_TEST = short_side
        cfg.INPUT.MAX_SIZE_TEST = max(short_side, round(cfg.INPUT.MAX_SIZE_TEST * ratio))
    elif tile:
        cfg.INPUT.MIN_SIZE_TEST = 0
    return cfg


def _checked_device(device: str) -> str:
    try:
        kind = torch.device(device).type
    except RuntimeError:
        raise UserError(f'device {device!r} is not known; use "cpu", "cuda" or "cuda:1"') from None
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(f'device {device!r} is not there: PyTorch sees no GPU; use "cpu"')
    try:
        torch.zeros(1, device=device).item()
    except (RuntimeError, AssertionError, NotImplementedError):  # each backend has its own
        raise UserError(f'device {device!r} is not there, or cannot be used; use "cpu"') from None
    return device


def _numbered_classes(cfg: CfgNode) -> Classes:
    """Stand-in names for a config that carries none."""
    logger.warning("the config has no class names (MODEL.SEAMLESS.CLASS_NAMES); classes are shown by number")
    total = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    things = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return Classes.from_categories(
        [{"id": i + 1, "name": f"class {i}", "isthing": i >= total - things} for i in range(total)], "config"
    )
