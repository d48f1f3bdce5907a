"""Panoptic evaluation against Detectron2's COCOPanopticEvaluator and panopticapi."""

import contextlib
import io
import json
import tempfile
from pathlib import Path

import numpy as np
import torch
from detectron2.data import DatasetCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.evaluation import pq_compute
from PIL import Image

from ..data.images import ids_to_rgb
from ..data.prepare.writer import measure_segments
from ..data.register import register_panoptic
from ..evaluation import PanopticEvaluator
from ..evaluation.from_files import evaluate_files
from .measure import Case, compare_times

CATEGORIES = [{"id": i + 1, "name": f"class {i}", "isthing": int(i >= 11)} for i in range(19)]


def _street(random: np.random.RandomState, height: int, width: int) -> tuple[np.ndarray, list[dict]]:
    """A band of each stuff class and 40 elliptic instances, some crowd, some void."""
    ids = np.zeros((height, width), np.int32)
    segments = []
    for c in range(11):
        ids[c * height // 11 : (c + 1) * height // 11] = 1000 + c
        segments.append({"id": 1000 + c, "category_id": c + 1, "iscrowd": 0})
    y, x = np.ogrid[:height, :width]
    for k in range(40):
        cy, cx = random.randint(height), random.randint(width)
        ry, rx = random.randint(8, height // 8), random.randint(8, width // 10)
        y0, y1, x0, x1 = max(cy - ry, 0), min(cy + ry, height), max(cx - rx, 0), min(cx + rx, width)
        inside = ((y[y0:y1] - cy) / ry) ** 2 + ((x[:, x0:x1] - cx) / rx) ** 2 < 1
        ids[y0:y1, x0:x1][inside] = 70_000 + 17 * k
        segments.append({"id": 70_000 + 17 * k, "category_id": 12 + k % 8, "iscrowd": int(k % 13 == 0)})
    ids[:, -20:] = 0
    return ids, measure_segments(ids, segments)


def _write(root: Path, count: int, height: int, width: int) -> dict[str, Path]:
    random = np.random.RandomState(0)
    for folder in ("images", "truth", "prediction"):
        (root / folder).mkdir()
    content = {"truth": [], "prediction": []}
    images = [{"id": n, "file_name": f"{n}.png", "height": height, "width": width} for n in range(count)]
    for n in range(count):
        ids, segments = _street(random, height, width)
        shifted = np.roll(ids, 9, axis=1)
        for name, array, info in (
            ("truth", ids, segments),
            ("prediction", shifted, measure_segments(shifted, [{**s, "iscrowd": 0} for s in segments])),
        ):
            Image.fromarray(ids_to_rgb(array)).save(root / name / f"{n}.png", compress_level=1)
            content[name].append({"image_id": n, "file_name": f"{n}.png", "segments_info": info})
    for name, annotations in content.items():
        text = json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
        (root / f"{name}.json").write_text(text)
    return {"image_dir": root / "images", "panoptic_dir": root / "truth", "panoptic_json": root / "truth.json"}


def _outputs(root: Path, count: int) -> list[dict]:
    """The predictions as a model returns them."""
    outputs = []
    for annotation in json.loads((root / "prediction.json").read_text())["annotations"][:count]:
        rgb = np.asarray(Image.open(root / "prediction" / annotation["file_name"])).astype(np.int32)
        ids = rgb[..., 0] + 256 * rgb[..., 1] + 65536 * rgb[..., 2]
        order = {s["id"]: k for k, s in enumerate(annotation["segments_info"], 1)}
        values, inverse = np.unique(ids, return_inverse=True)
        panoptic = np.array([order.get(v, 0) for v in values.tolist()], np.int32)[inverse].reshape(ids.shape)
        info = [
            {
                "id": k,
                "isthing": s["category_id"] > 11,
                "category_id": s["category_id"] - (12 if s["category_id"] > 11 else 1),
            }
            for k, s in enumerate(annotation["segments_info"], 1)
        ]
        outputs.append({"panoptic_seg": (torch.from_numpy(panoptic), info)})
    return outputs


def _copied(outputs: list[dict]) -> list[dict]:
    # Detectron2's evaluator pops keys from the dicts it is given.
    return [{"panoptic_seg": (o["panoptic_seg"][0], [dict(s) for s in o["panoptic_seg"][1]])} for o in outputs]


def benchmark_evaluation(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """Pairs of 1024x2048 maps: from tensors against COCOPanopticEvaluator, from files against panopticapi."""
    count, height, width = (4, 128, 256) if quick else (20, 1024, 2048)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        name = f"benchmark_evaluation_{count}"
        files = _write(root, count, height, width)
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
        register_panoptic(name, **files)
        records, outputs = DatasetCatalog.get(name), _outputs(root, count)
        results = {}

        def run(kind: type) -> None:
            evaluator = kind(name)
            evaluator.reset()
            for record, output in zip(records, _copied(outputs), strict=True):
                evaluator.process([record], [output])
            results[kind] = evaluator.evaluate()["panoptic_seg"]["PQ"]

        def api() -> None:
            with contextlib.redirect_stdout(io.StringIO()):
                arguments = (root / "truth.json", root / "prediction.json", root / "truth", root / "prediction")
                results["api"] = pq_compute(*map(str, arguments))["All"]["pq"]

        def ours_from_files() -> None:
            results["files"] = evaluate_files(root / "prediction.json", root / "truth.json")[0]["All"]["pq"]

        title = f"{count} pairs of {height}x{width}"
        other = (lambda: run(COCOPanopticEvaluator)) if against else None
        cases = [
            compare_times(f"{title}, from tensors", lambda: run(PanopticEvaluator), other, repeats=3),
            compare_times(f"{title}, from files", ours_from_files, api if against else None, repeats=3),
        ]
        if against:
            difference = max(
                abs(results[PanopticEvaluator] - results[COCOPanopticEvaluator]),
                100 * abs(results["files"] - results["api"]),
            )
            cases = [
                Case(c.name, c.ours, c.other, c.unit, c.spread, f"largest difference of PQ: {difference:.1e}")
                for c in cases
            ]
        return cases
