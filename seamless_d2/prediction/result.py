"""The result of a prediction, and the formats that it is written in."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Union

import numpy as np
from PIL import Image

from ..errors import UserError
from ..io import ids_to_rgb, read_image, save_image, save_png, to_rgb, write_json
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo, instance_annotations, measure_segments
from ..visualization import draw_overlay
from .formats import Drawing, register_format, write_formats

if TYPE_CHECKING:  # exported models run without them
    from detectron2.structures import Instances
    from pandas import DataFrame
    from supervision import Detections
    from torch import Tensor

ImageLike = Union[np.ndarray, "Tensor", Image.Image, str, Path]

# Ids of an "ids" PNG are 16-bit numbers.
_MAX_ID = 65535
# The number of segments that the text of a result names.
_SHOWN = 6


def image_array(image: "ImageLike") -> np.ndarray:
    """Return an image as (height, width, 3) uint8 RGB array.

    Args:
        image: Such an array, a (3, height, width) uint8 tensor, an image of Pillow, or a file.

    Raises:
        UserError: It is something else, or the file cannot be read.
    """
    if isinstance(image, str | Path):
        return read_image(image)
    if isinstance(image, Image.Image):
        return to_rgb(image)
    array = image.permute(1, 2, 0).cpu().numpy() if hasattr(image, "permute") and image.ndim == 3 else image
    is_array = isinstance(array, np.ndarray)
    if not is_array or array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
        given = f"{tuple(image.shape)} {image.dtype}" if hasattr(image, "dtype") else type(image).__name__
        raise UserError(
            "an image must be a file, an image of Pillow, a (height, width, 3) uint8 RGB array or a (3, height, width) "
            f"uint8 tensor, not {given}; convert it"
        )
    return array


@dataclass(frozen=True)
class Segment:
    """One segment of a panoptic map.

    Attributes:
        id: Its value in the map, 1..K.
        class_name: The name of its class.
        isthing: Whether the class is countable.
        category_id: 0..T-1 among the things or 0..S-1 among the stuff classes, as in Detectron2.
        dataset_id: The class's id in the data set's json.
        area: The number of its pixels.
        box: x0, y0, x1, y1 in pixels, half open, of what is visible.
        score: The confidence in 0..1; None for stuff.
        track_id: The same for an object in all frames of a video; None for images and stuff.
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
        """Return the entry of Detectron2's ``segments_info``, with ``bbox`` (x, y, width, height)."""
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
class HeadOutputs:
    """The outputs of both heads before the fusion, at the network's resolution.

    Attributes:
        sem_seg: (H, W) int64 semantic labels.
        boxes: (N, 4) float x0, y0, x1, y1 in pixels of that map.
        classes: (N,) int64 thing classes 0..T-1.
        scores: (N,) float in 0..1.
        mask_logits: (N, h, w) float logits over the boxes.
    """

    sem_seg: "Tensor"
    boxes: "Tensor"
    classes: "Tensor"
    scores: "Tensor"
    mask_logits: "Tensor"


