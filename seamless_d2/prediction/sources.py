"""What the user names as input: pictures, folders, text lists, videos and webcams."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ..errors import UserError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: the file; for a webcam its number.
        name: what its outputs are called: path relative to the given folder, without suffix, unique in a run.
        kind: "picture", "video" or "camera".
    """

    path: Path | int
    name: str
    kind: str


def find_sources(inputs: Iterable[str | Path]) -> list[Source]:
    """All inputs, in order.

    Args:
        inputs: pictures, videos, folders (searched recursively), text files (.txt: one path a line, relative to the
            working folder or to the list; empty lines and those that begin with # are skipped) and webcam numbers.

    Raises:
        UserError: a path that does not exist, a list in which nothing is named, a folder without pictures.
    """
    inputs = list(inputs)
    found: list[tuple[Path | int, PurePosixPath, str]] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file() and _kind(p) and not p.name.startswith("."))
            found += [(p, PurePosixPath(p.relative_to(path).as_posix()), _kind(p)) for p in files]
        elif str(given).isdecimal() and not path.exists():
            found.append((int(str(given)), PurePosixPath(f"camera{given}"), "camera"))
        elif not path.exists():
            raise UserError(f"input {path} does not exist; check the path")
        elif path.suffix.lower() == ".txt":
            found += _read_list(path)
        else:
            # Given by name: let the decoder judge, whatever the suffix.
            found.append((path, PurePosixPath(path.name), _kind(path) or "picture"))
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise UserError(f"no pictures or videos ({suffixes}) in {', '.join(map(str, inputs))}")
    return _name(found)


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return "picture" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def _read_list(path: Path) -> list[tuple[Path, PurePosixPath, str]]:
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError:
        raise UserError(f"list {path} is not UTF-8 text; give a text file with one path a line") from None
    paths = [Path(line) for line in lines if line and not line.startswith("#")]
    if not paths:
        raise UserError(f"list {path} names no file; write one path a line")
    # Files that do not exist are kept: they are reported among the failures, as broken ones are.
    files = [p if p.exists() or not (path.parent / p).exists() else path.parent / p for p in paths]
    return [(f, _relative(p), _kind(f) or "picture") for f, p in zip(files, paths, strict=True)]


def _relative(path: Path) -> PurePosixPath:
    """The folders of a relative path without ``..``; of an absolute path its name only."""
    parts = [path.name] if path.is_absolute() else [p for p in path.parts if p not in ("..", ".")]
    return PurePosixPath(*parts)


def _name(found: list[tuple[Path | int, PurePosixPath, str]]) -> list[Source]:
    """Give every input its own name: ``a``, then ``a_png`` for an a.png beside a.jpg, then ``a_png_2`` ..."""
    sources, taken = [], set()
    for path, relative, kind in found:
        plain = relative.with_suffix("") if kind != "camera" else relative
        name = plain.as_posix()
        if name in taken:
            name = relative.with_name(relative.name.replace(".", "_")).as_posix()
        base, number = name, 2
        while name in taken:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        sources.append(Source(path, name, kind))
    return sources
