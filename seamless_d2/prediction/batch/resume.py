"""Which outputs are finished: files are told from those of other settings or inputs by a folder's two records."""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...errors import UserError
from ...io import write_json

SETTINGS_FILE = "settings.json"
INPUTS_FILE = "inputs.json"


def begin(output: Path, settings: dict[str, Any], inputs: Mapping[str, Path], overwrite: bool) -> int:
    """Record what an output folder is about to hold.

    Args:
        output: the folder, created where needed.
        settings: what the results depend on besides the inputs; json values.
        inputs: the file of each name.
        overwrite: whether other settings and other inputs may replace those that are recorded.

    Returns:
        Nanoseconds since the epoch: files of these settings are not older (see ``is_fresh``).

    Raises:
        UserError: the folder holds results of other settings, or of other inputs under the same names.
    """
    earlier = _read(output / SETTINGS_FILE)
    if earlier is not None and not overwrite:
        different = sorted(k for k in settings.keys() | earlier.keys() if settings.get(k) != earlier.get(k))
        if different:
            raise UserError(
                f"{output} holds predictions made with other settings ({', '.join(different)}); choose another "
                "folder, or do them again with --overwrite"
            )
    known = _read(output / INPUTS_FILE) or {}
    now = {name: _fingerprint(path) for name, path in inputs.items()}
    for name, (path, *state) in now.items():
        before = known.get(name)
        # The same file in another place is a folder that was moved; a changed file in the same place is done again.
        if before is not None and before[0] != path and before[1:] != state and not overwrite:
            raise UserError(
                f"{output} holds predictions of another file called {name} ({before[0]}, now {path}); choose another "
                "folder, or do them again with --overwrite"
            )
    if known | now != known:
        write_json(output / INPUTS_FILE, known | now)
    if earlier is None or overwrite:
        # Its time divides the files: a run with --overwrite that is interrupted goes on where it was.
        write_json(output / SETTINGS_FILE, settings, indent=2)
    return (output / SETTINGS_FILE).stat().st_mtime_ns


def is_fresh(files: Iterable[Path], since: int, source: Path | None = None) -> bool:
    """Whether all files are there, none older than ``since`` or than the file ``source`` that they were made of."""
    try:
        if source is not None:
            since = max(since, source.stat().st_mtime_ns)
        return all(path.stat().st_mtime_ns >= since for path in files)
    except (FileNotFoundError, NotADirectoryError):
        return False


def prediction_settings(config: CfgNode, options: Mapping[str, Any]) -> dict[str, Any]:
    """The settings that predictions depend on.

    Args:
        config: of the ``Predictor``.
        options: further ones, see ``files.predictor_options``.
    """
    model = config.MODEL.clone()
    model.defrost()
    model.DEVICE = model.WEIGHTS = ""
    weights = Path(config.MODEL.WEIGHTS)
    state = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else []
    return {
        "weights": [config.MODEL.WEIGHTS, *state],
        "thresholds": dict(config.MODEL.PANOPTIC_FPN.COMBINE),
        "short_side": config.INPUT.MIN_SIZE_TEST,
        **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items()},
        "model": hashlib.sha256((model.dump() + config.INPUT.dump()).encode()).hexdigest()[:16],
    }


def _read(path: Path) -> dict[str, Any] | None:
    """None where there is none."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except ValueError:
        content = None
    if not isinstance(content, dict):
        raise UserError(f"{path} was not written by this program; choose another folder")
    return content


def _fingerprint(path: Path) -> list[str | int]:
    """Place, and size and time where the file is there."""
    try:
        state = path.stat()
    except OSError:
        return [os.path.abspath(path)]
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns]
