"""The evaluators of a data set: streaming PQ, and Detectron2's for instances and semantic labels."""

import os

from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import (
    COCOEvaluator,
    DatasetEvaluator,
    DatasetEvaluators,
    SemSegEvaluator,
)
from detectron2.utils import comm

from .ground_truth import SemanticTruth, write_instance_json
from .panoptic_evaluator import PanopticEvaluator


def build_evaluators(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """PQ, box and mask AP, mIoU: whatever ``MODEL.SEAMLESS.OUTPUTS`` provides.

    Args:
        cfg: configuration.
        dataset_name: a registered panoptic data set.
        output_dir: folder for the evaluators' files, default OUTPUT_DIR/inference.
    """
    output_dir = output_dir or os.path.join(cfg.OUTPUT_DIR, "inference")
    metadata = MetadataCatalog.get(dataset_name)
    outputs = cfg.MODEL.SEAMLESS.OUTPUTS
    evaluators: list[DatasetEvaluator] = []
    if "panoptic_seg" in outputs:
        evaluators.append(PanopticEvaluator(dataset_name, output_dir, save_predictions=cfg.TEST.SAVE_PREDICTIONS))
    if "instances" in outputs and metadata.thing_classes:
        if not hasattr(metadata, "json_file"):
            if comm.is_main_process():
                write_instance_json(dataset_name, output_dir)
            comm.synchronize()
            metadata.json_file = str(write_instance_json(dataset_name, output_dir))
        evaluators.append(COCOEvaluator(dataset_name, ("bbox", "segm"), output_dir=output_dir, use_fast_impl=False))
    if "sem_seg" in outputs:
        semantic = SemSegEvaluator(dataset_name, output_dir=output_dir, sem_seg_loading_fn=SemanticTruth(dataset_name))
        # Boundary IoU costs seconds per image and is no part of the method's metrics.
        semantic._compute_boundary_iou = False
        evaluators.append(semantic)
    return DatasetEvaluators(evaluators)
