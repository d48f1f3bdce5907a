"""The one convention of class ids, and the metadata that carries it.

A segment is (isthing, category_id): things 0..T-1, stuff 0..S-1. Semantic labels are stuff 0..S-1, then things
S..C-1, each in the order of the data set's json.
"""

from dataclasses import dataclass
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.utils.colormap import colormap

from ..errors import UserError

Color = tuple[int, int, int]
VOID_LABEL = 255


def default_colors(count: int) -> list[Color]:
    """Detectron2's colours for classes that bring none, repeated where there are too few."""
    palette = colormap(rgb=True, maximum=255).astype(int).tolist()
    return [tuple(palette[i % len(palette)]) for i in range(count)]


@dataclass(frozen=True)
class Classes:
    """Classes of a data set in semantic order (stuff, then things); colours are RGB 0..255."""

    names: list[str]
    colors: list[Color]
    dataset_ids: list[int]
    num_stuff: int

    @property
    def num_things(self) -> int:
        return len(self.names) - self.num_stuff

    @classmethod
    def from_categories(cls, categories: list[dict[str, Any]], source: str) -> "Classes":
        """From the ``categories`` of a COCO-panoptic json; colours are optional.

        Raises:
            UserError: a category without id, name or isthing, or an id twice; ``source`` names the file.
        """
        for category in categories:
            missing = [key for key in ("id", "name", "isthing") if key not in category]
            if missing:
                raise UserError(f"{source}: category {category} has no {', '.join(missing)}; add it")
        ids = [c["id"] for c in categories]
        if len(set(ids)) != len(ids):
            raise UserError(f"{source}: a category id occurs twice; ids must be unique")
        ordered = [c for c in categories if not c["isthing"]] + [c for c in categories if c["isthing"]]
        defaults = default_colors(len(ordered))
        colors = [tuple(map(int, c.get("color") or default)) for c, default in zip(ordered, defaults, strict=True)]
        return cls(
            names=[str(c["name"]) for c in ordered],
            colors=colors,
            dataset_ids=[int(c["id"]) for c in ordered],
            num_stuff=sum(not c["isthing"] for c in categories),
        )

    @classmethod
    def from_config(cls, cfg: CfgNode) -> "Classes | None":
        """From the class lists in the configuration; None where it has none.

        Raises:
            UserError: the lists' lengths contradict each other or the model's class counts.
        """
        s = cfg.MODEL.SEAMLESS
        if not s.STUFF_CLASSES:
            return None
        total = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
        num_things = cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if len(s.STUFF_CLASSES) != total or len(s.THING_CLASSES) != num_things:
            raise UserError(
                f"the config names {len(s.STUFF_CLASSES)} classes, {len(s.THING_CLASSES)} of them things, but the "
                f"model has {total} and {num_things}; make MODEL.SEAMLESS.STUFF_CLASSES (all) and THING_CLASSES agree "
                "with MODEL.SEM_SEG_HEAD.NUM_CLASSES and MODEL.ROI_HEADS.NUM_CLASSES"
            )
        colors = s.STUFF_COLORS or default_colors(total)
        return cls(
            names=list(s.STUFF_CLASSES),
            colors=[tuple(c) for c in colors],
            dataset_ids=list(s.STUFF_DATASET_IDS or range(1, total + 1)),
            num_stuff=total - num_things,
        )

    @classmethod
    def from_metadata(cls, name: str) -> "Classes":
        """From a registered data set's metadata."""
        meta = MetadataCatalog.get(name)
        ids = {v: k for k, v in meta.stuff_dataset_id_to_contiguous_id.items()}
        return cls(
            names=list(meta.stuff_classes),
            colors=[tuple(c) for c in meta.stuff_colors],
            dataset_ids=[ids[i] for i in range(len(ids))],
            num_stuff=len(meta.stuff_classes) - len(meta.thing_classes),
        )

    def to_categories(self) -> list[dict[str, Any]]:
        """The ``categories`` of a COCO-panoptic json."""
        return [
            {"id": i, "name": name, "isthing": int(k >= self.num_stuff), "color": list(color)}
            for k, (i, name, color) in enumerate(zip(self.dataset_ids, self.names, self.colors, strict=True))
        ]

    def to_config(self, cfg: CfgNode) -> None:
        """Write names, colours and ids into ``cfg`` in place."""
        s = cfg.MODEL.SEAMLESS
        s.THING_CLASSES = self.names[self.num_stuff :]
        s.STUFF_CLASSES = list(self.names)
        s.STUFF_COLORS = [list(c) for c in self.colors]
        s.STUFF_DATASET_IDS = list(self.dataset_ids)

    def to_metadata(self) -> dict[str, Any]:
        """Entries for Detectron2's ``Metadata``."""
        semantic = {dataset_id: i for i, dataset_id in enumerate(self.dataset_ids)}
        return {
            "thing_classes": self.names[self.num_stuff :],
            "thing_colors": [list(c) for c in self.colors[self.num_stuff :]],
            "thing_dataset_id_to_contiguous_id": {
                dataset_id: i for i, dataset_id in enumerate(self.dataset_ids[self.num_stuff :])
            },
            "stuff_classes": list(self.names),
            "stuff_colors": [list(c) for c in self.colors],
            "stuff_dataset_id_to_contiguous_id": semantic,
            "ignore_label": VOID_LABEL,
            "label_divisor": 1000,
        }

    def check(self, cfg: CfgNode, source: str) -> None:
        """Raise ``UserError`` where the model of ``cfg`` has other class counts than ``source``."""
        total, things = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES
        if (total, things) != (len(self.names), self.num_things):
            raise UserError(
                f"{source} has {len(self.names)} classes, {self.num_things} of them things, but the config says "
                f"MODEL.SEM_SEG_HEAD.NUM_CLASSES {total} and MODEL.ROI_HEADS.NUM_CLASSES {things}; set them to "
                f"{len(self.names)} and {self.num_things}"
            )


def register_classes(cfg: CfgNode) -> None:
    """Put the config's class lists into ``MetadataCatalog`` under its first test (else training) data set.

    Does nothing where the config has no lists or the data set itself is registered.
    """
    classes = Classes.from_config(cfg)
    names = [*cfg.DATASETS.TEST, *cfg.DATASETS.TRAIN]
    if classes is None or not names:
        return
    metadata = MetadataCatalog.get(names[0])
    if not hasattr(metadata, "thing_classes"):
        metadata.set(**classes.to_metadata())
