"""Reading of tensors from files of any origin, without running code from them and without exhausting the memory."""

import io
import pickle
import pickletools
import re
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor

from .errors import UserError
from .io import read_bytes
from .limits import check_expansion

# What a pickle of containers and numpy arrays refers to.
_ALLOWED_GLOBALS = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles containers and numpy arrays, but nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _ALLOWED_GLOBALS:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def load_file(path: str | Path, what: str = "checkpoint", member: bytes | None = None) -> dict[str, Any]:
    """Read a file of torch.save, a .pkl file of Detectron2 or a .safetensors file without running any code from it.

    Args:
        path: The file.
        what: What the file is, for error messages.
        member: The content of a file of torch.save inside the archive ``path``, which is read instead.

    Returns:
        The content of the file, with tensors on the CPU.

    Raises:
        UserError: The file is missing, damaged, of another format, has more than tensors and plain values, or would
            take memory out of proportion to its size.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{what} {path} does not exist; check the path")
    try:
        if member is None and path.suffix == ".pkl":
            content = _unpickle(read_bytes(path, what))
        elif member is None and path.suffix == ".safetensors":
            content = _load_safetensors(path)
        elif member is None:
            with open(path, "rb") as file:
                content = _load(file, path)
        else:
            content = _load(io.BytesIO(member), path)
        check_expansion(path, _count_bytes(content))
    except UserError:
        raise
    except Exception as error:  # a truncated zip, a wrong format, a forbidden class, ...
        raise UserError(
            f"{what} {path} cannot be read as tensors ({_describe(error)}); it is damaged or of another program, get "
            "it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"{what} {path} holds no dictionary of tensors; it is of another program")
    return content


def check_finite(state: dict[str, Tensor]) -> None:
    """Raise ``UserError`` if weights are NaN or infinite."""
    undefined = [name for name, value in state.items() if not torch.isfinite(value).all()]
    if undefined:
        raise UserError(
            f"{len(undefined)} weights of the checkpoint are NaN or infinite ({', '.join(undefined[:4])}, ...), as "
            "after a training that has diverged; use an earlier one"
        )


def _load_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file as load_safetensors
    except ImportError:
        raise UserError(f"{path} needs the package safetensors; run `python -m pip install safetensors`") from None
    return load_safetensors(path)


def _unpickle(data: bytes) -> Any:
    # The decoder of pickles allocates what they ask for: lengths beyond the end of the data, and places in its table.
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name.endswith("PUT") and argument > len(data):
            raise pickle.UnpicklingError(f"it has no place {argument}")
    return _NumpyUnpickler(io.BytesIO(data), encoding="latin1").load()


def _load(file: BinaryIO, path: Path) -> Any:
    """Read a file of torch.save, which is ``path`` or a part of it."""
    if zipfile.is_zipfile(file):  # torch.load checks neither sizes nor checksums
        with zipfile.ZipFile(file) as archive:
            check_expansion(path, sum(entry.file_size for entry in archive.infolist()))
            if (damaged := archive.testzip()) is not None:
                raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


def _count_bytes(content: Any) -> int:
    """Return the memory that all tensors and arrays would take as copies; they may be views that repeat their values.

    Raises:
        ValueError: A tensor has no values, or an array has other values than numbers.
    """
    size, seen, todo = 0, set(), [content]
    while todo:
        value = todo.pop()
        if isinstance(value, Tensor):
            if value.layout is not torch.strided or value.is_meta:
                raise ValueError("a tensor has no dense values")
            size += value.numel() * value.element_size()
        elif isinstance(value, np.ndarray):
            if value.dtype.hasobject:
                raise ValueError("an array has other values than numbers")
            size += value.nbytes
        elif isinstance(value, (dict, list, tuple)) and id(value) not in seen:
            seen.add(id(value))
            todo.extend(value.values() if isinstance(value, dict) else value)
    return size


def _describe(error: Exception) -> str:
    """Return the reason of an error of pickle and torch, but not torch's advice to read the file unsafely."""
    text = str(error).strip()
    if found := re.search(r"GLOBAL (\S+)", text):
        return f"it refers to {found[1]}, which is no tensor"
    if "weights" in text.lower():
        return "it has other content than tensors"
    return text.split("\n")[0][:200] or type(error).__name__
