"""Drawings of panoptic maps."""

import colorsys
from collections.abc import Iterator, Sequence
from functools import lru_cache
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


def segment_color(segment: SegmentInfo, classes: Classes) -> Color:
    """Return the RGB color of a segment.

    Stuff has the color of its class. Things vary in brightness and hue by their ``track_id``, or by their id if they
    have none.
    """
    color = classes.colors[classes.to_label(segment)]
    if not segment["isthing"]:
        return color
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    # With the golden ratio, instances with neighboring ids differ most.
    turn = segment.get("track_id", segment["id"]) * 0.61803398875 % 1.0
    h, s, v = (h + 0.06 * (turn - 0.5)) % 1.0, min(1.0, max(s, 0.35) * (0.8 + 0.4 * turn)), 0.55 + 0.45 * turn
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))


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
    image: np.ndarray, panoptic_seg: np.ndarray, segments: list[SegmentInfo], classes: Classes
) -> np.ndarray:
    """Write the class and score of each segment at its innermost point, if the text fits there."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = max(11, round(min(image.shape[:2]) / 32))
    font = _font(size)
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
        left, top, right, bottom = draw.textbbox((x, y), text, font=font, anchor="mm", stroke_width=2)
        shift = min(0, image.shape[1] - right) + max(0, -left)
        box = (left + shift, top, right + shift, bottom)
        if any(box[0] < t[2] and t[0] < box[2] and box[1] < t[3] and t[1] < box[3] for t in taken):
            continue
        taken.append(box)
        draw.text((x + shift, y), text, (255, 255, 255), font, "mm", stroke_width=2, stroke_fill=(20, 20, 20))
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

    Returns:
        (k H, k W, 3) uint8 RGB image.
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
    for segment in segments:
        color = segment_color(segment, classes) if color_instances else classes.colors[classes.to_label(segment)]
        colors[segment["id"]] = color
        is_thing[segment["id"]] = segment["isthing"]
    added = colors * share[:, None] + np.uint16(128)
    kept = np.uint16(256) - share
    drawn = np.empty(image.shape, np.uint8)
    for rows in _bands(image.shape[0]):
        ids = panoptic_seg[rows]
        drawn[rows] = (image[rows] * kept[ids][..., None] + added[ids]) >> 8
    drawn[_contours(panoptic_seg, is_thing, min(5, max(1, round(min(image.shape[:2]) / 500)))) > 0] = 255
    return _draw_labels(drawn, panoptic_seg, segments, classes) if labels else drawn


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
