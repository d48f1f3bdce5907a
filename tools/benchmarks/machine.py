"""What the machine can do at best: the floor under every other figure."""

import time
from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F

from .measure import synchronize


def _best_time(function: Callable[[], object], device: str, repeats: int = 5) -> float:
    function()
    times = []
    for _ in range(repeats):
        synchronize(device)
        start = time.perf_counter()
        function()
        synchronize(device)
        times.append(time.perf_counter() - start)
    return min(times)


@cache
def compute_rates(device: str, dtype: torch.dtype = torch.float32, quick: bool = False) -> tuple[float, float]:
    """FLOP/s of a 3x3 convolution of 256 channels and of a product of square matrices.

    Args:
        device: "cpu" or "cuda".
        dtype: of the numbers. float32 on a GPU follows PyTorch's defaults: TF32 in convolutions only.
        quick: with tiny sizes.
    """
    gpu = device.startswith("cuda")
    channels, side = (32, 128) if quick else (256, 8192 if gpu else 2048)
    height, width = (16, 32) if quick else (256, 512) if gpu else (128, 256)
    with torch.no_grad():
        x = torch.randn(1, channels, height, width, device=device, dtype=dtype)
        weight = torch.randn(channels, channels, 3, 3, device=device, dtype=dtype)
        if gpu:  # as tensor cores want it
            x, weight = (t.to(memory_format=torch.channels_last) for t in (x, weight))
        convolution = 2 * 9 * channels**2 * height * width / _best_time(lambda: F.conv2d(x, weight, padding=1), device)
        a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
        product = 2 * side**3 / _best_time(lambda: a @ b, device)
    return convolution, product


@cache
def memory_rate(device: str, quick: bool = False) -> float:
    """Bytes per second of a large copy, reading and writing counted."""
    size = 2**20 if quick else 2**28
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.ones_like(source)
    return 2 * size / _best_time(lambda: target.copy_(source), device)


def floor_note(flops: float, device: str, dtype: torch.dtype = torch.float32, quick: bool = False) -> tuple[float, str]:
    """The least seconds for so many operations at the better of the measured rates, and a sentence about it."""
    convolution, product = compute_rates(device, dtype, quick)
    floor = flops / max(convolution, product)
    name = str(dtype).removeprefix("torch.")
    return floor, (
        f"{flops / 1e12:.3g} TFLOP; {name} measured: convolution {convolution / 1e9:.0f}, matrix product "
        f"{product / 1e9:.0f} GFLOP/s; floor {floor:.3g} s"
    )
