"""Overlays."""

import numpy as np
import pytest

from seamless_d2.structures.classes import Classes
from seamless_d2.visualization import (
    NUM_INSTANCE_COLORS,
    Stripes,
    add_legend,
    contact_sheet,
    contrast,
    draw_overlay,
    draw_stripes,
    instance_colors,
    segment_colors,
    text_color,
)

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
    assert len(set(segment_colors([ROAD, *CARS], CLASSES).values())) == 3


def test_labels_change_the_image_and_small_ones_are_enlarged() -> None:
    image = np.zeros((60, 100, 3), np.uint8)
    panoptic = np.ones((60, 100), np.int32)
    plain = draw_overlay(image, panoptic, [ROAD], CLASSES, labels=False)
    named = draw_overlay(image, panoptic, [ROAD], CLASSES)
    assert plain.shape == named.shape == (480, 800, 3)
    assert (plain != named).any()


#: Cityscapes' car, person, rider, bicycle, truck and bus, and colors without a hue.
CLASS_COLORS = [(0, 0, 142), (220, 20, 60), (255, 0, 0), (119, 11, 32), (0, 0, 70), (0, 60, 100)]
CLASS_COLORS += [(255, 255, 255), (0, 0, 0), (128, 128, 128), (0, 255, 0)]
# Machado, Oliveira and Fernandes 2009, full severity, on linear RGB.
VISIONS = {
    "normal": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
}


def to_lab(linear: np.ndarray) -> np.ndarray:
    """CIELAB of linear RGB under D65, by the formulas of CIE 15."""
    matrix = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    xyz = linear @ np.transpose(matrix) / [0.95047, 1.0, 1.08883]
    f = np.where(xyz > (6 / 29) ** 3, np.cbrt(xyz), xyz / (3 * (6 / 29) ** 2) + 4 / 29)
    return np.stack([116 * f[:, 1] - 16, 500 * (f[:, 0] - f[:, 1]), 200 * (f[:, 1] - f[:, 2])], axis=1)


@pytest.mark.parametrize("vision", VISIONS)
@pytest.mark.parametrize("color", CLASS_COLORS)
def test_instances_of_a_class_are_apart_for_every_eye(vision: str, color: tuple[int, int, int]) -> None:
    colors = np.array(instance_colors(color)) / 255
    assert len(colors) == NUM_INSTANCE_COLORS
    linear = np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)
    lab = to_lab(np.clip(linear @ np.transpose(VISIONS[vision]), 0, 1))
    distances = np.linalg.norm(lab[:, None] - lab, axis=2) + 1000 * np.eye(len(lab))
    for count, least in ((4, 28), (6, 20), (12, 12), (NUM_INSTANCE_COLORS, 6)):
        assert distances[:count, :count].min() > least, count
    assert np.ptp(lab[:4, 0]) > 25  # lightness, not hue alone
    assert lab[:, 0].max() < 90  # the white outline stays visible


def test_instance_colors_by_order_in_the_class_or_by_track() -> None:
    person = {"id": 9, "isthing": True, "category_id": 1, "area": 5}
    classes = Classes(["road", "car", "person"], [(128, 64, 128), (0, 0, 142), (220, 20, 60)], [1, 2, 3], 1)
    cars, persons = instance_colors((0, 0, 142)), instance_colors((220, 20, 60))
    colors = segment_colors([CARS[0], person, CARS[1], ROAD], classes)
    assert colors == {2: cars[0], 9: persons[0], 3: cars[1], 1: (128, 64, 128)}
    tracked = [{**CARS[0], "track_id": 7}, {**CARS[1], "track_id": 7 + NUM_INSTANCE_COLORS}]
    assert segment_colors(tracked, classes) == {2: cars[7], 3: cars[7]}


def test_text_is_readable_on_every_color() -> None:
    assert contrast((0, 0, 0), (255, 255, 255)) == pytest.approx(21)
    assert contrast((119, 119, 119), (255, 255, 255)) == pytest.approx(4.48, abs=0.005)  # WebAIM's example
    steps = range(0, 256, 15)
    for color in ((r, g, b) for r in steps for g in steps for b in steps):
        assert contrast(color, text_color(color)) >= 4.5


@pytest.mark.parametrize("background", [0, 255])
def test_labels_are_solid_tags(background: int) -> None:
    image = np.full((480, 640, 3), background, np.uint8)
    panoptic = np.zeros((480, 640), np.int32)
    panoptic[100:300, 100:400] = 2
    drawn = draw_overlay(image, panoptic, CARS[:1], CLASSES, alpha=0.0)
    tag = segment_colors(CARS[:1], CLASSES)[2]
    rows, columns = np.nonzero((drawn == tag).all(axis=2))
    assert len(rows) > 500
    inside = drawn[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
    assert (inside == text_color(tag)).all(axis=2).sum() > 5  # the inside of letters
    assert abs(rows.mean() - 200) < 10 and 100 < columns.min() and columns.max() < 400


def test_labels_at_the_border_stay_inside() -> None:
    image, panoptic = np.zeros((480, 640, 3), np.uint8), np.zeros((480, 640), np.int32)
    panoptic[:, :30], panoptic[465:, 300:] = 2, 3
    drawn = draw_overlay(image, panoptic, CARS, CLASSES, alpha=0.0)
    colors = segment_colors(CARS, CLASSES)
    rows, columns = np.nonzero((drawn == colors[2]).all(axis=2))
    assert len(rows) > 300 and columns.min() == 1  # the outline is column 0
    rows, columns = np.nonzero((drawn == colors[3]).all(axis=2))
    assert len(rows) > 300 and rows.max() == 478


def test_legend_lists_the_classes_that_occur() -> None:
    image, panoptic = np.full((60, 90, 3), 50, np.uint8), np.zeros((60, 90), np.int32)
    panoptic[:30] = 1
    plain = draw_overlay(image, panoptic, [ROAD], CLASSES, labels=False, min_side=1)
    drawn = draw_overlay(image, panoptic, [ROAD], CLASSES, labels=False, min_side=1, legend=True)
    below = {tuple(color) for color in drawn[60:].reshape(-1, 3)}
    assert (drawn[:60] == plain).all() and (128, 64, 128) in below and (0, 0, 142) not in below
    nothing = draw_overlay(image, panoptic * 0, [], CLASSES, min_side=1, legend=True)
    assert nothing.shape == image.shape


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
