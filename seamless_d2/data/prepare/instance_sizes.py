"""The sizes of the instances of a data set, before and after instance-scale-uniform sampling, as a plot."""

import itertools
from pathlib import Path

import numpy as np
from detectron2.data import transforms as T

from ...io import atomic_write
from ...structures.classes import Classes
from ...structures.coco_json import CocoSegment
from ..sampling import InstanceScaleUniformSampler
from ..seeding import seeded, split_index
from ..transforms import Focus, ResizeCropAround

# What is simulated: the number of crops, their sides, and the default ranges of INPUT.INSTANCE_SIZES and _SCALES.
_CROPS = 4000
_SIDE = 1024
_SIZES, _SCALES = (16.0, 512.0), (0.25, 4.0)

#: The size of an image as (height, width), and its segments with boxes.
Entry = tuple[tuple[int, int], list[CocoSegment]]


def instance_sizes(entries: list[Entry], classes: Classes) -> np.ndarray:
    """Return the (N,) sizes of all instances: the square root of the area of the box, in pixels."""
    boxes = [s.bbox for _, segments in entries for s in segments if _is_instance(s, classes)]
    return np.sqrt(np.array([w * h for _, _, w, h in boxes], np.float64))


def sampled_sizes(entries: list[Entry], classes: Classes, crops: int = _CROPS) -> tuple[np.ndarray, np.ndarray]:
    """Simulate the crops that ``InstanceScaleUniformSampler`` chooses.

    Returns:
        The sizes of the (M,) instances that crops are made around, and of what is visible of all (N,) in the crops.
    """
    records = []
    for _, segments in entries:
        labelled = [classes.from_label(classes.dataset_ids.index(s.category_id)) for s in segments]
        records.append(
            {"segments_info": [{**a, "iscrowd": s.iscrowd} for a, s in zip(labelled, segments, strict=True)]}
        )
    augmentation = ResizeCropAround(T.ResizeShortestEdge(0), T.RandomCrop("absolute", (_SIDE, _SIDE)), _SIZES, _SCALES)
    sampler = InstanceScaleUniformSampler(records, classes.num_stuff, 0, rank=0, world_size=1)
    centers, found = [], []
    for number, joined in enumerate(itertools.islice(sampler, crops)):
        index, label = split_index(joined, len(records))
        (height, width), segments = entries[index]
        boxes = {id(s): np.add([*s.bbox[:2], *s.bbox[:2]], [0, 0, *s.bbox[2:]]) for s in segments}
        of_class = [s for s in segments if classes.dataset_ids.index(s.category_id) == label and not s.iscrowd]
        with seeded(0, number):
            chosen = boxes[id(of_class[np.random.randint(len(of_class))])]
            if label < classes.num_stuff:  # a place in the box stands for a pixel of the region
                x, y = np.random.uniform(chosen[:2], np.maximum(chosen[2:] - 1, chosen[:2]))
                focus = Focus((x, y, x + 1, y + 1), False)
            else:
                focus = Focus(tuple(chosen.tolist()), True)
            transform = augmentation.get_transform(np.empty((height, width, 0), np.uint8), focus)
        if focus.has_size:
            centers.append(np.sqrt(np.prod(chosen[2:] - chosen[:2])) * transform.new_size[0] / height)
        inside = [boxes[id(s)] for s in segments if _is_instance(s, classes)]
        corners = transform.apply_coords(np.array(inside, np.float64).reshape(-1, 2)).reshape(-1, 4)
        limits = np.array([*transform.crop[2:], *transform.crop[2:]])
        visible = np.clip(corners, 0, limits)
        sides = visible[:, 2:] - visible[:, :2]
        found.append(np.sqrt(sides.prod(axis=1)[(sides >= 1).all(axis=1)]))
    return np.array(centers), np.concatenate(found)


def _is_instance(segment: CocoSegment, classes: Classes) -> bool:
    return classes.dataset_ids.index(segment.category_id) >= classes.num_stuff and not segment.iscrowd


def draw_instance_sizes(entries: list[Entry], classes: Classes, path: Path) -> None:
    """Draw the shares of the sizes of the instances, as they are and as the sampling shows them.

    Args:
        entries: The images; all segments have boxes and known classes, and one is an instance.
        classes: The classes of the data set.
        path: The png file.
    """
    # Other tools start without it.
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    bins = 2.0 ** np.arange(0, 12.5, 0.5)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot(
        xlabel="size of an instance: square root of the area of its box [pixels]", ylabel="share of instances [%]"
    )
    centers, visible = sampled_sizes(entries, classes)
    for values, label, style in (
        (instance_sizes(entries, classes), "in the images", {"histtype": "stepfilled", "alpha": 0.35}),
        (visible, f"in crops of {_SIDE} x {_SIDE} by InstanceScaleUniformSampler", {"histtype": "step", "lw": 2}),
        (centers, "of these, what the crops are made around", {"histtype": "step", "lw": 2, "ls": "--"}),
    ):
        if len(values):
            weights = np.full(len(values), 100 / len(values))
            axes.hist(values, bins, weights=weights, label=f"{label} (median {np.median(values):.0f})", **style)
    axes.set_ylim(top=1.35 * axes.get_ylim()[1])  # room for the legend
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.grid(alpha=0.3)
    axes.legend()
    with atomic_write(path) as file:
        figure.savefig(file, format="png", dpi=110)
