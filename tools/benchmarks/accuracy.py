"""Accuracy: our model and Detectron2's stock PanopticFPN R50, trained and judged by the same program."""

import statistics
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, configurable
from detectron2.modeling import META_ARCH_REGISTRY
from detectron2.modeling.meta_arch import PanopticFPN
from tabulate import tabulate
from torch import Tensor

from seamless_d2.config import config_file, load_config
from seamless_d2.engine.config_changes import find_changes, flatten_config
from seamless_d2.engine.main import run
from seamless_d2.engine.records import EVALUATIONS, read_evaluations
from seamless_d2.engine.setup import build_parser
from seamless_d2.errors import UserError
from seamless_d2.io import atomic_write, read_json, write_json
from seamless_d2.structures.coco_json import PanopticJson, read_json_as

from .models import stock_config_file

#: The scores above which an instance enters the map: the first one in the evaluations of the training, the others when
#: it has ended, because models differ in how high they score.
THRESHOLDS = (0.5, 0.7, 0.9)
_THRESHOLD_KEY = "MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH"
#: The metrics of the table: (key of evaluation, heading).
METRICS = (("PQ", "PQ"), ("PQ_th", "things"), ("PQ_st", "stuff"), ("SQ", "SQ"), ("RQ", "RQ"))
_CROPS = ["INPUT.CROP.ENABLED", "True", "INPUT.CROP.TYPE", "absolute"]
_CROP_AWARE = [
    x for part in ("RPN", "ROI_BOX_HEAD") for x in (f"MODEL.{part}.BBOX_REG_LOSS_TYPE", "crop_aware_smooth_l1")
]
_PARTS = ("train", "val")
#: What each row changes in the settings of ours; "stock" is Detectron2's model.
ROWS: dict[str, list[str]] = {
    "stock": [],
    "ours": [],
    "loss over all pixels": ["MODEL.SEM_SEG_HEAD.LOSS_TOP_K", "1.0"],
    "Detectron2's semantic head": ["MODEL.SEM_SEG_HEAD.NAME", "SemSegFPNHead"],
    "L1 box losses": ["MODEL.RPN.SMOOTH_L1_BETA", "0.0", "MODEL.ROI_BOX_HEAD.SMOOTH_L1_BETA", "0.0"],
    "group normalization": [
        x for part in ("FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD") for x in (f"MODEL.{part}.NORM", "GN")
    ],
    "pooling window 16": ["MODEL.SEM_SEG_HEAD.POOLING_SIZE", "[16, 16]"],
    "crops": _CROPS,
    "crops, crop-aware box loss": [*_CROPS, *_CROP_AWARE],
    "crops, crop-aware box loss, instance-scale-uniform sampling": [
        *_CROPS,
        *_CROP_AWARE,
        "DATALOADER.SAMPLER_TRAIN",
        "InstanceScaleUniformSampler",
    ],
    # Its weights are timm's own, which --opts MODEL.TIMM.PRETRAINED FILE replaces.
    "ConvNeXt-T, AdamW": [
        *("MODEL.BACKBONE.NAME", "build_timm_fpn_backbone", "MODEL.TIMM.NAME", "convnext_tiny.fb_in22k"),
        *("MODEL.TIMM.PRETRAINED", "hub", "MODEL.WEIGHTS", "", "MODEL.BACKBONE.FREEZE_AT", "0"),
        *("INPUT.FORMAT", "RGB", "MODEL.PIXEL_MEAN", "[123.675, 116.28, 103.53]"),
        *("MODEL.PIXEL_STD", "[58.395, 57.12, 57.375]"),
        *("SOLVER.OPTIMIZER", "AdamW", "SOLVER.BASE_LR", "0.0001", "SOLVER.WEIGHT_DECAY", "0.05"),
    ],
}


