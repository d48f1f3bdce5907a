"""The fast decoder against Pillow; what is unusual or damaged is left to the slow one."""

import io

import numpy as np
from PIL import Image

from seamless_d2.io import decode_rgb_png, is_rgb_png, read_id_image


def png(array: np.ndarray, mode: str | None = None, **options) -> bytes:
    buffer = io.BytesIO()
    image = Image.fromarray(array)
    (image.convert(mode) if mode else image).save(buffer, format="PNG", **options)
    return buffer.getvalue()


def test_equals_pillow() -> None:
    random = np.random.RandomState(0)
    for size in ((1, 1), (5, 3), (40, 70)):
        noise = random.randint(0, 256, (*size, 3)).astype(np.uint8)
        for array in (noise, np.sort(noise, axis=1), np.zeros_like(noise)):
            assert np.array_equal(decode_rgb_png(png(array)), array)


def test_unusual_images_are_left_alone(tmp_path) -> None:
    array = np.random.RandomState(0).randint(0, 256, (6, 8, 3)).astype(np.uint8)
    for mode in ("L", "P", "RGBA", "1", "I;16"):
        assert decode_rgb_png(png(array, mode)) is None
    assert decode_rgb_png(b"") is None and decode_rgb_png(b"GIF89a" + bytes(40)) is None
    (tmp_path / "grey.png").write_bytes(png(array[..., 0]))
    (tmp_path / "rgb.png").write_bytes(png(array))
    assert is_rgb_png(tmp_path / "rgb.png") and not is_rgb_png(tmp_path / "grey.png")
    assert not is_rgb_png(tmp_path / "none.png")
    assert np.array_equal(read_id_image(tmp_path / "grey.png")[..., 0], array[..., 0])
    assert not read_id_image(tmp_path / "grey.png")[..., 1:].any()


def test_damage_never_goes_unnoticed(capfd) -> None:
    data = png(np.random.RandomState(0).randint(0, 256, (20, 20, 3)).astype(np.uint8))
    for length in range(0, len(data), 7):
        assert decode_rgb_png(data[:length]) is None
    for place in range(8, len(data) - 12, 5):
        damaged = bytearray(data)
        damaged[place] ^= 0x10
        assert decode_rgb_png(bytes(damaged)) is None
    assert capfd.readouterr().err == ""  # OpenCV was not asked
