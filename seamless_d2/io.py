"""Files: reading of images, id maps and jsons with clear errors, and atomic writing."""

import io
import json
import os
import re
import secrets
import warnings
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any

import cv2
import numpy as np
from PIL import Image, ImageOps

from .errors import UserError
from .limits import MAX_FILE_SIZE, MAX_PIXELS, check_pixels

_EXIF_ORIENTATION = 0x0112

# What damaged and unusual files make Pillow raise.
_IMAGE_ERRORS = (OSError, SyntaxError, ValueError, RuntimeError, Image.DecompressionBombError)
MAX_LISTED = 10  #: The number of failures that ``summarize_failures`` lists.

# Pillow warns from 89 megapixels on; too large images are refused here.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


def read_bytes(path: str | Path, what: str) -> bytes:
    """Read a whole file; ``what`` names it in error messages.

    Raises:
        UserError: The file is missing, larger than ``MAX_FILE_SIZE``, or cannot be read.
    """
    try:
        with open(path, "rb") as file:
            if os.fstat(file.fileno()).st_size > MAX_FILE_SIZE:
                raise UserError(f"{what} {path} is larger than {MAX_FILE_SIZE >> 30} GB; divide it")
            return file.read()
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a null character in the path
        raise UserError(f"{what} {path} cannot be read ({error}); check the path and its permissions") from None


def read_text(path: str | Path, what: str) -> str:
    """Read a text file in UTF-8; arguments and errors are those of ``read_bytes``."""
    try:
        return read_bytes(path, what).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise UserError(f"{what} {path} is not UTF-8 text; give a text file") from None


@contextmanager
def open_image(path: str | Path, what: str = "image", remedy: str = "replace or remove it") -> Iterator[Image.Image]:
    """Open an image for the time of a block, which may decode it.

    Args:
        path: The file.
        what: What the image is, for error messages.
        remedy: What to do with a damaged one, for error messages.

    Raises:
        UserError: The file is missing or corrupt, or the image has more than ``MAX_PIXELS``.
    """
    try:
        with Image.open(path) as image:
            check_pixels(*image.size, f"{what} {path}")
            yield image
    except FileNotFoundError:
        raise UserError(f"{what} {path} does not exist; check the path") from None
    except _IMAGE_ERRORS as error:
        raise UserError(f"{what} {path} cannot be read ({error}); {remedy}") from None


def read_image(path: str | Path, size: tuple[int, int] | None = None) -> np.ndarray:
    """Read an image as (H, W, 3) uint8 RGB; 16-bit, gray, palette and transparent images are converted.

    Args:
        path: The file.
        size: The (height, width) of the labels. EXIF rotation is applied, unless only the image without rotation has
            this size, because label PNGs are not rotated with their image. Default: any size.

    Raises:
        UserError: ``open_image`` raises it, or the image has another size.
    """
    with open_image(path) as image:
        image.load()
        turned = image
        if _orientation(image) != 1:  # exif_transpose copies in any case
            turned = ImageOps.exif_transpose(image)
            if size is not None and turned.size != size[::-1] and image.size == size[::-1]:
                turned = image
        array = to_rgb(turned)
    if size is not None and array.shape[:2] != tuple(size):
        raise UserError(
            f"image {path} is {array.shape[1]} x {array.shape[0]} pixels but its annotation says "
            f"{size[1]} x {size[0]}; mend the json or the file"
        )
    return array


def read_image_size(path: str | Path) -> tuple[int, int]:
    """Return the (height, width) of the image that ``read_image`` would return, without decoding it.

    Raises:
        UserError: ``open_image`` raises it.
    """
    with open_image(path) as image:
        width, height = image.size
        turned = _orientation(image) >= 5
    return (width, height) if turned else (height, width)


def read_orientation(path: str | Path) -> int:
    """Return the EXIF orientation of an image, 1 (as stored) to 8, of which 5 to 8 exchange the sides.

    Raises:
        UserError: ``open_image`` raises it.
    """
    with open_image(path) as image:
        return _orientation(image)


def _orientation(image: Image.Image) -> int:
    orientation = image.getexif().get(_EXIF_ORIENTATION, 1)
    return orientation if orientation in range(1, 9) else 1


def to_rgb(image: Image.Image) -> np.ndarray:
    """Convert an image of any mode to (H, W, 3) uint8 RGB."""
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        array = np.nan_to_num(np.asarray(image, dtype=np.float64))
        high = 65535 if array.max(initial=0) > 255 else 255
        if image.mode == "F" and array.max(initial=0) <= 1:
            high = 1  # floats up to 1 are fractions of white
        gray = np.clip(array * (255 / high) + 0.5, 0, 255).astype(np.uint8)
        return np.repeat(gray[:, :, None], 3, axis=2)
    if "A" in image.mode or "transparency" in image.info:
        # Transparent pixels become white, as in a viewer.
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        image = Image.alpha_composite(white, rgba)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB"))


