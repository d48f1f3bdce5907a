"""ONNX files in 8-bit integers, calibrated by images."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..errors import UserError
from ..io import read_image
from .session import Metadata

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff"}
# More images change the ranges of values little.
_MOST = 64


def find_images(folder: str | Path) -> list[Path]:
    """Return at most 64 images of a folder, spread over all of them; raise ``UserError`` if there is none."""
    paths = sorted(path for path in Path(folder).rglob("*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise UserError(f"{folder} holds no images to calibrate 8-bit integers by; name another folder (--int8)")
    return paths[:: -(-len(paths) // _MOST)]


class _Reader:
    """Images at the size of the network, as ONNX Runtime's quantization asks for them."""

    def __init__(self, images: Sequence[Path], metadata: Metadata) -> None:
        self._images: Iterator[Path] = iter(tqdm(images, desc="calibrate", unit="image"))
        self._metadata = metadata

    def get_next(self) -> dict[str, np.ndarray] | None:
        """Return the next input, or None after the last."""
        path = next(self._images, None)
        return None if path is None else {"image": self._metadata.resize(read_image(path))}

    def __iter__(self) -> Iterator[dict[str, np.ndarray]]:
        return iter(self.get_next, None)


def write_quantized(onnx: Path, path: Path, images: Sequence[Path], metadata: Metadata) -> None:
    """Quantize the convolutions and fully connected layers of an ONNX file.

    Weights are quantized per output channel, activations by the ranges that they have on the images.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    logging.disable(logging.WARNING)  # it recommends a preparation by tools of its own, which these files do not need
    try:
        quantize_static(
            str(onnx),
            str(path),
            _Reader(images, metadata),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "Gemm"],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.MinMax,
            calibration_providers=["CPUExecutionProvider"],
        )
    finally:
        logging.disable(logging.NOTSET)
