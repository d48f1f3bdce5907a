"""Exported models as they are run, without PyTorch (but for .pt2 files) and without Detectron2."""

import importlib
import importlib.util
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
from PIL import Image

from ..errors import UserError
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo

#: The outputs of an exported model, in their order.
OUTPUTS = ("panoptic", "category", "isthing", "score", "area", "box")
#: The key of the metadata inside a file, which are json.
METADATA_KEY = "seamless_d2"
#: The engines that read files of each suffix, the first is the default.
ENGINES = {".onnx": ("onnxruntime", "openvino"), ".xml": ("openvino",), ".pt2": ("torch",)}
Size = tuple[int, int]
Run = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Metadata:
    """What an exported file says of itself.

    Attributes:
        classes: Names, colors and data set ids of the classes, and how many of them are stuff.
        min_size: The least height and width that the file accepts, in pixels.
        max_size: The largest (height, width).
        short_side: The length in pixels to which the shorter side of an image is resized; 0 means never.
        long_side: The largest length of the longer side after that.
        truncate: Whether new sides are truncated to whole pixels instead of rounded.
        thresholds: ``score``, ``overlap`` and ``stuff_area`` of the fusion.
        config: The configuration of the model as yaml.
        weights_sha256: The hash of the checkpoint; empty if there was none.
        versions: The versions of the programs that made the file.
        interpolation: How images are resized, "bilinear" or "bicubic".
    """

    classes: Classes
    min_size: int
    max_size: Size
    short_side: int
    long_side: int
    truncate: bool
    thresholds: dict[str, float]
    config: str
    weights_sha256: str
    versions: dict[str, str]
    interpolation: str = "bilinear"

    def to_json(self) -> str:
        """Return the metadata as the json text that is stored in the file."""
        classes = self.classes
        listed = {"names": classes.names, "colors": classes.colors, "dataset_ids": classes.dataset_ids}
        return json.dumps({**self.__dict__, "classes": {**listed, "num_stuff": classes.num_stuff}, "fuse_at": "input"})

    @classmethod
    def from_json(cls, text: str, source: Path) -> "Metadata":
        """Read the json text of a file; raise ``UserError`` if it is not that of an exported model."""
        try:
            content = json.loads(text)
            content.pop("fuse_at")
            listed = content.pop("classes")
            classes = Classes(
                listed["names"], [tuple(c) for c in listed["colors"]], listed["dataset_ids"], listed["num_stuff"]
            )
            return cls(classes=classes, **{**content, "max_size": tuple(content["max_size"])})
        except (ValueError, TypeError, KeyError, AttributeError):
            raise UserError(f"{source} is no model that tools/export_model.py has written; export it again") from None

    def get_network_size(self, height: int, width: int) -> Size:
        """Return the (height, width) at which the network sees an image, as Detectron2's ``ResizeShortestEdge``."""
        if not self.short_side:
            return height, width
        scale = self.short_side / min(height, width)
        if self.truncate:
            if int(max(height, width) * scale) > self.long_side:
                scale = self.long_side / max(height, width)
            return int(height * scale), int(width * scale)
        sides = (self.short_side, scale * width) if height < width else (scale * height, self.short_side)
        shrink = self.long_side / max(sides) if max(sides) > self.long_side else 1.0
        return int(sides[0] * shrink + 0.5), int(sides[1] * shrink + 0.5)

    def resize(self, image: np.ndarray) -> np.ndarray:
        """Return a (H, W, 3) uint8 RGB image as the (3, h, w) array at the size of the network."""
        height, width = self.get_network_size(*image.shape[:2])
        if (height, width) != image.shape[:2]:
            image = np.asarray(
                Image.fromarray(image).resize((width, height), Image.Resampling[self.interpolation.upper()])
            )
        return np.ascontiguousarray(image.transpose(2, 0, 1))


