"""Conversion of Mapillary Vistas 1.2 and 2.0 to COCO panoptic, with the classes of the config json of the release."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Unpack

import msgspec
from msgspec import Struct

from ...errors import UserError
from ...io import read_id_map, read_instance_png
from ...structures.coco_json import CocoCategory, Color, GroundTruthJson, Name, read_json_as
from ...structures.id_maps import count_pairs, present_ids, replace_ids
from .writer import PanopticImage, WriterOptions, write_panoptic_dataset

SPLITS = ("training", "validation")


class VistasLabel(Struct):
    """A label: its name, also in plain English, and whether it is a thing and whether it is evaluated."""

    name: Name
    instances: bool
    evaluate: bool
    color: Color
    readable: str = ""


class VistasConfig(Struct):
    """The config json of a release."""

    labels: list[VistasLabel]


@dataclass(frozen=True)
class Release:
    """One version of the annotations.

    Attributes:
        version: The version, "v1.2" or "v2.0".
        labels: The labels of the config json.
        folder: The folder of the annotations below the folder of a split, such as "" or "v2.0".
    """

    version: str
    labels: list[VistasLabel]
    folder: str


def find_releases(root: Path) -> list[Release]:
    """Return the versions of the annotations in the folder ``root``, in either directory layout.

    The release of 2017 has config.json and SPLIT/instances. That of 2021 has config_v1.2.json, config_v2.0.json,
    SPLIT/v1.2/instances and SPLIT/v2.0/instances.

    Raises:
        UserError: There is no version, or a config is malformed.
    """
    releases = []
    for config, version, folder in (
        ("config.json", "v1.2", ""),
        ("config_v1.2.json", "v1.2", "v1.2"),
        ("config_v2.0.json", "v2.0", "v2.0"),
    ):
        if not (root / config).is_file() or not any((root / s / folder / "instances").is_dir() for s in SPLITS):
            continue
        labels = read_json_as(root / config, "Vistas config", VistasConfig).labels
        if version not in [release.version for release in releases]:
            releases.append(Release(version, labels, folder))
    if not releases:
        raise UserError(
            f"{root} holds no config json with training/ or validation/ instances; give the folder of Mapillary Vistas"
        )
    return releases


def make_categories(labels: list[VistasLabel]) -> list[dict[str, Any]]:
    """Return the categories of all labels that are evaluated; ids count the labels from 1, as in Vistas' own json."""
    return [
        {
            "id": index + 1,
            "name": label.name,
            "supercategory": label.name,
            "isthing": int(label.instances),
            "color": list(label.color),
        }
        for index, label in enumerate(labels)
        if label.evaluate
    ]


def find_image(folder: Path, stem: str) -> str:
    """Return the name of the image in ``folder`` that belongs to the annotation ``stem``.

    Raises:
        UserError: There is no such image.
    """
    for suffix in (".jpg", ".png", ".jpeg", ".JPG"):
        if (folder / f"{stem}{suffix}").is_file():
            return f"{stem}{suffix}"
    raise UserError(f"{folder / stem}.jpg, the image of {stem}.png, does not exist; get the images again")


def convert_instances(path: Path, labels: list[VistasLabel], image_dir: Path) -> PanopticImage:
    """Convert a 16-bit instance PNG, whose pixels are 256 * label + instance.

    Raises:
        UserError: The PNG or its image is missing or wrong.
    """
    values = read_instance_png(path)
    new_ids: dict[int, int] = {}
    segments: dict[int, dict[str, Any]] = {}
    for value in present_ids(values):
        index = value // 256
        if index >= len(labels):
            raise UserError(
                f"{path} holds class {index}, but the config lists {len(labels)} labels; versions are mixed, get the "
                "release again"
            )
        if labels[index].evaluate:
            # Stuff is one segment, whatever its instance numbers. Adding 1 keeps the id from being 0.
            new_ids[value] = (value if labels[index].instances else index * 256) + 1
            segments[new_ids[value]] = {"id": new_ids[value], "category_id": index + 1, "iscrowd": 0}
    image = find_image(image_dir, path.stem)
    return PanopticImage(image, f"{path.stem}.png", replace_ids(values, new_ids), list(segments.values()))


def map_categories(own: list[CocoCategory], labels: list[VistasLabel], source: str) -> dict[int, int]:
    """Map the category ids of a panoptic json of a release to the positions of the labels in its config.

    Args:
        own: The categories of the json.
        labels: The labels of the config.
        source: The name of the json, for error messages.

    Raises:
        UserError: The config does not have a category.
    """
    positions = {label.readable: k for k, label in enumerate(labels)}
    positions |= {label.name: k for k, label in enumerate(labels)}
    strange = [c.name for c in own if c.name not in positions]
    if strange:
        raise UserError(f"{source} has a category {strange[0]!r} that the config lacks; versions are mixed")
    return {c.id: positions[c.name] for c in own}


