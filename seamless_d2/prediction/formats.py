"""The registry of output formats: what a prediction can be written as.

A format is registered with the names of its files and a function that writes one result to them:

>>> @register_format("areas", "{}_areas.json")
... def write_areas(result: PanopticResult, name: str, path: Path) -> None:
...     write_json(path, {segment.class_name: segment.area for segment in result.segments})
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError

#: The formats of files with drawings.
IMAGE_FORMATS = ("jpg", "png")


@dataclass(frozen=True)
class Drawing:
    """How results are drawn over their images.

    Attributes:
        alpha: The share of the color, 0..1.
        legend: Whether the classes that occur are listed below the image.
        image_format: The format of files with drawings, "jpg" or "png".

    Raises:
        UserError: A value is out of range.
    """

    alpha: float = 0.5
    legend: bool = False
    image_format: str = "jpg"

    def __post_init__(self) -> None:
        if not 0 <= self.alpha <= 1:
            raise UserError(f"alpha (--alpha), the share of the color, must be between 0 and 1, not {self.alpha}")
        if self.image_format not in IMAGE_FORMATS:
            raise UserError(f"image_format (--image-format) must be jpg or png, not {self.image_format!r}")


@dataclass(frozen=True)
class Format:
    """An output format.

    Attributes:
        files: The names of its files; "{}" stands for the name of the image, which may contain folders, and
            "{image_format}" for that of ``Drawing``.
        write: Writes a ``PanopticResult``; called with the result, the name of the image and one path per file.
        is_image: Whether its file is an image, which for a video becomes a video.
    """

    files: tuple[str, ...]
    write: Callable[..., None]
    is_image: bool = False


FORMATS: dict[str, Format] = {}


def register_format(name: str, *files: str, is_image: bool = False) -> Callable[[Callable], Callable]:
    """Register the decorated function as the writer of a format; see ``Format`` for the arguments."""

    def register(write: Callable[..., None]) -> Callable[..., None]:
        FORMATS[name] = Format(files, write, is_image)
        return write

    return register


def check_formats(names: Iterable[str]) -> tuple[str, ...]:
    """Return the given names of formats without repetition.

    Raises:
        UserError: A format is unknown, or none is given.
    """
    names = tuple(dict.fromkeys(names))
    unknown = [name for name in names if name not in FORMATS]
    if unknown or not names:
        raise UserError(f"format {unknown[0] if unknown else ''!r} is not known; choose from {', '.join(FORMATS)}")
    return names


def list_files(
    folder: Path, name: str, formats: Iterable[str], image_format: str = Drawing.image_format
) -> dict[str, list[Path]]:
    """Return the files of each format for the image ``name`` (without suffix, may contain folders)."""
    return {f: [folder / file.format(name, image_format=image_format) for file in FORMATS[f].files] for f in formats}


def write_formats(result: Any, folder: Path, name: str, formats: Iterable[str]) -> list[Path]:
    """Write a ``PanopticResult`` in several formats and return the files; each appears whole or not at all.

    Raises:
        UserError: A format is unknown, or cannot hold the result.
    """
    files = list_files(folder, name, check_formats(formats), result.drawing.image_format)
    for format, paths in files.items():
        FORMATS[format].write(result, name, *paths)
    return [path for paths in files.values() for path in paths]
