"""The sweep over thresholds against fusing and evaluating at each of them."""

import numpy as np
import pytest
import torch

from seamless_d2.evaluation.panoptic_quality import PanopticStatistics, Segments, match_image
from seamless_d2.evaluation.threshold_sweep import ExhaustiveSweep, ThresholdGrid, ThresholdSweep
from seamless_d2.modeling.fusion import fuse_panoptic, resize_panoptic

NUM_STUFF, NUM_CLASSES = 3, 5
GRID = ThresholdGrid(np.array([0.2, 0.5, 0.7, 0.9]), np.array([0.0, 0.4, 0.8]), np.array([0, 40, 200, 2000]))


def network_outputs(random: np.random.RandomState, size: tuple[int, int], number: int) -> dict:
    """Blocks of semantic labels and some boxes with blurry masks; several scores are equal to a threshold."""
    labels = torch.from_numpy(random.randint(0, NUM_CLASSES, (size[0] // 8 + 1, size[1] // 8 + 1)))
    labels = labels.repeat_interleave(8, 0).repeat_interleave(8, 1)[: size[0], : size[1]]
    corners = np.sort(random.rand(number, 2, 2), axis=1) * [size[1], size[0]]
    return {
        "sem_seg": labels,
        "boxes": torch.from_numpy(corners.reshape(number, 4)).float(),
        "classes": torch.from_numpy(random.randint(0, NUM_CLASSES - NUM_STUFF, number)),
        "scores": torch.from_numpy(np.where(random.rand(number) < 0.3, 0.5, random.rand(number))).float(),
        "mask_logits": torch.from_numpy(random.randn(number, 6, 6) + 2).float(),
    }


def gt_like(panoptic: torch.Tensor, info: list[dict], random: np.random.RandomState) -> tuple[np.ndarray, Segments]:
    """A result as ground truth, some of it void, some crowd, ids large."""
    ids = panoptic.numpy().astype(np.int64) * 70_001
    ids[: random.randint(6), :] = 0
    info = [s for s in info if (ids == s["id"] * 70_001).any()]
    classes = np.array([s["category_id"] + NUM_STUFF * s["isthing"] for s in info], np.int64)
    crowd = np.array([s["isthing"] and random.rand() < 0.3 for s in info], bool)
    return ids, Segments(np.array([s["id"] * 70_001 for s in info], np.int64), classes, crowd)


@pytest.mark.parametrize("rules", ["panopticapi", "original"])
@pytest.mark.parametrize("scale", [1.0, 1.7, 0.6])
def test_equals_fusing_at_each_point(rules: str, scale: float) -> None:
    random = np.random.RandomState(round(10 * scale))
    sweep, plain = (kind(GRID, NUM_STUFF, NUM_CLASSES, rules) for kind in (ThresholdSweep, ExhaustiveSweep))
    expected = np.zeros(GRID.shape, object)
    for place in np.ndindex(GRID.shape):
        expected[place] = PanopticStatistics(NUM_CLASSES)
    for number in (9, 4, 0):
        outputs = network_outputs(random, (48, 64), number)
        size = round(48 * scale), round(64 * scale)

        def fuse(labels: np.ndarray, score: float, overlap: float, area: int, outputs: dict = outputs) -> tuple:
            thresholds = {"score_thresh": score, "overlap_thresh": overlap, "stuff_area_thresh": area}
            arguments = outputs | {"sem_seg": torch.from_numpy(labels)}
            panoptic_seg, info = fuse_panoptic(**arguments, num_stuff=NUM_STUFF, **thresholds)
            return panoptic_seg.numpy(), info

        labels = outputs["sem_seg"].numpy()
        panoptic_seg, info = fuse(labels, 0.3, 0.5, 100)
        gt_ids, ground_truth = gt_like(*resize_panoptic(torch.from_numpy(panoptic_seg), info, *size), random)
        sweep.add(gt_ids, ground_truth, labels, fuse)
        plain.add(gt_ids, ground_truth, labels, fuse)
        for place in np.ndindex(GRID.shape):
            o, s, a = place
            panoptic, info = fuse(labels, float(GRID.scores[s]), float(GRID.overlaps[o]), int(GRID.areas[a]))
            panoptic, info = resize_panoptic(torch.from_numpy(panoptic), info, *size)
            classes = np.array([i["category_id"] + NUM_STUFF * i["isthing"] for i in info], np.int64)
            predicted = Segments(np.array([i["id"] for i in info], np.int64), classes, np.zeros(len(info), bool))
            expected[place].add(match_image(gt_ids, ground_truth, panoptic.numpy(), predicted, rules))
    values = np.array([expected[p].average(None, rules)["pq"] for p in np.ndindex(GRID.shape)]).reshape(GRID.shape)
    assert len(np.unique(values.round(6))) > 8, "the thresholds matter"
    np.testing.assert_allclose(sweep.quality(), values, rtol=0, atol=1e-12)
    np.testing.assert_allclose(plain.quality(), values, rtol=0, atol=1e-12)
