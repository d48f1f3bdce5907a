"""The painters of a toy scene, called from back to front: sky, ground, houses, parks, objects."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from .street import (
    AWNINGS,
    BICYCLE,
    BUILDING,
    CAR,
    CARS,
    CIRCLE,
    CLOTHES,
    FRAMES,
    GLASS,
    HAIR,
    LEAVES,
    PAINTS,
    PANES,
    PERSON,
    RGB,
    ROAD,
    ROOFS,
    RUBBER,
    SIDEWALK,
    SKIN,
    SKY,
    TROUSERS,
    VEGETATION,
    VOID,
    WALLS,
    Face,
    Paint,
    Place,
    Street,
    make_floor,
    make_floor_ellipse,
    make_placer,
    make_points,
    make_quads,
    make_wall,
)


def paint_sky(street: Street) -> None:
    height = np.clip(np.arange(len(street.canvas)) / street.vanishing_point[1], 0, 1)[:, None]
    zenith, low = np.array(street.light.zenith), np.array(street.light.low_sky)
    street.canvas[:, :1, :3] = ((zenith + (low - zenith) * height * height) * min(street.exposure, 1.0))[:, None]
    street.canvas[:, :1, 3] = SKY
    street.pixels[:] = street.pixels[:, :1]


def paint_ground(street: Street) -> None:
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
        for strip in make_floor(left, right, steps[:-1], steps[1:])[::-1]:
            street.fill(strip, rgb, ident)
    joints = np.arange(4.0, 22.0, rng.uniform(1.2, 2.2))
    for inner, outer in zip(kerb, walk, strict=True):
        street.fill(make_floor(inner, outer, joints, joints + 0.07), paving, SIDEWALK, 0.86)
    if crossing is not None:
        street.fill(make_floor(-70, 70, *crossing), asphalt, ROAD)
    for _ in range(rng.randint(4)):  # repairs
        z, x = rng.uniform(4, 18), rng.uniform(kerb[0] + 1, kerb[1] - 1)
        patch = make_floor(x, min(x + rng.uniform(0.6, 2.0), kerb[1]), z, z + rng.uniform(0.6, 4))
        street.fill(patch, asphalt, ROAD, rng.uniform(0.8, 1.12))
    middle, dashes = kerb.mean(), np.arange(rng.uniform(2.5, 5), 60, 6.0)
    if crossing is not None:
        dashes = dashes[(dashes + 3 < crossing[0] - 3) | (dashes > crossing[1])]
    street.fill(make_floor(middle - 0.08, middle + 0.08, dashes, dashes + 2.6), white, ROAD, 0.94)
    if crossing is not None or rng.random_sample() < 0.25:  # a zebra crossing
        z, bars = rng.uniform(9, 16) if crossing is None else crossing[0] - 3.2, np.arange(kerb[0] + 0.4, kerb[1] - 0.6)
        street.fill(make_floor(bars, bars + 0.5, z, z + 2.6), white, ROAD)


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
        street.fill(make_wall(front, z0, back, z0, 0, height), rgb, BUILDING, 0.84)
        if gable:
            street.fill(make_points([front, back, ridge], [height, height, top], z0), rgb, BUILDING, 0.8)
        _paint_windows(
            street,
            lambda u0, u1, y0, y1: make_wall(front + side * u0, z0, front + side * u1, z0, y0, y1),
            deep,
            height,
            z0,
        )
    street.fill(make_wall(front, z0, front, z1, 0, height), rgb, BUILDING, sunny)
    if gable:
        slope = make_quads((front, front, ridge, ridge), (height, height, top, top), (z0, z1, z1, z0))
        street.fill(slope, roof, BUILDING, sunny + 0.08)
    else:
        street.fill(make_wall(front, z0, front, z1, height - 0.5, height), rgb, BUILDING, sunny * 0.8)
    street.fill(make_wall(front, z0, front, z1, 0, 0.6), rgb, BUILDING, sunny * 0.7)
    _paint_windows(
        street, lambda u0, u1, y0, y1: make_wall(front, z0 + u0, front, z0 + u1, y0, y1), z1 - z0, height, z0
    )


def _paint_leaves(street: Street, x: float, y: float, z: float, wide: float, tall: float, rgb: RGB) -> None:
    """A cloud of leaf clusters: the dark ones first, the sunlit ones, on top and towards the sun, last."""
    rng, count = street.rng, 14 if z < 40 else 8
    offset = rng.uniform(-1, 1, (count, 2)) * rng.uniform(0.3, 0.8, (count, 1))
    offset = offset[np.argsort(offset[:, 1] + 0.5 * street.sun * offset[:, 0], kind="stable")]
    shape = CIRCLE * rng.uniform(0.3, 0.52, (count, 1, 1)) + offset[:, None]
    clusters = make_points(x + shape[..., 0] * wide, y + shape[..., 1] * tall, z)
    for i, lit in enumerate((0.66, 0.88, 1.12)):
        street.fill(clusters[i * count // 3 : (i + 1) * count // 3], rgb, VEGETATION, lit)


def _paint_tree(street: Street, x: float, z: float, scale: float = 1.0, shadow: bool = True) -> None:
    height, crown, stretch = street.rng.uniform([4.0, 1.3, 0.8], [6.5, 2.1, 1.3]) * [scale, scale, 1]
    if shadow:
        street.shadow(make_floor_ellipse(x - street.sun * 1.2, z, crown * 1.2, crown), strength=0.8)
    trunk = make_points([x - 0.16, x + 0.16, x + 0.1, x - 0.1], [0, 0, height, height], z)
    street.fill(trunk, street.shade([(92, 72, 54)], 10), VEGETATION)
    _paint_leaves(street, x, height, z, crown, crown * stretch, street.shade(LEAVES, 12))


def _paint_park(street: Street, side: int, front: float, z0: float, z1: float) -> None:
    """Trees behind a hedge."""
    rng, rgb, hedge = street.rng, street.shade(LEAVES, 12), street.rng.uniform(0.8, 1.5)
    for z in np.arange(z1, max(z0, 4.0), -5.0):
        _paint_tree(street, front + side * rng.uniform(2, 4), z, rng.uniform(0.9, 1.3), shadow=False)
    street.fill(make_wall(front, z0, front, z1, 0, hedge), rgb, VEGETATION, 0.8)
    bumps = np.arange(z1, max(z0, 3.0), -0.8)[:, None]
    street.fill(make_points(front + 0.5 * CIRCLE[:, 0], hedge + 0.25 * CIRCLE[:, 1], bumps), rgb, VEGETATION)


def paint_blocks(street: Street) -> None:
    """What closes the street at its end, and the lots on both sides, farthest first."""
    rng, far, crossing = street.rng, street.far, street.crossing
    for x in np.arange(-36.0, 36.0, 8.0):
        if rng.random_sample() < (0.75 if street.urban else 0.25):
            skyline = make_wall(x, far + 8, x + 8, far + 8, 0, rng.uniform(5, 15))
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
    street.shadow(*[make_floor(x, x - side * reach, z0, z1) for z0, z1, side, x in lots if side == street.sun])
    for z0, z1, side, front in sorted(lots, reverse=True):
        if not 0 <= street.project(np.array([front, 0, z1]))[0] < street.canvas.shape[1]:
            continue  # its far end is the part that is nearest to the middle of the image
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
    place = make_placer(x, z, yaw, length / 2)

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
    street.shadow(make_floor_ellipse(x - 0.3 * street.sun, z, 0.55, 0.2))

    def part(points: Any, rgb: RGB, lit: float = 1.0) -> None:  # in body heights: x forward, y up
        flat = np.asarray(points) * tall
        street.fill(make_points(x + turn * flat[:, 0], flat[:, 1], z), rgb, ident, lit)

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
    rgb, place, ident = street.shade(FRAMES), make_placer(x, z, yaw, 0.0), street.new_id(BICYCLE)
    nodes = np.array([(-0.54, 0.35), (-0.08, 0.3), (0.54, 0.35), (0.36, 0.92), (-0.24, 0.92)])
    rear, pedals, front, head, saddle = nodes
    street.shadow(make_floor_ellipse(x, z, 0.85 * abs(math.sin(yaw)), 0.25))
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
    street.fill(make_wall(x - 0.07, z, x + 0.07, z, 0, 5.4), (82, 86, 90), VOID)
    street.fill(make_wall(x, z, arm, z, 5.3, 5.42), (82, 86, 90), VOID)
    street.fill(make_wall(arm - 0.3, z, arm + 0.3, z, 5.15, 5.3), (255, 236, 180), VOID, 1.0, street.light.lamps)


def _paint_skip(street: Street, x: float, z: float) -> None:
    rgb, place = street.shade([(52, 140, 150), (214, 128, 40)]), make_placer(x, z, street.rng.uniform(-0.3, 0.3), 1.2)
    street.shadow(place([-1, 1, 1, -1], [-0.3, -0.3, 2.6, 2.6], 0), strength=1.4)
    profile = np.array([(0.2, 0.1), (2.2, 0.1), (2.6, 1.25), (-0.2, 1.25)])
    for edge, _, face in _visible_faces(street, profile, 0.8, place):
        street.fill(face, (58, 46, 40) if edge == 2 else rgb, VOID, 0.95 if edge == -1 else 0.8)


def paint_objects(street: Street) -> None:
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
        return 1 / rng.uniform(1 / far, 1 / near)  # even on the image

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
