"""Exported models on a CPU: OpenVINO and ONNX Runtime against our eager mode and Detectron2's stock PanopticFPN."""

import dataclasses
import importlib.util
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from detectron2.config import CfgNode
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.export.exporter import ExportOptions, describe, find_min_size, trace
from seamless_d2.export.graph import ExportForm
from seamless_d2.export.onnx_file import quiet, write_onnx
from seamless_d2.export.quantize import write_quantized
from seamless_d2.export.session import ExportedModel

from .eager import Inference
from .measure import Case, case_of_times, measure_times
from .models import build_for_inference, our_config, stock_config, street_image
from .peak_memory import peak_memory

CONFIG = "cityscapes/seamless_R_50_FPN"
SIZES = ((512, 1024), (1024, 2048))
# The ratios to reach: (of eager in fp32, of stock PanopticFPN in fp32), both "other / ours".
_TARGETS = {"openvino fp32": (1 / 0.65, 2.0), "openvino bf16": (1 / 0.4, 4.0)}
# Of 8-bit integers: fp32 in the same engine / ours.
_INT8_TARGET = 1 / 0.7


def engine_job(device: str, file: str, engine: str, height: int, width: int) -> Callable[[], object]:
    """Prepare a prediction by an exported file."""
    return partial(ExportedModel(file, engine).run, street_image(height, width).numpy())


def eager_job(device: str, config: str, height: int, width: int) -> Callable[[], object]:
    """Prepare a prediction by our model in eager mode."""
    return Inference(build_for_inference(our_config(config, "cpu")), street_image(height, width))


def write_benchmark_file(cfg: CfgNode, folder: Path) -> Path:
    """Write the model of the benchmarks, which finds 100 things everywhere, as ONNX; it is not verified."""
    model, path = build_for_inference(cfg), folder / "model.onnx"
    options = ExportOptions(min_size=find_min_size(model, ExportOptions()))
    with quiet():
        write_onnx(trace(ExportForm(model, cfg.INPUT.FORMAT), options), path, 20, describe(cfg, model, options))
    return path


def write_int8_file(file: Path) -> Path:
    """Write the file of the benchmarks in 8-bit integers too, calibrated by a small image of the benchmarks."""
    image, path = file.with_name("street.png"), file.with_name("model_int8.onnx")
    Image.fromarray(street_image(256, 512).permute(1, 2, 0).numpy()).save(image)
    write_quantized(file, path, [image], dataclasses.replace(ExportedModel(file).metadata, short_side=0))
    return path


def _make_runners(file: Path, int8: Path | None, height: int, width: int) -> dict[str, Callable[[], object]]:
    """Return the engines that are installed, in the precisions that this CPU has."""
    image, runners = street_image(height, width).numpy(), {}
    for engine, precision, path in (
        ("openvino", "fp32", file),
        ("openvino", "bf16", file),
        ("openvino", "int8", int8),
        ("onnxruntime", "fp32", file),
        ("onnxruntime", "int8", int8),
    ):
        if path and importlib.util.find_spec(engine):
            try:
                model = ExportedModel(path, engine, amp=precision == "bf16")
                runners[f"{engine} {precision}"] = partial(model.run, image)
            except UserError:
                if precision != "bf16":  # which not every CPU has
                    raise
    return runners


def compare_engines(
    cfg: CfgNode, file: Path, int8: Path | None, height: int, width: int, against: bool, repeats: int
) -> list[Case]:
    """Compare every engine with eager mode, all with stock PanopticFPN, and ``int8`` with ``file``, at one size."""
    image = street_image(height, width)
    runners = _make_runners(file, int8, height, width)
    eager = Inference(build_for_inference(cfg), image)
    others: list[Callable[[], object]] = [eager]
    if against:
        stock = build_for_inference(stock_config(cfg))
        others.append(Inference(stock, image))
        if "openvino bf16" in runners:  # without such instructions, bfloat16 takes minutes in eager mode
            others.append(Inference(stock, image, torch.bfloat16))
    times = measure_times([*runners.values(), *others], "cpu", repeats)
    named = dict(zip(runners, times, strict=False))
    size, cases = f"{height}x{width}", []
    for name, seconds in named.items():
        targets = _TARGETS.get(name, (None, None))
        cases.append(case_of_times(f"{size} {name}, other: eager fp32", seconds, times[len(runners)], "", targets[0]))
        if name.endswith("int8"):
            same = name.replace("int8", "fp32")
            cases.append(case_of_times(f"{size} {name}, other: {same}", seconds, named[same], "", _INT8_TARGET))
        if against:
            for precision, stock_times in zip(("fp32", "bf16"), times[len(runners) + 1 :], strict=False):
                target = targets[1] if precision == "fp32" else None
                case = f"{size} {name}, other: stock {precision}"
                cases.append(case_of_times(case, seconds, stock_times, "", target))
    return cases


def compare_memory(cfg: CfgNode, file: Path, height: int, width: int) -> list[Case]:
    """Compare the memory of whole processes that predict one image: each engine, and eager mode."""
    eager = peak_memory(eager_job, "cpu", CONFIG, height, width, total=True)
    cases = []
    for engine in ("openvino", "onnxruntime"):
        if importlib.util.find_spec(engine):
            ours = peak_memory(engine_job, "cpu", str(file), engine, height, width, total=True)
            if ours is not None and eager is not None:
                name = f"{height}x{width} {engine} fp32, peak memory of the process, other: eager"
                cases.append(Case(name, ours, eager, "bytes"))
    return cases


def benchmark_engines(against: bool) -> list[Case]:
    """Speed and memory of exported models on a CPU, with 100 detections."""
    cfg = our_config(CONFIG, "cpu")
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        file = write_benchmark_file(cfg, Path(folder))
        int8 = write_int8_file(file) if importlib.util.find_spec("onnxruntime") else None
        for height, width in SIZES:
            cases += compare_engines(cfg, file, int8, height, width, against, repeats=3)
            cases += compare_memory(cfg, file, height, width)
    return cases
