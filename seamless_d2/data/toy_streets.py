"""Toy streets: a procedural panoptic data set, for demonstrations and tests that must run without a download.

    python -m seamless_d2.data.toy_streets datasets/toy_streets
    python -m seamless_d2.data.toy_streets datasets/toy_large --num-train 1000 --num-val 100 --height 256 --width 512

writes a data set in the COCO panoptic format:

    ROOT/{train,val}/000000.png ...                RGB images
    ROOT/panoptic_{train,val}/000000.png ...       segment ids as colours, id = R + 256 G + 65536 B, 0 = void
    ROOT/panoptic_{train,val}.json                 images, annotations (with segments_info), categories
    ROOT/toy_streets.json                          what was asked for; another run here must ask for the same

Each scene is a street seen by a pinhole camera and painted back to front: five stuff classes, three thing classes; day,
overcast, golden hour or evening. About 7 % of the scenes hold an `iscrowd` group of people; lamp posts and, rarely, a
skip are unlabelled (void). A seed gives the same pixels everywhere: random numbers come from `np.random.RandomState`,
whose streams NumPy has frozen, and shapes from integer polygon filling.
Training scene i has seed i, validation scene i has seed 1,000,000 + i, so the splits never share a scene.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

__all__ = ["CATEGORIES", "Scene", "generate_scene", "write_toy_streets"]

VERSION = 2  # raise it whenever the pixels of a seed change: data sets written before are then refused, not mixed
FIRST_SEED = {"train": 0, "val": 1_000_000}
MIN_HEIGHT, MIN_WIDTH = 64, 96
MIN_AREA = 20  # segments with fewer visible pixels go to their neighbour
SCALE = 2  # super-sampling of the canvas

# Stuff and things are mixed on purpose, as in the wild: code that takes "things come last" for granted fails here.
CATEGORIES: list[dict[str, Any]] = [
    {"id": 1, "name": "road", "isthing": 0, "color": [128, 64, 128]},
    {"id": 2, "name": "person", "isthing": 1, "color": [220, 20, 60]},
    {"id": 3, "name": "building", "isthing": 0, "color": [70, 70, 70]},
    {"id": 4, "name": "car", "isthing": 1, "color": [0, 0, 142]},
    {"id": 5, "name": "vegetation", "isthing": 0, "color": [107, 142, 35]},
    {"id": 6, "name": "sky", "isthing": 0, "color": [70, 130, 180]},
    {"id": 7, "name": "bicycle", "isthing": 1, "color": [119, 11, 32]},
    {"id": 8, "name": "sidewalk", "isthing": 0, "color": [244, 35, 232]},
]
VOID, ROAD, PERSON, BUILDING, CAR, VEGETATION, SKY, BICYCLE, SIDEWALK = range(9)  # also the canvas ids of stuff

RGB = Sequence[float]
Place = Callable[[Any, Any, Any], np.ndarray]
Face = tuple[int, float, np.ndarray]
Paint = Callable[..., None]


@dataclass(frozen=True)
class Scene:
    """One picture with its truth.

    image: (H, W, 3) uint8, RGB. panoptic: (H, W) int32, 0 = void, else a segment's id in 1..K.
    segments: K dicts in the order of their ids 1..K, in COCO's panoptic format: id, category_id, iscrowd, area (>= 1),
    bbox [x, y, width, height], all plain integers. A stuff class has at most one segment.
    """

    image: np.ndarray
    panoptic: np.ndarray
    segments: list[dict[str, Any]]


class Light(NamedTuple):
    """A time of day: `tint` multiplies all colours, distance fades to `haze` over about `clarity` metres."""

    tint: RGB
    zenith: RGB
    low_sky: RGB
    haze: RGB
    clarity: float
    shadow: float  # darkness, 0..1
    lamps: bool


DAY = Light((1.06, 1.03, 0.97), (72, 128, 205), (186, 214, 238), (196, 212, 228), 260, 0.42, False)
OVERCAST = Light((0.88, 0.9, 0.93), (158, 166, 176), (208, 211, 214), (198, 202, 206), 150, 0.28, False)
GOLDEN = Light((0.98, 0.8, 0.62), (104, 122, 170), (250, 196, 132), (236, 184, 136), 200, 0.42, False)
EVENING = Light((0.62, 0.59, 0.7), (38, 44, 92), (206, 128, 112), (128, 98, 116), 220, 0.3, True)

# Strength of fine grain and of soft blotches in each class (2 elsewhere).
TEXTURE = {ROAD: (6, 4), BUILDING: (4, 5), VEGETATION: (11, 9), SIDEWALK: (4, 4), SKY: (0, 0)}
WALLS = [(176, 112, 88), (206, 186, 150), (214, 204, 190), (150, 142, 136), (188, 150, 116), (160, 92, 76)]
ROOFS = [(120, 66, 54), (86, 82, 86), (104, 78, 66)]
AWNINGS = [(168, 52, 46), (52, 104, 82), (206, 160, 62), (64, 84, 140)]
PANES = [(66, 84, 104), (52, 62, 76), (112, 136, 158)]
LEAVES = [(74, 116, 44), (92, 130, 52), (58, 98, 46), (84, 122, 40), (150, 134, 48)]
PAINTS = [(206, 208, 212), (36, 38, 44), (120, 124, 132), (172, 34, 38), (36, 66, 136), (226, 182, 44), (66, 104, 92)]
FRAMES = [(214, 44, 40), (40, 128, 196), (52, 160, 84), (240, 200, 50), (238, 238, 232), (230, 120, 40)]
CLOTHES = [
    (204, 36, 52),
    (36, 82, 184),
    (240, 204, 56),
    (236, 236, 232),
    (40, 146, 108),
    (240, 124, 40),
    (146, 62, 160),
]
TROUSERS = [(48, 54, 88), (62, 58, 54), (116, 98, 72)]
SKIN = [(232, 190, 160), (198, 144, 108), (142, 96, 68), (92, 62, 46)]
HAIR = [(40, 30, 26), (96, 66, 40), (170, 140, 90)]
GLASS, RUBBER = (40, 52, 66), (26, 26, 28)
# Side profiles of cars as (along, up) from the tail's lower corner on, anticlockwise: below, front, bonnet, windscreen,
# roof, rear window, boot, tail.
CARS = [
    [(0, 0.32), (4.3, 0.32), (4.3, 0.72), (3.3, 0.95), (2.6, 1.42), (1.1, 1.45), (0.5, 1.02), (0, 0.95)],
    [(0, 0.32), (3.8, 0.32), (3.8, 0.75), (3.0, 0.98), (2.3, 1.52), (0.5, 1.52), (0.12, 1.02), (0, 0.9)],
    [(0, 0.34), (4.7, 0.34), (4.7, 0.95), (4.2, 1.15), (3.6, 1.95), (0.2, 2.0), (0.06, 1.15), (0, 1.0)],
]
CIRCLE = np.array([[math.cos(a * math.pi / 8), math.sin(a * math.pi / 8)] for a in range(16)]).round(6)


def _points(x: Any, y: Any, z: Any) -> np.ndarray:
    """World points (..., 3) from coordinates that broadcast."""
    out = np.empty(np.broadcast(x, y, z).shape + (3,))
    out[..., 0], out[..., 1], out[..., 2] = x, y, z
    return out


def _quads(x: Sequence[Any], y: Sequence[Any], z: Sequence[Any]) -> np.ndarray:
    """World quadrilaterals (..., 4, 3); each coordinate is given for the four corners, which broadcast."""
    out = np.empty(np.broadcast(*x, *y, *z).shape + (4, 3))
    for axis, corners in enumerate((x, y, z)):
        for i, value in enumerate(corners):
            out[..., i, axis] = value
    return out


def _floor(x0: Any, x1: Any, z0: Any, z1: Any) -> np.ndarray:
    return _quads((x0, x1, x1, x0), (0, 0, 0, 0), (z0, z0, z1, z1))


def _wall(x0: Any, z0: Any, x1: Any, z1: Any, y0: Any, y1: Any) -> np.ndarray:
    return _quads((x0, x1, x1, x0), (y0, y0, y1, y1), (z0, z1, z1, z0))


def _floor_ellipse(x: float, z: float, rx: float, rz: float) -> np.ndarray:
    return _points(x + rx * CIRCLE[:, 0], 0, z + rz * CIRCLE[:, 1])


def _placer(x: float, z: float, yaw: float, middle: float) -> Place:
    """Maps (across, along, up) of an object at (x, z) to the world; with yaw 0 its tail points to the camera."""
    cos, sin = round(math.cos(yaw), 6), round(math.sin(yaw), 6)

    def place(across: Any, along: Any, up: Any) -> np.ndarray:
        across, along = np.asarray(across), np.asarray(along) - middle
        return _points(x + across * cos + along * sin, up, z - across * sin + along * cos)

    return place


class Street:
    """The stage of one scene: camera, light, layout and canvas.

    World coordinates are metres: x to the right, y up, z forward, the camera at (0, eye, 0). The canvas is a
    (SCALE * H, SCALE * W, 4) uint8 array: RGB and the segment's id side by side, so that one polygon paints both and
    the label map cannot disagree with the picture.
    """

    def __init__(self, seed: int, height: int, width: int) -> None:
        rng = self.rng = np.random.RandomState(seed)
        rows, columns = height * SCALE, width * SCALE
        self.canvas = np.zeros((rows, columns, 4), np.uint8)
        self.pixels = self.canvas.view(np.uint32)[..., 0]  # the same memory; whole pixels copy faster than channels
        self.focal = rows * rng.uniform(1.25, 1.6)
        self.vanishing_point = np.array([columns, rows]) * rng.uniform([0.38, 0.38], [0.62, 0.5])
        self.eye = rng.uniform(1.5, 2.3)
        self.zoom, self.lift = np.array([self.focal, -self.focal]), np.array([0, self.focal * self.eye])
        self.bend = self.pick([0.0, 1.0]) * rng.uniform(-0.0016, 0.0016)  # at z the street has drifted by bend * z^2
        self.light: Light = self.pick([DAY] * 10 + [OVERCAST] * 5 + [GOLDEN] * 3 + [EVENING] * 2)
        self.exposure = rng.uniform(0.88, 1.1)
        self.sun: int = self.pick([-1, 1])  # the side from which light comes
        self.urban = rng.random_sample() < 0.6
        self.keep_right = rng.random_sample() < 0.7
        kerb = np.array([-rng.uniform(4.5, 7.5), rng.uniform(2.4, 4.0)])
        self.kerb = kerb if self.keep_right else -kerb[::-1]
        self.walk = self.kerb + [-1, 1] * rng.uniform(2.6, 4.4, 2)  # the far edges of the sidewalks
        self.far = rng.uniform(60, 95)
        start = rng.uniform(13, 34)
        self.crossing = (start, start + rng.uniform(6, 9)) if rng.random_sample() < 0.4 else None
        self.category_of = list(range(len(CATEGORIES) + 1))  # by canvas id; stuff is its own id, things get new ones
        self.crowds: set[int] = set()

    def pick(self, options: Sequence[Any]) -> Any:
        return options[self.rng.randint(len(options))]

    def shade(self, options: Sequence[RGB], amount: float = 14) -> RGB:
        """A colour near one of `options`; brightness varies more than hue."""
        value, *hue = self.rng.uniform(-amount, amount, 4)
        return [c + value + h / 3 for c, h in zip(self.pick(options), hue, strict=True)]

    def new_id(self, category: int) -> int:
        self.category_of.append(category)
        return len(self.category_of) - 1

    def project(self, points: np.ndarray) -> np.ndarray:
        """World points (..., 3) to canvas pixels (..., 2) int32, x then y."""
        z = points[..., 2:]
        pixels = (points[..., :2] * self.zoom + self.lift) / z + self.vanishing_point
        if self.bend:
            pixels[..., :1] += self.focal * self.bend * z
        return pixels.astype(np.int32)

    def colour(self, rgb: RGB, depth: float, lit: float = 1.0, glow: bool = False) -> list[int]:
        """The colour in which a surface at `depth` is seen; glowing surfaces ignore the light of the day."""
        haze = depth / (depth + self.light.clarity)
        gain, fog = lit * (1 - haze) * (1.0 if glow else self.exposure), self.exposure * haze
        seen = zip(rgb, (1.0, 1.0, 1.0) if glow else self.light.tint, self.light.haze, strict=True)
        return [min(255, max(0, int(c * t * gain + h * fog))) for c, t, h in seen]

    def fill(self, points: np.ndarray, rgb: RGB, ident: int, lit: float = 1.0, glow: bool = False) -> None:
        """Paints convex polygons (..., N, 3), later ones over earlier ones, in one colour and id."""
        polygons = self.project(points).reshape(-1, points.shape[-2], 2)
        depth = (points.item(2) + points.item(points.size // 6 * 3 + 2)) / 2  # between the first and the middle point
        colour = self.colour(rgb, depth, lit, glow) + [ident]
        for polygon in polygons:
            cv2.fillConvexPoly(self.canvas, polygon, colour)

    def glaze(self, polygons: Iterable[np.ndarray], rgb: RGB, alpha: float, ident: int | None = None) -> None:
        """Blends a colour over the union of world polygons (shadows, spokes); ids stay unless `ident` is given."""
        pixels = [self.project(p) for p in polygons]
        corners, size = np.concatenate(pixels), self.canvas.shape[1::-1]
        x0, y0 = np.maximum(corners.min(0), 0).tolist()
        x1, y1 = np.minimum(corners.max(0) + 1, size).tolist()
        if x0 >= x1 or y0 >= y1:
            return
        mask = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for polygon in pixels:
            cv2.fillConvexPoly(mask, polygon - np.array([x0, y0], np.int32), 1)
        region, inside, weight, old = self.pixels[y0:y1, x0:x1], mask.view(bool), int(alpha * 256), np.arange(256)
        tables = [((int(c) * weight + old * (256 - weight)) >> 8).astype(np.uint8) for c in rgb]
        tables.append(np.full(256, ident, np.uint8) if ident is not None else old.astype(np.uint8))
        under = region[inside].view(np.uint8).reshape(-1, 4)
        for channel, table in enumerate(tables):
            under[:, channel] = table[under[:, channel]]
        region[inside] = under.view(np.uint32)[:, 0]

    def shadow(self, *polygons: np.ndarray, strength: float = 1.0) -> None:
        if polygons:
            self.glaze(polygons, (8, 10, 24), self.light.shadow * strength)


def _paint_sky(street: Street) -> None:
    height = np.clip(np.arange(len(street.canvas)) / street.vanishing_point[1], 0, 1)[:, None]
    zenith, low = np.array(street.light.zenith), np.array(street.light.low_sky)
    street.canvas[:, :1, :3] = ((zenith + (low - zenith) * height * height) * min(street.exposure, 1.0))[:, None]
    street.canvas[:, :1, 3] = SKY
    street.pixels[:] = street.pixels[:, :1]


def _paint_ground(street: Street) -> None:
    rng, kerb, walk, crossing = street.rng, street.kerb, street.walk, street.crossing
    paving = street.shade([(168, 160, 152), (182, 172, 158), (156, 156, 160)], 10)
    asphalt, white = street.shade([(84, 84, 90), (96, 94, 94), (72, 74, 82)], 9), street.shade([(226, 224, 214)], 10)
    steps = np.array([2.4, 3.4, 5, 7, 10, 15, 22, 32, 50, 90, 220.0])  # short enough for a bend, and for haze to grow
    strips = [
        (-70, 70, paving, SIDEWALK) if street.urban else (-70, 70, street.shade([(96, 128, 58)]), VEGETATION),
        (*walk, paving, SIDEWALK),
        (kerb[0] - 0.3, kerb[1] + 0.3, [c + 24 for c in paving], SIDEWALK),
        (*kerb, asphalt, ROAD),
    ]
    for left, right, rgb, ident in strips:
        for strip in _floor(left, right, steps[:-1], steps[1:])[::-1]:
            street.fill(strip, rgb, ident)
    joints = np.arange(4.0, 22.0, rng.uniform(1.2, 2.2))
    for inner, outer in zip(kerb, walk, strict=True):
        street.fill(_floor(inner, outer, joints, joints + 0.07), paving, SIDEWALK, 0.86)
    if crossing is not None:
        street.fill(_floor(-70, 70, *crossing), asphalt, ROAD)
    for _ in range(rng.randint(4)):  # repairs
        z, x = rng.uniform(4, 18), rng.uniform(kerb[0] + 1, kerb[1] - 1)
        patch = _floor(x, min(x + rng.uniform(0.6, 2.0), kerb[1]), z, z + rng.uniform(0.6, 4))
        street.fill(patch, asphalt, ROAD, rng.uniform(0.8, 1.12))
    middle, dashes = kerb.mean(), np.arange(rng.uniform(2.5, 5), 60, 6.0)
    if crossing is not None:
        dashes = dashes[(dashes + 3 < crossing[0] - 3) | (dashes > crossing[1])]
    street.fill(_floor(middle - 0.08, middle + 0.08, dashes, dashes + 2.6), white, ROAD, 0.94)
    if crossing is not None or rng.random_sample() < 0.25:  # a zebra crossing
        z, bars = rng.uniform(9, 16) if crossing is None else crossing[0] - 3.2, np.arange(kerb[0] + 0.4, kerb[1] - 0.6)
        street.fill(_floor(bars, bars + 0.5, z, z + 2.6), white, ROAD)


def _paint_windows(street: Street, corners: Callable[..., np.ndarray], length: float, height: float, z: float) -> None:
    """Windows and a ground floor; `corners(u0, u1, y0, y1)` maps facade coordinates to world quadrilaterals."""
    rng, glass, lamps = street.rng, street.shade(PANES, 10), street.light.lamps
    pitch, storey, share = rng.uniform(2.0, 3.4), rng.uniform(2.7, 3.3), rng.uniform(0.42, 0.66)
    u = np.arange(0.7, length - pitch * share - 0.2, pitch)[:, None]
    y = np.arange(storey * (1.25 if street.urban else 0.3), height - 1.6, storey)
    if u.size and y.size:
        if z < 24:
            frames = corners(u - 0.14, u + pitch * share + 0.14, y - 0.14, y + storey * 0.52 + 0.14)
            street.fill(frames, (214, 208, 196), BUILDING, 0.92)
        windows = corners(u, u + pitch * share, y, y + storey * 0.52)
        street.fill(windows, glass, BUILDING)
        warm = rng.random_sample(windows.shape[:2]) < 0.3
        if lamps and warm.any():
            street.fill(windows[warm], (246, 204, 126), BUILDING, 0.9, glow=True)
    u = np.arange(0.6, length - 2.6, rng.uniform(3.2, 5.0))
    if street.urban and z < 45 and u.size:  # shop fronts
        glow = lamps and rng.random_sample() < 0.4
        street.fill(corners(u, u + 2.3, 0.4, 2.5), (222, 176, 112) if glow else glass, BUILDING, 0.85, glow)
        street.fill(corners(u + 1.4, u + 1.5, 0.4, 2.5), (60, 54, 50), BUILDING)
        if rng.random_sample() < 0.5:
            street.fill(corners(u - 0.2, u + 2.5, 2.5, 3.1), street.shade(AWNINGS), BUILDING)


def _paint_house(street: Street, side: int, front: float, z0: float, z1: float) -> None:
    """A building from z0 to z1 with its facade at x = front; the wall that faces the camera is painted first."""
    rng, rgb, roof = street.rng, street.shade(WALLS, 16), street.shade(ROOFS, 10)
    height, gable = rng.uniform(8, 17) if street.urban else rng.uniform(4.2, 6.6), rng.random_sample() < 0.3
    deep, top, sunny = rng.uniform(7, 10), height + 2.6, 1.0 if side != street.sun else 0.78
    back, ridge = front + side * deep, front + side * deep / 2
    gable = gable or not street.urban
    if z0 > 4:
        street.fill(_wall(front, z0, back, z0, 0, height), rgb, BUILDING, 0.84)
        if gable:
            street.fill(_points([front, back, ridge], [height, height, top], z0), rgb, BUILDING, 0.8)
        _paint_windows(
            street, lambda u0, u1, y0, y1: _wall(front + side * u0, z0, front + side * u1, z0, y0, y1), deep, height, z0
        )
    street.fill(_wall(front, z0, front, z1, 0, height), rgb, BUILDING, sunny)
    if gable:
        slope = _quads((front, front, ridge, ridge), (height, height, top, top), (z0, z1, z1, z0))
        street.fill(slope, roof, BUILDING, sunny + 0.08)
    else:
        street.fill(_wall(front, z0, front, z1, height - 0.5, height), rgb, BUILDING, sunny * 0.8)
    street.fill(_wall(front, z0, front, z1, 0, 0.6), rgb, BUILDING, sunny * 0.7)
    _paint_windows(street, lambda u0, u1, y0, y1: _wall(front, z0 + u0, front, z0 + u1, y0, y1), z1 - z0, height, z0)


def _paint_leaves(street: Street, x: float, y: float, z: float, wide: float, tall: float, rgb: RGB) -> None:
    """A cloud of leaf clusters: the dark ones first, the sunlit ones, on top and towards the sun, last."""
    rng, count = street.rng, 14 if z < 40 else 8
    offset = rng.uniform(-1, 1, (count, 2)) * rng.uniform(0.3, 0.8, (count, 1))
    offset = offset[np.argsort(offset[:, 1] + 0.5 * street.sun * offset[:, 0], kind="stable")]
    shape = CIRCLE * rng.uniform(0.3, 0.52, (count, 1, 1)) + offset[:, None]
    clusters = _points(x + shape[..., 0] * wide, y + shape[..., 1] * tall, z)
    for i, lit in enumerate((0.66, 0.88, 1.12)):
        street.fill(clusters[i * count // 3 : (i + 1) * count // 3], rgb, VEGETATION, lit)


def _paint_tree(street: Street, x: float, z: float, scale: float = 1.0, shadow: bool = True) -> None:
    height, crown, stretch = street.rng.uniform([4.0, 1.3, 0.8], [6.5, 2.1, 1.3]) * [scale, scale, 1]
    if shadow:
        street.shadow(_floor_ellipse(x - street.sun * 1.2, z, crown * 1.2, crown), strength=0.8)
    trunk = _points([x - 0.16, x + 0.16, x + 0.1, x - 0.1], [0, 0, height, height], z)
    street.fill(trunk, street.shade([(92, 72, 54)], 10), VEGETATION)
    _paint_leaves(street, x, height, z, crown, crown * stretch, street.shade(LEAVES, 12))


def _paint_park(street: Street, side: int, front: float, z0: float, z1: float) -> None:
    """Trees behind a hedge."""
    rng, rgb, hedge = street.rng, street.shade(LEAVES, 12), street.rng.uniform(0.8, 1.5)
    for z in np.arange(z1, max(z0, 4.0), -5.0):
        _paint_tree(street, front + side * rng.uniform(2, 4), z, rng.uniform(0.9, 1.3), shadow=False)
    street.fill(_wall(front, z0, front, z1, 0, hedge), rgb, VEGETATION, 0.8)
    bumps = np.arange(z1, max(z0, 3.0), -0.8)[:, None]
    street.fill(_points(front + 0.5 * CIRCLE[:, 0], hedge + 0.25 * CIRCLE[:, 1], bumps), rgb, VEGETATION)


def _paint_blocks(street: Street) -> None:
    """What closes the street at its end, and the lots on both sides, farthest first."""
    rng, far, crossing = street.rng, street.far, street.crossing
    for x in np.arange(-36.0, 36.0, 8.0):
        if rng.random_sample() < (0.75 if street.urban else 0.25):
            skyline = _wall(x, far + 8, x + 8, far + 8, 0, rng.uniform(5, 15))
            street.fill(skyline, street.shade([(170, 150, 132)], 25), BUILDING, 0.85)
        else:
            _paint_leaves(street, x + 4, 1.5, far + 8, 6.0, rng.uniform(2.5, 5.0), street.shade(LEAVES, 12))
    lots: list[tuple[float, float, int, float]] = []
    for side, edge in zip((-1, 1), street.walk.tolist(), strict=True):
        for begin, end in [(2.2, far)] if crossing is None else [(2.2, crossing[0] - 2), (crossing[1] + 2, far)]:
            while end - begin > 4:
                length = min(rng.uniform(8, 18), end - begin)
                lots.append((begin, begin + length, side, edge + side * rng.uniform(0.05, 0.1 if street.urban else 3)))
                begin += length + (0.0 if street.urban else rng.uniform(0, 5))
    reach = rng.uniform(1, 5)
    street.shadow(*[_floor(x, x - side * reach, z0, z1) for z0, z1, side, x in lots if side == street.sun])
    for z0, z1, side, front in sorted(lots, reverse=True):
        if not 0 <= street.project(np.array([front, 0, z1]))[0] < street.canvas.shape[1]:
            continue  # its far end is the part that is nearest to the middle of the picture
        paint = _paint_park if rng.random_sample() < (0.12 if street.urban else 0.45) else _paint_house
        paint(street, side, front, z0, z1)


def _visible_faces(street: Street, profile: np.ndarray, half: float, place: Place) -> list[Face]:
    """Of a profile extruded by `half` to both sides, farthest first: (its edge, or -1 for a side; across; corners)."""
    (along, up), after = profile.T, np.roll(profile, -1, 0)
    faces = [(-1, -half, place(-half, along, up)), (-1, half, place(half, along[::-1], up[::-1]))]
    strips = np.stack([profile, profile, after, after], 1)
    corners = place([-half, half, half, -half], strips[..., 0], strips[..., 1])
    faces += [(i, 0.0, corners[i]) for i in range(len(profile))]
    visible = []
    for face in faces:
        x, y = street.project(face[2]).T.astype(np.int64)
        if (x * np.roll(y, -1) - np.roll(x, -1) * y).sum() > 0:  # it turns its outside to the camera
            visible.append(face)
    return sorted(visible, key=lambda f: -f[2][:, 2].mean())


def _paint_car(street: Street, x: float, z: float, yaw: float) -> None:
    rng, rgb, ident = street.rng, street.shade(PAINTS, 12), street.new_id(CAR)
    profile = np.array(CARS[rng.choice(3, p=[0.4, 0.4, 0.2])]) * rng.uniform(0.94, 1.06)
    half, length = rng.uniform(0.86, 0.95), profile[1, 0]
    place = _placer(x, z, yaw, length / 2)

    def panel(across: Sequence[float], along: float, low: float, high: float, rgb: RGB, glow: bool = False) -> None:
        a, b = across
        street.fill(place([a, b, b, a], along, [low, low, high, high]), rgb, ident, 1.0, glow)

    around = np.array([-0.15, -0.15, length + 0.15, length + 0.15])
    street.shadow(place(np.array([-1, 1, 1, -1]) * (half + 0.15), around, 0) - [0.25 * street.sun, 0, 0], strength=1.6)
    for along in sorted((0.45, length / 2, length - 0.45), key=lambda w: -float(place(0, w, 0)[2])):
        panel((0.1 - half, half - 0.1), along, 0.18, 0.5, RUBBER)
        for u in (0.16 - half, half - 0.16) if along != length / 2 else ():
            panel((u - 0.12, u + 0.12), along, 0, 0.45, RUBBER)
    for edge, u, face in _visible_faces(street, profile, half, place):
        if edge == -1:
            lit = 0.98 if u * street.sun * math.cos(yaw) > 0 else 0.78
            street.fill(face, rgb, ident, lit)
            cabin = profile[3:7].mean(0)
            street.fill(place(u, *(cabin + (profile[3:7] - cabin) * [0.84, 0.7]).T), GLASS, ident)
            pillar = length * 0.43 + np.array([-0.05, 0.05, 0.05, -0.05])
            street.fill(place(u, pillar, profile[[3, 3, 4, 4], 1]), rgb, ident, lit)
            wheels = np.array([[0.19 * length], [0.81 * length]])
            for radius, grey in ((0.34, 24), (0.19, 132)):
                street.fill(place(u, wheels + radius * CIRCLE[:, 0], 0.34 + radius * CIRCLE[:, 1]), [grey] * 3, ident)
            continue
        street.fill(face, rgb, ident, 1.14 if edge in (2, 4, 6) else 0.88)
        if edge in (3, 5):
            street.fill(face.mean(0) + (face - face.mean(0)) * 0.84, GLASS, ident)
        elif edge in (1, 7):
            along, top = (length, profile[2, 1]) if edge == 1 else (0, profile[7, 1])
            for u in (-half, half):
                lamp = (246, 240, 208) if edge == 1 else (206, 34, 30)
                panel((u, u * 0.66), along, top - 0.24, top - 0.06, lamp, street.light.lamps)
            panel((-0.26, 0.26), along, 0.42, 0.55, (224, 222, 204))


def _paint_person(street: Street, x: float, z: float, crowd: int | None = None) -> None:
    rng, turn, ident = street.rng, street.pick([-1, 1]), street.new_id(PERSON) if crowd is None else crowd
    tall = rng.uniform(1.6, 1.88) if rng.random_sample() < 0.88 else rng.uniform(1.1, 1.4)
    shirt, trousers, skin = street.shade(CLOTHES), street.shade(TROUSERS), street.shade(SKIN, 8)
    street.shadow(_floor_ellipse(x - 0.3 * street.sun, z, 0.55, 0.2))

    def part(points: Any, rgb: RGB, lit: float = 1.0) -> None:  # in body heights: x forward, y up
        flat = np.asarray(points) * tall
        street.fill(_points(x + turn * flat[:, 0], flat[:, 1], z), rgb, ident, lit)

    def limb(x0: float, y0: float, x1: float, y1: float, wide: float, rgb: RGB, lit: float = 1.0) -> None:
        part([(x0 - wide, y0), (x0 + wide, y0), (x1 + wide, y1), (x1 - wide, y1)], rgb, lit)

    stride, hem = rng.uniform(0.05, 0.18), 0.46 if rng.random_sample() < 0.7 else 0.28  # a jacket or a coat
    hand = 0.14 + stride * 0.5
    limb(-0.12, 0.8, -hand, 0.46, 0.045, shirt, 0.8)
    for foot, lit in ((-stride, 0.8), (stride, 1.0)):
        limb(foot * 0.4, 0.52, foot, 0.03, 0.07, trousers, lit)
        limb(foot, 0.05, foot + 0.02, 0, 0.075, (44, 36, 34))
    part([(-0.14, hem), (0.14, hem), (0.16, 0.78), (0.08, 0.84), (-0.08, 0.84), (-0.16, 0.78)], shirt)
    if rng.random_sample() < 0.3:  # a rucksack
        part([(-0.24, 0.56), (-0.12, 0.54), (-0.12, 0.8), (-0.22, 0.78)], street.shade(CLOTHES), 0.8)
    limb(0.12, 0.8, hand, 0.46, 0.045, shirt, 0.88)
    limb(hand, 0.47, hand, 0.41, 0.04, skin)
    part(CIRCLE * [0.072, 0.084] + [0, 0.91], skin)
    part(np.concatenate([CIRCLE[:9] * [0.078, 0.086], [[-0.07, -0.03]]]) + [0, 0.92], street.shade(HAIR, 8))


def _paint_bicycle(street: Street, x: float, z: float, yaw: float) -> None:
    """A parked bicycle. Its silhouette is filled: what shows through wheels and frame belongs to it."""
    rgb, place, ident = street.shade(FRAMES), _placer(x, z, yaw, 0.0), street.new_id(BICYCLE)
    nodes = np.array([(-0.54, 0.35), (-0.08, 0.3), (0.54, 0.35), (0.36, 0.92), (-0.24, 0.92)])
    rear, pedals, front, head, saddle = nodes
    street.shadow(_floor_ellipse(x, z, 0.85 * abs(math.sin(yaw)), 0.25))
    for hub in (rear, front):
        street.fill(place(0, *(hub + 0.36 * CIRCLE).T), RUBBER, ident)
        street.fill(place(0, *(hub + 0.28 * CIRCLE).T), (150, 152, 156), ident, 0.9)
    street.glaze([place(0, *nodes.T)], street.colour(rgb, z), 0.3, ident)
    tubes = [
        (rear, pedals),
        (pedals, saddle),
        (saddle, head),
        (pedals, head),
        (rear, saddle),
        (head, front),
        (head, head + [0.04, 0.14]),
        (head + [-0.02, 0.12], head + [0.18, 0.1]),
    ]
    start, end = np.array(tubes).transpose(1, 0, 2)
    across = (end - start)[:, ::-1] * [-0.04, 0.04] / np.sqrt(((end - start) ** 2).sum(1, keepdims=True))
    outline = np.stack([start - across, end - across, end + across, start + across], 1)
    street.fill(place(0, outline[..., 0], outline[..., 1]), rgb, ident)
    street.fill(place(0, *([-0.26, 0.96] + CIRCLE * [0.15, 0.05]).T), RUBBER, ident)
    if street.rng.random_sample() < 0.4:  # a basket
        street.fill(place(0, [0.42, 0.74, 0.72, 0.44], [0.74, 0.74, 0.98, 0.98]), (150, 112, 70), ident)


def _paint_lamp_post(street: Street, x: float, z: float) -> None:
    arm = x - math.copysign(1.3, x)
    street.fill(_wall(x - 0.07, z, x + 0.07, z, 0, 5.4), (82, 86, 90), VOID)
    street.fill(_wall(x, z, arm, z, 5.3, 5.42), (82, 86, 90), VOID)
    street.fill(_wall(arm - 0.3, z, arm + 0.3, z, 5.15, 5.3), (255, 236, 180), VOID, 1.0, street.light.lamps)


def _paint_skip(street: Street, x: float, z: float) -> None:
    rgb, place = street.shade([(52, 140, 150), (214, 128, 40)]), _placer(x, z, street.rng.uniform(-0.3, 0.3), 1.2)
    street.shadow(place([-1, 1, 1, -1], [-0.3, -0.3, 2.6, 2.6], 0), strength=1.4)
    profile = np.array([(0.2, 0.1), (2.2, 0.1), (2.6, 1.25), (-0.2, 1.25)])
    for edge, _, face in _visible_faces(street, profile, 0.8, place):
        street.fill(face, (58, 46, 40) if edge == 2 else rgb, VOID, 0.95 if edge == -1 else 0.8)


def _paint_objects(street: Street) -> None:
    """Finds free places for whatever stands in the street, then paints it all, farthest first."""
    rng, kerb, walk, crossing = street.rng, street.kerb.tolist(), street.walk.tolist(), street.crossing
    taken: list[tuple[float, float, float, float]] = []
    entries: list[tuple[float, Callable[[], None]]] = []

    def add(x: float, z: float, rx: float, rz: float, paint: Paint, *arguments: Any) -> bool:
        """Books the place x +- rx, z +- rz for paint(street, x, z, *arguments), if it is free."""
        if any(abs(x - a) < rx + b and abs(z - c) < rz + d for a, c, b, d in taken):
            return False
        taken.append((x, z, rx, rz))
        entries.append((z, partial(paint, street, x, z, *arguments)))
        return True

    def depth(near: float, far: float) -> float:
        return 1 / rng.uniform(1 / far, 1 / near)  # even on the picture

    def sidewalk(low: float, high: float) -> float:
        """A place on a sidewalk at a share low..high of its width, counted from the kerb."""
        side, share = rng.randint(2), rng.uniform(low, high)
        return kerb[side] * (1 - share) + walk[side] * share

    def add_thing(category: int) -> bool:
        """Tries one place."""
        place: tuple[Any, ...]
        if category == PERSON:
            x = sidewalk(0.15, 0.9) if rng.random_sample() < 0.75 else rng.uniform(*kerb)
            place = x, depth(5.5, 18) if rng.random_sample() < 0.9 else depth(20, 34), 0.45, 0.4, _paint_person
        elif category == BICYCLE:
            yaw = street.pick([-1, 1]) * rng.uniform(0.6, 1.57)
            place = sidewalk(-0.15, 0.3), depth(5.5, 17), 0.9, 0.6, _paint_bicycle, yaw
        elif crossing is not None and rng.random_sample() < 0.15:
            z, yaw = rng.uniform(crossing[0] + 1.2, crossing[1] - 1.2), street.pick([-1, 1]) * math.pi / 2
            place = rng.uniform(-9, 9), z, 2.4, 1.0, _paint_car, yaw
        else:
            side = rng.randint(2)
            lane, parked = (kerb[side] * 3 + kerb[1 - side]) / 4, kerb[side] + (1.2 if side == 0 else -1.2)
            x = (lane if rng.random_sample() < 0.6 else parked) + rng.uniform(-0.25, 0.25)
            yaw = (0.0 if (side == 1) == street.keep_right else math.pi) + rng.uniform(-0.06, 0.06)
            place = x, depth(7.5, 36), 1.0, 2.6, _paint_car, yaw
        x, z, rx = place[:3]
        column = street.project(np.array([x, 0, z]))[0] / street.canvas.shape[1]
        hidden = any(abs(x / z - a / c) < max(rx / z, b / c) for a, c, b, _ in taken)  # one stands before the other
        return bool(0.03 < column < 0.97) and not (hidden and rng.random_sample() < 0.8) and add(*place)

    if rng.random_sample() < 0.02:
        add(sidewalk(0.2, 0.4), rng.uniform(9, 16), 1.2, 1.6, _paint_skip)
    if rng.random_sample() < 0.07:
        x, z, crowd = sidewalk(0.2, 0.8), rng.uniform(20, 30), street.new_id(PERSON)
        street.crowds.add(crowd)
        taken.append((x, z, 2.4, 1.6))
        for dx, dz in rng.uniform([-1.6, -0.8], [1.6, 0.8], (rng.randint(7, 12), 2)).tolist():
            entries.append((z + dz, partial(_paint_person, street, x + dx, z + dz, crowd)))
    count = 0 if rng.random_sample() < 0.05 else rng.randint(1, 9, 2).max()
    for category in rng.choice([CAR, PERSON, BICYCLE], count, p=[0.31, 0.42, 0.27]).tolist():
        any(add_thing(category) for _ in range(15))  # stops at the first success
    rows: list[tuple[Paint, float, float, float]]
    rows = [(_paint_tree, rng.uniform(8, 14), rng.uniform(7, 12), 0.8) for _ in range(rng.randint(3))]
    if rng.random_sample() < 0.25:
        rows.append((_paint_lamp_post, rng.uniform(7, 16), 18.0, 0.4))
    for paint, first, step, offset in rows:
        side = rng.randint(2)
        for z in np.arange(first, 55, step).tolist():
            if crossing is None or not crossing[0] - 4 < z < crossing[1] + 1:
                add(kerb[side] + (offset if side == 1 else -offset), z, 0.2, 0.2, paint)
    for _, paint_entry in sorted(entries, key=lambda entry: -entry[0]):
        paint_entry()


def _noise(rng: np.random.RandomState, height: int, width: int, bits: int) -> np.ndarray:
    """(height, width) int16 noise, -128..127, interpolated between grid points 2**bits pixels apart, in integers."""
    cell = 1 << bits
    rows, columns = (height >> bits) + 2, (width >> bits) + 2
    grid = np.frombuffer(rng.bytes(rows * columns), np.int8).reshape(rows, columns).astype(np.int16)
    if bits == 0:
        return grid[:height, :width]
    (i, di), (j, dj) = (np.divmod(np.arange(n, dtype=np.int16), cell) for n in (height, width))
    grid = (grid[i] * (cell - di)[:, None] + grid[i + 1] * di[:, None]) >> bits
    return (grid.take(j, 1) * (cell - dj) + grid.take(j + 1, 1) * dj) >> bits


def _develop(street: Street) -> tuple[np.ndarray, np.ndarray]:
    """From the canvas to the picture (H, W, 3) uint8 and its ids (H, W) uint8: averaging, texture, clouds, noise."""
    rng, canvas = street.rng, street.canvas
    ids = np.ascontiguousarray(canvas[1::SCALE, 1::SCALE, 3])
    total = canvas[0::2].astype(np.int16) + canvas[1::2]
    image = np.ascontiguousarray((total[:, 0::2] + total[:, 1::2])[..., :3].transpose(2, 0, 1)) >> 2
    height, width = ids.shape
    zoom = max(0, (height // 160).bit_length() - 1)  # textures grow with the picture
    grain, blotch = np.array([TEXTURE.get(c, (2, 2)) for c in street.category_of], np.int16).T
    soft = _noise(rng, height, width, 3 + zoom) + _noise(rng, height, width, 4 + zoom)
    texture = (_noise(rng, height, width, zoom) * grain[ids] + soft * blotch[ids]) >> 6
    image += (texture * (image[1] + 40)) >> 7  # stronger where it is bright
    clouds = np.clip(_noise(rng, height, width, 5 + zoom) + (soft >> 3) - rng.randint(-40, 60), 0, 80) * (ids == SKY)
    image += ((np.array(street.light.haze, np.int16)[:, None, None] + 24 - image) * clouds) >> 7
    speckle = np.frombuffer(rng.bytes(image.size), np.int8).astype(np.int16).reshape(image.shape)
    image += (speckle * rng.randint(2, 7)) >> 6
    return np.ascontiguousarray(np.clip(image, 0, 255, out=image).astype(np.uint8).transpose(1, 2, 0)), ids


def _absorb_remains(ids: np.ndarray) -> None:
    """Gives every segment of fewer than MIN_AREA pixels to the one that borders it most, in place."""
    areas = np.bincount(ids.ravel())
    for ident in np.flatnonzero((areas > 0) & (areas < MIN_AREA)).tolist():
        y, x = np.nonzero(ids == ident)
        padded = np.pad(ids, 1, mode="edge")
        around = np.concatenate([padded[y + dy, x + dx] for dy, dx in ((0, 1), (2, 1), (1, 0), (1, 2))])
        if ident != VOID:
            ids[y, x] = np.bincount(around[around != ident]).argmax()


def _check_size(height: int, width: int) -> None:
    if height < MIN_HEIGHT or width < MIN_WIDTH:
        least = f"{MIN_HEIGHT}x{MIN_WIDTH}"
        raise ValueError(f"A toy street needs at least {least} pixels (height x width), not {height}x{width}.")


def generate_scene(seed: int, height: int = 160, width: int = 320) -> Scene:
    """Draws the scene of a seed (0 <= seed < 2**32). The same seed at another size is much the same street.

    Raises ValueError if the picture would be smaller than 64x96 pixels.
    """
    _check_size(height, width)
    street = Street(seed, height, width)
    for paint in (_paint_sky, _paint_ground, _paint_blocks, _paint_objects):
        paint(street)
    image, ids = _develop(street)
    _absorb_remains(ids)
    number, areas = np.zeros(256, np.int32), np.bincount(ids.ravel(), minlength=256)
    segments: list[dict[str, Any]] = []
    for ident in (np.flatnonzero(areas[1:]) + 1).tolist():
        mask = ids == ident
        y, x = np.flatnonzero(mask.any(1)).tolist(), np.flatnonzero(mask.any(0)).tolist()
        number[ident] = len(segments) + 1
        segments.append(
            {
                "id": len(segments) + 1,
                "category_id": street.category_of[ident],
                "iscrowd": int(ident in street.crowds),
                "area": int(areas[ident]),
                "bbox": [x[0], y[0], x[-1] - x[0] + 1, y[-1] - y[0] + 1],
            }
        )
    return Scene(image, number[ids], segments)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    temporary.write_bytes(data)
    temporary.replace(path)


def _png(rgb: np.ndarray) -> bytes:
    fast = [cv2.IMWRITE_PNG_COMPRESSION, 1, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE]
    return cv2.imencode(".png", rgb[..., ::-1], fast)[1].tobytes()


def _file_ids(segments: list[dict[str, Any]]) -> list[int]:
    """Distinct ids for the files, as numbers: the colour of the class, shifted for each further segment of it."""
    ids: list[int] = []
    for segment in segments:
        red, green, blue = CATEGORIES[segment["category_id"] - 1]["color"]
        while (ident := red + (green << 8) + (blue << 16)) in (0, *ids):
            red, green, blue = (red + 23) % 256, (green + 41) % 256, (blue + 61) % 256
        ids.append(ident)
    return ids


def _write_scene(root: Path, split: str, height: int, width: int, index: int) -> dict[str, Any]:
    """Writes those files of one scene that are not there yet and returns its annotation."""
    scene, name = generate_scene(FIRST_SEED[split] + index, height, width), f"{index:06d}.png"
    file_ids = _file_ids(scene.segments)
    if not (root / split / name).exists():
        _write_atomically(root / split / name, _png(scene.image))
    if not (root / f"panoptic_{split}" / name).exists():
        ids = np.array([0, *file_ids])[scene.panoptic]
        colours = np.stack([ids & 255, ids >> 8 & 255, ids >> 16], -1).astype(np.uint8)
        _write_atomically(root / f"panoptic_{split}" / name, _png(colours))
    segments = [{**segment, "id": ident} for segment, ident in zip(scene.segments, file_ids, strict=True)]
    return {"image_id": index, "file_name": name, "segments_info": segments}


def _is_complete(root: Path, split: str, count: int) -> bool:
    folders, names = (root / split, root / f"panoptic_{split}"), {f"{i:06d}.png" for i in range(count)}
    written = (root / f"panoptic_{split}.json").exists() and all(folder.is_dir() for folder in folders)
    return written and all(names <= set(os.listdir(folder)) for folder in folders)


def _write_split(root: Path, split: str, info: dict[str, Any], workers: int, progress: bool) -> None:
    from tqdm import tqdm  # only this needs it

    count, height, width = info[f"num_{split}"], info["height"], info["width"]
    for folder in (root / split, root / f"panoptic_{split}"):
        folder.mkdir(parents=True, exist_ok=True)
        for leftover in folder.glob(".*.tmp"):  # of runs that were killed; a recent one may belong to a live run
            if time.time() - leftover.stat().st_mtime > 3600:
                leftover.unlink(missing_ok=True)
    write = partial(_write_scene, root, split, height, width)
    bar = partial(tqdm, total=count, desc=f"toy streets, {split}", unit="scene", disable=not progress)
    if workers == 1 or count < 16:
        annotations = list(bar(map(write, range(count))))
    else:
        # A spawned process would import the whole package again, which takes longer than all its scenes.
        context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
        with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (0,)) as pool:
            annotations = list(bar(pool.map(write, range(count), chunksize=4)))
    names = ((a["image_id"], a["file_name"]) for a in annotations)
    images = [{"id": index, "file_name": name, "height": height, "width": width} for index, name in names]
    content = {
        "info": {"description": f"Toy streets, {split}", **info},
        "images": images,
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    _write_atomically(root / f"panoptic_{split}.json", json.dumps(content).encode())


def write_toy_streets(
    root: str | Path,
    num_train: int = 400,
    num_val: int = 50,
    height: int = 160,
    width: int = 320,
    workers: int | None = None,
    progress: bool = True,
) -> Path:
    """Writes the data set described at the top of this file and returns its folder.

    A complete data set of the same parameters is left alone, an interrupted one is completed. `workers` is the number
    of processes, by default one per available CPU. Raises ValueError for sizes or counts that cannot be and
    FileExistsError if the folder holds something else.
    """
    root, counts = Path(root), {"train": num_train, "val": num_val}
    if not all(1 <= count <= FIRST_SEED["val"] for count in counts.values()):
        raise ValueError(f"Each split needs 1 to {FIRST_SEED['val']} scenes, not {num_train} and {num_val}.")
    _check_size(height, width)
    info = {
        "generator": "toy_streets",
        "version": VERSION,
        "height": height,
        "width": width,
        "num_train": num_train,
        "num_val": num_val,
    }
    marker = root / "toy_streets.json"
    found = json.loads(marker.read_text()) if marker.exists() else None
    foreign = [p for s in counts for p in (root / s, root / f"panoptic_{s}", root / f"panoptic_{s}.json") if p.exists()]
    if found != info and (found or foreign):
        raise FileExistsError(
            f"{root} already holds {f'toy streets made with {found}' if found else foreign[0].name}, "
            f"and {info} was asked for: choose another folder or delete this one."
        )
    todo = [split for split, count in counts.items() if not _is_complete(root, split, count)]
    if todo:
        root.mkdir(parents=True, exist_ok=True)
        _write_atomically(marker, json.dumps(info).encode())
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    for split in todo:
        _write_split(root, split, info, workers, progress)
    return root


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder to write")
    parser.add_argument("--num-train", type=int, default=400)
    parser.add_argument("--num-val", type=int, default=50)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--workers", type=int, help="processes; one per available CPU by default")
    try:
        print(write_toy_streets(**vars(parser.parse_args(arguments))))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
