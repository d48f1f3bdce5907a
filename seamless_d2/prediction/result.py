"""What a prediction returns."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo, measure_segments
from ..visualization import draw_overlay, semantic_class


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: its value in the map, 1..K.
        class_name: name of its class.
        isthing: whether the class is countable.
        category_id: 0..T-1 among the things or 0..S-1 among the stuff classes, as in Detectron2.
        dataset_id: the class's id in the data set's json.
        area: pixels.
        box: x0, y0, x1, y1 in pixels, half open, of what is visible.
        score: confidence in 0..1; None for stuff.
        track_id: the same for an object in all frames of a video; None for images and stuff.
    """

    id: int
    class_name: str
    isthing: bool
    category_id: int
    dataset_id: int
    area: int
    box: tuple[int, int, int, int]
    score: float | None = None
    track_id: int | None = None

    def info(self) -> SegmentInfo:
        """The entry of Detectron2's ``segments_info``, with ``bbox`` (x, y, width, height)."""
        x0, y0, x1, y1 = self.box
        info: SegmentInfo = {
            "id": self.id,
            "isthing": self.isthing,
            "category_id": self.category_id,
            "area": self.area,
            "bbox": [x0, y0, x1 - x0, y1 - y0],
        }
        if self.score is not None:
            info["score"] = self.score
        if self.track_id is not None:
            info["track_id"] = self.track_id
        return info


@dataclass(frozen=True)
class PanopticResult:
    """The panoptic map of one image.

    Attributes:
        image: (H, W, 3) uint8 RGB, the image.
        panoptic_seg: (H, W) int32, 0 = void, otherwise a segment's id.
        segments: its segments in the order of their ids.
        classes: names and colours.
        raw: the network's outputs in the original's layout (see ``raw.py``); None unless asked for.
    """

    image: np.ndarray
    panoptic_seg: np.ndarray
    segments: list[Segment]
    classes: Classes
    raw: dict[str, Tensor | None] | None = field(default=None, repr=False)

    @classmethod
    def from_fusion(
        cls,
        image: np.ndarray,
        panoptic_seg: np.ndarray,
        segments_info: list[SegmentInfo],
        classes: Classes,
        raw: dict[str, Tensor | None] | None = None,
    ) -> "PanopticResult":
        """From the output of ``fuse_panoptic``; boxes are measured on the map."""
        segments = []
        for info in measure_segments(panoptic_seg, segments_info):
            label = semantic_class(info, classes)
            x, y, width, height = info["bbox"]
            segments.append(
                Segment(
                    id=info["id"],
                    class_name=classes.names[label],
                    isthing=bool(info["isthing"]),
                    category_id=info["category_id"],
                    dataset_id=classes.dataset_ids[label],
                    area=info["area"],
                    box=(x, y, x + width, y + height),
                    score=info.get("score"),
                )
            )
        return cls(image, panoptic_seg, segments, classes, raw)

    @property
    def segments_info(self) -> list[SegmentInfo]:
        """The segments as Detectron2's dicts."""
        return [segment.info() for segment in self.segments]

    def overlay(self, alpha: float = 0.5, labels: bool = True) -> np.ndarray:
        """The image under the colours of its segments.

        Args:
            alpha: share of the colour, 0..1.
            labels: with names and scores, a colour per instance, small images enlarged; without, the original
                program's image: class colours, white contours around instances, void dark.

        Returns:
            (H, W, 3) uint8 RGB.
        """
        if labels:
            return draw_overlay(self.image, self.panoptic_seg, self.segments_info, self.classes, alpha=alpha)
        return draw_overlay(
            self.image,
            self.panoptic_seg,
            self.segments_info,
            self.classes,
            alpha=alpha,
            labels=False,
            min_side=1,
            color_instances=False,
            void_color=(0, 0, 0),
        )

    def to_coco(self, file_name: str = "image.png", image_id: int = 1) -> tuple[np.ndarray, dict[str, Any]]:
        """COCO's panoptic format, as panopticapi and Detectron2 read it.

        Args:
            file_name: name of the PNG, written into the json.
            image_id: the image's id.

        Returns:
            (H, W, 3) uint8 RGB image of the ids (id = R + 256 G + 65536 B), and the json of a data set of this one
            image (``images``, ``annotations``, ``categories``; segments carry ``score`` where they have one).
        """
        from ..io import ids_to_rgb
        from .formats import coco_json

        return ids_to_rgb(self.panoptic_seg), coco_json(self, file_name, image_id)

    def save(self, folder: str | Path, name: str, formats: Iterable[str] = ("overlay",)) -> list[Path]:
        """Write the files that ``tools/predict.py --format`` writes for one image, atomically.

        Args:
            folder: created where needed.
            name: of the image, without suffix; may contain folders.
            formats: any of "overlay", "labelled", "coco", "ids", and "raw" where ``raw`` is there.

        Returns:
            The files.

        Raises:
            UserError: an unknown format.
        """
        from .formats import write_formats

        return write_formats(self, Path(folder), name, formats)
