"""Lists of classes in text files, and what is said of the classes and images of a data set that was written."""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...io import read_text
from ...structures.classes import Classes
from ...structures.coco_json import PanopticJson, read_json_as

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_class_list(path: str | Path) -> list[dict[str, Any]]:
    """Read the categories of a json from a text file with a line "NUMBER NAME thing" or "NUMBER NAME stuff" per class.

    Names may contain spaces; empty lines are skipped.

    Returns:
        Dicts with id, name and isthing.

    Raises:
        UserError: The file is missing or empty, a line has another form, or a number or name occurs twice.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path} does not exist; write a line 'NUMBER NAME thing' or 'NUMBER NAME stuff' per class")
    categories: list[dict[str, Any]] = []
    for line in read_text(path, "list of classes").splitlines():
        if not line.strip():
            continue
        number, *name, kind = line.split()
        if not name or not number.isdecimal() or kind not in ("thing", "stuff"):
            raise UserError(f"{path}: line {line!r} is not 'NUMBER NAME thing' or 'NUMBER NAME stuff'")
        category = {"id": int(number), "name": " ".join(name), "isthing": int(kind == "thing")}
        for key, what in (("id", "number"), ("name", "name")):
            if any(earlier[key] == category[key] for earlier in categories):
                raise UserError(f"{path}: line {line!r} has the {what} of a class above; make them distinct")
        categories.append(category)
    if not categories:
        raise UserError(f"{path} is empty; write a line 'NUMBER NAME thing' or 'NUMBER NAME stuff' per class")
    return categories


def describe_classes(panoptic_json: str | Path) -> str:
    """Return the two class counts that the config of a data set needs, as text."""
    content = read_json_as(panoptic_json, "panoptic json", PanopticJson)
    classes = Classes.from_categories(content.categories, str(panoptic_json))
    return (
        f"{panoptic_json}: MODEL.SEM_SEG_HEAD.NUM_CLASSES {len(classes.names)} MODEL.ROI_HEADS.NUM_CLASSES "
        f"{classes.num_things}"
    )


def list_images(folder: str | Path) -> list[Path]:
    """Return the images (.jpg, .jpeg, .png) below a folder, sorted."""
    files = (path for path in Path(folder).rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
    return sorted(path for path in files if not path.name.startswith("."))


def name_example(names: Sequence[str]) -> str:
    """Return the first of some names, and dots if there are more."""
    return names[0] + (", ..." if len(names) > 1 else "")


def describe_unlabelled(folder: Path, labelled: Collection[str]) -> str:
    """Return how many images of a folder have no labels, as text; empty if all have.

    Args:
        folder: The folder.
        labelled: The paths, relative to the folder, of the images that have labels.
    """
    names = [path.relative_to(folder).as_posix() for path in list_images(folder)]
    lacking = [name for name in names if name not in labelled]
    if not lacking:
        return ""
    example = name_example(lacking)
    return f"{len(lacking)} of {len(names)} images in {folder} have no labels and are left out ({example})"


def print_unlabelled(folder: Path, labelled: Collection[str]) -> None:
    """Print ``describe_unlabelled`` unless all images have labels."""
    if text := describe_unlabelled(folder, labelled):
        print(text)
