"""PQ by hotcoco (the extra "fast"), which decodes and counts in compiled code in half the time of ``from_files``.

It computes nothing but PQ, so that the IoU of classes and the reports need the pass of ``from_files``.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from ..io import is_rgb_png
from .panoptic_quality import PanopticStatistics, split_iou

try:
    from hotcoco.panoptic import PanopticEval
except ImportError:
    PanopticEval = None


def quality_by_hotcoco(
    gt_json: Path,
    prediction_json: Path,
    gt_dir: Path,
    prediction_dir: Path,
    *,
    images: Iterable[Path],
    dataset_ids: list[int],
) -> PanopticStatistics | None:
    """Compute the sums of PQ by panopticapi's rules.

    Args:
        gt_json, prediction_json: Two COCO-panoptic jsons.
        gt_dir, prediction_dir: The folders of their PNGs.
        images: The paths of all PNGs, true and predicted.
        dataset_ids: The category id of each class, in the order of the sums.

    Returns:
        The sums, or None if hotcoco is not installed, reads the maps in another way (it takes gray images for RGB) or
        finds anything wrong; the pass of ``from_files`` then reports the error.
    """
    if PanopticEval is None or not all(map(is_rgb_png, images)):
        return None
    try:
        evaluation = PanopticEval(gt_json, prediction_json, gt_folder=gt_dir, pred_folder=prediction_dir)
        evaluation.evaluate()
        per_class = evaluation.results()["per_class"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    quality = PanopticStatistics(len(dataset_ids))
    for k, dataset_id in enumerate(dataset_ids):
        for key in ("tp", "fp", "fn"):
            getattr(quality, key)[k] = per_class[dataset_id][key]
        quality.iou_parts[:, k] = split_iou(np.float64(per_class[dataset_id]["iou"]))
    return quality
