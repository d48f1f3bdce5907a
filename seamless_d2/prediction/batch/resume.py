"""Which outputs of an earlier run can be kept.

An output folder has two records: the settings and the input files that its files were made of. A file counts as
finished if both still agree and it is newer than they are.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...errors import UserError
from ...io import write_json
from ..options import PredictionOptions

SETTINGS_FILE = "settings.json"
INPUTS_FILE = "inputs.json"


def record_run(
    output: Path,
    settings: dict[str, Any],
    inputs: Mapping[str, Path],
    overwrite: bool,
    outputs: Mapping[str, Iterable[Path]],
) -> int:
    """Record what an output folder is about to hold.

    Args:
        output: The folder, created if needed.
        settings: What the results depend on besides the inputs, as json values.
        inputs: The input file of each name.
        overwrite: Whether other settings and other inputs may replace those that are recorded.
        outputs: The files that are made of each name.

    Returns:
        The time of the settings in nanoseconds since the epoch; older files were made with others (see ``is_fresh``).

    Raises:
        UserError: The folder holds results of other settings, of other inputs under the same names, or files of others
            under the names of results.
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
    foreign = [p for name, paths in outputs.items() if name not in known for p in paths if p.exists()]
    if foreign:
        raise UserError(
            f"{foreign[0]} exists and was not written by this program; choose another folder, or move it away"
        )
    if known | now != known:
        write_json(output / INPUTS_FILE, known | now)
    if earlier is None or overwrite:
        # Its time divides the files: a run with --overwrite that is interrupted resumes where it was.
        write_json(output / SETTINGS_FILE, settings, indent=2)
    return (output / SETTINGS_FILE).stat().st_mtime_ns


def is_fresh(files: Iterable[Path], since: int, source: Path | None = None) -> bool:
    """Return whether all files exist and none is older than ``since`` or than ``source``, which they are made of."""
    try:
        if source is not None:
            since = max(since, source.stat().st_mtime_ns)
        return all(path.stat().st_mtime_ns >= since for path in files)
    except (FileNotFoundError, NotADirectoryError):
        return False


def get_prediction_settings(config: CfgNode, options: PredictionOptions) -> dict[str, Any]:
    """Return the settings that predictions depend on, as json values.

    Args:
        config: The configuration of the ``Predictor``, with the options applied.
        options: Its options.
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
        **options.fingerprint(),
        "model": hashlib.sha256((model.dump() + config.INPUT.dump()).encode()).hexdigest()[:16],
    }


def _read(path: Path) -> dict[str, Any] | None:
    """Return the content of a record, or None if there is none."""
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
    """Return the path of a file, and its size and time if it exists."""
    try:
        state = path.stat()
    except OSError:
        return [os.path.abspath(path)]
    return [os.path.abspath(path), state.st_size, state.st_mtime_ns]
