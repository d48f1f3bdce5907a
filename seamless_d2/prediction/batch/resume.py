"""Which outputs of an earlier run can be kept.

An output folder records the settings (settings.json) and the inputs (its manifest) that its files were made of. A file
counts as finished if both still agree and it is newer than they are.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode

from ...errors import UserError
from ...io import write_json
from ...locks import lock_output
from ..formats import list_files
from ..options import PredictionOptions
from .manifest import DONE, Entry, Manifest

SETTINGS_FILE = "settings.json"
# What is recorded of a video, see ``read_frames``, of which no frame is finished.
NO_FRAMES: dict[str, Any] = {"frames": 0, "selection": None, "formats": [], "live": False}
# Seconds that processes wait for each other to look at the settings.
_PATIENCE = 60


def record_settings(output: Path, settings: dict[str, Any], overwrite: bool) -> int:
    """Record the settings of what an output folder holds; several processes may do so at a time.

    Args:
        output: The folder, created if needed.
        settings: What the results depend on besides the inputs, as json values.
        overwrite: Whether other settings may replace those that are recorded.

    Returns:
        The time of the settings in nanoseconds since the epoch; older files were made with others (see ``is_fresh``).

    Raises:
        UserError: The folder holds results of other settings.
    """
    with lock_output(output / ".settings.lock", "a prediction", patience=_PATIENCE):
        earlier = _read(output / SETTINGS_FILE)
        if earlier is not None and not overwrite:
            different = sorted(k for k in settings.keys() | earlier.keys() if settings.get(k) != earlier.get(k))
            if different:
                raise UserError(
                    f"{output} holds predictions made with other settings ({', '.join(different)}); choose another "
                    "folder, or do them again with --overwrite"
                )
        if earlier is None or overwrite:
            # Its time divides the files: a run with --overwrite that is interrupted resumes where it was.
            write_json(output / SETTINGS_FILE, settings, indent=2)
    return read_since(output)


def read_since(output: Path) -> int:
    """Return what ``record_settings`` returned for the settings of a folder; 0 if it has none."""
    path = output / SETTINGS_FILE
    return path.stat().st_mtime_ns if path.is_file() else 0


def record_inputs(
    manifest: Manifest,
    known: Mapping[str, Entry],
    inputs: Mapping[str, Entry],
    overwrite: bool,
    outputs: Mapping[str, Iterable[Path]],
    stale: Mapping[str, Iterable[Path]],
) -> None:
    """Record the inputs of what an output folder is about to hold; results of changed inputs are removed.

    Args:
        manifest: The manifest that new and changed inputs are added to.
        known: The entries of these inputs in all manifests of the folder.
        inputs: The inputs as they are now, by name.
        overwrite: Whether other inputs may replace those that are recorded.
        outputs: The files that are made of each name now.
        stale: The files that any run can have made of each name.

    Raises:
        UserError: The folder holds results of other inputs under the same names, or files of others under the names of
            results.
    """
    for name, entry in inputs.items():
        before = known.get(name)
        # The same file in another place is a folder that was moved; a changed file in the same place is done again.
        if before and before.source != entry.source and not before.is_same_file(entry) and not overwrite:
            raise UserError(
                f"{manifest.path.parent} holds predictions of another file called {name} ({before.source}, now "
                f"{entry.source}); choose another folder, or do them again with --overwrite"
            )
    foreign = [p for name, paths in outputs.items() if name not in known for p in paths if p.exists()]
    if foreign:
        raise UserError(
            f"{foreign[0]} exists and was not written by this program; choose another folder, or move it away"
        )
    for name, entry in inputs.items():
        # Not the times tell that results are old: a file that was copied or unpacked can be older than they are.
        if name in known and not known[name].is_same_file(entry):
            for path in stale.get(name, ()):
                path.unlink(missing_ok=True)
    manifest.add(
        {
            name: entry
            for name, entry in inputs.items()
            if overwrite or name not in known or known[name].as_pending() != entry
        }
    )


def is_fresh(files: Iterable[Path], since: int, source: Path | None = None) -> bool:
    """Return whether all files exist and none is older than ``since`` or than ``source``, which they are made of."""
    try:
        if source is not None:
            since = max(since, source.stat().st_mtime_ns)
        return all(path.stat().st_mtime_ns >= since for path in files)
    except (FileNotFoundError, NotADirectoryError):
        return False


def read_frames(output: Path, name: str, since: int, source: Path | None = None) -> dict[str, Any]:
    """Return the record of the finished frames and formats of a video; see ``is_fresh`` for the other arguments."""
    record = frames_record(output, name)
    found = _read(record) if is_fresh([record], since, source) else None
    return found if found and found.keys() == NO_FRAMES.keys() else NO_FRAMES


def frames_record(output: Path, name: str) -> Path:
    """Return the file that says which frames of a video are finished."""
    return output / f"{name}.frames.json"


def name_frame(name: str, number: int) -> str:
    """Return the name of the outputs of a frame, 1, 2, ..., of a video."""
    return f"{name}/{number:06d}"


def list_coco_images(output: Path, entries: Mapping[str, Entry]) -> dict[str, tuple[int | str | None, str]]:
    """Return the images and frames of all inputs that are done in the form that ``assemble_coco`` takes."""
    since = read_since(output)
    found: dict[str, tuple[int | str | None, str]] = {}
    for name, entry in entries.items():
        if entry.kind != "image":
            for number in range(1, read_frames(output, name, since)["frames"] + 1):
                frame = name_frame(name, number)
                found[frame] = None, f"{frame}.png"
        elif entry.outcome == DONE and is_fresh(list_files(output, name, ("coco",))["coco"], since):
            found[name] = entry.image_id, entry.image
    return found


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
