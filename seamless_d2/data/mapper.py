"""The mapper from a record of a registered data set to a training or test dict.

All targets are derived from the panoptic PNG after augmentation, so that boxes, masks, semantic labels, void and crowd
regions always agree.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ..errors import UserError
from ..io import read_id_image, read_image, rgb_to_ids
from ..structures.classes import VOID_LABEL, Classes
from ..structures.id_maps import label_boxes
from ..structures.segment_masks import SegmentMasks
from .copy_paste import Scene, paste_instances, touched_sides
from .transforms import Focus, build_augmentations, to_tensor


class SeamlessMapper:
    """A callable that Detectron2's data loaders take as ``mapper``.

    A training dict holds the keys of the record without segments_info, and

    - "image": (3, H, W) uint8 tensor in the order of INPUT.FORMAT;
    - "instances": ``Instances`` with gt_boxes (the tight boxes of what is visible after the crop), gt_classes,
      gt_masks (``SegmentMasks`` with void and crowd regions) and gt_open_sides ((N, 4) bool: whether the object touches
      the border x0, y0, x1, y1 of a crop where the image goes on, so that its box may be larger);
    - "sem_seg": (H, W) int64 labels, 255 = void.

    A record may have the key "focus", the semantic label of the class that a crop is to show
    (``InstanceScaleUniformSampler``).

    A test dict holds the image and the keys of the record. If ``output_size`` is "input" (TEST.EVAL_RESOLUTION), its
    height and width are those of the resized image.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        classes: Classes,
        output_size: str = "output",
        copy_paste: float = 0.0,
        sources: Sequence[dict] = (),
    ) -> None:
        """
        Args:
            is_train: Whether training dicts with targets are made.
            augmentations: The augmentations of the image and its label map.
            image_format: The order of the channels that the model expects, "RGB" or "BGR".
            classes: The classes of the data set, for their semantic labels.
            output_size: "output" keeps the record's height and width in test dicts, "input" states those of the resized
                image.
            copy_paste: The probability in 0..1 that instances of another image are pasted into a training image.
            sources: The records whose instances are pasted.

        Raises:
            UserError: ``image_format`` is unknown.
        """
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT is {image_format!r}; use RGB or BGR")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.classes = classes
        self.output_size = output_size
        self.copy_paste = copy_paste if len(sources) else 0.0
        self.sources = sources

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "classes": Classes.from_config(cfg)
            or Classes.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES),
            "output_size": cfg.TEST.EVAL_RESOLUTION,
            "copy_paste": cfg.INPUT.COPY_PASTE,
        }

    def __call__(self, record: dict) -> dict:
        """Read and augment one record.

        Raises:
            UserError: A file is missing, is corrupt or contradicts the json.
        """
        result = {k: v for k, v in record.items() if k not in ("segments_info", "focus")}
        if not self.is_train:
            image = self._augment(self._read_image(record), record)[0]
            result["image"] = to_tensor(image, self.image_format)
            if self.output_size == "input":
                # The model resizes its results to this size.
                result["height"], result["width"] = image.shape[:2]
            return result
        scene = self._make_scene(record)
        if self.copy_paste and np.random.rand() < self.copy_paste:
            # The record that takes the place of an unreadable one gets another source: that may have been the cause.
            number = np.random.randint(len(self.sources)) + zlib.crc32(record["file_name"].encode())
            source = self.sources[number % len(self.sources)]
            scene = paste_instances(scene, self._make_scene(source))
        result["image"] = to_tensor(scene.image, self.image_format)
        result["instances"], result["sem_seg"] = self._make_targets(scene)
        return result

    @staticmethod
    def _read_image(record: dict) -> np.ndarray:
        """Return the (H, W, 3) uint8 RGB image of a record."""
        return read_image(record["file_name"], (record["height"], record["width"]))

    def _augment(
        self, image: np.ndarray, record: dict, focus: Focus | None = None
    ) -> tuple[np.ndarray, T.TransformList]:
        """Return the augmented image, and the transforms that were applied."""
        augmented = T.AugInput(image)
        augmented.focus = focus
        try:
            transforms = self.augmentations(augmented)
        except UserError as error:
            raise UserError(f"{record['file_name']}: {error}") from None
        return augmented.image, transforms

    def _make_scene(self, record: dict) -> Scene:
        """Read and augment an image with its label map."""
        image, rgb = self._read_image(record), self._read_ids(record)
        focus = self._find_focus(self._find_labels(rgb, record), record) if "focus" in record else None
        image, transforms = self._augment(image, record, focus)
        # The bytes of the ids are resized as an image by nearest sampling, so that ids are looked up after the crop.
        labels = self._find_labels(transforms.apply_segmentation(rgb), record)
        size = np.array([record["width"], record["height"]], np.float64)
        corners = transforms.apply_coords(np.stack([0 * size, size]))
        low, high = corners.min(axis=0), corners.max(axis=0)
        # The source goes on beyond a border if its own corner lies outside.
        goes_on = np.concatenate([low < -0.5, high > np.array(labels.shape[::-1]) + 0.5])
        segments = record["segments_info"]
        return Scene(image, labels, segments, touched_sides(labels, len(segments)) & goes_on)

    def _find_focus(self, labels: np.ndarray, record: dict) -> Focus | None:
        """Choose an instance of the class ``record["focus"]``, or a pixel of it if it is stuff."""
        segments = record["segments_info"]
        boxes = label_boxes(labels, len(segments) + 1)
        chosen = [
            k
            for k, segment in enumerate(segments, 1)
            if self.classes.to_label(segment) == record["focus"] and not segment["iscrowd"] and boxes[k, 2] > 0
        ]
        if not chosen:
            return None  # it took the place of a record that could not be read
        k = chosen[np.random.randint(len(chosen))]
        if segments[k - 1]["isthing"]:
            return Focus(tuple(boxes[k].tolist()), True)
        rows, columns = (labels == k).nonzero()
        pixel = np.random.randint(len(rows))
        return Focus((columns[pixel], rows[pixel], columns[pixel] + 1.0, rows[pixel] + 1.0), False)

    @staticmethod
    def _read_ids(record: dict) -> np.ndarray:
        """Return the (H, W, 3) uint8 bytes of the ids of a record's panoptic map."""
        path = record["pan_seg_file_name"]
        rgb = read_id_image(path)
        if rgb.shape[:2] != (record["height"], record["width"]):
            raise UserError(
                f"panoptic map {path} is {rgb.shape[1]} x {rgb.shape[0]} pixels but its annotation says "
                f"{record['width']} x {record['height']}; mend the json or the file"
            )
        return rgb

    @staticmethod
    def _find_labels(rgb: np.ndarray, record: dict) -> np.ndarray:
        """Return the (h, w) int32 label map of (h, w, 3) bytes of ids: 0 = void, k = segment k-1 of the record."""
        ids = rgb_to_ids(rgb)
        known = np.array([0, *(segment["id"] for segment in record["segments_info"])], np.int64)
        order = known.argsort(kind="stable")
        nearest = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
        labels = order[nearest].astype(np.int32)
        unknown = known[labels] != ids
        if unknown.any():
            raise UserError(
                f"panoptic map {record['pan_seg_file_name']} holds id {ids[unknown].min()}, which its json does not "
                "list; mend one of them"
            )
        return labels

    def _make_targets(self, scene: Scene) -> tuple[Instances, torch.Tensor]:
        """Return the instances and the (h, w) int64 semantic labels of a scene."""
        labels, segments = scene.labels, scene.segments
        semantic = np.full(len(segments) + 1, VOID_LABEL, np.int64)
        for k, segment in enumerate(segments, 1):
            # Crowd regions keep their class here; only the instance branches ignore them.
            semantic[k] = self.classes.to_label(segment)
        boxes = label_boxes(labels, len(segments) + 1)
        present = boxes[:, 2] > 0
        things = [k for k, s in enumerate(segments, 1) if s["isthing"] and present[k]]
        ids = [k for k in things if not segments[k - 1]["iscrowd"]]
        crowd_ids = [k for k in things if segments[k - 1]["iscrowd"]]
        instances = Instances(labels.shape)
        instances.gt_boxes = Boxes(torch.from_numpy(boxes[ids]).reshape(-1, 4))
        instances.gt_classes = torch.tensor([segments[k - 1]["category_id"] for k in ids], dtype=torch.int64)
        instances.gt_masks = SegmentMasks(
            torch.from_numpy(labels), torch.tensor(ids, dtype=torch.int32), torch.tensor(crowd_ids, dtype=torch.int32)
        )
        instances.gt_open_sides = torch.from_numpy(scene.open_sides[[k - 1 for k in ids]].reshape(-1, 4))
        return instances, torch.from_numpy(semantic[labels])
