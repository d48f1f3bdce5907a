"""Drawings of panoptic maps."""

import colorsys
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .structures.classes import Classes, Color
from .structures.id_maps import SegmentInfo, label_boxes


class Stripes(NamedTuple):
    """A hatching: its RGB color, and its direction, 1 for "/" and -1 for "\\"."""

    color: Color
    direction: int


#: The text of an entry of a legend, its color, and its hatching or None.
LegendEntry = tuple[str, Color, Stripes | None]


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    try:
        import matplotlib  # ships DejaVu Sans, so that labels look alike everywhere
    except ModuleNotFoundError:  # where only exported models run
        return ImageFont.load_default(size)
    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


#: The number of different colors of the instances of one class.
NUM_INSTANCE_COLORS = 24
# From linear RGB to what full protanopia and deuteranopia see of it (Machado et al., 2009), after the identity.
_VISIONS = np.array(
    [
        np.eye(3),
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    ]
)


def _to_linear(rgb: np.ndarray) -> np.ndarray:
    """Convert sRGB values in 0..1 to linear ones."""
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def _see(rgb: np.ndarray) -> np.ndarray:
    """Return the (3, n, 3) CIELAB coordinates in which the visions of ``_VISIONS`` see (n, 3) sRGB colors in 0..1."""
    seen = np.clip(_to_linear(rgb) @ _VISIONS.transpose(0, 2, 1), 0, 1)
    srgb = np.where(seen <= 0.0031308, 12.92 * seen, 1.055 * seen ** (1 / 2.4) - 0.055)
    return cv2.cvtColor(srgb.astype(np.float32), cv2.COLOR_RGB2LAB)


@lru_cache(maxsize=256)
def instance_colors(color: Color) -> list[Color]:
    """Return NUM_INSTANCE_COLORS RGB colors for the instances of a class whose color is ``color``.

    All are near the hue of the class, and differ in lightness, saturation and hue. Each is the one that is farthest
    from those before it for the eye, normal or blind to red or green, that tells them apart worst; the first is the
    one nearest to the color of the class.
    """
    own = np.array([color]) / 255
    hue = colorsys.rgb_to_hsv(*own[0])[0]
    shades = product(np.linspace(-0.06, 0.06, 5), np.linspace(0.35, 1, 6), np.linspace(0.35, 1, 9))
    rgb = np.array([colorsys.hsv_to_rgb((hue + turn) % 1, saturation, value) for turn, saturation, value in shades])
    rgb = rgb[_see(rgb)[0, :, 0] < 85]  # lighter ones hide the white contours
    seen = _see(rgb)
    chosen = [int(np.linalg.norm(seen[0] - _see(own)[0], axis=1).argmin())]
    nearest = np.full(len(rgb), np.inf)
    while len(chosen) < NUM_INSTANCE_COLORS:
        nearest = np.minimum(nearest, np.linalg.norm(seen - seen[:, chosen[-1], None], axis=2).min(axis=0))
        chosen.append(int(nearest.argmax()))
    return [tuple(c) for c in np.rint(255 * rgb[chosen]).astype(int).tolist()]


def segment_colors(segments: list[SegmentInfo], classes: Classes) -> dict[int, Color]:
    """Return the RGB color of each segment by its id.

    Stuff has the color of its class. Things have those of ``instance_colors`` by their ``track_id``, or by their order
    in their class if they have none.
    """
    colors, counts = {}, Counter()
    for segment in segments:
        label = classes.to_label(segment)
        colors[segment["id"]] = color = classes.colors[label]
        if segment["isthing"]:
            number = segment.get("track_id", counts[label])
            colors[segment["id"]] = instance_colors(tuple(color))[number % NUM_INSTANCE_COLORS]
            counts[label] += 1
    return colors


def contrast(one: Color, other: Color) -> float:
    """Return the contrast of two RGB colors, 1..21, by WCAG 2."""
    weights = np.array([0.2126, 0.7152, 0.0722])
    low, high = sorted(float(_to_linear(np.array(c) / 255) @ weights) for c in (one, other))
    return (high + 0.05) / (low + 0.05)


def text_color(background: Color) -> Color:
    """Return black or white, whichever is easier to read; one of both has a contrast of at least 4.58."""
    return max(((0, 0, 0), (255, 255, 255)), key=lambda text: contrast(text, background))


