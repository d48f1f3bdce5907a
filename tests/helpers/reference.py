"""What the parity tests need to know about the original: its rules for weights and images, and its order of numbers."""

import configparser
import hashlib
import io
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from torch import Tensor

from seamless_d2.modeling import SeamlessPanoptic
from seamless_d2.seamseg.weights import Snapshot, convert_snapshot

ASSETS = Path(__file__).parents[1] / "assets"
SHARED = Path(__file__).parents[3] / "shared" / "reference"

Rules = Sequence[tuple[str, float, float]]


def fill(name: str, shape: Sequence[int], seed: str, rules: Rules) -> np.ndarray:
    """The values of one of the original's tensors.

    Args:
        name: with the module's prefix, for instance "body.backbone.mod1.conv1.weight".
        shape: of the tensor.
        seed: of the case.
        rules: (pattern of the name, gain, offset of the first bias), the first that matches counts.

    Returns:
        float32 of ``shape``.
    """
    gain, offset = next(((g, o) for pattern, g, o in rules if re.search(pattern, name)), (1.0, 0.0))
    key = int.from_bytes(hashlib.sha256(f"{seed}/{name}".encode()).digest()[:8], "little")
    random = np.random.RandomState(np.random.Philox(key=key))
    leaf = name.rsplit(".", 1)[1]
    if leaf == "running_mean":
        values = 0.1 * random.standard_normal(shape)
    elif leaf == "running_var":
        values = random.uniform(0.5, 1.5, shape)
    elif leaf == "bias":
        values = 0.1 * random.standard_normal(shape)
        values[0] += offset
    elif len(shape) == 1:  # scale of a normalisation, a quarter of them negative
        size = random.uniform(0.5, 1.5, shape)
        values = gain * size * np.where(random.uniform(size=shape) < 0.25, -1.0, 1.0)
    else:
        transposed = "conv_up" in name
        values = random.standard_normal(shape)
        values = values - values.mean(axis=0 if transposed else tuple(range(1, len(shape))), keepdims=True)
        values = values * gain / np.sqrt(shape[0] if transposed else np.prod(shape[1:]))
    return np.asarray(values, np.float32)


