"""The merge of what shards have predicted into one folder."""

from collections import Counter
from pathlib import Path

from ...errors import UserError
from ...io import remove_temporaries, summarize_failures
from ...locks import lock_output
from .coco_folder import assemble_coco
from .manifest import DONE, FAILED, PENDING, Entry, find_missing_shards, read_manifests
from .resume import list_coco_images


def merge_predictions(output: str | Path, *, partial: bool = False) -> tuple[Path, Path]:
    """Join what shards have written into panoptic.json and instances.json.

    Args:
        output: The output folder of the shards.
        partial: Whether inputs may be pending or failed.

    Returns:
        The two files.

    Raises:
        UserError: Inputs are pending or failed, the folder holds no predictions in the format "coco", or something is
            writing into it.
    """
    output = Path(output)
    if not output.is_dir():
        raise UserError(f"folder {output} does not exist; check the path")
    with lock_output(output / ".lock", "a merge of predictions") as is_locked:
        entries = read_manifests(output)
        if not entries:
            raise UserError(f"{output} holds no predictions; give the --output of tools/predict.py")
        if not partial:
            _check_complete(output, entries)
        if is_locked:
            remove_temporaries(output)
        files = assemble_coco(output, list_coco_images(output, entries))
    if files is None:
        raise UserError(f"{output} holds no predictions in the format coco; predict with --format coco")
    return files


def _check_complete(output: Path, entries: dict[str, Entry]) -> None:
    if missing := find_missing_shards(output):
        raise UserError(f"{output}: shard {missing} has not begun; start it, or merge what is there with --partial")
    counts = Counter(entry.outcome for entry in entries.values())
    if counts[PENDING] or counts[FAILED]:
        failed = [entry.reason for entry in entries.values() if entry.outcome == FAILED]
        sentences = f":\n  {summarize_failures(failed)}" if failed else ""
        raise UserError(
            f"{output}: {counts[DONE]} inputs are done, {counts[PENDING]} pending and {counts[FAILED]} failed; finish "
            f"them (--retry-failed), or merge what is there with --partial{sentences}"
        )
