"""Folders on this machine or in an object store, through fsspec; files appear whole or not at all."""

import io
import os
import tarfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import PurePosixPath
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from ...errors import UserError
from ...io import atomic_write, read_image
from ...limits import MAX_FILE_SIZE
from .sources import IMAGE_SUFFIXES, name_inputs

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

# Files that are read at a time.
_DOWNLOADS = 8
# Columns of Parquet files that hold images, or say where they are.
_IMAGE_COLUMNS = ("image", "img", "jpg", "png", "bytes", "uri", "url", "path", "file_name")


@dataclass(frozen=True, slots=True)
class Item:
    """One image of a large job.

    Attributes:
        name: The name of its results, without suffix, unique in the job.
        image: Its name with suffix, relative to the input that it was found in.
        uri: The file that holds it.
        kind: "file", "tar" or "parquet".
        column: Of a Parquet file, the column of the images.
        start: The first byte in a tar file, or the row of a Parquet file.
        size: The number of bytes in a tar file.
        state: What tells whether the file has changed: its size with its tag or time; "" where that is not known.
    """

    name: str
    image: str
    uri: str
    kind: str = "file"
    column: str = ""
    start: int = 0
    size: int = 0
    state: str = ""


class Folder:
    """A folder that a path or an address such as s3://bucket/folder names."""

    def __init__(self, uri: str) -> None:
        """
        Args:
            uri: The path or address.

        Raises:
            UserError: The package for this kind of address is not installed, or its address is not known.
        """
        self.fs, self.root = open_uri(uri.rstrip("/"))
        self.uri = _full_uri(self.fs, self.root)
        self.is_local = _is_local(self.fs)

    def list(self, suffix: str) -> list[str]:
        """Return the names of the files in the folder that end so, in alphabetical order."""
        self.fs.invalidate_cache()
        try:
            found = self.fs.ls(self.root, detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in found if (name := PurePosixPath(path).name).endswith(suffix))

    def read(self, name: str) -> bytes:
        """Return the content of a file."""
        return self.fs.cat_file(f"{self.root}/{name}")

    def write(self, name: str, data: bytes) -> None:
        """Write a file; it appears whole or not at all, and the last of several writers wins."""
        path = f"{self.root}/{name}"
        if self.is_local:
            with atomic_write(path) as file:
                file.write(data)
        else:
            self.fs.pipe_file(path, data)

    def open(self, name: str) -> IO[bytes]:
        """Open a file for reading."""
        return self.fs.open(f"{self.root}/{name}", "rb")

    def remove(self, name: str) -> None:
        """Remove a file if it is there."""
        with suppress(FileNotFoundError):
            self.fs.rm_file(f"{self.root}/{name}")


def _is_local(fs: "AbstractFileSystem") -> bool:
    return "file" in ([fs.protocol] if isinstance(fs.protocol, str) else fs.protocol)


def _full_uri(fs: "AbstractFileSystem", path: str) -> str:
    """Return an address that means the same on every machine and in every folder."""
    return os.path.abspath(path) if _is_local(fs) else fs.unstrip_protocol(path)


def _state_of(info: dict[str, Any]) -> str:
    """Return the size of a file with its tag or time."""
    tags = (info.get(key) for key in ("ETag", "etag", "md5Hash", "content_settings", "mtime", "LastModified"))
    return f"{info.get('size')} {next((tag for tag in tags if tag), '')}"


def open_uri(uri: str) -> "tuple[AbstractFileSystem, str]":
    """Return the file system of a path or address, and the path in it."""
    import fsspec

    try:
        return fsspec.core.url_to_fs(uri)
    except ImportError as error:
        raise UserError(f"{uri} cannot be read: {error}") from None
    except ValueError:
        raise UserError(f"{uri} is no address that fsspec knows; use a path, s3://, gs:// or abfs://") from None


