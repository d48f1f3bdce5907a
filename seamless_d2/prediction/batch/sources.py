"""The inputs of a prediction: images, folders, text lists, videos, streams and webcams."""

import glob
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tqdm import tqdm

from ...errors import UserError
from ...io import read_text
from ..frames import find_scheme, redact, to_source

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif", ".jp2")
VIDEO_SUFFIXES = (".mp4", ".avi", ".mov", ".mkv", ".webm", ".m4v", ".mpg", ".mpeg")


@dataclass(frozen=True)
class Source:
    """One input.

    Attributes:
        path: The file, the number of a webcam, or a URL.
        name: The name of its outputs: the path relative to the given folder, without suffix, unique in a run.
        kind: "image", "video", "camera" or "stream", which is a URL.
        relative: The path relative to the given folder, with its suffix.
    """

    path: Path | int | str
    name: str
    kind: str
    relative: str


def find_sources(inputs: Iterable[str | Path], output: Path | None = None) -> list[Source]:
    """List all inputs, in order.

    Args:
        inputs: Images, videos, folders (searched recursively), text files (.txt: one path a line, relative to the
            working folder or to the list; empty lines and those that begin with # are skipped), URLs of videos and
            streams, webcam numbers, and patterns such as "in/**/*.jpg" that the shell has left alone.
        output: A folder that is not searched, so that results do not become inputs.

    Raises:
        UserError: A path does not exist, a URL cannot be read, a list names nothing, a folder holds no images, or an
            input folder is the output.
    """
    inputs = list(inputs)
    found: list[tuple[Path | int | str, PurePosixPath, str]] = []
    for given in inputs:
        path = to_source(given)
        if isinstance(path, str):
            found.append(_read_url(path))
        elif path.is_dir():
            found += [(p, PurePosixPath(p.relative_to(path).as_posix()), _kind(p)) for p in _walk(path, output)]
        elif str(given).isdecimal() and not path.exists():
            found.append((int(str(given)), PurePosixPath(f"camera{given}"), "camera"))
        elif not path.exists() and glob.has_magic(str(given)):
            found += _match(str(given))
        elif not path.exists():
            raise UserError(f"input {path} does not exist; check the path")
        elif path.suffix.lower() == ".txt":
            found += _read_list(path)
        else:
            # Given by name: let the decoder judge, whatever the suffix.
            found.append((path, PurePosixPath(path.name), _kind(path) or "image"))
    if not found:
        suffixes = ", ".join(IMAGE_SUFFIXES + VIDEO_SUFFIXES)
        raise UserError(f"no images or videos ({suffixes}) in {', '.join(map(str, inputs))}")
    return name_inputs(found)


def check_output(output: str | Path) -> Path:
    """Return the path of an output folder; raise ``UserError`` if it is a URL."""
    if find_scheme(output):
        raise UserError(
            f"the output {redact(str(output))} is no folder of this computer; give one, and copy the results from there"
        )
    return Path(output)


def _read_url(url: str) -> tuple[str, PurePosixPath, str]:
    """Return a URL as a source; its name is made of its host and the last part of its path."""
    parts = urlsplit(url)
    last = PurePosixPath(unquote(parts.path)).name
    kind = _kind(Path(last))
    if kind == "image":
        raise UserError(f"{redact(url)} is an image, and only videos are read from the network; download it")
    stem = PurePosixPath(last).stem if kind else last
    name = re.sub(r"[^\w.-]+", "_", "_".join(filter(None, (parts.hostname, stem))))
    return url, PurePosixPath(name.lstrip(".") or "stream"), "stream"