def synthetic_image(seed: int, height: int, width: int) -> np.ndarray:
    """(height, width, 3) uint8 RGB rectangles and noise, by integer arithmetic only."""
    random = np.random.RandomState(seed)
    pixels = np.empty((height, width, 3), np.int64)
    pixels[...] = 60 + 120 * np.arange(height)[:, None, None] // height + np.array([0, 15, 30])
    for _ in range(150):
        y, x = random.randint(height), random.randint(width)
        h, w = random.randint(4, height // 2), random.randint(4, width // 2)
        area = pixels[y : y + h, x : x + w]
        area[...] = (area + 2 * random.randint(0, 256, 3)) // 3
    return np.clip(pixels + random.randint(-12, 13, (height, width, 3)), 0, 255).astype(np.uint8)


def load_image(name: str) -> Tensor:
    """(3, H, W) uint8 RGB: a synthetic image by its name, or one of the shared images."""
    match = re.fullmatch(r"synthetic(\d+)_(\d+)x(\d+)", name)
    if match:
        pixels = synthetic_image(*map(int, match.groups()))
    else:
        pixels = np.array(Image.open(SHARED / "images" / f"{name}.png"))
    return torch.from_numpy(pixels).permute(2, 0, 1).contiguous()


def filled_state(shapes: dict[str, Sequence[int]], seed: str, rules: Rules) -> dict[str, Tensor]:
    """All tensors of an original model, by ``fill``."""
    return {name: torch.from_numpy(fill(name, shape, seed, rules)) for name, shape in shapes.items()}


def change_ini(text: str, changes: Sequence[tuple[str, str, str]]) -> str:
    """An ini text with (section, key, value) replaced."""
    ini = configparser.ConfigParser()
    ini.read_string(text)
    for section, key, value in changes:
        ini[section][key] = value
    stream = io.StringIO()
    ini.write(stream)
    return stream.getvalue()


def build_original(config: str, state: dict[str, Tensor]) -> tuple[SeamlessPanoptic, CfgNode]:
    """Our model, in evaluation mode, with the converted weights and settings of an original one."""
    converted, cfg, _ = convert_snapshot(Snapshot(state, config, None, "case"))
    cfg.MODEL.DEVICE = "cpu"
    model = build_model(cfg).eval()
    keys = model.load_state_dict(converted, strict=False)
    assert not keys.unexpected_keys
    assert all(key.endswith("num_batches_tracked") for key in keys.missing_keys)
    return model, cfg


@dataclass
class Case:
    """One complete model with its image or images: ``info`` is the json, ``numbers`` the original's results."""

    name: str
    info: dict[str, Any]
    numbers: dict[str, np.ndarray]

    @property
    def images(self) -> list[Tensor]:
        return [load_image(name) for name in self.info["images"]]

    def build(self) -> tuple[SeamlessPanoptic, CfgNode]:
        state = filled_state(self.info["params"], self.info["seed"], self.info["fill_rules"])
        return build_original(self.info["config"], state)


def find_cases() -> list[Path]:
    """The json files of all cases at hand: the repository's, then further ones beside the checkout."""
    found = {path.stem: path for folder in (SHARED, ASSETS) for path in sorted((folder / "cases").glob("*.json"))}
    return sorted(found.values(), key=lambda path: (path.parents[1] != ASSETS, path.stem))


def load_case(path: Path) -> Case:
    with np.load(path.with_suffix(".npz")) as numbers:
        return Case(path.stem, json.loads(path.read_text()), dict(numbers))


def load_numbers(name: str) -> dict[str, np.ndarray]:
    """A npz file of the assets."""
    with np.load(ASSETS / f"{name}.npz") as numbers:
        return dict(numbers)


def load_infos(name: str) -> list[dict[str, Any]]:
    """A json file of the assets."""
    return json.loads((ASSETS / f"{name}.json").read_text())


def fusion_case(
    info: dict[str, Any], numbers: dict[str, np.ndarray]
) -> tuple[dict[str, np.ndarray], np.ndarray, list[int]]:
    """The arrays of one fusion case, the map that the original makes of them, and its segments' classes."""
    prefix = f"{info['case']:02d}_"
    case = {k.removeprefix(prefix): v for k, v in numbers.items() if k.startswith(prefix)}
    # The original sorts equal scores in any order; "_stable" is its result when they keep theirs, as they do here.
    suffix = "_stable" if "msk_stable" in case else ""
    categories = case[f"cat{suffix}"]
    # Crowd segments come last; the stable results do not list them again.
    crowd = np.arange(len(categories)) >= len(categories) - case["iscrowd"].sum()
    return case, *visible_segments(case[f"msk{suffix}"], categories, crowd)


def xyxy(boxes: np.ndarray) -> Tensor:
    """The original's boxes (y0, x0, y1, x1) in our order."""
    return torch.from_numpy(np.ascontiguousarray(boxes[:, [1, 0, 3, 2]]))


def original_deltas(x: Tensor, axis: int = 1) -> Tensor:
    """Our box deltas (dx, dy, dw, dh) along ``axis`` in the original's order (dy, dx, dh, dw)."""
    groups = x.unflatten(axis, (-1, 4))
    return groups.index_select(axis + 1, torch.tensor([1, 0, 3, 2])).flatten(axis, axis + 1)


def visible_segments(
    segment_map: np.ndarray, categories: np.ndarray, crowd: np.ndarray
) -> tuple[np.ndarray, list[int]]:
    """The original's panoptic result as ours puts it: crowd is void, what has no pixel is no segment.

    Returns:
        (H, W) map with ids 1..K, and the K semantic classes.
    """
    areas = np.bincount(segment_map.ravel(), minlength=len(categories))
    new_id = np.zeros(len(categories), np.int64)
    kept = []
    for i in range(1, len(categories)):
        if areas[i] and not crowd[i]:
            kept.append(int(categories[i]))
            new_id[i] = len(kept)
    return new_id[segment_map], kept


def semantic_classes(segments_info: list[dict[str, Any]], num_stuff: int) -> list[int]:
    """Semantic classes (stuff, then things) of our segments."""
    return [s["category_id"] + (num_stuff if s["isthing"] else 0) for s in segments_info]


def relative_difference(actual: Tensor | np.ndarray, expected: np.ndarray) -> float:
    """Largest absolute difference, as a share of the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    return float(np.abs(actual - expected).max() / np.abs(expected).max())


@dataclass
class Differences:
    """Measured differences: table -> case -> quantity -> largest value."""

    measured: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def add(self, table: str, case: str, quantity: str, value: float) -> float:
        """Remember ``value`` where it is larger than what is known, and return it."""
        row = self.measured.setdefault(table, {}).setdefault(case, {})
        row[quantity] = max(value, row.get(quantity, 0.0))
        return value

    def tables(self) -> Iterator[tuple[str, list[str]]]:
        """Title and lines of each table."""
        for title, rows in self.measured.items():
            columns = list(dict.fromkeys(quantity for row in rows.values() for quantity in row))
            cells = [["case", *columns]]
            for case, row in rows.items():
                cells.append([case, *(f"{row[c]:.2g}" if c in row else "-" for c in columns)])
            widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
            lines = []
            for first, *others in cells:
                padded = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
                lines.append("  ".join([first.ljust(widths[0]), *padded]))
            yield title, lines