@META_ARCH_REGISTRY.register()
class StockPanopticFPN(PanopticFPN):
    """Detectron2's PanopticFPN as it is, between the labels of our data and its own.

    Its semantic labels are 0 for all things, and k + 1 for stuff class k.
    """

    @configurable
    def __init__(self, *, num_stuff: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_stuff = num_stuff

    @classmethod
    def from_config(cls, cfg: CfgNode) -> dict[str, Any]:
        cfg = cfg.clone()
        cfg.defrost()
        num_stuff = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES
        cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = num_stuff + 1
        return {**super().from_config(cfg), "num_stuff": num_stuff}

    def forward(self, batched_inputs: list[dict]) -> dict[str, Tensor] | list[dict]:
        if not self.training:
            return super().forward(batched_inputs)
        ignore = self.sem_seg_head.ignore_value
        inputs = []
        for x in batched_inputs:
            labels = x["sem_seg"]
            labels = torch.where(labels < self.num_stuff, labels + 1, torch.where(labels == ignore, ignore, 0))
            inputs.append({**x, "sem_seg": labels})
        return super().forward(inputs)

    def inference(self, batched_inputs: list[dict], do_postprocess: bool = True) -> list[dict] | tuple:
        outputs = super().inference(batched_inputs, do_postprocess)
        for output in outputs if do_postprocess else []:
            for segment in output["panoptic_seg"][1]:
                segment["category_id"] -= not segment["isthing"]
        return outputs


@dataclass(frozen=True)
class Comparison:
    """What is trained, and for how long.

    Attributes:
        data: The folder of the data set: images/{train,val}, panoptic_{train,val} and panoptic_{train,val}.json.
        weights: The initial weights of a ResNet-50 in Detectron2's names, or "" for random ones.
        output: The folder of the trainings; finished ones are not repeated, others are resumed.
        device: "cpu" or "cuda".
        rows: Names of ``ROWS``.
        seeds: The number of seeds per row.
        iterations, batch, size: The length, images a step, and shorter side of the images in pixels.
        rois: The number of ROIs per image that train the instance head.
        lr: The learning rate.
        overrides: Settings of all rows.
    """

    data: Path
    weights: str
    output: Path
    device: str
    rows: tuple[str, ...] = ("stock", "ours")
    seeds: int = 2
    iterations: int = 300
    batch: int = 2
    size: int = 256
    rois: int = 64
    lr: float = 0.005
    overrides: tuple[str, ...] = ()

    def settings(self, row: str, seed: int, folder: Path) -> list[str]:
        """Return the settings of one training as KEY VALUE pairs."""
        files = [[f"accuracy_{part}", f"images/{part}", f"panoptic_{part}", f"panoptic_{part}.json"] for part in _PARTS]
        entries = [[name, *(str((self.data / file).absolute()) for file in own)] for name, *own in files]
        for name in (self.data / f"panoptic_{part}.json" for part in _PARTS):
            if not name.is_file():
                raise UserError(f"{name} does not exist; give --data a folder with it, see --help")
        categories = read_json_as(Path(entries[0][3]), "panoptic json", PanopticJson).categories
        things = sum(bool(c.isthing) for c in categories)
        anchors = [[s * self.size / 512] for s in (16, 32, 64, 128, 256)]
        common = {
            "MODEL.DEVICE": self.device,
            "MODEL.WEIGHTS": self.weights,
            "MODEL.ANCHOR_GENERATOR.SIZES": anchors,
            "MODEL.ROI_HEADS.NUM_CLASSES": things,
            "MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE": self.rois,
            "MODEL.SEM_SEG_HEAD.NUM_CLASSES": len(categories),
            "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT": round(4096 * (self.size / 1024) ** 2),
            _THRESHOLD_KEY: THRESHOLDS[0],
            "DATASETS.PANOPTIC": entries,
            "DATASETS.TRAIN": (entries[0][0],),
            "DATASETS.TEST": (entries[1][0],),
            "INPUT.FORMAT": "BGR",
            "INPUT.MIN_SIZE_TRAIN": (self.size * 3 // 4, self.size * 3 // 2),
            "INPUT.MIN_SIZE_TRAIN_SAMPLING": "range",
            "INPUT.MAX_SIZE_TRAIN": 2 * self.size,
            "INPUT.MIN_SIZE_TEST": self.size,
            "INPUT.MAX_SIZE_TEST": 2 * self.size,
            "INPUT.CROP.SIZE": (self.size, self.size),
            "SOLVER.IMS_PER_BATCH": self.batch,
            "SOLVER.BASE_LR": self.lr,
            "SOLVER.MAX_ITER": self.iterations,
            "SOLVER.LR_SCHEDULER_NAME": "MultiStep",
            "SOLVER.STEPS": (self.iterations * 3 // 4, self.iterations * 11 // 12),
            "SOLVER.WARMUP_ITERS": min(self.iterations // 3, 1000),
            "SOLVER.WARMUP_FACTOR": 0.001,
            "SOLVER.CHECKPOINT_PERIOD": max(self.iterations // 4, 1),
            "SOLVER.CHECKPOINTS_TO_KEEP": 1,
            "SOLVER.AMP.ENABLED": self.device != "cpu",
            "DATALOADER.NUM_WORKERS": 0 if self.device == "cpu" else 8,
            "TEST.EVAL_PERIOD": max(self.iterations // (2 if self.device == "cpu" else 6), 1),
            "TEST.NUM_VISUALIZED_IMAGES": 0,
            "SEED": seed,
            "OUTPUT_DIR": str(folder),
        }
        pairs = [text for key, value in common.items() for text in (key, str(value) or '""')]
        if row == "stock":
            return [*pairs, "MODEL.META_ARCHITECTURE", "StockPanopticFPN", *self.overrides]
        return [*pairs, "MODEL.SEAMLESS.OUTPUTS", "['panoptic_seg']", *ROWS[row], *self.overrides]

    def describe(self) -> str:
        """One sentence that says what was trained."""
        weights = Path(self.weights).name if self.weights else "random weights"
        threads = torch.get_num_threads()
        device = f"{threads} CPU thread{'s' * (threads > 1)}" if self.device == "cpu" else torch.cuda.get_device_name()
        return (
            f"{self.data.name}: {self.iterations} iterations of batch {self.batch} at {self.size} px, {self.rois} ROIs "
            f"an image, learning rate {self.lr}, {weights}, on {device}"
        )

    def train(self, row: str, seed: int) -> dict[str, Any]:
        """Train and evaluate one row with one seed; return the PQ in percent and how it grew."""
        folder = self.output / f"{row.replace(' ', '_').replace(',', '')}_seed{seed}"
        finished, settings = folder / "accuracy.json", self.settings(row, seed, folder)
        config = flatten_config(load_config(_file(row), settings).dump())
        if finished.is_file():
            content = read_json(finished, "results")
            if "config" not in content:
                raise UserError(f"{finished} was written by an earlier version; choose another --output")
            if find_changes(content["config"], config):
                raise UserError(f"{folder} holds a training with other settings; choose another --output")
            return content
        results = [_run(row, ["--resume", *settings])]
        final = [*settings, "MODEL.WEIGHTS", str(folder / "model_final.pth")]
        for threshold in THRESHOLDS[1:]:
            output = str(folder / f"threshold_{threshold}")
            results.append(_run(row, ["--eval-only", *final, _THRESHOLD_KEY, str(threshold), "OUTPUT_DIR", output]))
        evaluations = read_evaluations(folder / EVALUATIONS)
        curve = [[step, values["panoptic_seg/PQ"]] for step, values in sorted(evaluations.items())]
        content = {
            "config": config,
            "results": {key: results[0][key] for key, _ in METRICS},
            "thresholds": [[t, found["PQ"]] for t, found in zip(THRESHOLDS, results, strict=True)],
            "curve": curve,
        }
        write_json(finished, content, indent=2)
        return content


def _file(row: str) -> Path:
    """The config that the settings of a row change."""
    return stock_config_file() if row == "stock" else config_file("facade/seamless_R_50_FPN.yaml")


def _run(row: str, arguments: list[str]) -> dict[str, float]:
    """Train or evaluate the model of a row as ``tools/train_net.py`` does; return the metrics of its panoptic maps."""
    results = run(build_parser().parse_args(["--config-file", str(_file(row)), *arguments])).get("panoptic_seg")
    if results is None:
        raise UserError("stopped by a signal; the same command goes on from the last checkpoint")
    return results


def benchmark_accuracy(comparison: Comparison, jobs: int = 1) -> dict[str, Any]:
    """Train all rows with all seeds, and write table.md, curves.png and accuracy.json after each seed.

    Args:
        comparison: What is trained.
        jobs: The number of trainings at a time, each in a process of its own if there are several.

    Returns:
        By row, what ``Comparison.train`` returns for each seed.
    """
    unknown = [row for row in comparison.rows if row not in ROWS]
    if unknown:
        raise UserError(f"--rows has no {unknown[0]!r}; the rows are: {'; '.join(ROWS)}")
    found: dict[str, list[dict[str, Any]]] = {row: [] for row in comparison.rows}
    trainings = [(row, seed) for seed in range(comparison.seeds) for row in comparison.rows]
    # The threads of several processes that wait for each other spin.
    threads = (torch.set_num_threads, (max(torch.get_num_threads() // jobs, 1),))
    # One training a process: loggers write to the files of all trainings that a process has begun.
    pool = ProcessPoolExecutor(jobs, get_context("spawn"), *threads, max_tasks_per_child=1) if jobs > 1 else None
    results = (pool.map if pool else map)(comparison.train, *zip(*trainings, strict=True))
    for (row, _), result in zip(trainings, results, strict=True):
        found[row].append(result)
        if row != comparison.rows[-1]:
            continue
        table = format_table(found)
        print(f"\n{comparison.describe()}\n\n{table}", flush=True)
        with atomic_write(comparison.output / "table.md", "w") as file:
            file.write(f"{comparison.describe()}\n\n{table}\n")
        write_json(comparison.output / "accuracy.json", found, indent=2)
        draw_curves(found, comparison.output / "curves.png")
    return found


def format_table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A table of the means over the seeds: all metrics with their spread at the first threshold, PQ at the others."""
    rows = []
    for row, runs in found.items():
        values = {key: [run["results"][key] for run in runs] for key, _ in METRICS}
        means = [f"{statistics.mean(values[key]):.1f}" for key, _ in METRICS]
        others = [f"{statistics.mean(run['thresholds'][i][1] for run in runs):.1f}" for i in range(1, len(THRESHOLDS))]
        rows.append([row, len(runs), *means, f"{min(values['PQ']):.1f}", f"{max(values['PQ']):.1f}", *others])
    header = ["", "seeds", *(heading for _, heading in METRICS), "lowest PQ", "highest PQ"]
    header += [f"PQ from score {threshold}" for threshold in THRESHOLDS[1:]]
    return tabulate(rows, header, tablefmt="github", disable_numparse=True)


def draw_curves(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw PQ over the iterations: the mean of the seeds, and their range."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(xlabel="iterations", ylabel="PQ")
    for row, runs in found.items():
        steps = [step for step, _ in runs[0]["curve"]]
        values = list(zip(*([pq for _, pq in run["curve"]] for run in runs), strict=True))
        (line,) = axes.plot(steps, [statistics.mean(v) for v in values], marker="o", label=row)
        axes.fill_between(steps, [min(v) for v in values], [max(v) for v in values], alpha=0.2, color=line.get_color())
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=120)
