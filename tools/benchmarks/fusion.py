"""The panoptic fusion against Detectron2's post-processing of the same network outputs."""

from dataclasses import replace
from functools import partial

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from seamless_d2.modeling.fusion import fuse_panoptic

from .machine import memory_rate
from .measure import Case, compare_times

NUM_STUFF, NUM_THINGS = 11, 8


def make_scene(
    height: int, width: int, count: int, device: str, seed: int = 0, scale: float = 1.0
) -> dict[str, Tensor]:
    """Random detections of street-like sizes (sides from 20 pixels to a third of the height) and blocky labels.

    ``scale`` multiplies the sides.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    side = (scale * 20 * (height / 3 / 20) ** uniform(count, 2)).clamp(max=height)
    corner = uniform(count, 2) * (torch.tensor([width, height]) - side)
    labels = torch.randint(0, NUM_STUFF + NUM_THINGS, (8, 16), generator=generator).float()
    sem_seg = torch.nn.functional.interpolate(labels[None, None], size=(height, width))[0, 0].long()
    centre = 1 - torch.linspace(-1.3, 1.3, 28).square()
    scene = {
        "sem_seg": sem_seg,
        "boxes": torch.cat([corner, corner + side], dim=1),
        "classes": torch.randint(0, NUM_THINGS, (count,), generator=generator),
        "scores": 0.5 + 0.5 * uniform(count),
        "mask_logits": 6 * (centre[:, None] + centre[None, :]).expand(count, 28, 28) + uniform(count, 28, 28),
    }
    return {k: v.to(device) for k, v in scene.items()}


def detectron2_fusion(scene: dict[str, Tensor]) -> tuple:
    """Detectron2's detector_postprocess + combine_semantic_and_instance_outputs."""
    height, width = scene["sem_seg"].shape
    instances = Instances((height, width))
    instances.pred_boxes = Boxes(scene["boxes"].clone())
    instances.scores = scene["scores"]
    instances.pred_classes = scene["classes"]
    instances.pred_masks = scene["mask_logits"].sigmoid()[:, None]
    return combine_semantic_and_instance_outputs(
        detector_postprocess(instances, height, width), scene["sem_seg"], 0.5, 4096, 0.5
    )


def _compare(
    height: int, width: int, count: int, device: str, against: bool, scale: float = 1.0, quick: bool = False
) -> Case:
    """One scene; the note tells what the boxes cover, and the time of reading the labels and writing the map once."""
    scene = make_scene(height, width, count, device, scale=scale)
    boxes = scene["boxes"]
    area = float((boxes[:, 2:] - boxes[:, :2]).prod(dim=1).sum())
    # int64 labels in, int32 ids out.
    floor = 12 * height * width / memory_rate(device, quick)
    case = compare_times(
        f"{height}x{width}, {count} instances" + (", large" if scale > 1 else ""),
        partial(fuse_panoptic, **scene, num_stuff=NUM_STUFF),
        partial(detectron2_fusion, scene) if against else None,
        device=device,
        repeats=0 if quick else 20 if device.startswith("cuda") else 3,
        # Detectron2's side takes seconds on a CPU, ours milliseconds: it can run more often.
        ours_per_round=1 if quick else 5,
        target=50.0 if against and not quick and scale == 1 and not device.startswith("cuda") else None,
    )
    per_pixel = case.ours / (area + height * width)
    return replace(
        case,
        note=f"boxes cover {area / (height * width):.2f} images; {1e9 * per_pixel:.2f} ns per pixel of boxes and "
        f"image; labels read and map written once: {1e3 * floor:.2g} ms",
    )


def benchmark_fusion(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """100 instances at 1024x2048 against Detectron2, then the growth with instances and pixels."""
    if quick:
        return [_compare(128, 256, 20, device, bool(against), scale, quick) for scale in (1.0, 2.2)]
    cases = [_compare(1024, 2048, 100, device, bool(against), scale) for scale in (1.0, 2.2)]
    curve = [(1024, 2048, count) for count in (10, 30, 300, 1000)]
    curve += [(724, 1448, 100), (1448, 2896, 100), (2304, 4608, 100), (3200, 6400, 100)]
    return cases + [_compare(*size, device, False) for size in curve]
