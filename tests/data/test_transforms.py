"""Augmentations."""

import numpy as np
import pytest
from detectron2.data import transforms as T
from PIL import Image

from seamless_d2 import get_config
from seamless_d2.data.transforms import (
    BoundedResizeShortestEdge,
    ResizeCrop,
    ResizeCropTransform,
    build_augmentations,
    build_resize,
)


@pytest.mark.parametrize(
    ("size", "shortest", "longest", "truncated", "rounded"),
    [
        # 1936x2592 and a shortest side of 206, where int(206 * (1024 / 206)) is 1023: the original's own numbers.
        ((1936, 2592), 1920, 10_000, (1920, 2570), (1920, 2571)),
        ((206, 300), 1024, 10_000, (1023, 1491), (1024, 1491)),
        ((100, 300), 200, 450, (150, 450), (150, 450)),
    ],
)
def test_resize_conventions(size, shortest, longest, truncated, rounded) -> None:
    cfg = get_config("Base-Seamless.yaml")
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = shortest, longest
    for original, expected in ((True, truncated), (False, rounded)):
        cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = original
        transform = build_resize(cfg, is_train=False).get_transform(np.zeros((*size, 3), np.uint8))
        assert (transform.new_h, transform.new_w) == expected


def test_scale_jitter_covers_its_range() -> None:
    for original in (True, False):
        cfg = get_config("Base-Seamless.yaml")
        cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS = original
        cfg.INPUT.MIN_SIZE_TRAIN, cfg.INPUT.MAX_SIZE_TRAIN = (20, 25), 1000
        resize = build_resize(cfg, is_train=True)
        sizes = {resize.get_transform(np.zeros((10, 30, 3), np.uint8)).new_h for _ in range(300)}
        assert sizes == set(range(20, 26))


def make_image(height: int = 61, width: int = 83) -> np.ndarray:
    return np.random.RandomState(0).randint(0, 256, (height, width, 3)).astype(np.uint8)


@pytest.mark.parametrize("new_size", [(122, 166), (40, 54), (61, 83)])
def test_resize_crop_gives_the_crop_of_the_resized_image(new_size: tuple[int, int]) -> None:
    image, crop = make_image(), (5, 9, 21, 17)
    transform = ResizeCropTransform(image.shape[:2], new_size, crop)
    x, y, w, h = crop
    for mode, got in ((2, transform.apply_image(image)), (0, transform.apply_segmentation(image))):
        whole = np.asarray(Image.fromarray(image).resize(new_size[::-1], mode))
        # Bilinear weights are rounded to bytes; nearest sampling is exact.
        assert np.abs(got.astype(int) - whole[y : y + h, x : x + w]).max() <= (1 if mode else 0)
    corner = transform.apply_coords(np.array([[0.0, 0.0], [83.0, 61.0]]))
    assert corner.tolist() == [[-5, -9], [new_size[1] - 5, new_size[0] - 9]]


def test_resize_crop_draws_inside_the_resized_image() -> None:
    augmentation = ResizeCrop(T.ResizeShortestEdge([40, 90], 1000, "range"), T.RandomCrop("absolute", (50, 60)))
    for _ in range(50):
        transform = augmentation.get_transform(make_image())
        x, y, w, h = transform.crop
        assert (h, w) == (min(50, transform.new_size[0]), min(60, transform.new_size[1]))
        assert x + w <= transform.new_size[1] and y + h <= transform.new_size[0]
        assert transform.apply_image(make_image()).shape == (h, w, 3)


def test_augmentations_of_the_config() -> None:
    cfg = get_config("Base-Seamless.yaml")
    assert [type(a) for a in build_augmentations(cfg, True)] == [BoundedResizeShortestEdge, T.RandomFlip]
    assert [type(a) for a in build_augmentations(cfg, False)] == [BoundedResizeShortestEdge]
    cfg.INPUT.CROP.ENABLED = True
    cfg.INPUT.RANDOM_FLIP = "none"
    assert [type(a) for a in build_augmentations(cfg, True)] == [ResizeCrop]
