"""The files of a data set that is being written: which of them are ours, what is done, and the jsons at the end."""

import hashlib
import json
import os
import shutil
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ...errors import UserError
from ...io import atomic_write, ids_to_rgb, remove_temporaries, write_json
from ...structures.id_maps import thing_categories
from .file_state import fingerprint, is_unchanged, record_state


def first_repeated(names: Sequence[Any]) -> Any:
    """Return the first name that occurs before, or None."""
    seen: set[Any] = set()
    return next((name for name in names if name in seen or seen.add(name)), None)


def _hash_name(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()[:24] + ".json"


def _read_json_or_none(path: Path) -> Any:
    """Return the content of a json file of an earlier run, or None if it is missing or damaged."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        return None


@dataclass(frozen=True)
class Outputs:
    """The files that a data set may consist of.

    Attributes:
        panoptic_json: The json; paths of files count relative to its folder.
        png_dir: The folder of the PNGs.
        own: The files that finished runs have written.
    """

    panoptic_json: Path
    png_dir: Path
    own: frozenset[str]

    @property
    def folder(self) -> Path:
        return self.panoptic_json.parent

    @property
    def record(self) -> Path:
        """The hidden file that lists what a finished run has written."""
        return self.panoptic_json.with_name(f".{self.panoptic_json.stem}.written.json")

    @property
    def parts(self) -> Path:
        """The hidden folder of the parts of an unfinished run."""
        return self.panoptic_json.with_name(f".{self.panoptic_json.stem}.parts")

    @property
    def claims(self) -> Path:
        """The folder of empty files that say what an unfinished run has written or was about to write."""
        return self.parts / "claims"

    @classmethod
    def open(cls, panoptic_json: Path, png_dir: Path) -> tuple["Outputs", dict[str, dict[str, Any]]]:
        """Create the folders; return the outputs, and the parts of earlier runs by the keys of their images."""
        outputs = cls(panoptic_json, png_dir, frozenset())
        record = _read_json_or_none(outputs.record)
        if not isinstance(record, dict) or not {"files", "parts"} <= record.keys():
            record = {"files": [], "parts": {}}
        parts = record["parts"]
        for path in outputs.parts.glob("*.json"):  # newer than the record
            if (part := _read_json_or_none(path)) and "key" in part:
                parts[part["key"]] = part
        for folder in (outputs.claims, png_dir):
            folder.mkdir(parents=True, exist_ok=True)
        remove_temporaries(png_dir)
        return cls(panoptic_json, png_dir, frozenset(record["files"])), parts

    def claim(self, path: Path) -> None:
        """Remember that ``path`` is written by this program.

        Raises:
            UserError: The file exists and was not written by this program.
        """
        name = os.path.relpath(path, self.folder)
        claim = self.claims / _hash_name(name)
        if path.exists() and name not in self.own and not claim.exists():
            raise UserError(
                f"{path} exists and was not written by this program; choose another output, or move it away"
            )
        claim.touch()

    def write_png(self, name: str, ids: np.ndarray) -> Path:
        """Write (H, W) ids to a PNG of that name in the folder of PNGs, and return its path.

        Raises:
            UserError: The name leaves the folder, or the file exists and was not written by this program.
        """
        path = self.png_dir / name
        if not path.resolve().is_relative_to(self.png_dir.resolve()):
            raise UserError(
                f"its PNG would be written to {path}, outside of {self.png_dir}; make the file name relative to the "
                "image folder"
            )
        self.claim(path)
        with atomic_write(path) as file:
            Image.fromarray(ids_to_rgb(ids)).save(file, format="PNG")
        return path

    def write_part(self, key: str, part: dict[str, Any]) -> None:
        """Write what the jsons need of an image that is done."""
        write_json(self.parts / _hash_name(key), {"key": key, **part})

    def finish(
        self,
        keys: Sequence[str],
        parts: Mapping[str, dict[str, Any]],
        jsons: Sequence[Path],
        categories: list[dict[str, Any]],
    ) -> tuple[set[str], Counter[str]]:
        """Write the jsons from the parts, then the record, unless they are what a finished run has written.

        Returns:
            The file names of the images, and the sums of what was left out.

        Raises:
            UserError: Two images have one PNG or one id.
        """
        new = {part["key"]: part for part in map(_read_json_or_none, self.parts.glob("*.json"))}
        parts = {key: new.get(key) or parts[key] for key in keys}
        state = fingerprint(self.folder, categories, parts)
        record = _read_json_or_none(self.record) or {}
        if record.get("fingerprint") != state or not all(is_unchanged(s, self.folder) for s in record["jsons"]):
            contents = _assemble(self.panoptic_json, parts, categories)
            for path, content in reversed(list(zip(jsons, contents, strict=False))):
                write_json(path, content)
            files = self.own | {os.path.relpath(path, self.folder) for path in jsons}
            files |= {str(part["png"][0]) for part in parts.values()}
            written = [record_state(path, self.folder) for path in jsons]
            write_json(self.record, {"fingerprint": state, "files": sorted(files), "jsons": written, "parts": parts})
        shutil.rmtree(self.parts)
        left_out: Counter[str] = Counter()
        for part in parts.values():
            left_out.update(part["left_out"])
        return {part["image"]["file_name"] for part in parts.values()}, +left_out  # without zeros


def _assemble(
    panoptic_json: Path, parts: Mapping[str, dict[str, Any]], categories: list[dict[str, Any]]
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the content of the panoptic json and of the instance json."""
    images, annotations, instances = [], [], []
    for number, part in enumerate(parts.values(), 1):
        image = {"id": number, **part["image"]}
        images.append(image)
        annotations.append(
            {"image_id": image["id"], "file_name": part["file_name"], "segments_info": part["segments_info"]}
        )
        for instance in part["instances"]:
            instances.append({"id": len(instances) + 1, "image_id": image["id"], **instance})
    for what, names in (("PNG", [a["file_name"] for a in annotations]), ("image id", [i["id"] for i in images])):
        repeated = first_repeated(names)
        if repeated is not None:
            raise UserError(f"{panoptic_json}: two images would share the {what} {repeated}; rename one of the images")
    things = thing_categories(categories)
    return (
        {"info": {}, "images": images, "annotations": annotations, "categories": categories},
        {"info": {}, "images": images, "annotations": instances, "categories": things},
    )
