"""PQ in Detectron2's evaluation loop, accumulated per image."""

import io
import logging
import os
from collections import OrderedDict, deque
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm
from PIL import Image

from ..errors import UserError
from ..io import atomic_write, ids_to_rgb, rgb_to_ids, write_json
from ..structures.classes import Classes
from .dataset_statistics import DatasetStatistics
from .ground_truth import read_ground_truth
from .model_output import read_panoptic_seg
from .panoptic_quality import ImageMatch, Segments, match_image
from .tables import averages, format_averages

# The number of images that may wait for their comparison while the network runs, which bounds the memory.
MAX_PENDING = 4


class PanopticEvaluator(DatasetEvaluator):
    """Evaluates PQ, SQ and RQ of all, thing and stuff classes, and PQ of each class.

    The numbers are those of Detectron2's ``COCOPanopticEvaluator``, but predictions are neither written to disk nor
    sent to rank 0; of each image only the row of ``DatasetStatistics`` is kept.
    """

    def __init__(
        self,
        dataset_name: str,
        output_dir: str | None = None,
        *,
        save_predictions: bool = False,
        rules: str = "panopticapi",
        resize_ground_truth: bool = False,
    ) -> None:
        """
        Args:
            dataset_name: The name of a registered panoptic data set.
            output_dir: The folder of the predictions.
            save_predictions: Whether the predicted PNGs and predictions.json (COCO panoptic) are written to
                ``output_dir``.
            rules: The rules for void and crowd, see ``match_counts``.
            resize_ground_truth: Whether the ground truth is resized to the prediction by nearest sampling; segments
                that vanish there do not count.
        """
        self.dataset_name = dataset_name
        self.classes = Classes.from_metadata(MetadataCatalog.get(dataset_name))
        self.records = {record["image_id"]: record for record in DatasetCatalog.get(dataset_name)}
        self.output_dir = Path(output_dir) if output_dir else None
        self.save_predictions = save_predictions and self.output_dir is not None
        self.rules = rules
        self.resize_ground_truth = resize_ground_truth
        self._logger = logging.getLogger(__name__)
        self.reset()

    def reset(self) -> None:
        self.statistics = DatasetStatistics(len(self.classes.names))
        self._pending: deque[tuple[Any, np.ndarray, Future]] = deque()
        self._pool = ThreadPoolExecutor(2)
        self._annotations: list[dict[str, Any]] = []

    def process(self, inputs: list[dict], outputs: list[dict]) -> None:
        """Add "panoptic_seg" of some images; threads read the ground truth and compare it in the background."""
        for entry, output in zip(inputs, outputs, strict=True):
            panoptic_seg, segments_info = read_panoptic_seg(output, self.classes)
            ids = panoptic_seg.cpu().numpy()
            # The threads work on copies, because the dicts belong to the model.
            scores = np.array([s.get("score", np.nan) for s in segments_info], np.float64)
            segments = Segments(
                np.array([s["id"] for s in segments_info], np.int64),
                np.array([self.classes.to_label(s) for s in segments_info], np.int64),
                np.zeros(len(segments_info), bool),
                scores=scores,
            )
            image_id = entry["image_id"]
            self._pending.append((image_id, ids, self._pool.submit(self._compare, image_id, ids, segments)))
            if self.save_predictions:
                self._save(image_id, ids, segments)
            self._collect(MAX_PENDING)

    def _collect(self, left: int) -> None:
        """Add the results of finished comparisons until at most ``left`` are pending."""
        while len(self._pending) > left:
            image_id, ids, match = self._pending.popleft()
            self.statistics.add(match.result(), image_id, ids)

    def gt_segments(self, record: dict[str, Any]) -> Segments:
        """Return the true segments of a record of the data set."""
        info = record["segments_info"]
        return Segments(
            np.array([s["id"] for s in info], np.int64),
            np.array([self.classes.to_label(s) for s in info], np.int64),
            np.array([bool(s["iscrowd"]) for s in info], bool),
        )

    def _compare(self, image_id: Any, ids: np.ndarray, predicted: Segments) -> ImageMatch:
        """Read the ground truth of one image and match its segments."""
        record = self.records[image_id]
        ground_truth = self.gt_segments(record)
        image = read_ground_truth(record["pan_seg_file_name"], ids.shape if self.resize_ground_truth else None)
        if self.resize_ground_truth:
            ground_truth = ground_truth.select(np.isin(ground_truth.ids, rgb_to_ids(image)))
        try:
            return match_image(image, ground_truth, ids, predicted, self.rules)
        except UserError as error:
            raise UserError(f"{record['file_name']}: {error}") from None

    def _save(self, image_id: Any, ids: np.ndarray, segments: Segments) -> None:
        """Write the predicted PNG of one image and remember its annotation."""
        name = f"{image_id}.png".replace("/", "_")
        buffer = io.BytesIO()
        Image.fromarray(ids_to_rgb(ids)).save(buffer, format="PNG")
        with atomic_write(self.output_dir / "predictions" / name) as file:
            file.write(buffer.getvalue())
        areas = np.bincount(ids.ravel(), minlength=int(segments.ids.max(initial=0)) + 1)
        info = []
        for i, label, score in zip(segments.ids.tolist(), segments.classes, segments.scores.tolist(), strict=True):
            entry = {"id": i, "category_id": self.classes.dataset_ids[label], "area": int(areas[i])}
            info.append(entry if np.isnan(score) else {**entry, "score": score})
        self._annotations.append({"image_id": image_id, "file_name": name, "segments_info": info})

    def evaluate(self) -> OrderedDict | None:
        """Return the metrics in percent on rank 0, None on the others.

        Returns:
            {"panoptic_seg": metrics} with Detectron2's keys and PQ-CLASS.
        """
        self._collect(0)
        self._pool.shutdown()
        gathered = comm.gather(self.statistics)
        annotations = comm.gather(self._annotations) if self.save_predictions else []
        if not comm.is_main_process():
            return None
        total = DatasetStatistics(len(self.classes.names))
        for statistics in gathered:
            total += statistics
        self.statistics = total
        result = {}
        means = averages(total.quality, self.classes, self.rules)
        for average, suffix in zip(means.values(), ("", "_th", "_st"), strict=True):
            result |= {f"{key.upper()}{suffix}": 100 * average[key] for key in ("pq", "sq", "rq")}
        self._logger.info(f"Panoptic quality:\n{format_averages(means)}")
        per_class = total.quality.per_class()
        result |= {f"PQ-{name}": 100 * float(per_class["pq"][k]) for k, name in enumerate(self.classes.names)}
        if self.save_predictions:
            self._write_json([a for part in annotations for a in part])
        return OrderedDict({"panoptic_seg": result})

    def _write_json(self, annotations: list[dict[str, Any]]) -> None:
        """Write predictions.json (COCO panoptic) of all images."""
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