class ExportedModel:
    """A model that ``tools/export_model.py`` has written, ready to run.

    Attributes:
        path: The file.
        engine: "onnxruntime", "openvino" or "torch".
        precision: "float32" or "bfloat16": what the engine computes in.
        metadata: What the file says of itself.
    """

    def __init__(self, path: str | Path, engine: str | None = None, *, amp: bool = False) -> None:
        """
        Args:
            path: A file with suffix .onnx, .xml (OpenVINO, with its .bin beside it) or .pt2.
            engine: What runs it; default the first one of ``ENGINES`` that is installed.
            amp: Whether to compute in bfloat16, which only OpenVINO can, and only on CPUs that have it.

        Raises:
            UserError: The file does not exist or is none of ours, the engine cannot read it or is not installed, or
                there is no bfloat16.
        """
        self.path = Path(path)
        self.engine = choose_engine(self.path, engine)
        if not self.path.is_file():
            raise UserError(f"the exported model {self.path} does not exist; check the path")
        if amp and self.engine != "openvino":
            raise UserError(f"the engine {self.engine} has no bfloat16; leave out amp (--amp), or use openvino")
        text, self._run, self.precision = _LOADERS[self.engine](self.path, amp)
        self.metadata = Metadata.from_json(text, self.path)

    def run(self, image: np.ndarray) -> tuple[np.ndarray, list[SegmentInfo]]:
        """Predict one image at the size of the network.

        Args:
            image: (3, h, w) uint8 RGB.

        Returns:
            (h, w) int32 map and its segments, as ``fuse_panoptic`` returns them, without ``instance_id``.

        Raises:
            UserError: The file does not accept images of this size.
        """
        height, width = image.shape[1:]
        low, (high, wide) = self.metadata.min_size, self.metadata.max_size
        if not (low <= height <= high and low <= width <= wide):
            raise UserError(
                f"{self.path} takes images of {low}x{low} to {high}x{wide} pixels (height x width), not "
                f"{height}x{width}; resize to another size (--short-side), or export it with other --min-size and "
                "--max-size"
            )
        panoptic, category, isthing, score, area, _ = self._run(image)
        segments: list[SegmentInfo] = []
        for k, is_thing in enumerate(isthing.tolist()):
            info = {"id": k + 1, "isthing": is_thing, "category_id": int(category[k]), "area": int(area[k])}
            segments.append({**info, "score": float(score[k])} if is_thing else info)
        return panoptic, segments

    def run_raw(self, image: np.ndarray) -> dict[str, np.ndarray]:
        """Return the ``OUTPUTS`` for a (3, h, w) uint8 RGB image as the file gives them."""
        return dict(zip(OUTPUTS, self._run(image), strict=True))


def choose_engine(path: Path, engine: str | None) -> str:
    """Return the engine of a file; raise ``UserError`` if it cannot be read, or if the engine is not installed."""
    readers = ENGINES.get(path.suffix)
    if readers is None:
        raise UserError(f"{path} is no exported model; their suffixes are {', '.join(ENGINES)}")
    if engine is None:
        engine = next((name for name in readers if importlib.util.find_spec(name)), readers[0])
    if engine not in readers:
        raise UserError(f"the engine {engine!r} does not read {path.suffix} files; use {' or '.join(readers)}")
    return engine


def summarize(error: Exception) -> str:
    """Return the text of an engine's error, which often has several lines, as at most 300 characters of one line."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def _import(package: str) -> ModuleType:
    try:
        return importlib.import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise
        raise UserError(
            f"the engine {package} is not installed; run `python -m pip install {package}` or choose another one"
        ) from None


def _load_onnxruntime(path: Path, amp: bool) -> tuple[str, Run, str]:
    runtime = _import("onnxruntime")
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its classes are private
        raise UserError(f"{path} cannot be read by ONNX Runtime: {summarize(error)}") from None
    text = session.get_modelmeta().custom_metadata_map.get(METADATA_KEY, "")
    return text, lambda image: session.run(list(OUTPUTS), {"image": image}), "float32"


def _load_openvino(path: Path, amp: bool) -> tuple[str, Run, str]:
    openvino = _import("openvino")
    core = openvino.Core()
    if amp and "BF16" not in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES"):
        raise UserError("this CPU has no bfloat16; leave out amp (--amp)")
    # Without this hint, OpenVINO computes in bfloat16 wherever the CPU has it.
    settings = {"INFERENCE_PRECISION_HINT": "bf16" if amp else "f32", "PERFORMANCE_HINT": "LATENCY"}
    try:
        model = core.read_model(str(path))
        request = core.compile_model(model, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise UserError(f"{path} cannot be read by OpenVINO: {summarize(error)}") from None
    text = ""
    for keys in ([METADATA_KEY], ["framework", METADATA_KEY]):  # the second for files with suffix .onnx
        if model.has_rt_info(keys):
            text = str(model.get_rt_info(keys).value)

    def run(image: np.ndarray) -> list[np.ndarray]:
        request.infer({"image": np.ascontiguousarray(image)})
        return [request.get_tensor(name).data.copy() for name in OUTPUTS]

    return text, run, "bfloat16" if amp else "float32"


def _load_torch(path: Path, amp: bool) -> tuple[str, Run, str]:
    torch = _import("torch")
    _import("torchvision")  # its operations are in the file
    extra = {f"{METADATA_KEY}.json": ""}
    try:
        module = torch.export.load(str(path), extra_files=extra).module()
    except Exception as error:  # the archive's reader raises many kinds
        raise UserError(f"{path} cannot be read by torch.export: {summarize(error)}") from None

    def run(image: np.ndarray) -> list[np.ndarray]:
        with torch.no_grad():
            return [output.numpy() for output in module(torch.from_numpy(np.ascontiguousarray(image)))]

    text = extra[f"{METADATA_KEY}.json"]
    return text.decode() if isinstance(text, bytes) else text, run, "float32"


_LOADERS: dict[str, Any] = {"onnxruntime": _load_onnxruntime, "openvino": _load_openvino, "torch": _load_torch}
