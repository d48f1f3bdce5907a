"""Random numbers that depend on the image alone."""

import torch

from seamless_d2.modeling.ops.image_seeds import image_seed


def test_images_draw_for_themselves() -> None:
    def draw(seeds: list[int] | None, number: int) -> list[int]:
        with image_seed(seeds, number, torch.device("cpu")):
            return torch.randperm(100).tolist()

    assert draw([5, 6], 0) == draw([9, 5], 1) != draw([5, 6], 1)
    state = torch.get_rng_state()
    draw([5], 0)
    assert torch.equal(torch.get_rng_state(), state)  # and leave no trace
    draw(None, 0)
    assert not torch.equal(torch.get_rng_state(), state)
