"""Export of a model to ONNX, OpenVINO and .pt2 files, each of which is verified before it gets its name."""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch.export import Dim, ExportedProgram

from ..checkpoint import load_weights
from ..errors import UserError
from ..modeling.ops.fold import prepare_for_inference
from ..modeling.panoptic import SeamlessPanoptic
from ..structures.classes import Classes
from .graph import ExportForm
from .onnx_file import check_packages, quiet, write_onnx, write_openvino
from .quantize import find_images, write_quantized
from .session import ENGINES, METADATA_KEY, Metadata
from .verify import TOLERANCES, Difference, make_examples, open_written, verify

logger = logging.getLogger(__name__)
#: The suffix of each format.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# The (height, width) of the traced image, if the range has it: no multiple of anything, so that nothing is taken for
# always true.
_TRACED = (131, 163)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, checked on construction, but for the sizes (``find_min_size``).

    Attributes:
        formats: Some of ``SUFFIXES``.
        min_size: The least height and width that the files accept, in pixels; 0 is the least that the model can.
        max_size: The largest (height, width).
        opset: The version of ONNX's operators, 18 to 20.
        int8: A folder of images by which an ONNX file in 8-bit integers is calibrated, too; None for none.

    Raises:
        UserError: An option is out of range.
    """

    formats: tuple[str, ...] = ("onnx",)
    min_size: int = 0
    max_size: tuple[int, int] = (2048, 4096)
    opset: int = 20
    int8: Path | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(SUFFIXES))
        if unknown or not self.formats:
            raise UserError(f"export format {', '.join(unknown)!r} is unknown; use {', '.join(SUFFIXES)} (--format)")
        if not 18 <= self.opset <= 20:
            raise UserError(f"--opset is {self.opset}; use 18, 19 or 20")
        if self.int8 is not None and "onnx" not in self.formats:
            raise UserError("8-bit integers exist in ONNX files only; add onnx to --format or leave out --int8")


def export_model(cfg: CfgNode, output: str | Path, options: ExportOptions) -> dict[Path, list[Difference]]:
    """Export the model of a configuration, and verify what was written.

    Args:
        cfg: A configuration from ``PredictionOptions.apply``, with MODEL.WEIGHTS; its thresholds and names go into the
            files.
        output: The files; the suffix is replaced by that of each format.
        options: What is written.

    Returns:
        The files, with their differences from the model.

    Raises:
        UserError: The model cannot be exported, a package is missing, a file exists already, or a file does not predict
            what the model predicts; such a file is removed.
    """
    output = Path(output)
    targets = {name: output.with_suffix(SUFFIXES[name]) for name in options.formats}
    if options.int8 is not None:
        targets["int8"] = output.with_name(f"{output.stem}_int8.onnx")
    beside = [output.with_suffix(".bin")] if "openvino" in targets else []
    for path in [*targets.values(), *beside]:
        if path.exists():
            raise UserError(f"the output {path} exists already; choose another name, or move it away")
    check_packages(options.formats)
    images = [] if options.int8 is None else find_images(options.int8)
    model = build_model(cfg).eval()
    if not isinstance(model, SeamlessPanoptic):
        raise UserError(
            f"only models of MODEL.META_ARCHITECTURE SeamlessPanoptic can be exported, not {type(model).__name__}"
        )
    form = ExportForm(model, cfg.INPUT.FORMAT)
    options = replace(options, min_size=find_min_size(model, options))
    load_weights(model, cfg.MODEL.WEIGHTS)
    prepare_for_inference(model)
    metadata = describe(cfg, model, options)
    examples = make_examples(form, metadata)
    output.parent.mkdir(parents=True, exist_ok=True)
    written: dict[Path, list[Difference]] = {}
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export.") as scratch, quiet():
        logger.info("tracing the model")
        program = trace(form, options)
        onnx = Path(scratch) / "traced" / "model.onnx"
        onnx.parent.mkdir()
        if set(targets) != {"pt2"}:
            logger.info("converting it to ONNX")
            write_onnx(program, onnx, options.opset, metadata)
        for name, target in targets.items():
            logger.info(f"writing and verifying {target}")
            path = Path(scratch) / target.name
            if name == "pt2":
                torch.export.save(program, str(path), extra_files={f"{METADATA_KEY}.json": metadata.to_json()})
            elif name == "onnx":
                shutil.copyfile(onnx, path)
            elif name == "openvino":
                write_openvino(onnx, path, metadata)
            else:
                write_quantized(onnx, path, images, metadata)
            written[target] = [
                difference
                for engine in ENGINES[path.suffix]
                if importlib.util.find_spec(engine)
                for difference in verify(open_written(path, engine), examples, TOLERANCES[name])
            ]
            for suffix in (".bin", target.suffix):  # the weights of an .xml before it
                if path.with_suffix(suffix).exists():
                    os.replace(path.with_suffix(suffix), target.with_suffix(suffix))
    return written


def find_min_size(model: SeamlessPanoptic, options: ExportOptions) -> int:
    """Return the least height and width in pixels that the files of a model accept.

    Raises:
        UserError: The model cannot take images as small as the options say, or they are above the largest.
    """
    # At the stride of the coarsest level its map would have one value, which torch.export takes for a constant.
    least = max(shape.stride for shape in model.backbone.output_shape().values()) + 1
    size, (height, width) = options.min_size or least, options.max_size
    if size < least:
        raise UserError(f"--min-size is {size}, which is too small for this model; it can be {least} or more")
    if size >= min(height, width):
        raise UserError(f"--max-size is {height}x{width}; both must be larger than the least size, {size} pixels")
    return size


def trace(form: ExportForm, options: ExportOptions) -> ExportedProgram:
    """Return the program of a model for images of any size within the range of the options, whose least is known."""
    least, largest = options.min_size, options.max_size
    sides = [Dim(n, min=least, max=size) for n, size in zip(("height", "width"), largest, strict=True)]
    image = torch.zeros((3, *choose_traced_size(least, largest)), dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            form,
            (image,),
            dynamic_shapes={"image": {1: sides[0], 2: sides[1]}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


def choose_traced_size(least: int, largest: tuple[int, int]) -> tuple[int, int]:
    """Return two different sides within the range of sizes, ``_TRACED`` where it allows them."""
    height, width = (min(max(side, least | 1), most) for side, most in zip(_TRACED, largest, strict=True))
    return (height, width) if height != width else (height, width - 1 if width > least else width + 1)


def describe(cfg: CfgNode, model: SeamlessPanoptic, options: ExportOptions) -> Metadata:
    """Return the metadata of the files of a model."""
    num_classes, num_things = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
    digest = ""
    if Path(cfg.MODEL.WEIGHTS).is_file():
        with open(cfg.MODEL.WEIGHTS, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    versions = {}
    for package in ("seamless_d2", "torch", "onnx", "openvino"):
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    stored = cfg.clone()
    stored.MODEL.WEIGHTS = ""
    return Metadata(
        classes=Classes.from_config(cfg) or Classes.numbered(num_classes, num_things),
        min_size=options.min_size,
        max_size=options.max_size,
        short_side=cfg.INPUT.MIN_SIZE_TEST,
        interpolation=cfg.INPUT.INTERPOLATION or "bilinear",
        long_side=cfg.INPUT.MAX_SIZE_TEST,
        truncate=cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS,
        thresholds={
            "score": model.combine_instances_score_thresh,
            "overlap": model.combine_overlap_thresh,
            "stuff_area": model.combine_stuff_area_thresh,
        },
        config=stored.dump(),
        weights_sha256=digest,
        versions=versions,
    )
