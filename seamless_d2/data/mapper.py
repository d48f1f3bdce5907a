"""The mapper: one record of a registered data set -> one training or test dict.

Everything is derived from the panoptic PNG after augmentation, so that boxes, masks, semantic labels, void and crowd
can never disagree.
"""

import numpy as np
import torch
from detectron2.config import CfgNode, configurable
from detectron2.data import transforms as T
from detectron2.structures import Boxes, Instances

from ..errors import UserError
from ..io import read_id_image, read_image, rgb_to_ids
from ..structures.classes import VOID_LABEL
from ..structures.id_maps import label_boxes
from ..structures.segment_masks import SegmentMasks
from .transforms import build_augmentations


class SeamlessMapper:
    """Callable for Detectron2's data loaders.

    Training dicts hold "image" (3, H, W) uint8, "instances" (gt_boxes, gt_classes, gt_masks as ``SegmentMasks`` with
    void and crowd), "sem_seg" (H, W) int64 with 255 = void, and the record's file_name, image_id, height, width.
    Boxes are the tight boxes of what is visible after the crop. Test dicts hold the image and the record's keys; with
    ``output_size`` "input" (TEST.EVAL_RESOLUTION), height and width are those of the resized image.
    """

    @configurable
    def __init__(
        self,
        *,
        is_train: bool,
        augmentations: list[T.Augmentation],
        image_format: str,
        num_stuff: int,
        output_size: str = "output",
    ) -> None:
        if image_format not in ("RGB", "BGR"):
            raise UserError(f"INPUT.FORMAT is {image_format!r}; use RGB or BGR")
        self.is_train = is_train
        self.augmentations = T.AugmentationList(augmentations)
        self.image_format = image_format
        self.num_stuff = num_stuff
        self.output_size = output_size

    @classmethod
    def from_config(cls, cfg: CfgNode, is_train: bool = True) -> dict:
        return {
            "is_train": is_train,
            "augmentations": build_augmentations(cfg, is_train),
            "image_format": cfg.INPUT.FORMAT,
            "num_stuff": cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES,
            "output_size": cfg.TEST.EVAL_RESOLUTION,
        }

    def __call__(self, record: dict) -> dict:
        """
        Raises:
            UserError: a file that is missing, corrupt or contradicts the json.
        """
        image = read_image(record["file_name"], (record["height"], record["width"]))
        if self.image_format == "BGR":
            image = image[:, :, ::-1]
        augmented = T.AugInput(image)
        transforms = self.augmentations(augmented)
        result = {k: v for k, v in record.items() if k != "segments_info"}
        result["image"] = torch.from_numpy(np.ascontiguousarray(augmented.image.transpose(2, 0, 1)))
        if not self.is_train and self.output_size == "input":
            # The model's results are wanted at this size.
            result["height"], result["width"] = augmented.image.shape[:2]
        if self.is_train:
            labels = self._read_labels(record, transforms)
            result["instances"], result["sem_seg"] = self._make_targets(labels, record["segments_info"])
        return result

    def _read_labels(self, record: dict, transforms: T.TransformList) -> np.ndarray:
        """(h, w) int32 after augmentation: 0 = void, k = segment k-1 of the record."""
        path = record["pan_seg_file_name"]
        rgb = read_id_image(path)
        if rgb.shape[:2] != (record["height"], record["width"]):
            raise UserError(
                f"panoptic map {path} is {rgb.shape[1]} x {rgb.shape[0]} pixels but its annotation says "
                f"{record['width']} x {record['height']}; mend the json or the file"
            )
        # The id's bytes are resized as an image (nearest); ids are looked up only in what is left.
        ids = rgb_to_ids(transforms.apply_segmentation(rgb))
        known = np.array([0, *(segment["id"] for segment in record["segments_info"])], np.int64)
        order = known.argsort(kind="stable")
        place = np.searchsorted(known[order], ids).clip(max=len(known) - 1)
        labels = order[place].astype(np.int32)
        unknown = known[labels] != ids
        if unknown.any():
            raise UserError(
                f"panoptic map {path} holds id {ids[unknown].min()}, which its json does not list; mend one of them"
            )
        return labels

    def _make_targets(self, labels: np.ndarray, segments: list[dict]) -> tuple[Instances, torch.Tensor]:
        semantic = np.full(len(segments) + 1, VOID_LABEL, np.int64)
        for k, segment in enumerate(segments, 1):
            # Crowd regions keep their class here; only the instance branches ignore them.
            semantic[k] = segment["category_id"] + (self.num_stuff if segment["isthing"] else 0)
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