def convert_panoptic(
    annotation: dict[str, Any],
    indices: dict[int, int],
    png_dir: Path,
    instance_dir: Path,
    labels: list[VistasLabel],
    image_dir: Path,
) -> PanopticImage:
    """Convert an annotation of the panoptic json of a release (as a dict), and check it against the instance PNG.

    Raises:
        UserError: Files are missing or wrong, or most pixels of a segment have another class in the instance PNG.
    """
    png, instance_png = png_dir / annotation["file_name"], instance_dir / annotation["file_name"]
    ids, values = read_id_map(png), read_instance_png(instance_png)
    if values.shape != ids.shape:
        raise UserError(f"{png} and {instance_png} have different sizes; get the release again")
    classes = count_pairs(ids, values >> 8)
    segments = []
    for segment in annotation["segments_info"]:
        if segment["category_id"] not in indices:
            raise UserError(f"{png} has a segment of category {segment['category_id']}, which its json does not list")
        index = indices[segment["category_id"]]
        if not labels[index].evaluate:
            continue
        found = classes.get(segment["id"])
        if found is not None and 2 * found[index : index + 1].sum() < found.sum():
            other = labels[int(found.argmax())].name if found.argmax() < len(labels) else "no class of the config"
            raise UserError(
                f"{png}: segment {segment['id']} is {labels[index].name}, but {instance_png} has {other} there; get "
                "the release again"
            )
        segments.append({"id": segment["id"], "category_id": index + 1, "iscrowd": int(segment["iscrowd"])})
    ids = replace_ids(ids, {segment["id"]: segment["id"] for segment in segments})
    return PanopticImage(find_image(image_dir, instance_png.stem), annotation["file_name"], ids, segments)


def _find_panoptic_json(folder: Path) -> Path | None:
    """Return the panoptic json of a release (its PNGs are beside it), or None if it has none."""
    for name in ("panoptic_2020.json", "panoptic_2018.json", "panoptic.json"):
        path = folder / "panoptic" / name
        if path.is_file():
            return path
    return None


def _read_panoptic_json(
    path: Path, labels: list[VistasLabel], files: list[Path]
) -> tuple[list[dict[str, Any]], dict[int, int]]:
    """Return the annotations of the panoptic json of a release, and the result of ``map_categories``.

    Raises:
        UserError: The json is malformed, or images of ``files`` (the instance PNGs) are missing.
    """
    content = read_json_as(path, "Vistas panoptic json", GroundTruthJson)
    lacking = sorted({f.name for f in files} - {a.file_name for a in content.annotations})
    if lacking:
        raise UserError(f"{path} does not list {lacking[0]} ({len(lacking)} in all); get the release again")
    return msgspec.to_builtins(content.annotations), map_categories(content.categories, labels, str(path))


def prepare_vistas(root: str | Path, **options: Unpack[WriterOptions]) -> list[Path]:
    """Write ROOT/seamless_VERSION/panoptic_SPLIT.json, the folder of that name and instances_SPLIT.json.

    Args:
        root: The folder of the release.
        options: See ``write_panoptic_dataset``. A process needs less than 1 GB of memory for images of 12 megapixels.

    Returns:
        The paths of the panoptic jsons.

    Raises:
        UserError: The layout is not found, or files are wrong.
    """
    root = Path(root)
    written = []
    for release in find_releases(root):
        for split in SPLITS:
            folder, images = root / split / release.folder, root / split / "images"
            files = sorted((folder / "instances").glob("*.png"))
            if not files:
                continue
            items: list[Any] = files
            keys = [f.name for f in files]
            inputs = [[f] for f in files]
            convert = partial(convert_instances, labels=release.labels, image_dir=images)
            own = _find_panoptic_json(folder)
            if own is not None:
                items, indices = _read_panoptic_json(own, release.labels, files)
                keys = [a["file_name"] for a in items]
                inputs = [[own.parent / name, folder / "instances" / name] for name in keys]
                convert = partial(
                    convert_panoptic,
                    indices=indices,
                    png_dir=own.parent,
                    instance_dir=folder / "instances",
                    labels=release.labels,
                    image_dir=images,
                )
            output = root / f"seamless_{release.version}" / f"panoptic_{split}.json"
            write_panoptic_dataset(
                items,
                keys,
                convert,
                inputs=inputs,
                png_dir=output.with_suffix(""),
                panoptic_json=output,
                instance_json=output.with_name(f"instances_{split}.json"),
                categories=make_categories(release.labels),
                image_dir=images,
                description=f"{release.version} {split}",
                **options,
            )
            written.append(output)
    return written
