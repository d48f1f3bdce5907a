"""The evaluators of a data set: PQ, box and mask AP, and mIoU."""

import logging
import os
from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
from detectron2.config import CfgNode
from detectron2.data import MetadataCatalog
from detectron2.evaluation import DatasetEvaluator, DatasetEvaluators
from detectron2.utils import comm
from detectron2.utils.file_io import PathManager

from ..config_checks import check_config
from ..data.derived_files import instances_path
from ..errors import UserError
from ..io import read_image
from .facts import describe_model
from .ground_truth import read_ground_truth
from .instance_evaluator import InstanceEvaluator
from .panoptic_evaluator import PanopticEvaluator
from .panoptic_quality import Segments
from .report import ImageSource, write_reports
from .semantic_evaluator import SemanticEvaluator
from .tables import format_tables


class ReportingEvaluators(DatasetEvaluators):
    """Runs several evaluators and writes the reports on all their results."""

    def __init__(
        self, evaluators: list[DatasetEvaluator], panoptic: PanopticEvaluator, output_dir: Path, cfg: CfgNode
    ) -> None:
        """
        Args:
            evaluators: All evaluators, ``panoptic`` included.
            panoptic: The evaluator whose statistics are reported.
            output_dir: The folder of metrics.json, per_class.csv, per_image.csv and report.html.
            cfg: The configuration of the model; its MODEL.WEIGHTS are what is evaluated.
        """
        super().__init__(evaluators)
        self.panoptic, self.output_dir, self.cfg = panoptic, output_dir, cfg

    def evaluate(self) -> OrderedDict[str, Any]:
        """Return the results of all evaluators on rank 0, and write the reports there."""
        results = super().evaluate()
        if comm.is_main_process():
            panoptic = self.panoptic
            write_reports(
                self.output_dir,
                f"Evaluation on {panoptic.dataset_name}",
                panoptic.classes,
                panoptic.statistics,
                panoptic.rules,
                ImageSource(self._get_name, self._load),
                results,
                describe_model(self.cfg),
            )
            tables = format_tables(panoptic.classes, panoptic.statistics, panoptic.rules, results)
            logging.getLogger(__name__).info(f"Results on {panoptic.dataset_name}:\n{tables}")
            logging.getLogger(__name__).info(f"Report: {self.output_dir / 'report.html'}")
        return results

    def _get_name(self, image_id: Any) -> str:
        return os.path.basename(self.panoptic.records[image_id]["file_name"])

    def _load(self, image_id: Any) -> tuple[np.ndarray | None, np.ndarray, Segments]:
        record = self.panoptic.records[image_id]
        image = read_image(record["file_name"], (record["height"], record["width"]))
        ground_truth = read_ground_truth(record["pan_seg_file_name"])
        return image, ground_truth, self.panoptic.gt_segments(record)


def build_evaluators(cfg: CfgNode, dataset_name: str, output_dir: str | None = None) -> DatasetEvaluator:
    """Build the evaluators of the outputs that MODEL.SEAMLESS.OUTPUTS lists, as the TEST keys say.

    Args:
        cfg: The configuration.
        dataset_name: The name of a registered panoptic data set.
        output_dir: The folder for the files of the evaluators. Default: OUTPUT_DIR/inference, and in it a folder with
            the name of the data set if DATASETS.TEST lists several.

    Raises:
        UserError: A TEST key has an unknown value, or needs an output that MODEL.SEAMLESS.OUTPUTS does not list.
    """
    check_config(cfg, "TEST")
    if output_dir is None:
        several = [dataset_name] if len(cfg.DATASETS.TEST) > 1 else []
        output_dir = os.path.join(cfg.OUTPUT_DIR, "inference", *several)
    metadata = MetadataCatalog.get(dataset_name)
    outputs = cfg.MODEL.SEAMLESS.OUTPUTS
    fused, resize_ground_truth = cfg.TEST.EVAL_MODE == "panoptic", cfg.TEST.EVAL_RESOLUTION == "input"
    if fused and "panoptic_seg" not in outputs:
        raise UserError('TEST.EVAL_MODE "panoptic" needs panoptic_seg in MODEL.SEAMLESS.OUTPUTS; add it')
    evaluators: list[DatasetEvaluator] = []
    panoptic = None
    if "panoptic_seg" in outputs:
        panoptic = PanopticEvaluator(
            dataset_name,
            output_dir,
            save_predictions=cfg.TEST.SAVE_PREDICTIONS,
            rules=cfg.TEST.PQ_RULES,
            resize_ground_truth=resize_ground_truth,
        )
        evaluators.append(panoptic)
    if "instances" in outputs and metadata.thing_classes:
        if not hasattr(metadata, "json_file"):
            metadata.set(json_file=instances_path(dataset_name))
        if comm.is_main_process():
            PathManager.get_local_path(metadata.json_file)  # the other processes find what this one has made
        comm.synchronize()
        detections = output_dir if cfg.TEST.SAVE_PREDICTIONS else None
        masks = fused or cfg.MODEL.MASK_ON
        evaluators.append(InstanceEvaluator(dataset_name, fused=fused, masks=masks, output_dir=detections))
    if "sem_seg" in outputs:
        evaluators.append(
            SemanticEvaluator(
                dataset_name,
                fused=fused,
                resize_ground_truth=resize_ground_truth,
                boundary=cfg.TEST.BOUNDARY_IOU,
                fuse_at=cfg.MODEL.SEAMLESS.FUSE_AT,
                area_limit=cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT,
            )
        )
    if panoptic is not None and cfg.TEST.REPORT:
        return ReportingEvaluators(evaluators, panoptic, Path(output_dir), cfg)
    return DatasetEvaluators(evaluators)
