"""Copy-paste of instances from one image into another (Ghiasi et al., CVPR 2021), for panoptic label maps."""

from dataclasses import dataclass

import numpy as np


@dataclass
class Scene:
    """An augmented image with its segments.

    Attributes:
        image: (H, W, 3) uint8.
        labels: (H, W) int32 label map: 0 = void, k = segment k-1.
        segments: The entries of ``segments_info``.
        open_sides: (K, 4) bool, of each segment: whether it touches the border x0, y0, x1, y1 of a crop beyond which
            the image goes on.
    """

    image: np.ndarray
    labels: np.ndarray
    segments: list[dict]
    open_sides: np.ndarray


def touched_sides(labels: np.ndarray, count: int) -> np.ndarray:
    """Return (count, 4) bool: whether the segments 1..count of a label map touch its border x0, y0, x1, y1."""
    borders = (labels[:, 0], labels[0], labels[:, -1], labels[-1])
    return np.stack([np.bincount(border, minlength=count + 1)[1:] > 0 for border in borders], axis=1)


def paste_instances(target: Scene, source: Scene) -> Scene:
    """Paste a random half of the instances of ``source`` into ``target``, at their own places.

    What they cover of the target is gone: every pixel belongs to one segment before and after. Crowd regions are not
    pasted. Where the source is smaller or larger, its top left part is used.

    Returns:
        The new scene; the segments of ``target`` keep their numbers, pasted ones come after them.
    """
    height, width = (min(a, b) for a, b in zip(target.labels.shape, source.labels.shape, strict=True))
    labels = source.labels[:height, :width]
    present = np.unique(labels)
    things = [k for k, s in enumerate(source.segments, 1) if s["isthing"] and not s["iscrowd"] and k in present]
    chosen = [k for k in things if np.random.rand() < 0.5]
    if not chosen:
        return target
    new_numbers = np.zeros(len(source.segments) + 1, np.int32)
    new_numbers[chosen] = np.arange(1, len(chosen) + 1) + len(target.segments)
    pasted = new_numbers[labels]
    is_pasted = pasted > 0
    image, result = target.image.copy(), target.labels.copy()
    image[:height, :width][is_pasted] = source.image[:height, :width][is_pasted]
    result[:height, :width][is_pasted] = pasted[is_pasted]
    segments = [*target.segments, *(source.segments[k - 1] for k in chosen)]
    # What is trimmed to the target is cut by that, too.
    trimmed = np.array([False, False, source.labels.shape[1] > width, source.labels.shape[0] > height])
    pasted_open = source.open_sides | (touched_sides(labels, len(source.segments)) & trimmed)
    rows = [k - 1 for k in chosen]
    # An object ends where another one begins: one of the target where a pasted one covers its border, and one that the
    # border of a smaller source has cut.
    open_sides = np.concatenate([target.open_sides, pasted_open[rows]]) & touched_sides(result, len(segments))
    return Scene(image, result, segments, open_sides)