def _walk(folder: Path, output: Path | None) -> list[Path]:
    """List the images and videos below a folder, linked folders included, without hidden files and ``output``."""
    if output is not None and output.resolve() == folder.resolve():
        raise UserError(f"{folder} is input and output; choose another folder for the results")
    skipped = None if output is None else output.resolve()

    def fail(error: OSError) -> None:
        raise UserError(f"folder {error.filename} cannot be read ({error.strerror}); check its permissions")

    files, others = [], 0
    for top, folders, names in os.walk(folder, onerror=fail, followlinks=True):
        here = Path(top).resolve()
        # A link to a folder above would be searched for ever.
        above = {here, *here.parents}
        targets = {name: (Path(top) / name).resolve() for name in folders}
        folders[:] = [name for name in folders if targets[name] not in above and targets[name] != skipped]
        visible = [name for name in names if not name.startswith(".")]
        usable = [name for name in visible if _kind(Path(name))]
        others += len(visible) - len(usable)
        files += [Path(top) / name for name in usable]
    if others:
        tqdm.write(f"{folder}: {others} files that are neither images nor videos are passed over")
    return sorted(p for p in files if p.is_file())


def _match(pattern: str) -> list[tuple[Path, PurePosixPath, str]]:
    """List the files that a pattern names; their names are relative to its last folder without wildcards."""
    paths = sorted(Path(p) for p in glob.glob(pattern, recursive=True) if os.path.isfile(p))
    if not paths:
        raise UserError(f"no file matches {pattern!r}; check the pattern")
    parts = Path(pattern).parts
    root = Path(*parts[: next(k for k, part in enumerate(parts) if glob.has_magic(part))])
    return [(p, PurePosixPath(p.relative_to(root).as_posix()), _kind(p) or "image") for p in paths]


def _kind(path: Path) -> str:
    suffix = path.suffix.lower()
    return "image" if suffix in IMAGE_SUFFIXES else "video" if suffix in VIDEO_SUFFIXES else ""


def _read_list(path: Path) -> list[tuple[Path | str, PurePosixPath, str]]:
    lines = [line.strip() for line in read_text(path, "list").splitlines()]
    sources = [to_source(line) for line in lines if line and not line.startswith("#")]
    if not sources:
        raise UserError(f"list {path} names no file; write one path a line")
    paths = [p for p in sources if isinstance(p, Path)]
    # Files that do not exist are kept: they are reported among the failures, as broken ones are.
    files = [p if p.exists() or not (path.parent / p).exists() else path.parent / p for p in paths]
    absolute = [p.parent for p in paths if p.is_absolute()]
    shared = Path(os.path.commonpath(absolute)) if absolute else Path()
    named = ((f, _relative(p, shared), _kind(f) or "image") for f, p in zip(files, paths, strict=True))
    return [_read_url(s) if isinstance(s, str) else next(named) for s in sources]


def _relative(path: Path, shared: Path) -> PurePosixPath:
    """Return a relative path without ``..``, or the part of an absolute path below ``shared``."""
    path = path.relative_to(shared) if path.is_absolute() else path
    parts = [p for p in path.parts if p not in ("..", "/")]
    return PurePosixPath(*parts or ["unnamed"])


def name_inputs(found: list[tuple[Path | int | str, PurePosixPath, str]]) -> list[Source]:
    """Give every input its own name: ``a``, then ``a_png`` for an a.png beside a.jpg, then ``a_png_2`` ...

    A video's name is no folder of other inputs (``clip_mp4`` for a clip.mp4 beside clip/): its frames go into one.
    """
    folders = {parent.as_posix() for _, relative, _ in found for parent in relative.parents}
    sources, taken = [], set()
    for path, given, kind in found:
        # No result leaves its folder, and names are text that every file can hold.
        parts = [p.encode("utf-8", "replace").decode() for p in given.parts if p not in ("..", "/", ".")]
        relative = PurePosixPath(*parts or ["unnamed"])
        plain = relative.with_suffix("") if kind in ("image", "video") else relative
        name = plain.as_posix()
        forbidden = taken if kind == "image" else taken | folders
        if name in forbidden:
            name = relative.with_name(relative.name.replace(".", "_")).as_posix()
        base, number = name, 2
        while name in forbidden:
            name, number = f"{base}_{number}", number + 1
        taken.add(name)
        sources.append(Source(path, name, kind, relative.as_posix()))
    return sources
