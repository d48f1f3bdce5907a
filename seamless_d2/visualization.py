"""Overlay images of panoptic results."""

import colorsys
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .structures.classes import Classes, Color
from .structures.id_maps import SegmentInfo, label_boxes


@lru_cache(maxsize=8)
def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib  # ships DejaVu Sans, so that labels look alike everywhere

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)


def segment_color(segment: SegmentInfo, classes: Classes) -> Color:
    """The class's colour; instances vary in brightness and hue, the same ``track_id`` (else id) always alike."""
    color = classes.colors[classes.to_label(segment)]
    if not segment["isthing"]:
        return color
    h, s, v = colorsys.rgb_to_hsv(*(c / 255 for c in color))
    # Golden ratio: neighbours in id differ most.
    turn = segment.get("track_id", segment["id"]) * 0.61803398875 % 1.0
    h, s, v = (h + 0.06 * (turn - 0.5)) % 1.0, min(1.0, max(s, 0.35) * (0.8 + 0.4 * turn)), 0.55 + 0.45 * turn
    return tuple(round(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))


def _contours(panoptic_seg: np.ndarray, is_thing: np.ndarray, width: int) -> np.ndarray:
    """(H, W) uint8, not 0 at borders between segments of which at least one is an instance."""
    edge = np.zeros(panoptic_seg.shape, np.uint8)
    for rows in _bands(panoptic_seg.shape[0]):
        # One row more: the border between two bands belongs to the upper one's last pair of rows.
        band = panoptic_seg[rows.start : rows.stop + 1]
        thing = is_thing[band]
        for a, b in ((np.s_[1:], np.s_[:-1]), (np.s_[:, 1:], np.s_[:, :-1])):
            edge[rows.start : rows.stop + 1][a] |= (band[a] != band[b]) & (thing[a] | thing[b])
    return cv2.dilate(edge, np.ones((width, width), np.uint8)) if width > 1 else edge


def _bands(height: int) -> Iterator[slice]:
    """Rows in portions: temporaries stay small however large the image."""
    return (slice(top, min(top + 256, height)) for top in range(0, height, 256))


def _draw_labels(
    image: np.ndarray, panoptic_seg: np.ndarray, segments: list[SegmentInfo], classes: Classes
) -> np.ndarray:
    """Write each segment's class (and score) at the point deepest inside it, where there is room."""
    canvas = Image.fromarray(image)
    draw = ImageDraw.Draw(canvas)
    size = max(11, round(min(image.shape[:2]) / 32))
    font = _font(size)
    taken: list[tuple[float, float, float, float]] = []
    # Labels need no exact place: a coarse map has it in a fraction of the time.
    step = max(1, round((panoptic_seg.size / 5e5) ** 0.5))
    coarse = np.ascontiguousarray(panoptic_seg[::step, ::step])
    boxes = label_boxes(coarse, max([s["id"] for s in segments], default=0) + 1).astype(int)
    # Large segments choose their place first.
    for segment in sorted(segments, key=lambda s: -s["area"]):
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
    """Blend class colours over an image, outline instances in white and name the segments.

    Args:
        image: (H, W, 3) uint8 RGB.
        panoptic_seg: (H, W) integer map, 0 = void.
        segments: the map's ``segments_info``.
        classes: names and colours.
        alpha: share of the colour, 0..1.
        labels: whether to write names and scores.
        min_side: smaller images are enlarged by a whole factor to about this, so that labels can be read, its longer
            side to 4 times this at most.
        color_instances: whether instances vary around their class's colour.
        void_color: blended over void; default void shows the image.

    Returns:
        (k H, k W, 3) uint8 RGB.
    """
    panoptic_seg = np.asarray(panoptic_seg)
    # Never much larger on the other side, however narrow the drawn.
    scale = max(1, min(-(-min_side // min(image.shape[:2])), 4 * min_side // max(image.shape[:2])))
    if scale > 1:
        image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC)
        panoptic_seg = panoptic_seg.repeat(scale, axis=0).repeat(scale, axis=1)
    top = max([s["id"] for s in segments], default=0)
    # What each id adds, and how much of the image stays: 8 bits of fraction are enough for 8-bit images.
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
    """Images of any size in rows of equal width, on white.

    Args:
        images: at least one (H, W, 3) uint8.
        columns: images per row.
        gap: pixels between them.
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
