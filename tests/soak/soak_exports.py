#!/usr/bin/env python
"""Export models of many kinds to all formats and print how much the files differ from the models.

    python tests/soak/soak_exports.py [NAME ...] [--weights R-50.pkl] [--large]

The weights are random, but those of the predictors are scaled so that scores differ clearly: engines round differently,
and of two that are nearly equal the other one may claim its pixels first. In a ResNet-50 of random weights, what is
rounded differently grows to 1e-5 of the features; --weights gives it trained ones. Each model takes one to four
minutes; --large verifies an image of 1024x2048 too, which takes a minute more.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch
from detectron2.modeling import build_model
from tabulate import tabulate
from torch.nn import BatchNorm2d

from seamless_d2.checkpoint import SeamlessCheckpointer
from seamless_d2.config import get_config
from seamless_d2.errors import UserError
from seamless_d2.export.exporter import ExportOptions, export_model
from seamless_d2.export.graph import ExportForm
from seamless_d2.export.session import ENGINES, ExportedModel
from seamless_d2.export.verify import TOLERANCES, draw_street, run_example, verify
from seamless_d2.modeling import SeamlessPanoptic
from seamless_d2.modeling.ops.fold import prepare_for_inference
from seamless_d2.prediction import PredictionOptions

SYNC = ["MODEL.RESNETS.NORM", "SyncBN"]
GN = [
    x
    for part in ("RESNETS", "FPN", "RPN", "ROI_BOX_HEAD", "ROI_MASK_HEAD", "SEM_SEG_HEAD")
    for x in (f"MODEL.{part}.NORM", "GN")
]
BN = [x.replace("GN", "BN") for x in GN]
FORMATS = ("onnx", "openvino", "pt2")
CASES = {
    "R18 BN": ("toy_streets/seamless_R_18_FPN", BN),
    "R50 GN": ("cityscapes/seamless_R_50_FPN", GN),
    "R50 SyncBN, Cityscapes": ("cityscapes/seamless_R_50_FPN", []),
    "R50 SyncBN, Cityscapes, original": (
        "cityscapes/seamless_R_50_FPN",
        ["MODEL.SEAMLESS.ORIGINAL_CONVENTIONS", "True"],
    ),
    "R50, Vistas": ("vistas/seamless_R_50_FPN", []),
    "R50, COCO": ("coco/seamless_R_50_FPN", []),
}


def spread(model: SeamlessPanoptic) -> None:
    """Give an untrained model the statistics of drawn streets, and predictors whose outputs spread."""
    image, found = torch.from_numpy(draw_street(1, 160, 320)), []
    norms = [layer for layer in model.modules() if isinstance(layer, BatchNorm2d)]
    with torch.no_grad():
        for number, size in enumerate(((160, 320), (129, 129), (256, 192), (320, 640)), 1):
            for layer in norms:
                layer.train()
                layer.momentum = 1 / number  # the mean over the images
            model([{"image": torch.from_numpy(draw_street(number, *size))}])
        for layer in norms:
            layer.eval()
        model.sem_seg_head.predictor.weight.mul_(10)
        model.roi_heads.mask_head.predictor.weight.mul_(100)
    for predictor, deviation in (
        (model.proposal_generator.rpn_head.objectness_logits, 3.0),
        (model.roi_heads.box_predictor.bbox_pred, 0.3),
        (model.roi_heads.box_predictor.cls_score, 3.0),
    ):
        hook = predictor.register_forward_hook(lambda *args: found.append(args[-1].std().item()))
        with torch.no_grad():
            model([{"image": image}])
            predictor.weight.mul_(deviation / max(found))
        hook.remove()
        found.clear()


def export_one(config: str, overrides: list[str], folder: Path, weights: str, large: bool) -> list[list[object]]:
    """Return a row (format, engine, worst share of pixels, score, box) per format and engine."""
    cfg = get_config(config)
    cfg.merge_from_list(overrides)
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.STUFF_AREA_LIMIT = 64
    cfg = PredictionOptions().apply(cfg, str(folder / "model.pth"), "cpu")
    torch.manual_seed(0)
    model = build_model(cfg).eval()
    if cfg.MODEL.RESNETS.DEPTH == 50:
        SeamlessCheckpointer(model).load(weights)
    spread(model)
    torch.save({"model": model.state_dict()}, folder / "model.pth")
    written = export_model(cfg, folder / "model.onnx", ExportOptions(FORMATS))
    if large:
        form = ExportForm(prepare_for_inference(model), cfg.INPUT.FORMAT)
        examples = [run_example(form, draw_street(0, 1024, 2048))]
        for name, (path, differences) in zip(FORMATS, written.items(), strict=True):
            for engine in ENGINES[path.suffix]:
                differences += verify(ExportedModel(path, engine), examples, TOLERANCES[name])
    rows = []
    for path, differences in written.items():
        for engine in dict.fromkeys(d.engine for d in differences):
            own = [d for d in differences if d.engine == engine]
            things = ", ".join(d.example.split(",")[1].strip() for d in own)
            worst = [max(getattr(d, key) for d in own) for key in ("pixels", "score", "box")]
            rows.append([path.suffix, engine, *(f"{value:.1e}" for value in worst), things])
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=list(CASES), metavar="NAME", help=f"of: {'; '.join(CASES)}")
    parser.add_argument("--large", action="store_true")
    parser.add_argument("--weights", default="", help="initial weights of the ResNet-50s, in Detectron2's names")
    args, failed = parser.parse_args(), 0
    for name in args.names:
        with tempfile.TemporaryDirectory() as folder:
            try:
                rows = export_one(*CASES[name], Path(folder), args.weights, args.large)
                print(f"{name}\n{tabulate(rows, ['', 'engine', 'pixels', 'score', 'box', 'things'])}\n", flush=True)
            except UserError as error:
                failed += 1
                print(f"{name}: {error}\n", flush=True)
    return failed


if __name__ == "__main__":
    sys.exit(main())
