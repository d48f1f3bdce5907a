"""From the files of a job on Ray to COCO's panoptic format."""

import io
import json
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any

from tqdm import tqdm

from ...errors import UserError
from ...io import atomic_write, decode_rgb_png, remove_temporaries, rgb_to_ids
from ...locks import lock_output
from ..result import instance_results
from .coco_folder import number_images, write_coco
from .part_files import SUFFIXES, Prediction, decode_part
from .ray_job import FAILURES, SETTINGS_FILE, iterate_blocks
from .remote_files import Folder

#: The folder of the parts in an output of COCO files.
PARTS = "parts"


def is_job(uri: str) -> bool:
    """Return whether a folder or address holds the files of a job on Ray."""
    return SETTINGS_FILE in Folder(uri).list(".json")


def read_settings(folder: Folder) -> dict[str, Any]:
    """Return the ``format`` and the ``categories`` of a job; raise ``UserError`` if its record is damaged."""
    try:
        settings = json.loads(folder.read(SETTINGS_FILE))
        if settings["format"] in SUFFIXES and isinstance(settings["categories"], list):
            return settings
    except (ValueError, KeyError, TypeError):
        pass
    raise UserError(f"{folder.uri}/{SETTINGS_FILE} is damaged; start the job again in another --output")


def read_part(folder: Folder, part: str, format: str) -> Iterator[Prediction]:
    """Yield the predictions of a part; raise ``UserError`` if it is damaged."""
    with _name_damage(folder, part):
        yield from decode_part(folder.read(part), format)


@contextmanager
def _name_damage(folder: Folder, part: str) -> Iterator[None]:
    """Turn what a reader of a damaged part raises into ``UserError``."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, tarfile.TarError):
        raise UserError(f"{folder.uri}/{part} is damaged; remove it and start the job again") from None


def list_parts(folder: Folder, format: str) -> list[str]:
    """Return the names of the files of predictions."""
    return [name for name in folder.list(SUFFIXES[format]) if name.startswith("part-")]


def merge_parts(uri: str, output: Path, *, partial: bool = False) -> tuple[Path, Path]:
    """Write panoptic.json, instances.json and the PNGs in the folder panoptic, one part at a time.

    Args:
        uri: The output of ``predict_on_ray``.
        output: A folder that is new, empty, or of an earlier merge of the same job.
        partial: Whether parts may be missing and images may have failed.

    Returns:
        The two jsons.

    Raises:
        UserError: Parts are missing, images failed, or the output holds files of others.
    """
    folder = Folder(uri)
    settings = read_settings(folder)
    format, categories = settings["format"], settings["categories"]
    parts = list_parts(folder, format)
    planned = {block["block"] for block in iterate_blocks(folder)}
    pending = planned - {part.removesuffix(SUFFIXES[format]) for part in parts}
    failed = [name for name in folder.list(".parquet") if name.startswith(FAILURES)]
    if not partial and (pending or failed):
        raise UserError(
            f"{uri}: {len(pending)} of {len(planned)} parts are pending, and {len(failed)} have failures "
            "(_failures-*.parquet); start the job again, with --retry-failed, or merge what is there with --partial"
        )
    # The parts may lie in a folder of the output.
    foreign = {path.name for path in output.iterdir()} - {PARTS, ".lock"} if output.is_dir() else set()
    marker = output / ".merged"
    if foreign and not (marker.is_file() and marker.read_text() == folder.uri):
        raise UserError(f"{output} holds files of others; choose a new folder (--output)")
    with lock_output(output / ".lock", "a merge of predictions") as is_locked:
        if is_locked:
            remove_temporaries(output)
        with atomic_write(marker, "w") as file:
            file.write(folder.uri)
        numbers = number_images({name: None for part in parts for name in _read_names(folder, part, format)})

        def images() -> Iterator[tuple[int | str, str, dict[str, Any]]]:
            for part in tqdm(parts, "merge", unit="part"):
                for prediction in read_part(folder, part, format):
                    if {"..", "/", ""} & {*PurePosixPath(prediction.name).parts, prediction.name}:
                        raise UserError(f"{part} has an image called {prediction.name!r}, which leaves the output")
                    with atomic_write(output / "panoptic" / f"{prediction.name}.png") as file:
                        file.write(prediction.png)
                    yield numbers[prediction.name], prediction.image, _to_coco(prediction, categories)

        return write_coco(output, images(), categories)


def _read_names(folder: Folder, part: str, format: str) -> list[str]:
    """Return the names of the images of a part."""
    if format != "parquet":
        return [prediction.name for prediction in read_part(folder, part, format)]
    import pyarrow.parquet as pq

    with _name_damage(folder, part):
        return pq.read_table(io.BytesIO(folder.read(part)), columns=["name"])["name"].to_pylist()


def _to_coco(prediction: Prediction, categories: list[dict[str, Any]]) -> dict[str, Any]:
    content = prediction.to_coco()
    ids = rgb_to_ids(decode_rgb_png(prediction.png))
    segments = content["annotations"][0]["segments_info"]
    return content | {"instances": instance_results(ids, segments, categories)}