def find_items(inputs: Sequence[str], output: Folder | None = None) -> list[Item]:
    """List the images of all inputs, in order.

    Args:
        inputs: Folders, single images, Parquet files and webdataset tar files, or folders of them, and .txt files with
            one path or address a line; on this machine or in an object store.
        output: A folder that is not searched, so that results do not become inputs.

    Raises:
        UserError: An input does not exist, is damaged, or holds no images.
    """
    found: list[tuple[Item, PurePosixPath]] = []
    for uri in inputs:
        before = len(found)
        try:
            found += _find(uri, None if output is None else output.uri)
        except UserError:
            raise
        except Exception as error:  # those of many packages: stores, networks, formats of files
            raise UserError(f"input {uri} cannot be read ({type(error).__name__}: {error}); check it") from None
        if len(found) == before:
            raise UserError(f"input {uri} does not exist, or holds no images; check it")
    named = name_inputs([(number, relative, "image") for number, (_, relative) in enumerate(found)])
    return [
        Item(s.name, s.relative, i.uri, i.kind, i.column, i.start, i.size, i.state)
        for s, (i, _) in zip(named, found, strict=True)
    ]


def _find(uri: str, output: str | None) -> Iterator[tuple[Item, PurePosixPath]]:
    fs, root = open_uri(uri)
    if fs.isfile(root):
        yield from _find_in_file(fs, root, PurePosixPath(PurePosixPath(root).name), _state_of(fs.info(root)))
        return
    for path, info in sorted(fs.find(root, detail=True).items()):
        relative = PurePosixPath(path[len(root) :].lstrip("/"))
        is_result = output is not None and _full_uri(fs, path).startswith(f"{output}/")
        if not is_result and not any(part.startswith(".") for part in relative.parts) and _is_used(relative):
            yield from _find_in_file(fs, path, relative, _state_of(info))


def _is_used(path: PurePosixPath) -> bool:
    return path.suffix.lower() in (*IMAGE_SUFFIXES, ".tar", ".parquet")


def _find_in_file(
    fs: "AbstractFileSystem", path: str, relative: PurePosixPath, state: str
) -> Iterator[tuple[Item, PurePosixPath]]:
    suffix, uri = relative.suffix.lower(), _full_uri(fs, path)
    if suffix == ".txt":
        for line in fs.cat_file(path).decode("utf-8-sig").splitlines():
            if line.strip() and not line.startswith("#"):
                address = _full_uri(*open_uri(line.strip()))
                yield Item("", "", address), PurePosixPath(line.strip().split("://")[-1].lstrip("/"))
    elif suffix == ".tar":
        # Not a compressed one, of which no part can be read alone.
        with fs.open(path, "rb") as file, tarfile.open(fileobj=file, mode="r:") as archive:
            for member in archive:
                inner = PurePosixPath(member.name)
                if member.isfile() and inner.suffix.lower() in IMAGE_SUFFIXES:
                    item = Item("", "", uri, "tar", "", member.offset_data, member.size, state)
                    yield item, relative.with_suffix("") / inner
    elif suffix == ".parquet":
        import pyarrow.parquet as pq

        with fs.open(path, "rb") as file:
            content = pq.ParquetFile(file)
            column = next((c for c in _IMAGE_COLUMNS if c in content.schema_arrow.names), None)
            if column is None:
                raise UserError(f"{uri} has no column of images; name it one of {', '.join(_IMAGE_COLUMNS)}")
            for row in range(content.metadata.num_rows):
                yield Item("", "", uri, "parquet", column, row, 0, state), relative.with_suffix("") / f"{row:06d}.jpg"
    else:
        yield Item("", "", uri, state=state), relative


def load_images(items: Sequence[Item]) -> list[np.ndarray | UserError]:
    """Read and decode images as (H, W, 3) uint8 RGB, several at a time; neighbors in one file are read together.

    Returns:
        For each item its image, or the error that names it.
    """
    groups = [list(g) for _, g in groupby(items, lambda item: item.name if item.kind == "file" else item.uri)]
    with ThreadPoolExecutor(_DOWNLOADS) as pool:
        return [image for group in pool.map(_load_group, groups) for image in group]