@dataclass(frozen=True, eq=False, repr=False)
class PanopticResult:
    """The panoptic map of one image. Results are equal if image, map, segments and classes are.

    Attributes:
        image: (H, W, 3) uint8 RGB, the image.
        panoptic_seg: (H, W) int32, 0 is void, otherwise the id of a segment.
        segments: The segments in the order of their ids.
        classes: The names and colors of the classes.
        raw: The outputs of both heads; None unless the ``Predictor`` was made with ``raw=True``.
        drawing: How ``overlay`` and the formats that are images draw it.
    """

    image: np.ndarray
    panoptic_seg: np.ndarray
    segments: list[Segment]
    classes: Classes
    raw: HeadOutputs | None = None
    drawing: Drawing = Drawing()

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, PanopticResult):
            return NotImplemented
        return (
            self.segments == other.segments
            and self.classes == other.classes
            and np.array_equal(self.panoptic_seg, other.panoptic_seg)
            and np.array_equal(self.image, other.image)
        )

    def __hash__(self) -> int:
        return hash((self.panoptic_seg.shape, *self.segments))

    def __repr__(self) -> str:
        things = sorted((s for s in self.segments if s.isthing), key=lambda s: -(s.score or 0.0))
        stuff = sorted((s for s in self.segments if not s.isthing), key=lambda s: -s.area)
        shown = [s.class_name if s.score is None else f"{s.class_name} {s.score:.2f}" for s in things + stuff]
        names = ", ".join(shown[:_SHOWN]) + (", ..." if len(shown) > _SHOWN else "")
        height, width = self.panoptic_seg.shape
        counts = f"{height}x{width}, {len(things)} things, {len(stuff)} stuff"
        return f"PanopticResult({counts}{': ' if names else ''}{names})"

    @classmethod
    def from_fusion(
        cls,
        image: np.ndarray,
        panoptic_seg: np.ndarray,
        segments_info: list[SegmentInfo],
        classes: Classes,
        raw: HeadOutputs | None = None,
        drawing: Drawing = Drawing(),  # noqa: B008  it is frozen
    ) -> "PanopticResult":
        """Make a result of the output of ``fuse_panoptic``; boxes are measured on the map."""
        segments = []
        for info in measure_segments(panoptic_seg, segments_info):
            label = classes.to_label(info)
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
        return cls(image, panoptic_seg, segments, classes, raw, drawing)

    @property
    def segments_info(self) -> list[SegmentInfo]:
        """The segments as Detectron2's dicts."""
        return [segment.info() for segment in self.segments]

    def overlay(self, alpha: float | None = None, labels: bool = True, legend: bool | None = None) -> np.ndarray:
        """Draw the segments over the image.

        Args:
            alpha: The share of the color, 0..1; default that of ``drawing``, which is 0.5 unless the ``Predictor`` was
                made with another.
            labels: With labels, segments carry names and scores, each instance has its own color, and small images are
                enlarged. Without, the overlay is the original program's: class colors, white contours around
                instances, dark void.
            legend: Whether the classes that occur are listed below the image; default that of ``drawing``, no.

        Returns:
            (H, W, 3) uint8 RGB.

        Raises:
            UserError: ``alpha`` is out of range.
        """
        given = {"alpha": alpha, "legend": legend}
        drawing = replace(self.drawing, **{key: value for key, value in given.items() if value is not None})
        style = {} if labels else {"min_side": 1, "color_instances": False, "void_color": (0, 0, 0)}
        style |= {"alpha": drawing.alpha, "labels": labels, "legend": drawing.legend}
        return draw_overlay(self.image, self.panoptic_seg, self.segments_info, self.classes, **style)

    def to_coco(self, file_name: str = "image.png", image_id: int = 1) -> tuple[np.ndarray, dict[str, Any]]:
        """Convert to COCO's panoptic format, as panopticapi and Detectron2 read it.

        Args:
            file_name: The name of the PNG, written into the json.
            image_id: The id of the image.

        Returns:
            A (H, W, 3) uint8 RGB image of the ids (id = R + 256 G + 65536 B), and the json of a data set of this one
            image (``images``, ``annotations``, ``categories``; segments carry ``score`` if they have one).
        """
        height, width = self.panoptic_seg.shape
        segments = []
        for segment in self.segments:
            info = segment.info()
            entry = {k: info[k] for k in ("id", "area", "bbox", "score", "track_id") if k in info}
            segments.append({**entry, "category_id": segment.dataset_id, "iscrowd": 0})
        return ids_to_rgb(self.panoptic_seg), {
            "images": [{"id": image_id, "file_name": file_name, "height": height, "width": width}],
            "annotations": [{"image_id": image_id, "file_name": file_name, "segments_info": segments}],
            "categories": self.classes.to_categories(),
        }

    def masks(self) -> np.ndarray:
        """Return the (K, H, W) bool masks of the segments, in their order."""
        ids = np.array([segment.id for segment in self.segments], self.panoptic_seg.dtype)
        return self.panoptic_seg[None] == ids[:, None, None]

    def to_json(self) -> dict[str, Any]:
        """Return the size and the segments as values of json; ``id`` is the number of a segment in the map."""
        height, width = self.panoptic_seg.shape
        segments = [
            {
                "id": s.id,
                "class": s.class_name,
                "class_id": s.dataset_id,
                "isthing": s.isthing,
                "area": s.area,
                "box": list(s.box),
                "score": s.score,
            }
            | ({} if s.track_id is None else {"track_id": s.track_id})
            for s in self.segments
        ]
        return {"height": height, "width": width, "void": 0, "segments": segments}

    def to_dataframe(self) -> "DataFrame":
        """Return a pandas table with one row per segment: the fields of ``Segment``, and x0, y0, x1, y1 of its box."""
        import pandas

        table = pandas.DataFrame([asdict(s) for s in self.segments], columns=[f.name for f in fields(Segment)])
        corners = pandas.DataFrame([s.box for s in self.segments], columns=["x0", "y0", "x1", "y1"])
        return table.drop(columns="box").join(corners)

    def to_instances(self) -> "Instances":
        """Return the things as Detectron2's ``Instances``: pred_boxes, scores, pred_classes and pred_masks.

        Masks and boxes are those of the map, where instances do not overlap; a thing without a score has score 1.
        """
        import torch
        from detectron2.structures import Boxes, Instances

        things = [k for k, s in enumerate(self.segments) if s.isthing]
        found = [self.segments[k] for k in things]
        instances = Instances(self.panoptic_seg.shape)
        instances.pred_boxes = Boxes(torch.tensor([s.box for s in found], dtype=torch.float32).reshape(-1, 4))
        instances.scores = torch.tensor([1.0 if s.score is None else s.score for s in found])
        instances.pred_classes = torch.tensor([s.category_id for s in found], dtype=torch.int64)
        instances.pred_masks = torch.from_numpy(self.masks()[things])
        return instances

    def to_supervision(self) -> "Detections":
        """Return all segments as ``supervision.Detections``; class_id is the semantic label, stuff before things.

        ``data`` holds class_name and isthing. Stuff, and things without a score, have confidence 1.
        """
        try:
            import supervision
        except ImportError:
            raise UserError("to_supervision needs the package supervision: python -m pip install supervision") from None
        tracks = [s.track_id for s in self.segments]
        return supervision.Detections(
            xyxy=np.array([s.box for s in self.segments], np.float32).reshape(-1, 4),
            mask=self.masks(),
            confidence=np.array([1.0 if s.score is None else s.score for s in self.segments], np.float32),
            class_id=np.array([self.classes.to_label(s.info()) for s in self.segments], int),
            tracker_id=None if not tracks or None in tracks else np.array(tracks),
            data={
                "class_name": np.array([s.class_name for s in self.segments]),
                "isthing": np.array([s.isthing for s in self.segments], bool),
            },
        )

    def save(self, folder: str | Path, name: str, formats: Iterable[str] = ("labelled",)) -> list[Path]:
        """Write the files that ``tools/predict.py --format`` writes for one image, atomically.

        Args:
            folder: The folder, created if needed.
            name: The name of the image, without suffix; may contain folders.
            formats: Registered formats: "labelled", "overlay", "coco", "ids", and "raw" if ``raw`` is there.

        Returns:
            The files.

        Raises:
            UserError: A format is unknown, or cannot hold the result.
        """
        return write_formats(self, Path(folder), name, formats)


