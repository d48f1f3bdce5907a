"""How images are predicted: the options of ``Predictor`` and of ``tools/predict.py``."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from detectron2.config import CfgNode

from ..errors import UserError
from .formats import Drawing
from .tiles import DEFAULT_OVERLAP, plan_tiles

DEFAULT_SCALES = (0.75, 1.0, 1.25)


@dataclass(frozen=True)
class PredictionOptions:
    """Options of a prediction, checked on construction.

    Attributes:
        batch_size: The largest number of images that the network takes together. Only images of equal size are batched,
            so that results do not depend on it.
        amp: Whether to compute in bfloat16 where PyTorch considers it safe.
        short_side: The length in pixels to which the shorter side is resized; default the config's
            INPUT.MIN_SIZE_TEST. INPUT.MAX_SIZE_TEST changes in proportion.
        tile: The (width, height), in pixels of the image, of the tiles that larger images are cut into. Tiles are not
            resized unless ``short_side`` is given.
        overlap: The number of pixels that neighboring tiles share.
        tta: The scales of test-time augmentation; the network sees the image at each of them, also mirrored, and the
            outputs are averaged. Empty means once, as it is.
        raw: Whether results keep the outputs of both heads (``PanopticResult.raw``).
        engine: What runs the model: "torch", "onnxruntime" or "openvino". With an exported file as weights, what reads
            the file; default the first one that is installed. With a checkpoint, default "torch"; for the others the
            checkpoint is exported first, which takes about two minutes.
        compile: Whether to run the network through ``torch.compile``. The first image of each size then takes a minute
            or more, the others less. This needs a C++ compiler.
        alpha, legend, image_format: How results are drawn, see ``drawing``.

    Raises:
        UserError: An option is out of range, or two options exclude each other.
    """

    batch_size: int = 1
    amp: bool = False
    short_side: int | None = None
    tile: tuple[int, int] | None = None
    overlap: int = DEFAULT_OVERLAP
    tta: tuple[float, ...] = ()
    raw: bool = False
    compile: bool = False
    engine: str | None = None
    alpha: float = Drawing.alpha
    legend: bool = Drawing.legend
    image_format: str = Drawing.image_format

    @property
    def drawing(self) -> Drawing:
        """How results are drawn."""
        return Drawing(self.alpha, self.legend, self.image_format)

    def __post_init__(self) -> None:
        self.drawing  # noqa: B018  checks its values
        if self.batch_size < 1 or (self.short_side is not None and self.short_side < 1):
            raise UserError("batch_size (--batch-size) and short_side (--short-side) must be at least 1")
        if self.raw and (self.tile or self.tta):
            raise UserError(
                "raw outputs exist for whole images seen once; leave out raw, or tile (--tile) and tta (--tta)"
            )
        if self.tile and self.tta:
            raise UserError("tile (--tile) and tta (--tta) cannot be used together; leave out one of them")
        if self.engine not in (None, "torch", "onnxruntime", "openvino"):
            raise UserError(f"engine {self.engine!r} is unknown; use torch, onnxruntime or openvino (--engine)")
        if any(not 0.1 <= scale <= 4 for scale in self.tta):
            raise UserError(f"scales of tta (--tta) must be between 0.1 and 4, not {', '.join(map(str, self.tta))}")
        if self.tile:
            plan_tiles((1, 1), self.tile, self.overlap)  # checks both

    def fingerprint(self) -> dict[str, Any]:
        """Return the options that change results, as json values."""
        tile = None if self.tile is None else list(self.tile)
        # Files in another format of images have other names. None for the defaults is what earlier versions recorded.
        drawing = replace(self.drawing, image_format=Drawing.image_format)
        return {
            "amp": self.amp,
            "tile": tile,
            "overlap": self.overlap,
            "tta": list(self.tta),
            "engine": self.engine,
            "drawing": None if drawing == Drawing() else [drawing.alpha, drawing.legend],
        }

    def apply(self, cfg: CfgNode, weights: str | None = None, device: str | None = None) -> CfgNode:
        """Return a copy of a configuration from which the model of a prediction is built.

        Args:
            cfg: The configuration.
            weights: A checkpoint that replaces MODEL.WEIGHTS.
            device: A device that replaces MODEL.DEVICE; default the CPU if the config asks for a GPU and there is none.

        Raises:
            UserError: The device does not exist, or a fusion threshold is out of range.
        """
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
        if device or (cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()):
            cfg.MODEL.DEVICE = _check_device(device or "cpu")
        cfg.MODEL.WEIGHTS = weights or cfg.MODEL.WEIGHTS
        combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
        if not (0 <= combine.INSTANCES_CONFIDENCE_THRESH <= 1 and 0 <= combine.OVERLAP_THRESH <= 1):
            raise UserError(
                "the score and overlap thresholds (--score-thresh, --overlap-thresh) must be between 0 and 1; correct "
                "MODEL.PANOPTIC_FPN.COMBINE"
            )
        if self.short_side:
            ratio = self.short_side / cfg.INPUT.MIN_SIZE_TEST if cfg.INPUT.MIN_SIZE_TEST else 1.0
            cfg.INPUT.MIN_SIZE_TEST = self.short_side
            cfg.INPUT.MAX_SIZE_TEST = max(self.short_side, round(cfg.INPUT.MAX_SIZE_TEST * ratio))
        elif self.tile:
            cfg.INPUT.MIN_SIZE_TEST = 0
        return cfg


def _check_device(device: str) -> str:
    """Return ``device`` if PyTorch can use it."""
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
