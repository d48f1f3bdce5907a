"""The jsons of data sets in COCO's panoptic and detection formats: their schema, by which all of them are read.

Keys that the schema does not name are ignored.
"""

import re
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar, get_args

import msgspec
from msgspec import Meta, Struct

from ..errors import UserError
from ..io import read_bytes, read_json
from ..limits import check_pixels
from .id_maps import NUM_IDS

ImageId = int | str
SegmentId = Annotated[int, Meta(ge=1, lt=NUM_IDS)]
CategoryId = Annotated[int, Meta(ge=-(2**31), lt=2**31)]
Flag = bool | Annotated[int, Meta(ge=0, le=1)]
Side = Annotated[int, Meta(ge=1)]
Area = Annotated[int, Meta(ge=0, lt=2**53)] | Annotated[float, Meta(ge=0, lt=2**53)]
Name = Annotated[str, Meta(min_length=1)]
Channel = Annotated[int, Meta(ge=0, le=255)]
Color = tuple[Channel, Channel, Channel]
Form = TypeVar("Form")


class CocoFile(Struct):
    """An image, whose size does not matter."""

    id: ImageId
    file_name: Name


class CocoImage(CocoFile):
    """An image of at most ``MAX_PIXELS``."""

    height: Side
    width: Side

    def __post_init__(self) -> None:
        check_pixels(self.width, self.height, f"image {self.file_name}")


class CocoCategory(Struct):
    """A class."""

    id: CategoryId
    name: Name
    isthing: Flag
    color: Color | None = None


class CocoSegment(Struct):
    """A segment of a panoptic map; ``bbox`` is x, y, width, height in pixels."""

    id: SegmentId
    category_id: CategoryId
    iscrowd: Flag = 0
    area: Area | None = None
    bbox: list[int | float] | None = None
    score: float | None = None


class CocoAnnotation(Struct):
    """The panoptic map of an image; ``file_name`` is that of its PNG."""

    image_id: ImageId
    file_name: Name
    segments_info: list[CocoSegment]


class CocoRLE(Struct):
    """A mask as runs of pixels, compressed to a text or not; ``size`` is (height, width)."""

    size: tuple[Side, Side]
    counts: Annotated[str, Meta(pattern="^([P-o]{0,6}[0-O])+$")] | list[Annotated[int, Meta(ge=0)]]


class CocoRegion(Struct):
    """An annotation of the detection format: a region of an image as polygons or runs, or a box alone."""

    image_id: ImageId
    category_id: CategoryId
    segmentation: CocoRLE | list[list[float]] | None = None
    iscrowd: Flag = 0


class CocoClass(Struct):
    """A category of the detection format; some programs write its color as text."""

    id: CategoryId
    name: Name
    color: Color | str | None = None
    supercategory: Any = None


class ImageList(Struct):
    """The images of a json of any format."""

    images: list[CocoFile]


class PredictionJson(Struct):
    """Panoptic maps of images; what a json of predictions must have."""

    annotations: list[CocoAnnotation]


class GroundTruthJson(PredictionJson):
    """What an evaluation needs of a data set in the panoptic format."""

    categories: list[CocoCategory]
    images: list[CocoFile] = []


class PanopticJson(Struct):
    """A data set in the panoptic format."""

    images: list[CocoImage]
    annotations: list[CocoAnnotation]
    categories: list[CocoCategory]


class DetectionJson(Struct):
    """A data set in the detection format."""

    images: list[CocoImage]
    annotations: list[CocoRegion]
    categories: list[CocoClass]


def read_json_as(path: str | Path, what: str, form: type[Form]) -> Form:
    """Read a json by a schema of this module.

    Args:
        path: The file.
        what: What the file is, for error messages.
        form: The class of the result, one of those whose names end in Json or List.

    Raises:
        UserError: The file is missing or no json, or does not follow the schema; the message names the entry.
    """
    data = read_bytes(path, what)
    try:
        return msgspec.json.decode(data, type=form)
    except (msgspec.DecodeError, UserError, RecursionError):
        # Slower, but it accepts the NaN that Python writes, as null, and knows the entry of a mistake.
        return convert_entries(read_json(path, what), form, f"{what} {path}")


def convert_entries(content: Any, form: type[Form], source: str) -> Form:
    """Convert lists and dicts to a schema of this module.

    Args:
        content: What the json holds.
        form: The class of the result.
        source: The name of the file, for error messages.

    Raises:
        UserError: The content does not follow the schema; the message names the entry.
    """
    try:
        return msgspec.convert(content, form)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except msgspec.ValidationError as error:
        raise UserError(f"{source} is malformed: {_describe(content, str(error))}; mend it") from None


class MalformedEntry(NamedTuple):
    """An entry of a list of a json that does not follow the schema: the list, its place there, and what is wrong."""

    key: str
    index: int
    content: Any
    problem: str


def read_whole_entries(path: str | Path, what: str, form: type[Form]) -> tuple[Form, list[MalformedEntry]]:
    """Read a json of lists by a schema as ``read_json_as``, but leave out the entries that do not follow it.

    Raises:
        UserError: The file is missing or no json, or has not the lists of the schema.
    """
    with suppress(msgspec.DecodeError, UserError, RecursionError):
        return msgspec.json.decode(read_bytes(path, what), type=form), []
    content = read_json(path, what)
    malformed = []
    for field in msgspec.structs.fields(form) if isinstance(content, dict) else ():
        entries = content.get(field.name)
        (kind,) = get_args(field.type)
        for index, entry in enumerate(entries if isinstance(entries, list) else ()):
            try:
                msgspec.convert([entry], list[kind])
            except UserError as error:
                malformed.append(MalformedEntry(field.name, index, entry, str(error)))
            except msgspec.ValidationError as error:
                reason = str(error).replace("`$[0]", f"`$.{field.name}[{index}]")
                problem = f"malformed: {_describe(content, reason)}; mend it"
                malformed.append(MalformedEntry(field.name, index, entry, problem))
    places = {(entry.key, entry.index) for entry in malformed}
    if malformed:
        content = {
            key: [e for index, e in enumerate(value) if (key, index) not in places]
            if isinstance(value, list)
            else value
            for key, value in content.items()
        }
    return convert_entries(content, form, f"{what} {path}"), malformed


def _describe(content: Any, reason: str) -> str:
    """Return the ``reason`` of msgspec in words; it names the entry of ``content`` that it points to."""
    found = re.search(r"\$(?:\.(\w+))?\[(\d+)\]", reason)
    name = ""
    if found:
        entry = (content[found[1]] if found[1] else content)[int(found[2])]
        keys = [key for key in ("file_name", "name", "image_id", "id") if isinstance(entry, dict) and key in entry]
        name = f" ({keys[0]} {entry[keys[0]]!r})"[:100] if keys else ""
    words = reason.replace("`", "").replace("$.", "").replace(" - at", " at")
    return f"{words}{name}"