def read_id_image(path: str | Path) -> np.ndarray:
    """Read a map of segment ids as (H, W, 3) uint8, id = R + 256 G + 65536 B.

    An image with one channel of 8, 16 or 32 bits holds the ids themselves, as in the original's format.

    Raises:
        UserError: ``open_image`` raises it, or the image is neither RGB nor gray.
    """
    rgb = decode_rgb_png(read_bytes(path, "panoptic map"))
    if rgb is not None:
        return rgb
    with open_image(path, "panoptic map", "make it again") as image:
        mode = image.mode
        gray = mode in ("L", "I") or mode.startswith("I;16")
        array = np.asarray(image if gray or mode == "RGB" else image.convert("RGB"))
    if gray:
        return ids_to_rgb(array.astype(np.int64))
    if mode not in ("RGB", "RGBA"):
        raise UserError(f"panoptic map {path} is neither an RGB nor a gray PNG but {mode}; ids are stored in R, G, B")
    return array


def ids_to_rgb(ids: np.ndarray) -> np.ndarray:
    """Convert (H, W) ids below 2^24 to an (H, W, 3) uint8 image, id = R + 256 G + 65536 B."""
    # A view of the bytes needs no temporaries, which are large for an image of 12 megapixels.
    channels = np.ascontiguousarray(ids, "<u4").view(np.uint8).reshape(*ids.shape, 4)
    return np.ascontiguousarray(channels[..., :3])


def rgb_to_ids(rgb: np.ndarray) -> np.ndarray:
    """Convert an (H, W, 3) uint8 image to (H, W) int32 ids, id = R + 256 G + 65536 B."""
    ids = rgb[..., 2].astype(np.int32)
    for channel in (1, 0):
        ids <<= 8
        ids |= rgb[..., channel]
    return ids


def read_id_map(path: str | Path) -> np.ndarray:
    """Read a panoptic PNG as (H, W) int32 ids; it raises the errors of ``read_id_image``."""
    return rgb_to_ids(read_id_image(path))


def check_output_file(path: str | Path, *inputs: str | Path | None, may_exist: bool = False) -> None:
    """Check a file that a user has named for a result, before the work for it begins.

    Args:
        path: The file.
        *inputs: The files that are read.
        may_exist: Whether an older result may be replaced.

    Raises:
        UserError: The file is one of the inputs, a folder, or exists already.
    """
    path = Path(path)
    if any(i is not None and path.resolve() == Path(i).resolve() for i in inputs):
        raise UserError(f"the output {path} is a file that is read; choose another name")
    if path.is_dir() or (path.exists() and not may_exist):
        raise UserError(f"the output {path} exists already; choose another name, or move it away")


_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{16}\.tmp(\.\w+)?")


