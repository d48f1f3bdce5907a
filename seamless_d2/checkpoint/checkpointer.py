"""Detectron2's checkpointer with atomic writes, safe reads and errors that say what to do."""

import os
import re
from collections.abc import Collection
from pathlib import Path
from typing import Any

import torch
from detectron2.checkpoint import DetectionCheckpointer
from torch import Tensor, nn

from ..errors import UserError
from ..io import atomic_write
from ..tensor_files import check_finite, load_file

# The names of numbered checkpoints.
_NUMBERED = re.compile(r"model_\d+\.pth")

# What the names of the weights of the network under a feature pyramid begin with.
_NETWORKS = ("backbone.bottom_up.", "backbone.net.")


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
        """Write ``name``.pth atomically.

        A numbered checkpoint or model_final becomes the checkpoint from which ``--resume`` resumes.

        Args:
            name: The name of the file without suffix.
            **kwargs: Further values of the checkpoint.

        Raises:
            UserError: The file cannot be written. An older file of that name and other checkpoints are unchanged.
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
            # torch.save wraps errors of the file system in a RuntimeError.
            if not isinstance(error, OSError) and not isinstance(error.__context__, OSError):
                raise
            reason = (error if isinstance(error, OSError) else error.__context__).strerror
            raise UserError(
                f"checkpoint {file} cannot be written ({reason}); the earlier ones are intact: free disk space and "
                "resume with --resume"
            ) from None
        if name == "model_final" or _NUMBERED.fullmatch(f"{name}.pth"):
            self.tag_last_checkpoint(f"{name}.pth")

    def tag_last_checkpoint(self, last_filename_basename: str) -> None:
        """Make a file in ``save_dir`` the checkpoint from which ``--resume`` resumes."""
        with atomic_write(os.path.join(self.save_dir, "last_checkpoint"), "w") as file:
            file.write(last_filename_basename)

    def list_numbered(self) -> list[Path]:
        """Return the paths of the checkpoints model_<iteration>.pth in ``save_dir``, oldest first."""
        files = Path(self.save_dir).glob("model_*.pth") if self.save_dir else []
        return sorted((f for f in files if _NUMBERED.fullmatch(f.name)), key=lambda f: int(f.stem.split("_")[1]))

    def remove_old(self, keep: int) -> None:
        """Delete all numbered checkpoints except the newest ``keep``; 0 keeps all."""
        for file in self.list_numbered()[:-keep] if keep > 0 else []:
            file.unlink(missing_ok=True)

    def has_checkpoint(self) -> bool:
        return super().has_checkpoint() or bool(self.list_numbered())

    def resume_or_load(self, path: str, *, resume: bool = True) -> dict[str, Any]:
        """Resume from the newest readable checkpoint in ``save_dir``, or load the weights ``path``.

        Args:
            path: The weights to load if ``resume`` is not set or there is no checkpoint.
            resume: Whether to resume from a checkpoint. If the last one is damaged, an earlier one is used.

        Returns:
            The values of the checkpoint that were not loaded.

        Raises:
            UserError: There are checkpoints, but none can be read, or the file does not fit the model.
        """
        if not (resume and self.has_checkpoint()):
            return self.load(path, checkpointables=[])
        candidates = [str(f) for f in reversed(self.list_numbered())]
        if super().has_checkpoint():
            candidates = list(dict.fromkeys([self.get_checkpoint_file(), *candidates]))
        for number, file in enumerate(candidates):
            try:
                content = load_file(file)
            except UserError as error:
                if number == len(candidates) - 1:
                    raise
                self.logger.warning(f"{error}. Resuming from an earlier one: {candidates[number + 1]}")
                continue
            return self._load_content(file, content)
        raise AssertionError("there is at least one candidate")

    def _load_content(self, file: str, content: dict[str, Any]) -> dict[str, Any]:
        """Load a checkpoint that has been read already; a training can only resume if it holds every weight."""
        lacking = [name for name in self.checkpointables if name not in content]
        if lacking:
            raise UserError(
                f"{file} has weights but no state of a {lacking[0]}, from which to resume; begin a training with these "
                f"weights: MODEL.WEIGHTS {file}, another OUTPUT_DIR, and no --resume"
            )
        complete, self.complete, self._content = self.complete, True, content
        try:
            return self.load(file)
        finally:
            self.complete, self._content = complete, None

    def load(self, path: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Load a checkpoint; an empty ``path`` keeps the initial weights.

        Args:
            path: A file or a URL.
            *args, **kwargs: Further arguments of Detectron2's ``DetectionCheckpointer.load``.

        Raises:
            UserError: The file is missing or damaged, or does not fit the model.
        """
        if path and "://" not in path and not Path(path).is_file():
            raise UserError(
                f"checkpoint {path} does not exist; the config's head says where its weights come from, or set "
                'MODEL.WEIGHTS (to "" for random initial weights)'
            )
        try:
            return super().load(path, *args, **kwargs)
        except UserError as error:
            raise UserError(f"{path}: {error}" if str(path) not in str(error) else str(error)) from None
        except OSError as error:
            if "://" not in path:
                raise
            raise UserError(
                f"checkpoint {path} cannot be downloaded ({error}); get it where there is a network, and give the "
                "path of the file"
            ) from None

    def _load_file(self, filename: str) -> dict[str, Any]:
        content = self._content or load_file(filename)
        if "model" not in content:
            content = {"model": content}
        if filename.endswith(".pkl"):
            content.setdefault("matching_heuristics", True)
        return content

    def _load_model(self, checkpoint: dict[str, Any]) -> Any:
        wanted = {k for k in self.model.state_dict() if not k.endswith("num_batches_tracked")}
        state = checkpoint["model"]
        incompatible = super()._load_model(checkpoint)
        check_finite(state)
        missing = {k for k in incompatible.missing_keys if not k.endswith("num_batches_tracked")}
        shapes = [entry[0] for entry in incompatible.incorrect_shapes]
        check_shared(self.model, wanted - missing - set(shapes))
        if self.complete and (missing or shapes):
            names = ", ".join([*shapes, *sorted(missing)][:4])
            raise UserError(
                f"the checkpoint does not fit this model: {len(missing)} weights are missing and {len(shapes)} have "
                f"another shape ({names}, ...); use the config it was trained with"
            )
        return incompatible


