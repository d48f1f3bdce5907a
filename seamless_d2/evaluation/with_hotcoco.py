"""PQ by hotcoco (the extra "fast"), which decodes and counts in compiled code: half the time of our own pass.

It gives nothing but PQ, so that the reports take our own pass.
"""

from ..io import is_rgb_png
from .from_files import FilePairs
from .panoptic_quality import PanopticStatistics

try:
    from hotcoco.panoptic import PanopticEval
except ImportError:
    PanopticEval = None


def quality_by_hotcoco(files: FilePairs) -> PanopticStatistics | None:
    """The sums of PQ by panopticapi's rules.

    Returns:
        None where hotcoco is not installed, where it would read the maps otherwise than we do (it takes grey images
        for RGB), and where it finds anything wrong: our own pass then says what.
    """
    if PanopticEval is None:
        return None
    images = (
        folder / annotation["file_name"]
        for pair in files.pairs
        for folder, annotation in zip((files.gt_dir, files.prediction_dir), pair, strict=True)
    )
    if not all(map(is_rgb_png, images)):
        return None
    try:
        evaluation = PanopticEval(
            files.gt_json, files.prediction_json, gt_folder=files.gt_dir, pred_folder=files.prediction_dir
        )
        evaluation.evaluate()
        per_class = evaluation.results()["per_class"]
    except (OSError, ValueError, KeyError, TypeError, RuntimeError):
        return None
    quality = PanopticStatistics(len(files.classes.names))
    for k, dataset_id in enumerate(files.classes.dataset_ids):
        for key in ("iou", "tp", "fp", "fn"):
            getattr(quality, key)[k] = per_class[dataset_id][key]
    return quality
