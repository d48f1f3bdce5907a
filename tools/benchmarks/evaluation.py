"""Panoptic evaluation against Detectron2's COCOPanopticEvaluator and panopticapi."""

import contextlib
import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import COCOPanopticEvaluator
from panopticapi.evaluation import pq_compute
from PIL import Image

from seamless_d2.data.registration import register_panoptic
from seamless_d2.evaluation import PanopticEvaluator
from seamless_d2.evaluation.from_files import accumulate, evaluate_files, read_pairs, summarize
from seamless_d2.evaluation.with_hotcoco import PanopticEval
from seamless_d2.io import ids_to_rgb, read_id_map
from seamless_d2.structures.id_maps import measure_segments

from .measure import Case, compare_times
from .peak_memory import peak_memory

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


def _write(root: Path, count: int, height: int, width: int) -> None:
    random = np.random.RandomState(0)
    for folder in ("images", "ground_truth", "prediction"):
        (root / folder).mkdir()
    content = {"ground_truth": [], "prediction": []}
    images = [{"id": n, "file_name": f"{n}.png", "height": height, "width": width} for n in range(count)]
    for n in range(count):
        ids, segments = _street(random, height, width)
        shifted = np.roll(ids, 9, axis=1)
        for name, array, info in (
            ("ground_truth", ids, segments),
            ("prediction", shifted, measure_segments(shifted, [{**s, "iscrowd": 0} for s in segments])),
        ):
            Image.fromarray(ids_to_rgb(array)).save(root / name / f"{n}.png", compress_level=1)
            content[name].append({"image_id": n, "file_name": f"{n}.png", "segments_info": info})
    for name, annotations in content.items():
        text = json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES})
        (root / f"{name}.json").write_text(text)


def _outputs(root: Path) -> list[tuple[np.ndarray, list[dict]]]:
    """The predictions as a model returns them, the maps as uint8 to save memory."""
    outputs = []
    for annotation in json.loads((root / "prediction.json").read_text())["annotations"]:
        ids = read_id_map(root / "prediction" / annotation["file_name"])
        info = annotation["segments_info"]
        table = np.zeros(int(ids.max(initial=0)) + 1, np.uint8)
        table[[s["id"] for s in info]] = np.arange(1, len(info) + 1)
        segments = [
            {
                "id": k,
                "isthing": s["category_id"] > 11,
                "category_id": s["category_id"] - (12 if s["category_id"] > 11 else 1),
            }
            for k, s in enumerate(info, 1)
        ]
        outputs.append((table[ids], segments))
    return outputs


class Evaluations:
    """The four evaluations of one set of pairs; each returns {"PQ", "SQ", "RQ"} in percent."""

    def __init__(self, root: Path, count: int) -> None:
        name = f"benchmark_evaluation_{count}"
        if name in DatasetCatalog.list():
            DatasetCatalog.remove(name)
            MetadataCatalog.remove(name)
        register_panoptic(name, root / "images", root / "ground_truth", root / "ground_truth.json")
        self.root, self.name, self.outputs = root, name, _outputs(root)

    def _from_tensors(self, kind: type) -> dict[str, float]:
        evaluator = kind(self.name)
        evaluator.reset()
        for record, (ids, segments) in zip(DatasetCatalog.get(self.name), self.outputs, strict=True):
            # Copies: Detectron2's evaluator pops keys from the dicts it is given.
            panoptic = torch.from_numpy(ids).int(), [dict(s) for s in segments]
            evaluator.process([record], [{"panoptic_seg": panoptic}])
        result = evaluator.evaluate()["panoptic_seg"]
        return {key: result[key] for key in ("PQ", "SQ", "RQ")}

    def tensors_ours(self) -> dict[str, float]:
        return self._from_tensors(PanopticEvaluator)

    def tensors_other(self) -> dict[str, float]:
        return self._from_tensors(COCOPanopticEvaluator)

    def files_ours(self) -> dict[str, float]:
        files = self.root / "prediction.json", self.root / "ground_truth.json"
        return _percent(evaluate_files(*files, class_iou=False)[0])

    def files_own_pass(self) -> dict[str, float]:
        """Ours without hotcoco, as the IoU of classes and the reports need it."""
        files = read_pairs(self.root / "prediction.json", self.root / "ground_truth.json")
        return _percent(summarize(accumulate(files), files))

    def files_other(self) -> dict[str, float]:
        arguments = ("ground_truth.json", "prediction.json", "ground_truth", "prediction")
        with contextlib.redirect_stdout(io.StringIO()):
            return _percent(pq_compute(*(str(self.root / name) for name in arguments)))


def evaluation_job(device: str, root: Path, count: int, method: str) -> Callable[[], object]:
    """Prepare one of the ``Evaluations``, for ``peak_memory``."""
    return getattr(Evaluations(root, count), method)


def _percent(result: dict[str, Any]) -> dict[str, float]:
    return {key.upper(): 100 * float(result["All"][key]) for key in ("pq", "sq", "rq")}


def benchmark_evaluation(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """Pairs of 1024x2048 maps: from tensors against COCOPanopticEvaluator, from files against panopticapi.

    Seconds, and the memory that each adds at its peak to a process of its own, children included.
    """
    count, height, width = (4, 128, 256) if quick else (100, 1024, 2048)
    cases: list[Case] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write(root, count, height, width)
        evaluations = Evaluations(root, count)
        fast = "hotcoco" if PanopticEval is not None else "own pass"
        for title, ours, other in (
            ("from tensors", "tensors_ours", "tensors_other"),
            (f"from files ({fast})", "files_ours", "files_other"),
            ("from files, own pass", "files_own_pass", "files_other"),
        ):
            results: dict[str, dict[str, float]] = {}

            def run(method: str, results: dict = results) -> None:
                results[method] = getattr(evaluations, method)()

            case = compare_times(
                f"{count} pairs of {height}x{width}, {title}",
                partial(run, ours),
                partial(run, other) if against else None,
                repeats=1 if quick else 3,
            )
            if against:
                difference = max(abs(results[ours][key] - results[other][key]) for key in results[ours])
                case = replace(case, note=f"largest difference of PQ, SQ, RQ: {difference:.1e} points")
            cases.append(case)
            if quick:
                continue
            methods = [ours, *([other] if against else [])]
            memory = {m: peak_memory(evaluation_job, "cpu", root, count, m) for m in methods}
            if memory[ours] is not None:
                cases.append(Case(f"{case.name}, added memory", memory[ours], memory.get(other), "bytes"))
    return cases
