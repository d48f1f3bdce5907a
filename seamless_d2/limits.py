"""Limits of what is read: a file that would exhaust the memory is refused before memory is allocated for it."""

import os
from pathlib import Path

from .errors import UserError

#: The largest image that is read; prediction takes up to 30 bytes for a pixel.
MAX_PIXELS = 100_000_000
#: The largest file that is read into memory as a whole, in bytes.
MAX_FILE_SIZE = 2 << 30
#: How many times its size on disk a file of tensors may take in memory. Compression saves a tenth of weights.
MAX_EXPANSION = 10


def check_pixels(width: int, height: int, what: str) -> None:
    """Raise ``UserError`` if an image has more than ``MAX_PIXELS``; ``what`` names it."""
    if width * height > MAX_PIXELS:
        raise UserError(
            f"{what} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} million are supported, reduce it"
        )


def check_expansion(path: str | Path, size: int) -> None:
    """Raise ``UserError`` if a file would take ``size`` bytes of memory, and that is out of proportion to the file."""
    stored = os.stat(path).st_size
    if size > MAX_EXPANSION * stored + (16 << 20):
        raise UserError(
            f"{path} would take {size / 1e9:.1f} GB of memory, but has {stored / 1e6:.1f} MB; it is damaged or made to "
            "exhaust the memory, get it again"
        )
