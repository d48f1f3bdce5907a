"""Reading images and id maps."""

import cv2
import numpy as np
import pytest
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.io import read_id_map, read_image

from ..helpers.panoptic_files import id_to_rgb


def test_every_kind_of_image_becomes_rgb(tmp_path) -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4) * 20
    Image.fromarray(grey).save(tmp_path / "grey.png")
    assert np.array_equal(read_image(tmp_path / "grey.png"), np.repeat(grey[:, :, None], 3, 2))
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    assert np.array_equal(read_image(tmp_path / "deep.png"), np.repeat(grey[:, :, None], 3, 2))
    for high in (255, 1):
        Image.fromarray((grey * (high / 255)).astype(np.float32)).save(tmp_path / "float.tif")
        assert np.array_equal(read_image(tmp_path / "float.tif")[:, :, 0], grey)
    deep = np.random.RandomState(0).randint(0, 65536, (3, 4, 3)).astype(np.uint16)
    cv2.imwrite(str(tmp_path / "deep_rgb.png"), deep)
    assert np.array_equal(read_image(tmp_path / "deep_rgb.png"), deep[:, :, ::-1] >> 8)
    rgba = np.zeros((3, 4, 4), np.uint8)
    rgba[:, :2, 3] = 255
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png")[0, :, 0].tolist() == [0, 0, 255, 255]
    Image.fromarray(np.full((3, 4, 3), 77, np.uint8)).quantize(4).save(tmp_path / "palette.png")
    assert np.abs(read_image(tmp_path / "palette.png").astype(int) - 77).max() <= 4


def test_exif_rotation_follows_the_labels(tmp_path) -> None:
    array = np.random.RandomState(0).randint(0, 256, (4, 6, 3)).astype(np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6  # shown turned by 90 degrees
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    turned = np.rot90(array, -1)
    assert np.array_equal(read_image(tmp_path / "a.png"), turned)
    assert np.array_equal(read_image(tmp_path / "a.png", (6, 4)), turned)
    assert np.array_equal(read_image(tmp_path / "a.png", (4, 6)), array)
    with pytest.raises(UserError, match="a.png is 4 x 6 pixels but its annotation says 9 x 9"):
        read_image(tmp_path / "a.png", (9, 9))


@pytest.mark.parametrize("content", [b"", b"not an image", None])
def test_unreadable_files_are_named(tmp_path, content) -> None:
    path = tmp_path / "bad.png"
    if content is not None:
        path.write_bytes(content)
    for read in (read_image, read_id_map):
        with pytest.raises(UserError, match="bad.png"):
            read(path)


def test_truncated_image(tmp_path) -> None:
    path = tmp_path / "cut.jpg"
    Image.fromarray(np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:800])
    with pytest.raises(UserError, match="cut.jpg"):
        read_image(path)


def test_id_map(tmp_path) -> None:
    ids = np.array([[0, 1, 255, 256], [65_535, 65_536, 70_000, 16_777_215]])
    Image.fromarray(id_to_rgb(ids)).save(tmp_path / "ids.png")
    assert np.array_equal(read_id_map(tmp_path / "ids.png"), ids)
    # The original's masks: one channel that holds the ids themselves.
    for dtype in (np.uint8, np.uint16):
        Image.fromarray(np.array([[0, 7], [200, 3]], dtype)).save(tmp_path / "grey.png")
        assert read_id_map(tmp_path / "grey.png").tolist() == [[0, 7], [200, 3]]
    Image.fromarray(np.zeros((2, 2, 3), np.uint8)).quantize(2).save(tmp_path / "palette.png")
    with pytest.raises(UserError, match="neither an RGB nor a gray PNG but P"):
        read_id_map(tmp_path / "palette.png")
