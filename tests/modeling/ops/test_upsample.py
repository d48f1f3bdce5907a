"""Labels at full resolution against interpolation and argmax of all scores."""

import pytest
import torch
import torch.nn.functional as F

from seamless_d2.modeling.ops.upsample import upsampled_labels


@pytest.mark.parametrize("kind", ["noise", "blocks", "constant"])
@pytest.mark.parametrize("classes", [1, 2, 19, 300])
@pytest.mark.parametrize(
    ("low", "padded", "size"),
    [
        ((16, 24), (64, 96), (64, 96)),
        ((17, 13), (67, 50), (61, 50)),
        ((1, 1), (4, 3), (4, 3)),
        ((40, 30), (11, 9), (11, 9)),
    ],
    ids=str,
)
def test_same_labels(low, padded, size, classes: int, kind: str) -> None:
    noise = torch.randn(1, classes, *low)
    if kind == "noise":
        logits = noise
    else:
        labels = torch.randint(0, classes, (1, -(-low[0] // 8), -(-low[1] // 8)))
        labels = torch.zeros_like(labels) if kind == "constant" else labels
        labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)[:, : low[0], : low[1]]
        logits = 9 * F.one_hot(labels, classes).permute(0, 3, 1, 2) + noise
    scores = F.interpolate(logits, size=padded, mode="bilinear", align_corners=False)[0, :, : size[0], : size[1]]
    found = upsampled_labels(logits, padded, size)
    assert found.shape == size and found.dtype == (torch.uint8 if classes <= 256 else torch.int64)
    # Where labels differ the scores are equal but for rounding.
    best, chosen = scores.amax(dim=0), scores.gather(0, found.long()[None])[0]
    assert torch.allclose(best, chosen, atol=1e-5)
    assert (found != scores.argmax(dim=0)).sum() <= 1


def test_ties_go_to_the_first_class() -> None:
    logits = torch.zeros(1, 4, 6, 8)
    logits[:, 2:, :, 4:] = 1
    found = upsampled_labels(logits, (24, 32), (24, 32))
    assert set(found.unique().tolist()) == {0, 2}
