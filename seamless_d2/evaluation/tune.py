"""What ``tools/tune_thresholds.py`` does: the fusion thresholds with the highest PQ on a data set."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_context
from torch import nn
from tqdm import tqdm

from ..data.mapper import SeamlessMapper
from ..errors import UserError
from ..io import rgb_to_ids
from ..modeling.fusion import fuse_panoptic
from .ground_truth import read_ground_truth
from .panoptic_evaluator import PanopticEvaluator
from .threshold_sweep import ThresholdGrid, ThresholdSweep

KEYS = ("OVERLAP_THRESH", "INSTANCES_CONFIDENCE_THRESH", "STUFF_AREA_LIMIT")


@dataclass(frozen=True)
class Tuned:
    """Result of a search.

    Attributes:
        before, after: thresholds by key of MODEL.PANOPTIC_FPN.COMBINE, with "PQ" in percent.
        images: on which they were found.
        table: PQ in percent along each threshold, the other two as in ``after``: {key: [(value, PQ)]}.
    """

    before: dict[str, float]
    after: dict[str, float]
    images: int
    table: dict[str, list[tuple[float, float]]]

    def to_yaml(self) -> str:
        """A config fragment."""
        values = {key: self.after[key] for key in KEYS}
        lines = [f"      {key}: {value!r}" for key, value in values.items()]
        return "\n".join(["MODEL:", "  PANOPTIC_FPN:", "    COMBINE:", *lines, ""])

    def to_overrides(self) -> str:
        """The same for a command line."""
        return " ".join(f"MODEL.PANOPTIC_FPN.COMBINE.{key} {self.after[key]!r}" for key in KEYS)


def make_grid(cfg: CfgNode, scores: list[float], overlaps: list[float], areas: list[float]) -> ThresholdGrid:
    """The given thresholds and the configured ones.

    Raises:
        UserError: a threshold out of its range.
    """
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    for name, values, high in (("scores", scores, 1.0), ("overlaps", overlaps, 1.0), ("areas", areas, np.inf)):
        wrong = [v for v in values if not 0 <= v <= high]
        if wrong or not values:
            limits = "0 or more" if high == np.inf else "0 to 1"
            raise UserError(f"--{name} has {wrong[0] if wrong else 'no value'}; give numbers of {limits}")
    return ThresholdGrid(
        np.unique([*scores, combine.INSTANCES_CONFIDENCE_THRESH]).astype(np.float64),
        np.unique([*overlaps, combine.OVERLAP_THRESH]).astype(np.float64),
        np.unique([*map(int, areas), combine.STUFF_AREA_LIMIT]).astype(np.int64),
    )


@torch.no_grad()
def _add_image(sweep: ThresholdSweep, model: nn.Module, entry: dict[str, Any], evaluator: PanopticEvaluator) -> None:
    output = model.network([entry])[0]
    detections, size = output.detections, (entry["height"], entry["width"])
    scores, boxes = output.scores(), detections.pred_boxes.tensor
    if model.fuse_at == "output" and size != output.image_size:
        scores = F.interpolate(scores, size=size, mode="bilinear", align_corners=False)
        factors = [size[1] / output.image_size[1], size[0] / output.image_size[0]]
        boxes = boxes * boxes.new_tensor(factors).repeat(2)
    labels = scores[0].argmax(dim=0)
    # Everything is "some thing", so that no stuff is made.
    no_stuff = torch.full_like(labels, sweep.num_stuff)

    def fuse_things(overlap: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        panoptic_seg, info = fuse_panoptic(
            no_stuff,
            boxes,
            detections.pred_classes,
            detections.scores,
            detections.mask_logits,
            num_stuff=sweep.num_stuff,
            score_thresh=float(sweep.grid.scores[0]),
            overlap_thresh=overlap,
        )
        classes = np.array([s["category_id"] for s in info], np.int64)
        return panoptic_seg.cpu().numpy(), classes, np.array([s["score"] for s in info], np.float64)

    record = evaluator.records[entry["image_id"]]
    ground_truth, image = evaluator.gt_segments(record), read_ground_truth(record["pan_seg_file_name"], size)
    if evaluator.resize_ground_truth:
        ground_truth = ground_truth.select(np.isin(ground_truth.ids, rgb_to_ids(image)))
    sweep.add(image, ground_truth, labels.cpu().numpy(), fuse_things)


def tune_thresholds(
    cfg: CfgNode, model: nn.Module, dataset_name: str, grid: ThresholdGrid, max_images: int | None = None
) -> Tuned:
    """Search the grid with one forward pass per image.

    Args:
        cfg: configuration; TEST.EVAL_RESOLUTION and TEST.PQ_RULES count.
        model: ``SeamlessPanoptic``; its mode is kept.
        dataset_name: a registered panoptic data set.
        grid: of ``make_grid``.
        max_images: take so many images, spread evenly; default all.
    """
    if not hasattr(model, "network"):
        raise UserError("thresholds are tuned for MODEL.META_ARCHITECTURE SeamlessPanoptic only; set it")
    evaluator = PanopticEvaluator(
        dataset_name, rules=cfg.TEST.PQ_RULES, resize_ground_truth=cfg.TEST.EVAL_RESOLUTION == "input"
    )
    classes = evaluator.classes
    sweep = ThresholdSweep(grid, classes.num_stuff, len(classes.names), cfg.TEST.PQ_RULES)
    records, mapper = DatasetCatalog.get(dataset_name), SeamlessMapper(cfg, False)
    if max_images is not None and max_images < len(records):
        records = [records[k] for k in np.linspace(0, len(records) - 1, max_images).round().astype(int)]
    with inference_context(model):
        for record in tqdm(records, "tune", unit="image"):
            _add_image(sweep, model, mapper(record), evaluator)
    return summarize_sweep(sweep, cfg)


def summarize_sweep(sweep: ThresholdSweep, cfg: CfgNode) -> Tuned:
    """The best point of a finished sweep; of equal ones, the one nearest to the configured thresholds."""
    grid, quality = sweep.grid, 100 * sweep.quality()
    axes = dict(zip(KEYS, (grid.overlaps, grid.scores, grid.areas), strict=True))
    now = tuple(int(np.abs(axis - cfg.MODEL.PANOPTIC_FPN.COMBINE[key]).argmin()) for key, axis in axes.items())
    candidates = np.argwhere(quality >= quality.max() - 1e-9)
    best = tuple(candidates[np.abs(candidates - now).sum(axis=1).argmin()].tolist())

    def point(place: tuple[int, ...]) -> dict[str, float]:
        values = {key: axis[k].item() for (key, axis), k in zip(axes.items(), place, strict=True)}
        return {**values, "PQ": float(quality[place])}

    table = {
        key: [
            (axis[k].item(), float(quality[(*best[:dimension], k, *best[dimension + 1 :])])) for k in range(len(axis))
        ]
        for dimension, (key, axis) in enumerate(axes.items())
    }
    return Tuned(point(now), point(best), sweep.images, table)
