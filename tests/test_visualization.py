"""Overlays."""

import numpy as np

from seamless_d2.structures.classes import Classes
from seamless_d2.visualization import Stripes, add_legend, contact_sheet, draw_overlay, draw_stripes, segment_color

CLASSES = Classes(["road", "car"], [(128, 64, 128), (0, 0, 142)], [1, 2], 1)
ROAD = {"id": 1, "isthing": False, "category_id": 0, "area": 100}
CARS = [{"id": i, "isthing": True, "category_id": 0, "area": 50, "score": 0.9} for i in (2, 3)]


def test_colours_are_blended_half_and_void_is_left_alone() -> None:
    image = np.full((40, 40, 3), 100, np.uint8)
    panoptic = np.zeros((40, 40), np.int32)
    panoptic[20:] = 1
    drawn = draw_overlay(image, panoptic, [ROAD], CLASSES, labels=False, min_side=40)
    assert (drawn[:20] == 100).all()
    assert (drawn[20:] == [114, 82, 114]).all()


def test_instances_are_outlined_and_stuff_is_not() -> None:
    image = np.zeros((40, 40, 3), np.uint8)
    panoptic = np.zeros((40, 40), np.int32)
    panoptic[20:] = 1
    panoptic[5:15, 5:15], panoptic[5:15, 15:25] = 2, 3
    drawn = draw_overlay(image, panoptic, [ROAD, *CARS], CLASSES, labels=False, min_side=40)
    white = (drawn == 255).all(axis=2)
    assert white[10, 15] and white[5, 10] and white[15, 10]  # between the cars, above and below
    assert not white[20].any()
    assert len({segment_color(car, CLASSES) for car in CARS}) == 2


def test_labels_change_the_image_and_small_ones_are_enlarged() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    panoptic = np.ones((60, 100), np.int32)
    plain = draw_overlay(image, panoptic, [ROAD], CLASSES, labels=False)
    named = draw_overlay(image, panoptic, [ROAD], CLASSES)
    assert plain.shape == named.shape == (480, 800, 3)
    assert (plain != named).any()


def test_nothing_found() -> None:
    image = np.full((30, 50, 3), 7, np.uint8)
    assert (draw_overlay(image, np.zeros((30, 50), np.int32), [], CLASSES, min_side=1) == 7).all()


def test_contact_sheet() -> None:
    images = [np.full((10, 20, 3), v, np.uint8) for v in (0, 50, 100)]
    sheet = contact_sheet(images, columns=2, gap=4)
    assert sheet.shape == (24, 44, 3)
    assert sheet[0, 0, 0] == 0 and sheet[0, 24, 0] == 50 and sheet[14, 0, 0] == 100 and sheet[20, 30, 0] == 255


def test_narrow_images_are_not_enlarged_without_bounds() -> None:
    image = np.zeros((2, 3000, 3), np.uint8)
    assert draw_overlay(image, np.zeros((2, 3000), np.int32), [], CLASSES).shape == image.shape


def test_stripes_and_legends() -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[:20] = True
    draw_stripes(image, mask, Stripes((0, 255, 0), 1))
    assert not image[20:].any() and 0.2 < (image[:20, :, 1] == 255).mean() < 0.3
    assert (image[:19, 1:, 1] == image[1:20, :-1, 1]).all()  # "/"
    drawn = add_legend(image, [("road", (128, 64, 128), None), ("void", (9, 9, 9), Stripes((255, 0, 255), -1))])
    assert (drawn[:40] == image).all() and drawn.shape[1] == 60
    below = {tuple(color) for color in drawn[40:].reshape(-1, 3)}
    assert {(128, 64, 128), (9, 9, 9), (255, 0, 255), (255, 255, 255)} <= below
