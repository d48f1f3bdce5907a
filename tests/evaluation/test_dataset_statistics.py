"""What is remembered of a data set: confusion, score curves, best and worst images."""

import numpy as np
import pytest

from seamless_d2.evaluation.dataset_statistics import EXAMPLE_SIDE, NUM_EXAMPLES, DatasetStatistics
from seamless_d2.evaluation.panoptic_quality import PanopticStatistics, Segments, match_image

NUM_CLASSES = 4


def segments(*entries: tuple, crowd: tuple[int, ...] = ()) -> Segments:
    """Of (id, class) or (id, class, score)."""
    ids = np.array([e[0] for e in entries], np.int64)
    scores = np.array([e[2] if len(e) > 2 else np.nan for e in entries])
    return Segments(ids, np.array([e[1] for e in entries], np.int64), np.isin(ids, crowd), scores=scores)


def random_image(random: np.random.RandomState) -> tuple[np.ndarray, Segments, np.ndarray, Segments]:
    """Ground truth in blocks, and a prediction with some blocks moved, lost or of another class, all scored."""
    gt_ids = np.kron(random.permutation(12).reshape(3, 4), np.ones((6, 6), np.int64))
    classes = random.randint(0, NUM_CLASSES, 12)
    ground_truth = segments(*((i, classes[i]) for i in range(1, 12)))
    ids = np.roll(gt_ids, random.randint(3), axis=1)
    ids[np.isin(ids, random.choice(12, 2))] = 0
    found = [i for i in np.unique(ids).tolist() if i]
    wrong = [random.randint(NUM_CLASSES) if random.rand() < 0.2 else classes[i] for i in found]
    return gt_ids, ground_truth, ids, segments(*zip(found, wrong, random.rand(len(found)).round(2), strict=True))


def test_confusion_and_semantic_iou() -> None:
    gt_ids = np.array([[1, 1, 1, 2], [2, 2, 3, 0]])
    ids = np.array([[5, 5, 6, 6], [6, 0, 6, 5]])
    ground_truth, predicted = segments((1, 0), (2, 3), (3, 3), crowd=(3,)), segments((5, 0), (6, 3))
    statistics = DatasetStatistics(NUM_CLASSES)
    statistics.add(match_image(gt_ids, ground_truth, ids, predicted), "a", ids)
    expected = np.zeros((5, 5), int)
    expected[0, 0], expected[0, 3] = 2, 1
    expected[3, 3], expected[3, 4] = 3, 1  # the crowd region has its class
    expected[4, 0] = 1  # void ground truth
    assert np.array_equal(statistics.confusion, expected)
    # Class 0: 2 of 3 + 2 - 2 pixels (void ground truth does not count); class 3: 3 of 4 + 4 - 3.
    np.testing.assert_allclose(statistics.semantic_iou(), [2 / 3, np.nan, np.nan, 3 / 5])


def test_score_curve_equals_dropping_segments() -> None:
    random = np.random.RandomState(0)
    images = [random_image(random) for _ in range(6)]
    statistics = DatasetStatistics(NUM_CLASSES)
    for k, (gt_ids, ground_truth, ids, predicted) in enumerate(images):
        statistics.add(match_image(gt_ids, ground_truth, ids, predicted), k, ids)
    chosen = np.array([False, True, True, True])
    curves = statistics.score_curves(chosen)
    for k in (0, 25, 60, 99):
        again = PanopticStatistics(NUM_CLASSES)
        for gt_ids, ground_truth, ids, predicted in images:
            left = predicted.select(predicted.scores >= k / 100 - 1e-9)
            again.add(match_image(gt_ids, ground_truth, np.where(np.isin(ids, left.ids), ids, 0), left))
        for key in ("pq", "sq", "rq"):
            assert curves[key][k] == pytest.approx(again.average(chosen)[key], abs=1e-12)
    assert curves["pq"][0] > curves["pq"][99]
    # Without scores there is no curve.
    gt_ids, ground_truth, ids, predicted = images[0]
    statistics = DatasetStatistics(NUM_CLASSES)
    predicted.scores = None
    statistics.add(match_image(gt_ids, ground_truth, ids, predicted), 0, ids)
    assert statistics.score_curves(chosen) is None and statistics.unscored.sum() == len(predicted.ids)


def test_parts_add_up_and_keep_the_same_images() -> None:
    random = np.random.RandomState(1)
    whole, parts = DatasetStatistics(NUM_CLASSES), [DatasetStatistics(NUM_CLASSES) for _ in range(3)]
    qualities = {}
    for k in range(30):
        gt_ids, ground_truth, ids, predicted = random_image(random)
        match = match_image(gt_ids, ground_truth, ids, predicted)
        qualities[k] = match.quality
        whole.add(match, k, ids)
        parts[k % 3].add(match, k, ids)
    total = DatasetStatistics(NUM_CLASSES)
    for part in parts:
        total += part
    for key in ("confusion", "unscored"):
        assert np.array_equal(getattr(total, key), getattr(whole, key))
    np.testing.assert_allclose(total.curve, whole.curve, atol=1e-12)
    np.testing.assert_allclose(total.quality.iou_sum, whole.quality.iou_sum, atol=1e-12)
    assert total.images == whole.images == 30
    ascending = sorted(qualities, key=lambda k: (qualities[k], str(k)))
    descending = sorted(qualities, key=lambda k: (-qualities[k], str(k)))
    for statistics in (whole, total):
        assert [e.image_id for e in statistics.worst] == ascending[:NUM_EXAMPLES]
        assert [e.image_id for e in statistics.best] == descending[:NUM_EXAMPLES]


def test_examples_are_small() -> None:
    ids = np.zeros((50, 4000), np.int64)
    ids[:, 2000:] = 1 << 23
    image = segments((1 << 23, 2))
    statistics = DatasetStatistics(NUM_CLASSES)
    statistics.add(match_image(ids, image, ids, image), "wide", ids)
    (example,) = statistics.best
    assert example.ids.shape == (8, EXAMPLE_SIDE) and example.ids.max() == 1 << 23 and example.quality == 1
    # An image in which nothing counts is neither good nor bad.
    nothing = np.zeros((3, 3), np.int64)
    statistics.add(match_image(nothing, segments(), nothing, segments()), "void", nothing)
    assert len(statistics.best) == 1 and statistics.images == 2
