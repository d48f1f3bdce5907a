"""Streaming PQ for Detectron2's evaluation loop: sums per image, nothing gathered but the sums."""

import csv
import io
import logging
import os
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image
from tabulate import tabulate

from ..data.images import ids_to_rgb, read_id_map
from ..data.metadata import Classes
from ..files import atomic_write, write_json
from .panoptic_quality import PanopticStatistics, Segments, add_image

# Images whose truth is being read while the network goes on; bounds the memory.
MAX_PENDING = 4


class PanopticEvaluator(DatasetEvaluator):
    """PQ, SQ, RQ over all, thing and stuff classes and per class, accumulated image by image.

    The same numbers as Detectron2's ``COCOPanopticEvaluator``, without writing predictions to disk or sending them to
    rank 0; memory does not grow with the number of images.
    """

    def __init__(self, dataset_name: str, output_dir: str | None = None, *, save_predictions: bool = False) -> None:
        """
        Args:
            dataset_name: a registered panoptic data set.
            output_dir: where per_class.csv (and predictions) go; None = nowhere.
            save_predictions: also write the predicted PNGs and predictions.json (COCO panoptic) into ``output_dir``.
        """
        self.classes = Classes.from_metadata(dataset_name)
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        self.output_dir = Path(output_dir) if output_dir else None
        self.save_predictions = save_predictions and self.output_dir is not None
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        self.statistics = PanopticStatistics(len(self.classes.names))
        self._pending: deque[Future] = deque()
        self._pool = ThreadPoolExecutor(2)
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Take the model's "panoptic_seg" of some images; truth is read and compared in the background."""
        for entry, output in zip(inputs, outputs, strict=True):
            panoptic_seg, segments_info = output["panoptic_seg"]
            ids = panoptic_seg.cpu().numpy()
            # Copies of what is needed: the dicts stay the model's.
            segments = [(s["id"], self._label(s)) for s in segments_info]
            self._pending.append(self._pool.submit(self._compare, entry["image_id"], ids, segments))
            if self.save_predictions:
                self._save(entry["image_id"], ids, segments)
            while len(self._pending) > MAX_PENDING:
                self.statistics += self._pending.popleft().result()

    def _label(self, segment: dict[str, Any]) -> int:
        return segment["category_id"] + (self.classes.num_stuff if segment["isthing"] else 0)

    def _compare(self, image_id: Any, ids: np.ndarray, segments: list[tuple[int, int]]) -> PanopticStatistics:
        record = self.records[image_id]
        info = record["segments_info"]
        truth = Segments(
            np.array([s["id"] for s in info], np.int64),
            np.array([self._label(s) for s in info], np.int64),
            np.array([bool(s["iscrowd"]) for s in info], bool),
        )
        predicted = Segments(
            np.array([i for i, _ in segments], np.int64),
            np.array([label for _, label in segments], np.int64),
            np.zeros(len(segments), bool),
        )
        statistics = PanopticStatistics(len(self.classes.names))
        add_image(statistics, read_id_map(record["pan_seg_file_name"]), truth, ids, predicted)
        return statistics

    def _save(self, image_id: Any, ids: np.ndarray, segments: list[tuple[int, int]]) -> None:
        name = f"{image_id}.png".replace("/", "_")
        buffer = io.BytesIO()
        Image.fromarray(ids_to_rgb(ids)).save(buffer, format="PNG")
        with atomic_write(self.output_dir / "predictions" / name) as file:
            file.write(buffer.getvalue())
        info = [
            {"id": int(i), "category_id": self.classes.dataset_ids[label], "area": int((ids == i).sum())}
            for i, label in segments
        ]
        self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": info})

    def evaluate(self) -> OrderedDict | None:
        """The metrics in percent on rank 0, keys as Detectron2's plus "PQ-CLASS"; None elsewhere."""
        while self._pending:
            self.statistics += self._pending.popleft().result()
        self._pool.shutdown()
        gathered = comm.gather(self.statistics)
        annotations = comm.gather(self._annotations) if self.save_predictions else []
        if not comm.is_main_process():
            return None
        total = PanopticStatistics(len(self.classes.names))
        for statistics in gathered:
            total += statistics
        self.statistics = total
        isthing = np.arange(len(self.classes.names)) >= self.classes.num_stuff
        result, rows = {}, []
        for name, suffix, chosen in (("All", "", None), ("Things", "_th", isthing), ("Stuff", "_st", ~isthing)):
            average = total.average(chosen)
            rows.append([name, *(100 * average[k] for k in ("pq", "sq", "rq")), average["n"]])
            result |= {f"{key.upper()}{suffix}": 100 * average[key] for key in ("pq", "sq", "rq")}
        table = tabulate(rows, ["", "PQ", "SQ", "RQ", "#categories"], tablefmt="pipe", floatfmt=".3f")
        self._logger.info(f"Panoptic quality:\n{table}")
        per_class = total.per_class()
        result |= {f"PQ-{name}": 100 * float(per_class["pq"][k]) for k, name in enumerate(self.classes.names)}
        if self.output_dir is not None:
            self._write_files(per_class, [a for part in annotations for a in part])
        return OrderedDict({"panoptic_seg": result})

    def _write_files(self, per_class: dict[str, np.ndarray], annotations: list[dict[str, Any]]) -> None:
        with atomic_write(self.output_dir / "per_class.csv", "w") as file:
            writer = csv.writer(file)
            writer.writerow(["class", "kind", *per_class])
            for k, name in enumerate(self.classes.names):
                kind = "thing" if k >= self.classes.num_stuff else "stuff"
                writer.writerow([name, kind, *(value[k].item() for value in per_class.values())])
        if self.save_predictions:
            images = [
                {
                    "id": r["image_id"],
                    "file_name": os.path.basename(r["file_name"]),
                    "height": r["height"],
                    "width": r["width"],
                }
                for r in self.records.values()
            ]
            write_json(
                self.output_dir / "predictions.json",
                {"images": images, "annotations": annotations, "categories": self.classes.to_categories()},
            )
