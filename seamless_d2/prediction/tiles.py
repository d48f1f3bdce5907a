"""Images too large for the network: they are cut into overlapping tiles, whose segments are joined again."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ..errors import UserError
from ..modeling.fusion import is_stuff_segment
from ..structures.id_maps import SegmentInfo

DEFAULT_OVERLAP = 256
# Two instances of a class are one object where they share more than this of the smaller one's pixels in the strip that
# both tiles see.
_MIN_SHARED = 0.5
_BAND = 512


@dataclass(frozen=True)
class Tile:
    """A tile (half open, in pixels of the image) and its core: the part that no neighbor sees better."""

    x0: int
    y0: int
    x1: int
    y1: int
    core_x0: int
    core_y0: int
    core_x1: int
    core_y1: int


def _axis(length: int, tile: int, overlap: int) -> list[tuple[int, int, int, int]]:
    """Return (start, end, core start, core end) of the tiles along an axis; cores meet in the middle of overlaps."""
    if length <= tile:
        return [(0, length, 0, length)]
    count = -(-(length - overlap) // (tile - overlap))
    starts = [round(k * (length - tile) / (count - 1)) for k in range(count)]
    borders = [0, *((a + tile + b) // 2 for a, b in zip(starts, starts[1:], strict=False)), length]
    return [(s, s + tile, borders[k], borders[k + 1]) for k, s in enumerate(starts)]


def plan_tiles(size: tuple[int, int], tile: tuple[int, int], overlap: int = DEFAULT_OVERLAP) -> list[Tile]:
    """Return tiles that cover an image, row by row.

    Args:
        size: The (height, width) of the image.
        tile: The (width, height) of a tile.
        overlap: The least number of pixels that neighboring tiles share.

    Raises:
        UserError: The overlap is negative or not smaller than the tile.
    """
    if min(tile) < 1 or not 0 <= overlap < min(tile):
        raise UserError(f"tiles of {tile[0]} x {tile[1]} cannot overlap by {overlap} pixels; overlap must be smaller")
    return [
        Tile(x0, y0, x1, y1, cx0, cy0, cx1, cy1)
        for y0, y1, cy0, cy1 in _axis(size[0], tile[1], overlap)
        for x0, x1, cx0, cx1 in _axis(size[1], tile[0], overlap)
    ]


class Stitcher:
    """Joins the panoptic maps of tiles, in the memory of one int32 map of the whole image."""

    def __init__(self, size: tuple[int, int], num_stuff: int) -> None:
        """
        Args:
            size: The (height, width) of the image.
            num_stuff: The number S of stuff classes.
        """
        # What later tiles have not replaced yet lies here beyond the cores too: that is what they are compared with.
        self._canvas = np.zeros(size, np.int32)
        self._num_stuff = num_stuff
        # Global ids: 0 void, 1..S the stuff classes (one segment each), then instances.
        self._parent = list(range(num_stuff + 1))
        self._things: dict[int, SegmentInfo] = {}

    def add(self, tile: Tile, panoptic_seg: np.ndarray, segments: list[SegmentInfo]) -> None:
        """Add a tile, in the order of ``plan_tiles``.

        Args:
            tile: The place of the tile.
            panoptic_seg: (h, w) int32 map of the tile, 0 is void.
            segments: The segments of the map, see ``fuse_panoptic``.
        """
        table = np.zeros(max([s["id"] for s in segments], default=0) + 1, np.int32)
        for segment in segments:
            if not segment["isthing"]:
                table[segment["id"]] = segment["category_id"] + 1
                continue
            table[segment["id"]] = number = len(self._parent)
            self._parent.append(number)
            self._things[number] = segment
        ids = table[panoptic_seg]
        first_new = len(self._parent) - sum(s["isthing"] for s in segments)
        # The strips above and to the left of the core are those that earlier tiles have seen.
        height, width = ids.shape
        before_x, before_y = 2 * (tile.core_x0 - tile.x0), 2 * (tile.core_y0 - tile.y0)
        canvas = self._canvas[tile.y0 : tile.y1, tile.x0 : tile.x1]
        for strip in (np.s_[:before_y, :], np.s_[:, :before_x]):
            self._join(canvas[strip], ids[strip], first_new)
        # Without overlap, what touches across the border is compared.
        if tile.y0 and not before_y:
            self._join(self._canvas[tile.y0 - 1 : tile.y0, tile.x0 : tile.x1], ids[:1], first_new)
        if tile.x0 and not before_x:
            self._join(self._canvas[tile.y0 : tile.y1, tile.x0 - 1 : tile.x0], ids[:, :1], first_new)
        # Left of and above the core the earlier tiles know better; right of and below it nobody has been yet.
        core_x, core_y = tile.core_x0 - tile.x0, tile.core_y0 - tile.y0
        self._canvas[tile.core_y0 : tile.y1, tile.core_x0 : tile.x1] = ids[core_y:height, core_x:width]

    def _join(self, old: np.ndarray, new: np.ndarray, first_new: int) -> None:
        """Unite instances of one class that cover each other in a strip, each with its best partner only."""
        if not old.size:
            return
        new_areas = dict(_counts(new[new >= first_new]))
        old_areas = dict(_counts(old[old > self._num_stuff]))
        both = (new >= first_new) & (old > self._num_stuff)
        pairs = _counts(new[both].astype(np.int64) << 32 | old[both])
        taken: set[int] = set()
        for pair, shared in sorted(pairs, key=lambda p: -p[1]):
            a, b = pair >> 32, pair & 0xFFFFFFFF
            if a in taken or b in taken or self._things[a]["category_id"] != self._things[b]["category_id"]:
                continue
            if shared > _MIN_SHARED * min(new_areas[a], old_areas[b]):
                taken |= {a, b}
                self._parent[self._root(a)] = self._root(b)

    def _root(self, number: int) -> int:
        while self._parent[number] != number:
            self._parent[number] = number = self._parent[self._parent[number]]
        return number

    def finish(self, stuff_area_thresh: int) -> tuple[np.ndarray, list[SegmentInfo]]:
        """Return the whole map; the stitcher cannot be used afterwards.

        Args:
            stuff_area_thresh: The least number of pixels of a stuff segment.

        Returns:
            (H, W) int32 map with ids 1..K (things by descending score, then stuff), and the segments. A joined instance
            has the highest score of its parts.
        """
        roots = np.array([self._root(i) for i in range(len(self._parent))], np.int32)
        areas = np.zeros(len(roots), np.int64)
        for rows in self._bands():
            rows[...] = roots[rows]
            areas += np.bincount(rows.ravel(), minlength=len(roots))
        scores: dict[int, float] = {}
        for number, segment in self._things.items():
            root = int(roots[number])
            scores[root] = max(scores.get(root, 0.0), segment["score"])
        kept: list[SegmentInfo] = []
        new_id = np.zeros(len(roots), np.int32)
        for root, score in sorted(scores.items(), key=lambda item: -item[1]):
            if areas[root]:
                new_id[root] = number = len(kept) + 1
                category = self._things[root]["category_id"]
                kept.append({"id": number, "isthing": True, "category_id": category, "score": score})
                kept[-1] |= {"area": int(areas[root]), "instance_id": number - 1}
        for category in range(self._num_stuff):
            if is_stuff_segment(areas[category + 1], stuff_area_thresh):
                new_id[category + 1] = number = len(kept) + 1
                kept.append({"id": number, "isthing": False, "category_id": category, "area": int(areas[category + 1])})
        for rows in self._bands():
            rows[...] = new_id[rows]
        return self._canvas, kept

    def _bands(self) -> Iterator[np.ndarray]:
        """Yield the rows of the map in bands, so that temporaries stay small."""
        return (self._canvas[top : top + _BAND] for top in range(0, len(self._canvas), _BAND))


def _counts(values: np.ndarray) -> list[tuple[int, int]]:
    """Return each value and how often it occurs."""
    unique, counts = np.unique(values, return_counts=True)
    return list(zip(unique.tolist(), counts.tolist(), strict=True))
