"""Reading photos and id maps, with clear errors."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from ..errors import UserError
from .fast_png import decode_rgb_png

_EXIF_ORIENTATION = 0x0112


def read_photo(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read a photo as (H, W, 3) uint8 RGB; 16-bit, grey, palette and transparent images are converted.

    Args:
        path: the file.
        size: (height, width) that the labels have. EXIF rotation is applied unless only the unrotated picture has
            this size: label PNGs do not turn with their photo.

    Raises:
        UserError: missing, corrupt or empty file, or another size.
    """
    try:
        with Image.open(path) as image:
            image.load()
            turned = image
            if image.getexif().get(_EXIF_ORIENTATION, 1) != 1:  # exif_transpose copies in any case
                turned = ImageOps.exif_transpose(image)
                if size is not None and turned.size != size[::-1] and image.size == size[::-1]:
                    turned = image
            array = _to_rgb(turned)
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; check the path") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}); replace or remove it") from None
    if size is not None and array.shape[:2] != tuple(size):
        raise UserError(
            f"image {path} is {array.shape[1]} x {array.shape[0]} pixels but its annotation says "
            f"{size[1]} x {size[0]}; mend the json or the file"
        )
    return array


def photo_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a photo as ``read_photo`` gives it, without decoding it.

    Raises:
        UserError: missing or corrupt file.
    """
    try:
        with Image.open(path) as image:
            width, height = image.size
            turned = image.getexif().get(_EXIF_ORIENTATION, 1) >= 5
    except FileNotFoundError:
        raise UserError(f"image {path} does not exist; check the path") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UserError(f"image {path} cannot be read ({error}); replace or remove it") from None
    return (width, height) if turned else (height, width)


def to_tensor(image: np.ndarray, channel_order: str) -> torch.Tensor:
    """(H, W, 3) uint8 RGB -> (3, H, W) uint8 in the order of INPUT.FORMAT."""
    if channel_order == "BGR":
        image = image[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))


def _to_rgb(image: Image.Image) -> np.ndarray:
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.nan_to_num(np.asarray(image, dtype=np.float64))
        high = 65535 if array.max(initial=0) > 255 else 255
        if image.mode == "F" and array.max(initial=0) <= 1:
            high = 1  # floats are fractions of white, unless they cannot be
        grey = np.clip(array * (255 / high) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if "A" in image.mode or "transparency" in image.info:
        # Transparent pixels show white, as in a viewer.
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_id_picture(path: str | Path) -> np.ndarray:
    """Read a map of segment ids as (H, W, 3) uint8; see ``rgb_to_ids``.

    A picture with one channel of 8, 16 or 32 bits holds the ids themselves, as in the original's format.

    Raises:
        UserError: missing or corrupt file, or neither RGB nor grey.
    """
    try:
        picture = decode_rgb_png(Path(path).read_bytes())
        if picture is not None:
            return picture
        with Image.open(path) as image:
            mode = image.mode
            grey = mode in ("L", "I") or mode.startswith("I;16")
            array = np.asarray(image if grey or mode == "RGB" else image.convert("RGB"))
    except FileNotFoundError:
        raise UserError(f"panoptic map {path} does not exist; check the path") from None
    except (OSError, UnidentifiedImageError, SyntaxError, ValueError) as error:
        raise UserError(f"panoptic map {path} cannot be read ({error}); make it again") from None
    if grey:
        return ids_to_rgb(array.astype(np.int64))
    if mode not in ("RGB", "RGBA"):
        raise UserError(f"panoptic map {path} is neither an RGB nor a grey PNG but {mode}; ids are stored in R, G, B")
    return array


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """(H, W) ids below 2^24 -> (H, W, 3) uint8, id = R + 256 G + 65536 B."""
    # The bytes are there already; a picture of 12 megapixels leaves no room for temporaries.
    channels = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(channels[..., :3])


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """(H, W, 3) uint8 -> (H, W) int32, id = R + 256 G + 65536 B."""
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def read_id_map(path: str | Path) -> np.ndarray:
    """Read a panoptic PNG as (H, W) int32 ids; errors as ``read_id_picture``."""
    return rgb_to_ids(read_id_picture(path))