def _load_group(items: list[Item]) -> list[np.ndarray | UserError]:
    """Read and decode one image, or neighbors in one file."""
    uri = items[0].uri
    try:
        contents = _READERS[items[0].kind](items)
    except UserError as error:
        return [error] * len(items)
    except Exception as error:  # those of many packages: stores, networks, formats of files
        reason = f"{type(error).__name__}: {error}"
        return [UserError(f"image {item.image} of {uri} cannot be read ({reason}); check it") for item in items]
    return [_decode(content, item) for content, item in zip(contents, items, strict=True)]


def _decode(content: bytes | str, item: Item) -> np.ndarray | UserError:
    if isinstance(content, str):  # where the image is
        return _load_group([Item(item.name, item.image, content)])[0]
    name = item.uri if item.kind == "file" else f"{item.image} in {item.uri}"
    try:
        return decode_image(content, name)
    except UserError as error:
        return error


def decode_image(data: bytes, name: str) -> np.ndarray:
    """Decode the content of an image file as ``io.read_image`` does; ``name`` is for error messages."""
    file = io.BytesIO(data)
    try:
        return read_image(file)
    except UserError as error:
        raise UserError(str(error).replace(str(file), name)) from None


def _open_unchanged(item: Item) -> "tuple[AbstractFileSystem, str]":
    """Return the file system and the path of a file of many images, whose parts were listed before."""
    fs, path = open_uri(item.uri)
    if _state_of(fs.info(path)) != item.state:
        raise UserError(f"{item.uri} has changed since it was listed; predict it into another folder")
    return fs, path


def _read_file(items: list[Item]) -> list[bytes]:
    (item,) = items
    fs, path = open_uri(item.uri)
    size = int(item.state.split()[0]) if item.state[:1].isdecimal() else None
    if size is None:  # named in a list: it may never end
        with fs.open(path, "rb", **({"block_size": 0} if path.startswith("http") else {})) as file:
            data = file.read(MAX_FILE_SIZE + 1)
        size = len(data)
    else:
        data = fs.cat_file(path) if size <= MAX_FILE_SIZE else b""
    if size > MAX_FILE_SIZE:
        raise UserError(f"image {item.uri} is larger than {MAX_FILE_SIZE >> 30} GB; make it smaller")
    return [data]


def _read_tar(items: list[Item]) -> list[bytes]:
    fs, path = _open_unchanged(items[0])
    begin, end = min(i.start for i in items), max(i.start + i.size for i in items)
    data = fs.cat_file(path, begin, end)
    return [data[i.start - begin : i.start - begin + i.size] for i in items]


def _read_parquet(items: list[Item]) -> list[bytes | str]:
    import pyarrow.parquet as pq

    fs, path = _open_unchanged(items[0])
    rows, found = {i.start: number for number, i in enumerate(items)}, [b""] * len(items)
    with fs.open(path, "rb") as file:
        # A group of rows may be larger than the memory: it is read in pieces, and never as a whole.
        content, first = pq.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False), 0
        for group in range(content.num_row_groups):
            last = first + content.metadata.row_group(group).num_rows
            wanted = [row for row in rows if first <= row < last]
            for batch in content.iter_batches(16, [group], [items[0].column]) if wanted else ():
                for row in (row for row in wanted if first <= row < first + len(batch)):
                    value: Any = batch.column(0)[row - first].as_py()
                    # In Hugging Face's form it is a struct.
                    found[rows[row]] = value if not isinstance(value, dict) else value["bytes"] or value["path"]
                first += len(batch)
                if first > max(wanted):
                    break
            first = last
    return found


_READERS: dict[str, Callable[[list[Item]], list[Any]]] = {
    "file": _read_file,
    "tar": _read_tar,
    "parquet": _read_parquet,
}
