"""Cutting into tiles and joining their segments, on maps drawn by hand."""

import numpy as np
import pytest

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.prediction.tiles import Stitcher, plan_tiles

from ..helpers.images import make_image

ROAD, SKY = 0, 1


def cut(ground_truth: np.ndarray, classes: dict[int, tuple[bool, int]], tile: tuple[int, int], overlap: int) -> tuple:
    """Cut a map into tiles as a perfect network would see them, and join them again."""
    stitcher = Stitcher(ground_truth.shape, num_stuff=2)
    for piece in plan_tiles(ground_truth.shape, tile, overlap):
        window = ground_truth[piece.y0 : piece.y1, piece.x0 : piece.x1]
        panoptic, segments = np.zeros(window.shape, np.int32), []
        for number, ident in enumerate(np.unique(window[window > 0]).tolist(), 1):
            panoptic[window == ident] = number
            isthing, category = classes[ident]
            segment = {"id": number, "isthing": isthing, "category_id": category, "area": int((window == ident).sum())}
            segments.append(segment | ({"score": 0.5 + number / 100, "instance_id": number} if isthing else {}))
        stitcher.add(piece, panoptic, segments)
    return stitcher.finish(stuff_area_thresh=1)


def same_partition(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two maps differ in the numbers of their segments only."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return len(np.unique(pairs[0])) == len(np.unique(pairs[1])) == pairs.shape[1]


def test_tiles_cover_the_image_and_cores_do_so_once() -> None:
    for size, tile, overlap in [((100, 130), (50, 40), 10), ((40, 40), (50, 60), 5), ((101, 51), (50, 50), 0)]:
        seen, cores = np.zeros(size, int), np.zeros(size, int)
        for t in plan_tiles(size, tile, overlap):
            assert t.x1 - t.x0 == min(tile[0], size[1]) and t.y1 - t.y0 == min(tile[1], size[0])
            seen[t.y0 : t.y1, t.x0 : t.x1] += 1
            cores[t.core_y0 : t.core_y1, t.core_x0 : t.core_x1] += 1
        assert seen.min() >= 1 and (cores == 1).all()


@pytest.mark.parametrize(("tile", "overlap"), [((50, 40), 16), ((64, 64), 20), ((200, 200), 0)])
def test_segments_are_joined(tile, overlap) -> None:
    ground_truth = np.full((120, 150), 1, np.int32)
    ground_truth[:50] = 2
    ground_truth[10:110, 30:120] = 3  # a thing over many tiles
    ground_truth[40:60, 125:149] = 4  # of the same class, in two
    ground_truth[0:5, 0:5] = 0
    ground_truth[112:118, 3:9] = 5  # small, in one
    classes = {1: (False, ROAD), 2: (False, SKY), 3: (True, 0), 4: (True, 0), 5: (True, 1)}
    panoptic, segments = cut(ground_truth, classes, tile, overlap)
    assert same_partition(ground_truth, panoptic)
    assert sorted((s["isthing"], s["category_id"], s["area"]) for s in segments) == sorted(
        (*classes[i], int((ground_truth == i).sum())) for i in classes
    )
    assert [s["id"] for s in segments] == [1, 2, 3, 4, 5]
    assert [s["area"] for s in segments] == np.bincount(panoptic.ravel())[1:].tolist()


def test_neighbours_of_a_class_stay_apart_and_classes_are_never_mixed() -> None:
    ground_truth = np.zeros((60, 100), np.int32)
    ground_truth[10:30, 20:80], ground_truth[30:50, 20:80] = 1, 2
    panoptic, segments = cut(ground_truth, {1: (True, 0), 2: (True, 0)}, (60, 60), 20)
    assert same_partition(ground_truth, panoptic) and len(segments) == 2
    stitcher = Stitcher((60, 100), 2)
    for number, piece in enumerate(plan_tiles((60, 100), (60, 60), 20)):
        segment = {"id": 1, "isthing": True, "category_id": number, "area": 1, "score": 0.9, "instance_id": 0}
        stitcher.add(piece, np.ones((60, 60), np.int32), [segment])
    assert len(stitcher.finish(1)[1]) == 2


def test_stuff_threshold_counts_the_whole() -> None:
    ground_truth = np.full((40, 100), 1, np.int32)
    ground_truth[0, :30] = 2
    stitcher = Stitcher(ground_truth.shape, 2)
    for piece in plan_tiles(ground_truth.shape, (40, 40), 10):
        window = ground_truth[piece.y0 : piece.y1, piece.x0 : piece.x1]
        stitcher.add(
            piece, window.copy(), [{"id": i + 1, "isthing": False, "category_id": i, "area": 9} for i in range(2)]
        )
    panoptic, segments = stitcher.finish(stuff_area_thresh=31)
    assert [(s["category_id"], s["area"]) for s in segments] == [(ROAD, 3970)]
    assert (panoptic[0, :30] == 0).all()


def test_impossible_tiles() -> None:
    for tile, overlap in [((0, 10), 0), ((10, 10), 10), ((10, 10), -1)]:
        with pytest.raises(UserError, match="overlap"):
            plan_tiles((20, 20), tile, overlap)


def test_predictor_with_tiles(model_files) -> None:
    tiled = Predictor(*model_files, device="cpu", tile=(64, 64), overlap=16)
    # An image of one tile is predicted as it is, without being resized.
    assert tiled.prepare(make_image(50, 60)).tensor.shape == (3, 50, 60)
    result = tiled.predict(make_image(100, 150))
    assert result.panoptic_seg.shape == (100, 150) and result.segments
    assert [s.id for s in result.segments] == list(range(1, len(result.segments) + 1))
    assert [s.area for s in result.segments] == np.bincount(result.panoptic_seg.ravel(), minlength=1)[1:].tolist()


def test_objects_are_joined_without_overlap_too() -> None:
    ids = np.zeros((64, 64), np.int32)
    ids[20:44, 20:44] = 1  # in all four tiles
    ids[2:6, 50:60] = 2
    stitcher = Stitcher(ids.shape, num_stuff=1)
    for tile in plan_tiles(ids.shape, (32, 32), 0):
        piece, segments = ids[tile.y0 : tile.y1, tile.x0 : tile.x1], []
        for number in np.unique(piece[piece > 0]).tolist():
            area = int((piece == number).sum())
            segments.append({"id": number, "isthing": True, "category_id": 0, "area": area, "score": 0.5 + number / 10})
        stitcher.add(tile, piece, segments)
    panoptic_seg, segments = stitcher.finish(1)
    assert [s["area"] for s in segments] == [40, 24 * 24]
    assert np.array_equal(panoptic_seg > 0, ids > 0)