def _contours(panoptic_seg: np.ndarray, is_thing: np.ndarray, width: int) -> np.ndarray:
    """Return an (H, W) uint8 mask of the borders of instances.

    Args:
        panoptic_seg: (H, W) integer map of segment ids.
        is_thing: Whether each id is an instance.
        width: The width of the borders in pixels.
    """
    edge = np.zeros(panoptic_seg.shape, np.uint8)
    for rows in _bands(panoptic_seg.shape[0]):
        # One more row, because the border between two bands belongs to the upper band.
        band = panoptic_seg[rows.start : rows.stop + 1]
        thing = is_thing[band]
        for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            edge[rows.start : rows.stop + 1][a] |= (band[a] != band[b]) & (thing[a] | thing[b])
    return cv2.dilate(edge, np.ones((width, width), np.uint8)) if width > 1 else edge


def _bands(height: int) -> Iterator[slice]:
    """Yield the rows of an image in bands, so that temporaries stay small."""
    return (slice(top, min(top + 256, height)) for top in range(0, height, 256))


def _draw_labels(
    image: np.ndarray,
    panoptic_seg: np.ndarray,
    segments: list[SegmentInfo],
    classes: Classes,
    colors: dict[int, Color],
) -> np.ndarray:
    """Write the class and score of each segment on a tag of its color at its innermost point, if it is large enough."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = max(11, round(min(image.shape[:2]) / 36))
    font, pad = _font(size), max(2, size // 5)
    taken: list[tuple[float, float, float, float]] = []
    # The position of a label need not be exact, so that a coarse map suffices and is much faster.
    step = max(1, round((panoptic_seg.size / 5e5) ** 0.5))
    coarse = np.ascontiguousarray(panoptic_seg[::step, ::step])
    num_ids = max([s["id"] for s in segments], default=0) + 1
    boxes = label_boxes(coarse, num_ids).astype(int)
    areas = np.bincount(coarse.ravel(), minlength=num_ids)
    # Large segments come first.
    for segment in sorted(segments, key=lambda s: -areas[s["id"]]):
        name = classes.names[classes.to_label(segment)]
        text = f"{name} {segment['score']:.0%}" if "score" in segment else name
        x0, y0, x1, y1 = boxes[segment["id"]]
        if x0 == x1:
            continue
        mask = np.pad((coarse[y0:y1, x0:x1] == segment["id"]).astype(np.uint8), 1)
        depth = cv2.distanceTransform(mask, cv2.DIST_L2, 3)
        if depth.max() * step < size * 0.45:
            continue
        y, x = np.unravel_index(depth.argmax(), depth.shape)
        x, y = (x0 + x - 0.5) * step, (y0 + y - 0.5) * step
        # All tags are as high as the font, whatever the letters, and inside the image.
        half = round(font.getlength(text) / 2) + 2 * pad, size // 2 + 2 * pad
        x, y = (max(h, min(round(c), n - 1 - h)) for c, h, n in zip((x, y), half, image.shape[1::-1], strict=True))
        box = (x - half[0], y - half[1], x + half[0], y + half[1])
        if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            continue
        taken.append(box)
        color = colors[segment["id"]]
        ink = text_color(color)
        draw.rounded_rectangle(box, radius=pad, fill=color, outline=ink)
        draw.text((x, y), text, ink, font, "mm")
    return np.asarray(canvas)


def draw_overlay(
    image: np.ndarray,
    panoptic_seg: np.ndarray,
    segments: list[SegmentInfo],
    classes: Classes,
    *,
    alpha: float = 0.5,
    labels: bool = True,
    min_side: int = 480,
    color_instances: bool = True,
    void_color: Color | None = None,
    legend: bool = False,
) -> np.ndarray:
    """Blend the colors of the segments over an image, outline instances in white and write the names of the segments.

    Args:
        image: (H, W, 3) uint8 RGB image.
        panoptic_seg: (H, W) integer map of segment ids, 0 = void.
        segments: The segments of the map.
        classes: The classes, for names and colors.
        alpha: The weight of the color, in 0..1.
        labels: Whether names and scores are written.
        min_side: The number of pixels to which smaller images are enlarged by an integer factor k, so that labels are
            legible. The longer side does not become longer than 4 times this.
        color_instances: Whether instances vary around the color of their class.
        void_color: The color that is blended over void; default none.
        legend: Whether the classes that occur are listed below the image.

    Returns:
        (k H, k W, 3) uint8 RGB image, higher with a legend.
    """
    panoptic_seg = np.asarray(panoptic_seg)
    # A narrow image must not become very large on its other side.
    scale = max(1, min(-(-min_side // min(image.shape[:2])), 4 * min_side // max(image.shape[:2])))
    if scale > 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        panoptic_seg = panoptic_seg.repeat(scale, axis=0).repeat(scale, axis=1)
    top = max([s["id"] for s in segments], default=0)
    # Fixed-point weights of color and image by id; 8 fractional bits suffice for 8-bit images.
    share = np.full(top + 1, round(256 * alpha), np.uint16)
    colors = np.zeros((top + 1, 3), np.uint16)
    is_thing = np.zeros(top + 1, bool)
    if void_color is None:
        share[0] = 0
    else:
        colors[0] = void_color
    of_class = {s["id"]: classes.colors[classes.to_label(s)] for s in segments}
    of_segment = segment_colors(segments, classes) if color_instances else of_class
    for segment in segments:
        colors[segment["id"]] = of_segment[segment["id"]]
        is_thing[segment["id"]] = segment["isthing"]
    added = colors * share[:, None] + np.uint16(128)
    kept = np.uint16(256) - share
    drawn = np.empty(image.shape, np.uint8)
    for rows in _bands(image.shape[0]):
        ids = panoptic_seg[rows]
        drawn[rows] = (image[rows] * kept[ids][..., None] + added[ids]) >> 8
    drawn[_contours(panoptic_seg, is_thing, min(5, max(1, round(min(image.shape[:2]) / 500)))) > 0] = 255
    if labels:
        drawn = _draw_labels(drawn, panoptic_seg, segments, classes, of_segment)
    shown = sorted({classes.to_label(s) for s in segments}) if legend else []
    return add_legend(drawn, [(classes.names[k], classes.colors[k], None) for k in shown]) if shown else drawn


def contact_sheet(images: list[np.ndarray], columns: int = 2, gap: int = 8) -> np.ndarray:
    """Arrange images of any size in rows on a white canvas, all with the same width.

    Args:
        images: At least one (H, W, 3) uint8 image.
        columns: The number of images per row.
        gap: The distance between images in pixels.

    Returns:
        (H, W, 3) uint8 image.
    """
    width = max(p.shape[1] for p in images)
    resized = [
        cv2.resize(p, (width, round(p.shape[0] * width / p.shape[1])), interpolation=cv2.INTER_AREA) for p in images
    ]
    rows = []
    for start in range(0, len(resized), columns):
        row = resized[start : start + columns]
        height = max(p.shape[0] for p in row)
        canvas = np.full((height + gap, columns * (width + gap), 3), 255, np.uint8)
        for i, p in enumerate(row):
            canvas[: p.shape[0], i * (width + gap) : i * (width + gap) + width] = p
        rows.append(canvas)
    return np.concatenate(rows)[:-gap, :-gap]


def draw_stripes(image: np.ndarray, mask: np.ndarray, stripes: Stripes, per_side: int = 40) -> None:
    """Hatch the pixels of an (H, W) bool mask in an (H, W, 3) uint8 RGB image in place.

    Args:
        image: The image.
        mask: The pixels.
        stripes: Color and direction.
        per_side: The number of stripes along the shorter side of the image, unless they would be too narrow.
    """
    height, width = image.shape[:2]
    period = max(4, min(height, width) // per_side)
    y, x = np.ogrid[:height, :width]
    image[mask & ((x + stripes.direction * y) % period < max(1, period // 4))] = stripes.color


def add_legend(image: np.ndarray, entries: Sequence[LegendEntry]) -> np.ndarray:
    """Return an (H, W, 3) uint8 RGB image with rows of colored squares and their texts below it, on white."""
    size = max(12, image.shape[1] // 60)
    pad, line = size // 2, 2 * size
    font = _font(size)
    places, x, y = [], pad, pad
    for text, _, _ in entries:
        width = size + pad + round(font.getlength(text)) + 2 * pad
        if x > pad and x + width > image.shape[1]:
            x, y = pad, y + line
        places.append((x, y))
        x += width
    strip = np.full((y - pad + line, image.shape[1], 3), 255, np.uint8)
    for (_, color, stripes), (x, y) in zip(entries, places, strict=True):
        square = strip[y : y + size, x : x + size]
        square[:] = color
        if stripes is not None:
            draw_stripes(square, np.ones(square.shape[:2], bool), stripes, per_side=2)
    canvas = Image.fromarray(strip)
    for (text, _, _), (x, y) in zip(entries, places, strict=True):
        ImageDraw.Draw(canvas).text((x + size + pad, y + size / 2), text, (20, 20, 20), font, "lm")
    return np.concatenate([image, np.asarray(canvas)])
