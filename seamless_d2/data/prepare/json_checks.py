"""What can be wrong with the json of a COCO-panoptic data set, images aside."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from ...structures.coco_json import MalformedEntry, PanopticJson
from .class_list import name_example


def find_repeated(values: Iterable[Any]) -> list[Any]:
    """Return the values that occur more than once."""
    return [value for value, count in Counter(values).items() if count > 1]


def malformed_ids(malformed: list[MalformedEntry], key: str, name: str) -> set[Any]:
    """Return the ids of malformed entries, which others may refer to.

    Args:
        malformed: The malformed entries.
        key: The list of the json, for instance "images".
        name: The key of the ids.
    """
    ids = [entry.content.get(name) for entry in malformed if entry.key == key and isinstance(entry.content, dict)]
    return {value for value in ids if isinstance(value, int | str)}


def find_json_problems(content: PanopticJson, malformed: list[MalformedEntry]) -> list[str]:
    """Return a sentence for each problem that can be found without images."""
    problems = [entry.problem for entry in malformed]
    for entries, key, text in (
        (content.categories, "id", "category id {} occurs twice"),
        (content.categories, "name", "two categories are called {}"),
        (content.images, "id", "image id {} occurs twice"),
        (content.images, "file_name", "image {} is listed twice"),
        (content.annotations, "image_id", "image id {} is annotated twice"),
        (content.annotations, "file_name", "PNG {} belongs to two annotations"),
    ):
        problems += [text.format(value) for value in find_repeated(getattr(entry, key) for entry in entries)]
    problems += [f"category id {c.id} has a name of blanks" for c in content.categories if not c.name.strip()]
    for key in ("images", "categories"):
        if not getattr(content, key) and not any(entry.key == key for entry in malformed):
            problems.append(f"it lists no {key}")
    listed = {image.id for image in content.images}
    annotated = {annotation.image_id for annotation in content.annotations}
    lost = annotated - listed - malformed_ids(malformed, "images", "id")
    problems += [f"image id {i} is annotated but not listed" for i in sorted(lost, key=str)]
    lost = listed - annotated - malformed_ids(malformed, "annotations", "image_id")
    problems += [f"image id {i} has no annotation" for i in sorted(lost, key=str)]
    return problems


def find_json_warnings(content: PanopticJson, malformed: list[MalformedEntry]) -> list[str]:
    """Return a sentence for each thing in the json that is allowed, but is often a mistake."""
    warnings = []
    texts = [image.id for image in content.images if isinstance(image.id, str)]
    if texts:
        warnings.append(f"{len(texts)} image ids are text ({name_example(texts)}), which not all programs read")
    if not any(entry.key == "annotations" for entry in malformed):
        used = {segment.category_id for annotation in content.annotations for segment in annotation.segments_info}
        warnings += [f"no segment has the class {c.name}" for c in content.categories if c.id not in used]
    return warnings
