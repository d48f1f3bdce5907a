"""Memory of training, of inference on large images, and of matching boxes with the ground truth."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from detectron2.modeling.matcher import Matcher
from detectron2.structures import Boxes, pairwise_iou
from torch import Tensor, nn

from seamless_d2.modeling.ops.matching import best_matches

from .inference import CONFIG
from .measure import Case
from .models import build, build_for_inference, our_config, stock_config, street_image
from .peak_memory import Job, peak_memory

VISTAS = "vistas/seamless_R_50_FPN"
STAGES = ["res2", "res3", "res4", "res5"]


def saved_bytes(function: Callable[[], object], model: nn.Module) -> int:
    """Bytes that autograd keeps for the backward pass of ``function``, parameters and buffers of ``model`` excluded.

    A storage that is saved many times counts once.
    """
    own = {t.untyped_storage().data_ptr() for t in (*model.parameters(), *model.buffers())}
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = function()  # keeps the graph, and with it every storage, so that no address comes twice
    del result
    return sum(saved.values())


def trunk_bytes(device: str, size: tuple[int, int], pyramid: bool, settings: list) -> int:
    """``saved_bytes`` of our ResNet-50 with nothing frozen, alone or with the feature pyramid on top."""
    cfg = our_config(CONFIG, device)
    cfg.merge_from_list(["MODEL.BACKBONE.FREEZE_AT", 0, "MODEL.RESNETS.NORM", "BN", "MODEL.FPN.NORM", "BN", *settings])
    model = build(cfg).backbone.train()
    if not pyramid:
        model = model.bottom_up
    return saved_bytes(partial(model, torch.randn(1, 3, *size, device=device)), model)


def inference_job(device: str, side: str, size: tuple[int, int], output_size: tuple[int, int]) -> Callable[[], None]:
    """For ``peak_memory``: one Vistas-size image through ours or stock PanopticFPN, with 100 detections."""
    cfg = our_config(VISTAS, device)
    model = build_for_inference(cfg if side == "ours" else stock_config(cfg))
    image = street_image(*size, device)
    batch = [{"image": image, "height": output_size[0], "width": output_size[1]}]

    @torch.no_grad()
    def run() -> None:
        model(batch)

    return run


def matching_job(device: str, side: str, num_ground_truth: int, num_anchors: int) -> Callable[[], None]:
    """For ``peak_memory``: anchors matched with true boxes."""
    generator = torch.Generator().manual_seed(0)

    def make(count: int) -> Boxes:
        corner = torch.rand(count, 2, generator=generator) * 2000
        size = 8 * 32 ** torch.rand(count, 2, generator=generator)
        return Boxes(torch.cat([corner, corner + size], dim=1).to(device))

    ground_truth, anchors = make(num_ground_truth), make(num_anchors)
    if side == "ours":
        match = partial(best_matches, ground_truth, anchors)
    else:
        matcher = Matcher([0.3, 0.7], [0, -1, 1], allow_low_quality_matches=True)

        def match() -> object:
            return matcher(pairwise_iou(ground_truth, anchors))

    return match


def _available() -> float:
    """Bytes of main memory that are free; without end where the system does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024.0 * int(next(line for line in lines if line.startswith("MemAvailable:")).split()[1])
    except (OSError, StopIteration):
        return float("inf")


def _compare(
    name: str, job: Job, device: str, against: str | None, *arguments: object, total: bool = False, note: str = ""
) -> list[Case]:
    """The case of a job that takes "ours" or "other" after the device; none where the system does not tell."""
    ours = peak_memory(job, device, "ours", *arguments, total=total)
    if ours is None:
        return []
    other = peak_memory(job, device, "other", *arguments, total=total) if against else None
    if against and other is None:
        note = f"{note}; no room for the other".removeprefix("; ")
    return [Case(name, ours, other, "bytes", note=note)]


def benchmark_memory(device: str = "cpu", against: str | None = None, quick: bool = False) -> list[Case]:
    """What autograd keeps of the trunk, the peak on a Vistas-size image, and the peak of RPN matching.

    In the first cases ``other`` is batch normalisation with an in-place leaky ReLU, in the others Detectron2.
    """
    size = (64, 128) if quick else (512, 1024)
    cases = []
    for pyramid in (False, True):
        trunk = "ResNet-50 + FPN" if pyramid else "ResNet-50"
        plain, inplace, both = (
            trunk_bytes(
                device, size, pyramid, ["MODEL.SEAMLESS.INPLACE_NORM", norm, "MODEL.SEAMLESS.GRADIENT_CHECKPOINTING", s]
            )
            for norm, s in ((False, []), (True, []), (True, STAGES))
        )
        for what, mine, target in (("INPLACE_NORM", inplace, 1 / 0.65), ("and GRADIENT_CHECKPOINTING", both, None)):
            cases.append(
                Case(
                    f"saved tensors of {trunk}, {size[0]}x{size[1]}, {what}",
                    mine,
                    plain,
                    "bytes",
                    note=f"{100 * (1 - mine / plain):.0f} % less than BN + in-place leaky ReLU",
                    target=None if pyramid else target,
                )
            )
    small, large = ((96, 128), (150, 200)) if quick else ((1920, 2560), (3000, 4000))
    limit = 6 if device.startswith("cuda") else 8
    cases += _compare(
        f"inference, {large[0]}x{large[1]} at {small[0]}x{small[1]}, 65 classes",
        inference_job,
        device,
        against,
        small,
        large,
        total=True,
        note=f"the whole process; ours is to stay below {limit} GB",
    )
    num_ground_truth, num_anchors = (50, 2000) if quick else (2000, 250_000)
    if not device.startswith("cuda"):
        # Detectron2's side takes some 24 bytes per pair of boxes.
        num_anchors = int(min(num_anchors, 0.7 * _available() / (32 * num_ground_truth)))
    cases += _compare(
        f"RPN matching, {num_ground_truth} true boxes, {num_anchors} anchors",
        matching_job,
        device,
        against,
        num_ground_truth,
        num_anchors,
        note="other: pairwise_iou + Matcher",
    )
    return cases
