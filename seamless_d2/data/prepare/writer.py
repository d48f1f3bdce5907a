"""Writing of a COCO-panoptic data set from a list of items, in parallel, with progress, and resumable.

Each finished image leaves its PNG and a small json file (a "part"); the json of the data set is written last, from the
parts. All files are written atomically, so that an interrupted run can be resumed at any point. A hidden record beside
the json keeps the parts and the names of all files that were written, so that a later run converts only what changed.
"""

import argparse
import os
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypedDict, TypeVar

import numpy as np
from tqdm import tqdm

from ...errors import UserError
from ...io import summarize_failures
from ...locks import lock_output
from ...parallel import map_parallel
from ...structures.id_maps import instance_annotations, measure_segments
from .class_list import name_example, print_unlabelled
from .file_state import FileState, fingerprint, is_unchanged, record_state
from .outputs import Outputs, first_repeated

Item = TypeVar("Item")


@dataclass
class PanopticImage:
    """One converted image.

    Attributes:
        file_name: The path of the image below the folder of images.
        png_name: The path of the id PNG below the folder of PNGs, distinct for each image.
        ids: (H, W) integer ids of the segments below 2^24, 0 = void.
        segments: Dicts with id, category_id (of the data set) and iscrowd. The writer adds area and bbox, and leaves
            out segments without a pixel.
        image: Further keys of the image entry in the json.
        left_out: What is not in the map, with its number, for a sentence at the end: {"regions outside": 2}.
    """

    file_name: str
    png_name: str
    ids: np.ndarray
    segments: list[dict[str, Any]]
    image: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


class WriterOptions(TypedDict, total=False):
    """The options of ``write_panoptic_dataset`` that every converter passes on; see there."""

    workers: int | None
    overwrite: bool
    check_content: bool


def add_writer_options(parser: argparse.ArgumentParser) -> None:
    """Add the arguments that ``get_writer_options`` reads to the parser of a tool."""
    parser.add_argument("--workers", type=int, help="processes; default one per CPU")
    parser.add_argument("--overwrite", action="store_true", help="convert all images again")
    parser.add_argument(
        "--check-content", action="store_true", help="read all files to find what changed, not only sizes and times"
    )


def get_writer_options(args: argparse.Namespace) -> WriterOptions:
    """Return the options of ``write_panoptic_dataset`` that a user chose."""
    return {"workers": args.workers, "overwrite": args.overwrite, "check_content": args.check_content}


def write_panoptic_dataset(
    items: Sequence[Item],
    keys: Sequence[str],
    convert: Callable[[Item], PanopticImage],
    *,
    inputs: Sequence[Sequence[Path]],
    png_dir: Path,
    panoptic_json: Path,
    instance_json: Path | None,
    categories: list[dict[str, Any]],
    image_dir: Path | None = None,
    input_dirs: Sequence[Path] = (),
    description: str = "images",
    workers: int | None = None,
    overwrite: bool = False,
    check_content: bool = False,
) -> None:
    """Convert all items and write the data set.

    PNGs are created inside ``png_dir`` only, and a file is replaced only if an earlier run of this function wrote it.
    An image of an earlier run is kept if its item, its input files, its PNG, and ``convert`` with its arguments and
    the source file that defines it are the same.

    Args:
        items: The arguments of ``convert``: paths, or data that json can represent.
        keys: A distinct name for each item, stable between runs. Images get the ids 1, 2, ... in this order, unless
            the converted image has an "id".
        convert: Makes a ``PanopticImage`` of an item; it must be possible to pickle it. Its ``UserError``,
            ``ValueError`` and ``OSError`` are collected while the other items are converted.
        inputs: The files whose content ``convert`` reads, for each item.
        png_dir: The folder of the id PNGs.
        panoptic_json: The json, which is written last.
        instance_json: The json of COCO instance annotations of the things, or None.
        categories: The categories of the json.
        image_dir: The folder of the images, of which those without labels are counted; default they are not.
        input_dirs: The folders that images and labels are read from; nothing is written into them.
        description: The text beside the progress bar.
        workers: The number of processes; default one per available CPU.
        overwrite: Whether to convert everything again.
        check_content: Whether to compare the content of all files with that of the earlier run. By default, files
            whose size and modification time are the same count as the same.

    Raises:
        UserError: Some items failed (the message names the first), a process was killed, or the data set would be
            written into a folder that is read, or over files of others.
    """
    if len(set(keys)) != len(keys):
        raise UserError(f"{description}: the name {first_repeated(keys)} occurs twice; names must be distinct")
    for folder in input_dirs:
        if png_dir.resolve().is_relative_to(folder.resolve()):
            raise UserError(
                f"the PNGs of {panoptic_json} would be written to {png_dir}, in the folder {folder} that is read; "
                "choose another output"
            )
    jsons = [path for path in (panoptic_json, instance_json) if path is not None]
    with lock_output(panoptic_json.with_name(f".{panoptic_json.stem}.lock"), "the preparation of a data set"):
        outputs, parts = Outputs.open(panoptic_json, png_dir)
        for path in jsons:
            outputs.claim(path)
        thing_ids = frozenset(c["id"] for c in categories if c["isthing"])
        conversion = _Conversion(convert, thing_ids, outputs, overwrite, check_content)
        _convert_all(conversion, items, keys, inputs, parts, workers, description)
        images, left_out = outputs.finish(keys, parts, jsons, categories)
    if left_out:
        print(f"{description}: left out " + ", ".join(f"{number} {what}" for what, number in left_out.items()))
    if image_dir is not None:
        print_unlabelled(image_dir, images)


