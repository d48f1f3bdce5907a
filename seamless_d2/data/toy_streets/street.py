"""The street of a toy scene: its geometry, colors, camera and canvas."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np

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
    """One image with its ground truth.

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


def make_points(x: Any, y: Any, z: Any) -> np.ndarray:
    """World points (..., 3) from coordinates that broadcast."""
    out = np.empty(np.broadcast(x, y, z).shape + (3,))
    out[..., 0], out[..., 1], out[..., 2] = x, y, z
    return out


def make_quads(x: Sequence[Any], y: Sequence[Any], z: Sequence[Any]) -> np.ndarray:
    """World quadrilaterals (..., 4, 3); each coordinate is given for the four corners, which broadcast."""
    out = np.empty(np.broadcast(*x, *y, *z).shape + (4, 3))
    for axis, corners in enumerate((x, y, z)):
        for i, value in enumerate(corners):
            out[..., i, axis] = value
    return out


def make_floor(x0: Any, x1: Any, z0: Any, z1: Any) -> np.ndarray:
    return make_quads((x0, x1, x1, x0), (0, 0, 0, 0), (z0, z0, z1, z1))


def make_wall(x0: Any, z0: Any, x1: Any, z1: Any, y0: Any, y1: Any) -> np.ndarray:
    return make_quads((x0, x1, x1, x0), (y0, y0, y1, y1), (z0, z1, z1, z0))


def make_floor_ellipse(x: float, z: float, rx: float, rz: float) -> np.ndarray:
    return make_points(x + rx * CIRCLE[:, 0], 0, z + rz * CIRCLE[:, 1])


def make_placer(x: float, z: float, yaw: float, middle: float) -> Place:
    """Maps (across, along, up) of an object at (x, z) to the world; with yaw 0 its tail points to the camera."""
    cos, sin = round(math.cos(yaw), 6), round(math.sin(yaw), 6)

    def place(across: Any, along: Any, up: Any) -> np.ndarray:
        across, along = np.asarray(across), np.asarray(along) - middle
        return make_points(x + across * cos + along * sin, up, z - across * sin + along * cos)

    return place


class Street:
    """The stage of one scene: camera, light, layout and canvas.

    World coordinates are metres: x to the right, y up, z forward, the camera at (0, eye, 0). The canvas is a
    (SCALE * H, SCALE * W, 4) uint8 array: RGB and the segment's id side by side, so that one polygon paints both and
    the label map cannot disagree with the image.
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