def load_weights(model: nn.Module, path: str | Path) -> None:
    """Load the complete weights of a model for evaluation or prediction.

    Args:
        model: The model, whose weights change in place.
        path: The checkpoint.

    Raises:
        UserError: There is no path, the file cannot be read, or the weights are those of another model.
    """
    if not str(path):
        raise UserError("no weights given; set MODEL.WEIGHTS (or --weights) to a trained checkpoint")
    SeamlessCheckpointer(model, complete=True).load(str(path))


def check_shared(model: nn.Module, names: Collection[str]) -> None:
    """Raise ``UserError`` if a checkpoint gave a model no weight, or none of the network under its feature pyramid.

    Args:
        model: The model.
        names: The names of the weights that the checkpoint gave.
    """
    lacks_network = any(name.startswith(_NETWORKS) for name in model.state_dict())
    lacks_network = lacks_network and not any(name.startswith(_NETWORKS) for name in names)
    if not names or lacks_network:
        raise UserError(
            f"the checkpoint shares no weight with this {'backbone' if names else 'model'}; it belongs to another "
            "architecture: use the config of that model as the base of yours, or another checkpoint"
        )


def write_checkpoint(state: dict[str, Tensor], output: str | Path, author: str) -> None:
    """Write a checkpoint for Detectron2, atomically.

    Args:
        state: The weights by name.
        output: The .pth file.
        author: The name of the program that the weights come from.
    """
    with atomic_write(output) as file:
        torch.save({"model": state, "__author__": author}, file)
