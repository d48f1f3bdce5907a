"""Shared pixels of two maps against counting them one by one."""

import numpy as np
import pytest

from seamless_d2.evaluation.counting import count_overlaps
from seamless_d2.io import ids_to_rgb


def one_by_one(
    ground_truth: np.ndarray, gt_ids: list[int], predicted: np.ndarray, predicted_ids: list[int]
) -> np.ndarray:
    counts = np.zeros((len(gt_ids) + 2, len(predicted_ids) + 2), np.int64)

    def place(value: int, ids: list[int]) -> int:
        return ids.index(value) + 1 if value in ids else 0 if value == 0 else len(ids) + 1

    for a, b in zip(ground_truth.ravel().tolist(), predicted.ravel().tolist(), strict=True):
        counts[place(a, gt_ids), place(b, predicted_ids)] += 1
    return counts


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (50, 1), (37, 41), (130, 300)])
@pytest.mark.parametrize("block", [1, 7])
def test_equals_counting_one_by_one(size: tuple[int, int], block: int) -> None:
    random = np.random.RandomState(size[0])
    # In no order; 65536 and 1 differ in one byte only, 77 is in no list.
    ids = np.array([0, 65536, 1, 256, (1 << 24) - 1, 70_000, 77])
    maps = []
    for _ in range(2):
        small = ids[random.randint(0, len(ids), (size[0] // block + 1, size[1] // block + 1))]
        maps.append(small.repeat(block, 0).repeat(block, 1)[: size[0], : size[1]].astype(np.int32))
    gt_ids, predicted_ids = [70_000, 1, 65536, 256], [(1 << 24) - 1, 256, 1, 65536, 70_000]
    expected = one_by_one(maps[0], gt_ids, maps[1], predicted_ids)
    for ground_truth in (maps[0], ids_to_rgb(maps[0])):
        for predicted in (maps[1], ids_to_rgb(maps[1]), maps[1].astype(np.int64)):
            counts = count_overlaps(ground_truth, np.array(gt_ids), predicted, np.array(predicted_ids))
            assert counts.dtype == np.int64 and np.array_equal(counts, expected)


def test_no_segments() -> None:
    none = np.zeros(0, np.int64)
    counts = count_overlaps(np.array([[0, 5], [5, 5]]), none, np.zeros((2, 2), np.int32), none)
    assert counts.tolist() == [[1, 0], [3, 0]]
