"""The panoptic fusion against Detectron2's post-processing of the same network outputs."""

import torch
from detectron2.modeling.meta_arch.panoptic_fpn import combine_semantic_and_instance_outputs
from detectron2.modeling.postprocessing import detector_postprocess
from detectron2.structures import Boxes, Instances
from torch import Tensor

from ..modeling.fusion import fuse_panoptic
from .measure import Case, compare_times

NUM_STUFF, NUM_THINGS = 11, 8


def make_scene(height: int, width: int, count: int, device: str, seed: int = 0) -> dict[str, Tensor]:
    """Random detections of street-like sizes (side lengths 20 px .. a third of the height) and blocky labels."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator)

    side = 20 * (height / 3 / 20) ** uniform(count, 2)
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


def benchmark_fusion(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """100 instances at 1024x2048 against Detectron2, then the growth with instances and pixels."""
    cases = []
    sizes = [(256, 512, 20)] if quick else [(1024, 2048, 100)]
    for height, width, count in sizes:
        scene = make_scene(height, width, count, device)
        other = (lambda scene=scene: detectron2_fusion(scene)) if against else None
        name = f"{height}x{width}, {count} instances"
        cases.append(
            compare_times(
                name,
                lambda scene=scene: fuse_panoptic(**scene, num_stuff=NUM_STUFF),
                other,
                device=device,
                repeats=3 if device == "cpu" else 20,
            )
        )
    if quick:
        return cases
    for height, width, count in (
        (1024, 2048, 10),
        (1024, 2048, 300),
        (1024, 2048, 1000),
        (1024, 1024, 100),
        (2048, 2560, 100),
        (3840, 5120, 100),
    ):
        scene = make_scene(height, width, count, device)
        cases.append(
            compare_times(
                f"{height}x{width}, {count} instances",
                lambda scene=scene: fuse_panoptic(**scene, num_stuff=NUM_STUFF),
                None,
                device=device,
                note=f"boxes cover {_box_area(scene) / (height * width):.1f} pictures",
            )
        )
    return cases


def _box_area(scene: dict[str, Tensor]) -> float:
    boxes = scene["boxes"]
    return float(((boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])).sum())