def _convert_all(
    conversion: "_Conversion",
    items: Sequence[Any],
    keys: Sequence[str],
    inputs: Sequence[Sequence[Path]],
    parts: Mapping[str, dict[str, Any]],
    workers: int | None,
    description: str,
) -> None:
    """Convert the items, except those whose parts of earlier runs can be kept.

    Raises:
        UserError: Some items failed, or a process was killed.
    """
    panoptic_json = conversion.outputs.panoptic_json
    tasks = [
        (item, key, files, {name: parts[key][name] for name in _STATE} if key in parts else None)
        for item, key, files in zip(items, keys, inputs, strict=True)
    ]
    killed = (
        f"a process that worked on {panoptic_json} was killed, perhaps for want of memory; run this again with fewer "
        "--workers (what is done is kept)"
    )
    failures: dict[int, str] = {}
    kept = 0
    remade: dict[str, list[str]] = defaultdict(list)  # the images that are made again, by the reason
    with (
        tqdm(total=len(keys), desc=description, unit="image") as bar,
        closing(map_parallel(conversion, tasks, workers, killed)) as results,
    ):
        for number, (error, reason) in results:
            if error is not None:
                failures[number] = f"{keys[number]}: {error}"
            elif reason is None:
                kept += 1
            elif keys[number] in parts:
                remade[reason].append(keys[number])
            bar.update()
    if kept or remade:
        reasons = "".join(f", {len(v)} made again because {r} ({name_example(v)})" for r, v in remade.items())
        print(f"{description}: {kept} of {len(keys)} images were already done{reasons}")
    if failures:
        listed = summarize_failures(
            [failures[number] for number in sorted(failures)], conversion.outputs.parts / "failures.txt"
        )
        raise UserError(
            f"{len(failures)} of {len(keys)} images of {panoptic_json} failed (mend their files and run this again, "
            f"the others are done): {listed}"
        )


#: The keys of a part that say what the image was made of, and what was written.
_STATE = ("fingerprint", "inputs", "png")


@dataclass(frozen=True)
class _Conversion:
    """The work on one image in a worker process; the attributes are arguments of ``write_panoptic_dataset``."""

    convert: Callable[[Any], PanopticImage]
    thing_ids: frozenset[int]
    outputs: Outputs
    overwrite: bool
    check_content: bool

    def __call__(self, task: tuple[Any, str, Sequence[Path], dict[str, Any] | None]) -> tuple[str | None, str | None]:
        """Convert an item, unless that has been done.

        Args:
            task: The item, its key, its input files, and the ``_STATE`` of the part of an earlier run or None.

        Returns:
            The message of an expected error or None, and the reason for the conversion or None if there was none.
        """
        item, key, inputs, earlier = task
        state = fingerprint(self.outputs.folder, item, self.convert, self.thing_ids, PanopticImage)
        try:
            reason = self._find_reason(inputs, earlier, state)
            if reason is not None:
                self._write(item, key, inputs, state)
        except (UserError, ValueError, OSError) as error:
            return str(error), None
        return None, reason

    def _find_reason(self, inputs: Sequence[Path], earlier: dict[str, Any] | None, state: str) -> str | None:
        """Return why an image has to be made, as the end of "made again because ...", or None."""
        if earlier is None:
            return "there was none"
        if self.overwrite:
            return "--overwrite was given"
        if earlier["fingerprint"] != state:
            return "the converter, its settings or its entry changed"
        folder = self.outputs.folder
        if [name for name, *_ in earlier["inputs"]] != [os.path.relpath(path, folder) for path in inputs]:
            return "its labels are other files"
        if not all(is_unchanged(s, folder, self.check_content) for s in earlier["inputs"]):
            return "its labels changed"
        if not is_unchanged(earlier["png"], folder, self.check_content):
            return "its PNG was changed or removed"
        return None

    def _write(self, item: Any, key: str, inputs: Sequence[Path], state: str) -> None:
        """Convert an item, and write its PNG, then its part."""
        folder = self.outputs.folder
        states: list[FileState] = [record_state(path, folder) for path in inputs]
        converted = self.convert(item)
        ids = np.asarray(converted.ids)
        segments = measure_segments(ids, converted.segments)
        png = self.outputs.write_png(converted.png_name, ids)
        height, width = ids.shape
        part = {
            "fingerprint": state,
            "inputs": states,
            "png": record_state(png, folder),
            "image": {**converted.image, "file_name": converted.file_name, "height": height, "width": width},
            "file_name": converted.png_name,
            "left_out": converted.left_out,
            "segments_info": segments,
            "instances": instance_annotations(ids, segments, self.thing_ids),
        }
        self.outputs.write_part(key, part)