def make_temporary(path: Path, suffix: str = "") -> Path:
    """Create an empty temporary file beside ``path``, with the permissions of an ordinary file.

    Args:
        path: The file that the temporary file will replace. Its folder is created if it does not exist.
        suffix: The end of the temporary file's name, for writers that choose a format by it.

    Returns:
        The path of the temporary file.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(8)}.tmp{suffix}")
    # The files of tempfile are private, and reading the umask to change that is a race between threads.
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


@contextmanager
def atomic_write(path: str | Path, mode: str = "wb") -> Iterator[IO]:
    """Open ``path`` for writing; the file is created or replaced only if the block ends without an exception.

    Args:
        path: The file. Its folder is created if it does not exist.
        mode: The mode of ``open``, "wb" or "w".

    Raises:
        OSError: The file cannot be written, for instance because the disk is full; the error has its name.
    """
    path = Path(path)
    temporary = make_temporary(path)
    try:
        with open(temporary, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(FileNotFoundError):
            temporary.unlink()
        if isinstance(error, OSError) and error.errno is not None and error.filename is None:
            error.filename = str(path)  # an error of write() does not have the name
        raise


def remove_temporaries(folder: str | Path) -> None:
    """Remove the temporary files of killed writers below ``folder``; nothing may be writing there."""
    for path in Path(folder).rglob(".*.tmp*"):
        if _TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink()


def write_json(path: str | Path, content: Any, indent: int | None = None) -> None:
    """Write ``content`` as json, atomically; ``indent`` is that of ``json.dump``."""
    with atomic_write(path, "w") as file:
        json.dump(content, file, indent=indent)


_SIGNATURE, _HEADER_SIZE = b"\x89PNG\r\n\x1a\n", 29
# Bit depth 8, color type 2 (RGB), the only compression and filter methods, not interlaced.
_PLAIN_RGB = bytes((8, 2, 0, 0, 0))


def _is_plain_rgb(header: bytes) -> bool:
    return header[:8] == _SIGNATURE and header[12:16] == b"IHDR" and header[24:29] == _PLAIN_RGB


def is_rgb_png(path: str | Path) -> bool:
    """Return whether a file has the header of an 8-bit RGB PNG; False for a missing file."""
    try:
        with open(path, "rb") as file:
            return _is_plain_rgb(file.read(_HEADER_SIZE))
    except OSError:
        return False


def _is_intact(data: bytes) -> bool:
    """Return whether all chunks of a PNG are complete and undamaged; OpenCV would print a warning if not."""
    view, start = memoryview(data), len(_SIGNATURE)
    while start + 12 <= len(data):
        end = start + 8 + int.from_bytes(view[start : start + 4])
        if zlib.crc32(view[start + 4 : end]) != int.from_bytes(view[end : end + 4]):
            return False
        if view[start + 4 : start + 8] == b"IEND":
            return True
        start = end + 4
    return False


def decode_rgb_png(data: bytes) -> np.ndarray | None:
    """Decode an 8-bit RGB PNG.

    Args:
        data: The content of the file.

    Returns:
        (H, W, 3) uint8 RGB image, contiguous; None for all other kinds of images, damaged files, and images of more
        than ``MAX_PIXELS``.
    """
    too_large = int.from_bytes(data[16:20]) * int.from_bytes(data[20:24]) > MAX_PIXELS
    if not _is_plain_rgb(data) or too_large or not _is_intact(data):
        return None
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # too large for OpenCV
        return None
    return None if image is None else cv2.cvtColor(image, cv2.COLOR_BGR2RGB, image)


def read_json(path: str | Path, what: str) -> Any:
    """Read a json file; NaN and Infinity, which Python writes but json does not know, become None.

    Args:
        path: The file.
        what: What the file is, for error messages.

    Raises:
        UserError: The file is missing, too large or malformed.
    """
    try:
        return json.loads(read_bytes(path, what), parse_constant=lambda _: None)
    except (ValueError, RecursionError) as error:  # ValueError: no json, or no text
        raise UserError(f"{what} {path} cannot be read as json: {error}") from None


def read_instance_png(path: Path) -> np.ndarray:
    """Read the (H, W) integers of a PNG with one channel of 8 or 16 bits.

    Raises:
        UserError: ``open_image`` raises it, or the image has colors instead of numbers.
    """
    with open_image(path, "instance map", "the release is incomplete, get it again") as image:
        mode, array = image.mode, np.asarray(image)
    if mode not in ("L", "I") and not mode.startswith("I;16"):
        raise UserError(f"{path} holds colors ({mode}) instead of one number per pixel; get it again")
    return array


_MAX_JPEG_SIDE = 65500  # pixels


def save_image(image: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 RGB image in the format that the suffix of ``path`` names, atomically.

    Raises:
        UserError: The image is too large for a JPEG.
    """
    format = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    if format == "JPEG" and max(image.shape[:2]) > _MAX_JPEG_SIDE:
        raise UserError(
            f"{path} would be larger than a JPEG can be, {_MAX_JPEG_SIDE} pixels; choose --format coco or ids"
        )
    buffer = io.BytesIO()  # writing to a file, Pillow does not notice that a full disk takes only a part
    Image.fromarray(image).save(buffer, format=format, quality=92)
    with atomic_write(path) as file:
        file.write(buffer.getbuffer())


def encode_png(array: np.ndarray) -> bytes:
    """Return an (H, W) uint8 or uint16 map or an (H, W, 3) uint8 RGB image as PNG."""
    # Maps are nearly constant, so that the lowest level of compression suffices; it is several times faster.
    array = cv2.cvtColor(array, cv2.COLOR_RGB2BGR) if array.ndim == 3 else array
    done, data = cv2.imencode(".png", array, [cv2.IMWRITE_PNG_COMPRESSION, 1])
    if not done:
        raise ValueError(f"OpenCV cannot encode an array of {array.shape} {array.dtype}")
    return data.tobytes()


def save_png(array: np.ndarray, path: Path) -> None:
    """Write what ``encode_png`` returns, atomically."""
    with atomic_write(path) as file:
        file.write(encode_png(array))


def summarize_failures(failures: Sequence[str], file: str | Path | None = None) -> str:
    """Return the first ``MAX_LISTED`` failures, one a line, and the number of the others.

    Args:
        failures: A sentence for each failure.
        file: The file to which all of them are written if there are others.
    """
    lines, others = list(failures[:MAX_LISTED]), len(failures) - MAX_LISTED
    if others > 0:
        if file is not None:
            with atomic_write(file, "w") as stream:
                stream.writelines(f"{failure}\n" for failure in failures)
        lines.append(f"and {others} more" + (f", all listed in {file}" if file is not None else ""))
    return "\n  ".join(lines)
