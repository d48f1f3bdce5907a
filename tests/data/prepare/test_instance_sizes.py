"""The plot of the sizes of instances."""

import numpy as np
import pytest

from seamless_d2.data.prepare.instance_sizes import draw_instance_sizes, instance_sizes, sampled_sizes
from seamless_d2.structures.coco_json import CocoSegment

from ...helpers.panoptic_files import CLASSES


def entry(*segments: tuple[int, list[float], int]) -> tuple[tuple[int, int], list[CocoSegment]]:
    return (400, 600), [CocoSegment(k, category, crowd, None, box) for k, (category, box, crowd) in enumerate(segments)]


ENTRIES = [
    entry((7, [10, 20, 8, 32], 0), (7, [50, 60, 40, 10], 0), (3, [0, 200, 600, 200], 0), (90, [0, 0, 90, 90], 1)),
    entry((90, [100, 100, 50, 50], 0), (11, [0, 0, 600, 100], 0)),
]


def test_sizes_in_the_images() -> None:
    assert sorted(instance_sizes(ENTRIES, CLASSES)) == [16, 20, 50]  # crowds and stuff are not instances


def test_sizes_in_crops() -> None:
    centers, visible = sampled_sizes(ENTRIES, CLASSES, crops=2000)
    assert len(centers) == pytest.approx(1000, abs=100)  # two of four classes are things
    # Log-uniform in 16..512, as far as factors of at most 4 allow: 50 pixels become up to 200.
    assert centers.min() >= 15 and centers.max() <= 201
    low = np.mean(centers < 45)
    assert low == pytest.approx(np.log2(45 / 16) / 5, abs=0.06)
    assert len(visible) > 1000 and visible.min() >= 1 and visible.max() <= 201


def test_drawing(tmp_path) -> None:
    draw_instance_sizes(ENTRIES, CLASSES, tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
