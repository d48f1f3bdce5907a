"""The fusion thresholds with the highest PQ on a data set: the body of ``tools/tune_thresholds.py``."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog
from detectron2.evaluation import inference_context
from torch import nn
from tqdm import tqdm

from ..data.mapper import SeamlessMapper
from ..errors import UserError
from ..io import rgb_to_ids
from ..modeling.panoptic import SeamlessPanoptic
from ..structures.id_maps import SegmentInfo
from .ground_truth import read_ground_truth
from .panoptic_evaluator import PanopticEvaluator
from .threshold_sweep import ExhaustiveSweep, ThresholdGrid, ThresholdSweep

KEYS = ("OVERLAP_THRESH", "INSTANCES_CONFIDENCE_THRESH", "STUFF_AREA_LIMIT")


@dataclass(frozen=True)
class Tuned:
    """The result of a search.

    Attributes:
        before, after: The configured and the best thresholds by key of MODEL.PANOPTIC_FPN.COMBINE, with "PQ" in
            percent.
        images: The number of images that they were found on.
        table: PQ in percent along each threshold, the other two as in ``after``: {key: [(value, PQ)]}.
    """

    before: dict[str, float]
    after: dict[str, float]
    images: int
    table: dict[str, list[tuple[float, float]]]

    def to_yaml(self, cfg: CfgNode) -> str:
        """Return a whole configuration with the best thresholds."""
        cfg = cfg.clone()
        cfg.defrost()
        cfg.MODEL.PANOPTIC_FPN.COMBINE.update({key: self.after[key] for key in KEYS})
        return cfg.dump()

    def to_overrides(self) -> str:
        """Return the best thresholds as KEY VALUE overrides for a command line."""
        return " ".join(f"MODEL.PANOPTIC_FPN.COMBINE.{key} {self.after[key]!r}" for key in KEYS)


def make_grid(cfg: CfgNode, scores: list[float], overlaps: list[float], areas: list[float]) -> ThresholdGrid:
    """Make a grid of the given thresholds and the configured ones.

    Raises:
        UserError: A threshold is out of its range.
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
def _add_image(
    sweep: ThresholdSweep | ExhaustiveSweep,
    model: SeamlessPanoptic,
    entry: dict[str, Any],
    evaluator: PanopticEvaluator,
) -> None:
    """Run the network on one image and add it to the sweep."""
    output, size = model.run_network([entry])[0], (entry["height"], entry["width"])
    labels = model.fusion_labels(output, size)

    def fuse(labels: np.ndarray, score: float, overlap: float, area: int) -> tuple[np.ndarray, list[SegmentInfo]]:
        thresholds = {"score_thresh": score, "overlap_thresh": overlap, "stuff_area_thresh": area}
        panoptic_seg, info = model.fuse(torch.from_numpy(labels).to(model.device), output.detections, **thresholds)
        return panoptic_seg.cpu().numpy(), info

    record = evaluator.records[entry["image_id"]]
    gt_image = read_ground_truth(record["pan_seg_file_name"], size)
    ground_truth = evaluator.gt_segments(record)
    if evaluator.resize_ground_truth:
        ground_truth = ground_truth.select(np.isin(ground_truth.ids, rgb_to_ids(gt_image)))
    sweep.add(gt_image, ground_truth, labels.cpu().numpy(), fuse)


def tune_thresholds(
    cfg: CfgNode, model: nn.Module, dataset_name: str, grid: ThresholdGrid, max_images: int | None = None
) -> Tuned:
    """Search a grid of thresholds with one forward pass per image.

    Args:
        cfg: The configuration; TEST.EVAL_RESOLUTION and TEST.PQ_RULES count.
        model: A ``SeamlessPanoptic``; its mode is kept. If it overrides ``fuse``, every point of the grid is fused.
        dataset_name: The name of a registered panoptic data set.
        grid: The thresholds, see ``make_grid``.
        max_images: The number of images to take, spread evenly; default all.

    Raises:
        UserError: The model is no ``SeamlessPanoptic``.
    """
    if not isinstance(model, SeamlessPanoptic):
        raise UserError("thresholds are tuned for MODEL.META_ARCHITECTURE SeamlessPanoptic only; set it")
    evaluator = PanopticEvaluator(
        dataset_name, rules=cfg.TEST.PQ_RULES, resize_ground_truth=cfg.TEST.EVAL_RESOLUTION == "input"
    )
    classes = evaluator.classes
    sweep_class = ThresholdSweep if type(model).fuse is SeamlessPanoptic.fuse else ExhaustiveSweep
    sweep = sweep_class(grid, classes.num_stuff, len(classes.names), cfg.TEST.PQ_RULES)
    records, mapper = DatasetCatalog.get(dataset_name), SeamlessMapper(cfg, False)
    if max_images is not None and max_images < len(records):
        records = [records[k] for k in np.linspace(0, len(records) - 1, max_images).round().astype(int)]
    with inference_context(model):
        for record in tqdm(records, "tune", unit="image"):
            _add_image(sweep, model, mapper(record), evaluator)
    return summarize_sweep(sweep, cfg)


def summarize_sweep(sweep: ThresholdSweep | ExhaustiveSweep, cfg: CfgNode) -> Tuned:
    """Return the best point of a finished sweep; of equal ones, the one nearest to the configured thresholds."""
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
