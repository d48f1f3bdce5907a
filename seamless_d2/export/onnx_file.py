"""From a traced program to ONNX and OpenVINO files."""

import importlib.util
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.export import ExportedProgram

from ..errors import UserError
from .session import METADATA_KEY, OUTPUTS, Metadata

# What each format needs besides PyTorch.
_PACKAGES = {"onnx": ("onnx", "onnxscript", "onnxruntime"), "openvino": ("onnx", "onnxscript", "openvino"), "pt2": ()}


def check_packages(formats: Iterable[str]) -> None:
    """Raise ``UserError`` if a package that a format needs is not installed."""
    for name in formats:
        for package in _PACKAGES[name]:
            if importlib.util.find_spec(package) is None:
                raise UserError(
                    f"the format {name} needs {package}, which is not installed; run "
                    f"`python -m pip install {' '.join(_PACKAGES[name])}`"
                )


@contextmanager
def quiet() -> Iterator[None]:
    """Keep the exporters from printing warnings about their own code."""
    exporters = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in exporters]
    for logger in exporters:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(exporters, levels, strict=True):
            logger.setLevel(level)


def write_onnx(program: ExportedProgram, path: Path, opset: int, metadata: Metadata) -> None:
    """Convert a traced program to an ONNX file with the operators of version ``opset``."""
    import onnx_ir

    exported = convert(program, opset, ["image"], list(OUTPUTS))
    exported.model.metadata_props[METADATA_KEY] = metadata.to_json()
    exported.model.producer_name = "seamless_d2"
    onnx_ir.save(exported.model, path)


def convert(program: ExportedProgram, opset: int, inputs: list[str], outputs: list[str]) -> torch.onnx.ONNXProgram:
    """Convert a traced program with the operators of version ``opset``, and with names of inputs and outputs."""
    return torch.onnx.export(
        program,
        dynamo=True,
        opset_version=opset,
        input_names=inputs,
        output_names=outputs,
        custom_translation_table=_make_translations(),
        verbose=False,
        optimize=True,
    )


def _make_translations() -> dict[Any, Any]:
    """Return ONNX forms of the operations for which PyTorch has none that serves."""
    from onnxscript import opset18 as op

    def sort(x: Any, stable: bool = True, dim: int = -1, descending: bool = False) -> Any:
        # By its definition TopK keeps equal elements in their order, but OpenVINO does not. Therefore the positions
        # are sorted once more, by the number of different elements before them, then by themselves. (OpenVINO
        # sorts whole numbers exactly below 2^24, that is 4096 different elements; these models sort some hundreds.)
        if len(x.shape) != 1:
            raise NotImplementedError("a stable sort of more than one dimension")
        first, second, end = (op.Constant(value_ints=[k]) for k in (0, 1, 2**31 - 1))
        count = op.Shape(x)
        values, positions = op.TopK(x, count, largest=int(descending), sorted=1)
        is_new = op.Not(op.Equal(op.Slice(values, second, end), op.Slice(values, first, op.Sub(count, second))))
        before = op.CumSum(op.Concat(first, op.Cast(is_new, to=7), axis=0), op.Constant(value_int=0))
        order, _ = op.TopK(op.Add(op.Mul(before, count), positions), count, largest=0, sorted=1)
        return values, op.Mod(order, op.Max(count, second))  # of nothing at all, the rest of a division by 0

    def nms(boxes: Any, scores: Any, iou_threshold: float) -> Any:
        # ONNX knows it in 32 bits only; PyTorch's own form fails on the 64 bits that it gets here.
        boxes = op.Unsqueeze(op.Cast(boxes, to=1), op.Constant(value_ints=[0]))
        scores = op.Unsqueeze(op.Cast(scores, to=1), op.Constant(value_ints=[0, 1]))
        limit, threshold = op.Constant(value_ints=[2**31 - 1]), op.Constant(value_floats=[iou_threshold])
        kept = op.NonMaxSuppression(boxes, scores, limit, threshold)
        return op.Gather(kept, op.Constant(value_int=2), axis=1)

    return {torch.ops.aten.sort.stable: sort, torch.ops.torchvision.nms.default: nms}


def write_openvino(onnx: Path, path: Path, metadata: Metadata) -> None:
    """Convert an ONNX file to an OpenVINO .xml and .bin file, in float32."""
    import openvino

    model = openvino.Core().read_model(str(onnx))
    model.set_rt_info(metadata.to_json(), [METADATA_KEY])
    openvino.save_model(model, str(path), compress_to_fp16=False)
