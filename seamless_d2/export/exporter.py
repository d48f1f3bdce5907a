"""Export of a model to ONNX, OpenVINO and .pt2 files, each of which is verified before it gets its name."""

import hashlib
import importlib.util
import logging
import os
import shutil
import tempfile
from dataclasses import dataclass
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
from .session import ENGINES, METADATA_KEY, ExportedModel, Metadata
from .verify import TOLERANCES, Difference, make_examples, verify

logger = logging.getLogger(__name__)
#: The suffix of each format.
SUFFIXES = {"onnx": ".onnx", "openvino": ".xml", "pt2": ".pt2"}
# The size of the image that is traced: no multiple of anything, so that nothing is taken for always true.
_TRACED = (131, 163)


@dataclass(frozen=True)
class ExportOptions:
    """Options of an export, checked on construction.

    Attributes:
        formats: Some of ``SUFFIXES``.
        min_size: The least height and width that the files accept, in pixels.
        max_size: The largest (height, width).
        opset: The version of ONNX's operators, 18 to 20.
        int8: A folder of images by which an ONNX file in 8-bit integers is calibrated, too; None for none.

    Raises:
        UserError: An option is out of range.
    """

    formats: tuple[str, ...] = ("onnx",)
    min_size: int = 65
    max_size: tuple[int, int] = (2048, 4096)
    opset: int = 20
    int8: Path | None = None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.formats) - set(SUFFIXES))
        if unknown or not self.formats:
            raise UserError(f"export format {', '.join(unknown)!r} is unknown; use {', '.join(SUFFIXES)} (--format)")
        # At 64 pixels the coarsest level of the pyramid would have one, which torch.export takes for a constant.
        if not 65 <= self.min_size <= min(self.max_size):
            raise UserError(
                f"--min-size is {self.min_size} and --max-size {self.max_size[0]}x{self.max_size[1]}; the least size "
                "must be 65 or more, and not exceed the largest"
            )
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
    load_weights(model, cfg.MODEL.WEIGHTS)
    prepare_for_inference(model)
    metadata = describe(cfg, model, options)
    examples = make_examples(form, metadata)
    output.parent.mkdir(parents=True, exist_ok=True)
    written: dict[Path, list[Difference]] = {}
    with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export.") as scratch, quiet():
        logger.info("tracing the model")
        program = trace(form, options)
        onnx = Path(scratch) / "traced.onnx"
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
                for difference in verify(ExportedModel(path, engine), examples, TOLERANCES[name])
            ]
            for file in sorted(Path(scratch).glob(f"{target.stem}.*"), reverse=True):  # an .xml after its .bin
                os.replace(file, target.with_suffix(file.suffix))
    return written


def trace(form: ExportForm, options: ExportOptions) -> ExportedProgram:
    """Return the program of a model for images of any size within the range of the options."""
    sides = [
        Dim(n, min=options.min_size, max=size) for n, size in zip(("height", "width"), options.max_size, strict=True)
    ]
    image = torch.zeros((3, *_TRACED), dtype=torch.uint8)
    with torch.no_grad():
        return torch.export.export(
            form,
            (image,),
            dynamic_shapes={"image": {1: sides[0], 2: sides[1]}},
            strict=False,
            prefer_deferred_runtime_asserts_over_guards=True,
        )


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
