"""The mapper from a record of a registered data set to a training or test dict.

All targets are derived from the panoptic PNG after augmentation, so that boxes, masks, semantic labels, void and crowd
regions always agree.
"""

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
from .transforms import build_augmentations


class SeamlessMapper:
    """A callable that Detectron2's data loaders take as ``mapper``.

    A training dict holds the keys of the record without segments_info, and

    - "image": (3, H, W) uint8 tensor in the order of INPUT.FORMAT;
    - "instances": ``Instances`` with gt_boxes (the tight boxes of what is visible after the crop), gt_classes and
      gt_masks (``SegmentMasks`` with void and crowd regions);
    - "sem_seg": (H, W) int64 labels, 255 = void.

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
    ) -> None:
        """
        Args:
            is_train: Whether training dicts with targets are made.
            augmentations: The augmentations of the image and its label map.
            image_format: The order of the channels that the model expects, "RGB" or "BGR".
            classes: The classes of the data set, for their semantic labels.
            output_size: "output" keeps the record's height and width in test dicts, "input" states those of the resized
                image.

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

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "classes": Classes.from_config(cfg)
            or Classes.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES),
            "output_size": cfg.TEST.EVAL_RESOLUTION,
        }

    def __call__(self, record: dict) -> dict:
        """Read and augment one record.

        Raises:
            UserError: A file is missing, is corrupt or contradicts the json.
        """
        image = read_image(record["file_name"], (record["height"], record["width"]))
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        augmented = T.AugInput(image)
        try:
            transforms = self.augmentations(augmented)
        except UserError as error:
            raise UserError(f"{record['file_name']}: {error}") from None
        result = {k: v for k, v in record.items() if k != "segments_info"}
        result["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if not self.is_train and self.output_size == "input":
            # The model resizes its results to this size.
            result["height"], result["width"] = augmented.image.shape[:2]
        if self.is_train:
            labels = self._read_labels(record, transforms)
            result["instances"], result["sem_seg"] = self._make_targets(labels, record["segments_info"])
        return result

    def _read_labels(self, record: dict, transforms: T.TransformList) -> np.ndarray:
        """Return the (h, w) int32 label map after augmentation: 0 = void, k = segment k-1 of the record."""
        path = record["pan_seg_file_name"]
        rgb = read_id_image(path)
        if rgb.shape[:2] != (record["height"], record["width"]):
            raise UserError(
                f"panoptic map {path} is {rgb.shape[1]} x {rgb.shape[0]} pixels but its annotation says "
                f"{record['width']} x {record['height']}; mend the json or the file"
            )
        # The bytes of the ids are resized as an image by nearest sampling, so that ids are looked up after the crop.
        ids = rgb_to_ids(transforms.apply_segmentation(rgb))
        known = np.array([0, *(segment["id"] for segment in record["segments_info"])], np.int64)
        order = known.argsort(kind="stable")
        nearest = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
        labels = order[nearest].astype(np.int32)
        unknown = known[labels] != ids
        if unknown.any():
            raise UserError(
                f"panoptic map {path} holds id {ids[unknown].min()}, which its json does not list; mend one of them"
            )
        return labels

    def _make_targets(self, labels: np.ndarray, segments: list[dict]) -> tuple[Instances, torch.Tensor]:
        """Return the instances and the (h, w) int64 semantic labels of a label map."""
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
        return instances, torch.from_numpy(semantic[labels])