@register_format("overlay", "{}_overlay.{image_format}", is_image=True)
def _write_overlay(result: PanopticResult, name: str, path: Path) -> None:
    save_image(result.overlay(labels=False), path)


@register_format("labelled", "{}_labelled.{image_format}", is_image=True)
def _write_labelled(result: PanopticResult, name: str, path: Path) -> None:
    save_image(result.overlay(), path)


@register_format("coco", "panoptic/{}.png", "panoptic/{}.json")
def _write_coco(result: PanopticResult, name: str, png: Path, sidecar: Path) -> None:
    image, content = result.to_coco(f"{name}.png")
    segments = content["annotations"][0]["segments_info"]
    content["instances"] = instance_results(result.panoptic_seg, segments, content["categories"])
    save_png(image, png)
    write_json(sidecar, content)


def instance_results(
    panoptic_seg: np.ndarray, segments: list[dict[str, Any]], categories: list[dict[str, Any]]
) -> list[dict[str, Any]]:
    """Return the things of a map as COCO results, without image_id.

    Args:
        panoptic_seg: (H, W) integer ids.
        segments: The ``segments_info`` of COCO's panoptic format.
        categories: The categories of the same format.
    """
    things = {c["id"] for c in categories if c["isthing"]}
    scores = [s.get("score", 1.0) for s in segments if s["category_id"] in things]
    return [
        {k: i[k] for k in ("category_id", "bbox", "segmentation")} | {"score": score}
        for i, score in zip(instance_annotations(panoptic_seg, segments, things), scores, strict=True)
    ]


@register_format("ids", "{}_ids.png", "{}_ids.json")
def _write_ids(result: PanopticResult, name: str, png: Path, description: Path) -> None:
    if len(result.segments) > _MAX_ID:
        raise UserError(f"{name} has {len(result.segments)} segments; 16 bits hold {_MAX_ID}: choose --format coco")
    save_png(result.panoptic_seg.astype(np.uint16), png)
    write_json(description, {"png": png.name, **result.to_json()}, 2)
