"""Random sampling that depends on the image alone."""

import contextlib
from collections.abc import Iterator

import torch


@contextlib.contextmanager
def image_seed(seeds: list[int] | None, number: int, device: torch.device) -> Iterator[None]:
    """Draw PyTorch's random numbers within the block from the seed of one image of the batch.

    The samples of an image then depend neither on the other images of the batch nor on the process that handles it.

    Args:
        seeds: One seed (0..2^63-1) per image of the batch; None leaves PyTorch's global random state alone.
        number: The index of the image in the batch.
        device: The device whose random numbers are drawn.
    """
    if seeds is None:
        yield
        return
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        torch.manual_seed(seeds[number])
        yield
