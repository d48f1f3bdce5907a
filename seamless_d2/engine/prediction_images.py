"""Drawings of predictions beside the ground truth, for TensorBoard."""

import cv2
import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import inference_context
from torch import nn

from ..data.mapper import SeamlessMapper
from ..evaluation.model_output import read_panoptic_seg
from ..io import read_id_map, read_image
from ..structures.classes import Classes
from ..visualization import draw_overlay

# The longer side of a panel in pixels.
_MAX_SIDE = 640


def _read_panoptic_seg(record: dict) -> tuple[np.ndarray, list[dict]]:
    """Return the ground truth of a record in the form of the model's "panoptic_seg"; ids are 1..K, 0 = void."""
    ids = read_id_map(record["pan_seg_file_name"])
    panoptic, segments = np.zeros(ids.shape, np.int32), []
    for number, segment in enumerate(record["segments_info"], 1):
        panoptic[ids == segment["id"]] = number
        segments.append({**segment, "id": number})
    return panoptic, segments


def draw_predictions(cfg: CfgNode, model: nn.Module) -> list[tuple[str, np.ndarray]]:
    """Draw the first TEST.NUM_VISUALIZED_IMAGES images of the first data set in DATASETS.TEST.

    Args:
        cfg: The configuration of the model.
        model: The model; its training mode is restored.

    Returns:
        A pair for each image: its id, and an (H, 3 W, 3) uint8 RGB drawing with the image, its ground truth and its
        prediction side by side. The list is empty if the model computes no panoptic map.
    """
    if "panoptic_seg" not in cfg.MODEL.SEAMLESS.OUTPUTS or cfg.TEST.NUM_VISUALIZED_IMAGES < 1:
        return []
    name = cfg.DATASETS.TEST[0]
    mapper, classes, images = SeamlessMapper(cfg, False), Classes.from_metadata(MetadataCatalog.get(name)), []
    for record in DatasetCatalog.get(name)[: cfg.TEST.NUM_VISUALIZED_IMAGES]:
        with inference_context(model), torch.no_grad():
            predicted, predicted_segments = read_panoptic_seg(model([mapper(record)])[0], classes)
        scale = min(1.0, _MAX_SIDE / max(record["height"], record["width"]))
        size = (round(record["width"] * scale), round(record["height"] * scale))
        image = cv2.resize(read_image(record["file_name"]), size, interpolation=cv2.INTER_AREA)
        panels = []
        for panoptic, segments in (_read_panoptic_seg(record), (predicted.cpu().numpy(), predicted_segments)):
            panoptic = cv2.resize(panoptic.astype(np.int32), size, interpolation=cv2.INTER_NEAREST)
            panels.append(draw_overlay(image, panoptic, segments, classes))
        # draw_overlay enlarges small images.
        image = cv2.resize(image, panels[0].shape[1::-1], interpolation=cv2.INTER_CUBIC)
        images.append((str(record["image_id"]), np.concatenate([image, *panels], axis=1)))
    return images
