"""The classes of a data set, and the one convention by which they are numbered.

A segment is identified by the pair (isthing, category_id): things have category ids 0..T-1, stuff classes 0..S-1. A
semantic label is a single number: stuff classes 0..S-1, then things S..C-1, each in the order of the data set's json.

This module imports neither PyTorch nor Detectron2.
"""

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ..errors import UserError

if TYPE_CHECKING:
    from .coco_json import CocoCategory

Color = tuple[int, int, int]
#: The semantic label of void. Labels have 8 bits in files and in Detectron2, so that there are at most 255 classes.
VOID_LABEL = 255
#: In maps without a list of segments, an id is the label times this number plus the number of the instance.
LABEL_DIVISOR = 1000


def default_colors(count: int) -> list[Color]:
    """Return ``count`` RGB colors for classes that come without any.

    Hues advance by the golden ratio, so that neighboring classes differ most; saturation and value alternate.
    """
    hsv = [(k * 0.61803398875 % 1.0, 0.85 - 0.3 * (k % 2), 0.95 - 0.3 * (k // 2 % 2)) for k in range(count)]
    return [tuple(round(255 * channel) for channel in colorsys.hsv_to_rgb(*color)) for color in hsv]


@dataclass(frozen=True)
class Classes:
    """The classes of a data set in the order of their semantic labels (stuff first, then things).

    Attributes:
        names: The C class names.
        colors: The C colors as RGB values in 0..255.
        dataset_ids: The C category ids that the data set's json uses.
        num_stuff: The number S of stuff classes; the other T = C - S classes are things.

    Raises:
        UserError: There are more classes than labels, or the lists differ in length.
    """

    names: list[str]
    colors: list[Color]
    dataset_ids: list[int]
    num_stuff: int

    def __post_init__(self) -> None:
        names, colors, ids = (len(values) for values in (self.names, self.colors, self.dataset_ids))
        if names > VOID_LABEL:
            raise UserError(
                f"there are {names} classes, but at most {VOID_LABEL} are supported, because label {VOID_LABEL} means "
                "void; merge classes or leave some out"
            )
        if not names == colors == ids or not 0 <= self.num_stuff <= names:
            raise UserError(
                f"there are {names} names, {colors} colors and {ids} ids for {names} classes, {self.num_stuff} of them "
                "stuff; give each class one of each"
            )

    @property
    def num_things(self) -> int:
        """The number T of thing classes."""
        return len(self.names) - self.num_stuff

    def to_label(self, segment: dict[str, Any]) -> int:
        """Return the semantic label (0..C-1) of a segment with the keys ``isthing`` and ``category_id``."""
        return segment["category_id"] + (self.num_stuff if segment["isthing"] else 0)

    def from_label(self, label: int) -> dict[str, Any]:
        """Return ``isthing`` and ``category_id`` of a semantic label (0..C-1); the inverse of ``to_label``."""
        isthing = label >= self.num_stuff
        return {"isthing": isthing, "category_id": label - self.num_stuff if isthing else label}

    @classmethod
    def numbered(cls, num_classes: int, num_things: int) -> "Classes":
        """Return ``num_classes`` classes named by their number, the last ``num_things`` of which are things."""
        names = [f"class {k}" for k in range(num_classes)]
        return cls(names, default_colors(num_classes), list(range(1, num_classes + 1)), num_classes - num_things)

    @classmethod
    def from_categories(cls, categories: "Sequence[CocoCategory | dict[str, Any]]", source: str) -> "Classes":
        """Read the ``categories`` of a COCO panoptic json; their colors are optional.

        Args:
            categories: The categories as ``read_json_as`` returns them, or dicts of the same keys.
            source: The name of the file, for error messages.

        Raises:
            UserError: A category does not follow the schema, or an id occurs twice.
        """
        from .coco_json import CocoCategory, convert_entries  # exported models run without msgspec

        ordered = sorted(convert_entries(categories, list[CocoCategory], source), key=lambda c: bool(c.isthing))
        ids = [c.id for c in ordered]
        if len(set(ids)) != len(ids):
            raise UserError(f"{source}: a category id occurs twice; ids must be unique")
        colors = [c.color or color for c, color in zip(ordered, default_colors(len(ordered)), strict=True)]
        try:
            return cls([c.name for c in ordered], colors, ids, num_stuff=sum(not c.isthing for c in ordered))
        except UserError as error:
            raise UserError(f"{source}: {error}") from None

    @classmethod
    def from_config(cls, cfg: Any) -> "Classes | None":
        """Read the class lists of a configuration; return None if it has none.

        Args:
            cfg: A ``CfgNode`` with the keys of ``add_seamless_config``.

        Raises:
            UserError: The number of names contradicts the model's number of classes.
        """
        keys, total, num_things = (
            cfg.MODEL.SEAMLESS,
            cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES,
            cfg.MODEL.ROI_HEADS.NUM_CLASSES,
        )
        if not keys.CLASS_NAMES:
            return None
        if len(keys.CLASS_NAMES) != total:
            raise UserError(
                f"the config names {len(keys.CLASS_NAMES)} classes, but the model has {total}, {num_things} of them "
                "things; make MODEL.SEAMLESS.CLASS_NAMES agree with MODEL.SEM_SEG_HEAD.NUM_CLASSES and "
                "MODEL.ROI_HEADS.NUM_CLASSES"
            )
        return cls(
            names=list(keys.CLASS_NAMES),
            colors=[tuple(c) for c in keys.CLASS_COLORS or default_colors(total)],
            dataset_ids=list(keys.CLASS_DATASET_IDS or range(1, total + 1)),
            num_stuff=total - num_things,
        )

    @classmethod
    def from_metadata(cls, metadata: Any) -> "Classes":
        """Read the ``Metadata`` of a registered data set (``MetadataCatalog.get(name)``)."""
        ids = {label: dataset_id for dataset_id, label in metadata.stuff_dataset_id_to_contiguous_id.items()}
        return cls(
            names=list(metadata.stuff_classes),
            colors=[tuple(c) for c in metadata.stuff_colors],
            dataset_ids=[ids[label] for label in range(len(ids))],
            num_stuff=len(metadata.stuff_classes) - len(metadata.thing_classes),
        )

    def to_categories(self) -> list[dict[str, Any]]:
        """Return the ``categories`` of a COCO panoptic json."""
        return [
            {"id": dataset_id, "name": name, "isthing": int(label >= self.num_stuff), "color": list(color)}
            for label, (dataset_id, name, color) in enumerate(
                zip(self.dataset_ids, self.names, self.colors, strict=True)
            )
        ]

    def to_config(self, cfg: Any) -> None:
        """Write names, colors and ids into the ``CfgNode`` ``cfg`` in place."""
        keys = cfg.MODEL.SEAMLESS
        keys.CLASS_NAMES = list(self.names)
        keys.CLASS_COLORS = [list(color) for color in self.colors]
        keys.CLASS_DATASET_IDS = list(self.dataset_ids)

    def to_metadata(self) -> dict[str, Any]:
        """Return the entries of Detectron2's ``Metadata``, whose ``stuff_classes`` hold all C classes."""
        first_thing = self.num_stuff
        return {
            "thing_classes": self.names[first_thing:],
            "thing_colors": [list(color) for color in self.colors[first_thing:]],
            "thing_dataset_id_to_contiguous_id": {d: k for k, d in enumerate(self.dataset_ids[first_thing:])},
            "stuff_classes": list(self.names),
            "stuff_colors": [list(color) for color in self.colors],
            "stuff_dataset_id_to_contiguous_id": {d: k for k, d in enumerate(self.dataset_ids)},
            "ignore_label": VOID_LABEL,
            "label_divisor": LABEL_DIVISOR,
        }

    def check(self, cfg: Any, source: str) -> None:
        """Raise ``UserError`` if the model of ``cfg`` has other numbers of classes than ``source`` has."""
        total, things = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if (total, things) != (len(self.names), self.num_things):
            raise UserError(
                f"{source} has {len(self.names)} classes, {self.num_things} of them things, but the config says "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {total} and MODEL.ROI_HEADS.NUM_CLASSES {things}; set them to "
                f"{len(self.names)} and {self.num_things}"
            )
