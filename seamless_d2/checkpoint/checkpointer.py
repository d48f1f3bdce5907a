"""Detectron2's checkpointer with atomic writes, safe reads and errors that a user can act on."""

import io
import os
import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..errors import UserError
from ..io import atomic_write

_NUMPY = {
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy.core.multiarray", "scalar"),
    ("numpy._core.multiarray", "scalar"),
    ("collections", "OrderedDict"),
    ("_codecs", "encode"),
}

_NUMBERED = re.compile(r"model_\d+\.pth")


class _NumpyUnpickler(pickle.Unpickler):
    """Unpickles plain containers and numpy arrays, nothing that could run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NUMPY:
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"{module}.{name} is not allowed")


def load_file(path: str | Path) -> dict[str, Any]:
    """Read a .pth or Detectron2 .pkl file without running any code from it.

    Raises:
        UserError: missing, truncated, of another format, or holding more than tensors and plain values.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"checkpoint {path} does not exist; check MODEL.WEIGHTS or the path")
    try:
        if path.suffix == ".pkl":
            content = _NumpyUnpickler(io.BytesIO(path.read_bytes()), encoding="latin1").load()
        else:
            if zipfile.is_zipfile(path):  # what torch.save writes; torch.load does not look at the checksums
                with zipfile.ZipFile(path) as archive:
                    if (damaged := archive.testzip()) is not None:
                        raise zipfile.BadZipFile(f"wrong checksum of {damaged}")
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated zip, bad magic, forbidden class: every library error means the same
        reason = str(error).strip().split("\n")[0][:200]
        raise UserError(
            f"checkpoint {path} cannot be read as tensors ({reason}); it is damaged or of another program, get it again"
        ) from None
    if not isinstance(content, dict):
        raise UserError(f"checkpoint {path} holds no dictionary of weights; it is of another program")
    return content


class SeamlessCheckpointer(DetectionCheckpointer):
    """Saves atomically, loads with ``load_file``, and recognizes a checkpoint of another model."""

    def __init__(self, model: nn.Module, save_dir: str = "", *, complete: bool = False, **kwargs: Any) -> None:
        """
        Args:
            model: The model whose weights are saved and loaded.
            save_dir: The folder that checkpoints are written to.
            complete: Whether a checkpoint must hold every weight of the model, as evaluation and prediction need it. A
                training may start from a backbone alone.
            **kwargs: Further arguments of Detectron2's ``DetectionCheckpointer``.
        """
        super().__init__(model, save_dir, **kwargs)
        self.complete = complete
        # What ``resume_or_load`` has read already.
        self._content: dict[str, Any] | None = None

    def save(self, name: str, **kwargs: Any) -> None:
        """Write ``name``.pth; numbered and final checkpoints become the one that ``--resume`` takes.

        Raises:
            UserError: the file cannot be written; an older file of that name, and the other checkpoints, are untouched.
        """
        if not self.save_dir or not self.save_to_disk:
            return
        data = {"model": self.model.state_dict()}
        data.update({key: obj.state_dict() for key, obj in self.checkpointables.items()})
        data.update(kwargs)
        file = os.path.join(self.save_dir, f"{name}.pth")
        self.logger.info(f"Saving checkpoint to {file}")
        try:
            with atomic_write(file) as stream:
                torch.save(data, stream)
        except (OSError, RuntimeError) as error:
            # torch.save wraps what the file system says into a RuntimeError.
            if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
                raise
            reason = (error if isinstance(error, OSError) else error.__context__).strerror
            raise UserError(
                f"checkpoint {file} cannot be written ({reason}); the earlier ones are intact: free disk space and go "
                "on with --resume"
            ) from None
        if name == "model_final" or _NUMBERED.fullmatch(f"{name}.pth"):
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Remember the checkpoint for ``--resume``."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def numbered(self) -> list[Path]:
        """The checkpoints model_<iteration>.pth in ``save_dir``, oldest first."""
        files = Path(self.save_dir).glob("model_*.pth") if self.save_dir else []
        return sorted((f for f in files if _NUMBERED.fullmatch(f.name)), key=lambda f: int(f.stem.split("_")[1]))

    def remove_old(self, keep: int) -> None:
        """Delete all numbered checkpoints but the newest ``keep`` (0 keeps all)."""
        for file in self.numbered()[:-keep] if keep > 0 else []:
            file.unlink(missing_ok=True)

    def has_checkpoint(self) -> bool:
        return super().has_checkpoint() or bool(self.numbered())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """As Detectron2's; a checkpoint that is damaged is passed over, and an earlier one is taken.

        Raises:
            UserError: there are checkpoints, but none can be read.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        candidates = [str(f) for f in reversed(self.numbered())]
        if super().has_checkpoint():
            candidates = list(dict.fromkeys([self.get_checkpoint_file(), *candidates]))
        for number, file in enumerate(candidates):
            try:
                content = load_file(file)
            except UserError as error:
                if number == len(candidates) - 1:
                    raise
                self.logger.warning(f"{error}. Going on from an earlier one: {candidates[number + 1]}")
                continue
            return self._load_content(file, content)
        raise AssertionError("there is at least one candidate")

    def _load_content(self, file: str, content: dict[str, Any]) -> dict[str, Any]:
        """Load what has been read already; a checkpoint to go on from must hold every weight."""
        complete, self.complete, self._content = self.complete, True, content
        try:
            return self.load(file)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None
        finally:
            self.complete, self._content = complete, None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """As Detectron2's; an empty ``path`` keeps the initial weights."""
        if path and "://" not in path and not Path(path).is_file():
            raise UserError(
                f"checkpoint {path} does not exist; the config's head says where its weights come from, or set "
                'MODEL.WEIGHTS (to "" for random initial weights)'
            )
        return super().load(path, *args, **kwargs)

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self._content or load_file(filename)
        if "model" not in content:
            content = {"model": content}
        if filename.endswith(".pkl"):
            content.setdefault("matching_heuristics", True)
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        wanted = {k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")}
        incompatible = super()._load_model(checkpoint)
        missing = {k for k in incompatible.missing_keys if not k.endswith("num_batches_tracked")}
        shapes = [entry[0] for entry in incompatible.incorrect_shapes]
        if len(missing) + len(shapes) >= len(wanted):
            raise UserError("the checkpoint shares no weight with this model; it belongs to another architecture")
        if self.complete and (missing or shapes):
            names = ", ".join([*shapes, *sorted(missing)][:4])
            raise UserError(
                f"the checkpoint does not fit this model: {len(missing)} weights are missing and {len(shapes)} have "
                f"another shape ({names}, ...); use the config it was trained with"
            )
        return incompatible


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the complete weights of ``model`` for evaluation or prediction.

    Raises:
        UserError: no path, unreadable file, or weights of another model.
    """
    if not str(path):
        raise UserError("no weights given; set MODEL.WEIGHTS (or --weights) to a trained checkpoint")
    checkpointer = SeamlessCheckpointer(model, complete=True)
    try:
        checkpointer.load(str(path))
    except UserError as error:
        raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None


def write_checkpoint(state: dict[str, Tensor], output: str | Path, author: str) -> None:
    """Write a Detectron2 checkpoint, atomically."""
    with atomic_write(output) as file:
        torch.save({"model": state, "__author__": author}, file)
