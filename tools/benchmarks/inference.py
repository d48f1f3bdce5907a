"""From image tensor to panoptic map, against Detectron2's stock PanopticFPN R50."""

import statistics

import torch
from detectron2.config import CfgNode
from torch import Tensor

from seamless_d2.engine.dry_run import count_flops
from seamless_d2.modeling.ops.fold import compile_network

from .eager import Inference, Panoptic, outputs_of
from .engines import benchmark_engines
from .machine import floor_note
from .measure import Case, case_of_times, measure_times
from .models import build_for_inference, our_config, stock_config, street_image

CONFIG = "cityscapes/seamless_R_50_FPN"


def agreement(first: Panoptic, second: Panoptic) -> float:
    """Share of pixels, in 0..1, that two panoptic maps put into the same segment.

    A segment of the first corresponds to the one of the same class in the second that it overlaps most; void
    corresponds to void.
    """
    (a, a_info), (b, b_info) = first, second
    rows, columns = len(a_info) + 1, len(b_info) + 1
    counts = torch.bincount((a.long() * columns + b.long()).flatten(), minlength=rows * columns).view(rows, columns)
    a_kinds, b_kinds = ([None, *((s["isthing"], s["category_id"]) for s in info)] for info in (a_info, b_info))
    same = torch.tensor([[x == y for y in b_kinds] for x in a_kinds])
    return float((counts.cpu() * same).amax(dim=1).sum()) / a.numel()


def _variants(cfg: CfgNode, image: Tensor) -> dict[str, Inference]:
    """Ours in other layouts and precisions."""

    def make(dtype: torch.dtype | None, channels_last: bool = True, compiled: bool = False) -> Inference:
        model = build_for_inference(cfg)
        if not channels_last:
            model.to(memory_format=torch.contiguous_format)
        return Inference(compile_network(model) if compiled else model, image, dtype)

    if not image.is_cuda:
        return {"fp32 channels-first": make(None, channels_last=False), "bf16": make(torch.bfloat16)}
    return {
        "fp32 channels-first": make(None, channels_last=False),
        "bf16 channels-first": make(torch.bfloat16, channels_last=False),
        "bf16": make(torch.bfloat16),
        "bf16 compiled": make(torch.bfloat16, compiled=True),
    }


def benchmark_inference(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """The whole way and the network alone at 1024x2048 with 100 detections, and ours in other precisions."""
    height, width = (128, 256) if quick else (1024, 2048)
    gpu = device.startswith("cuda")
    repeats = 0 if quick else 20 if gpu else 3
    cfg = our_config(CONFIG, device, quick)
    image = street_image(height, width, device)
    ours = Inference(build_for_inference(cfg), image)
    other = Inference(build_for_inference(stock_config(cfg)), image) if against else None
    variants = _variants(cfg, image)
    runs = [ours, ours.with_all_outputs, *variants.values(), *([other] if other else [])]
    times = measure_times(runs, device, repeats)
    stock = times[-1] if other else None
    detections = f"ours {ours.detections}" + (f"; other {other.detections}" if other else "")
    size = f"{height}x{width}"
    networks = ours.network_seconds(repeats), other.network_seconds(repeats) if other else None
    cases = [
        case_of_times(f"{size} fp32, whole", times[0], stock, detections, None if gpu or quick else 1.5),
        case_of_times(f"{size} fp32, network alone", *networks),
        case_of_times(f"{size} fp32, all outputs", times[1], stock, "ours with instances and sem_seg too"),
    ]
    with outputs_of(ours.model, ("instances", "sem_seg")):  # the network, without the fusion
        flops = 2 * count_flops(ours.model, {"image": image})  # fvcore counts multiply-adds
    floor, note = floor_note(flops, device, torch.float32, quick)
    floors = [Case(f"{size} fp32, network against its floor", statistics.median(networks[0]), floor, note=note)]
    for (name, run), seconds in zip(variants.items(), times[2:], strict=False):
        note = f"{100 * agreement(ours.panoptic, run.panoptic):.2f} % of pixels as in fp32"
        target = 3.0 if gpu and run.dtype and not quick else None
        cases.append(case_of_times(f"{size} {name}, whole", seconds, stock, f"other in fp32; {note}", target))
        network = statistics.median(run.network_seconds(repeats))
        floor, note = floor_note(flops, device, run.dtype or torch.float32, quick)
        floors.append(Case(f"{size} {name}, network against its floor", network, floor, note=note))
    engines = [] if gpu or quick else benchmark_engines(bool(against))
    return cases + floors + engines
