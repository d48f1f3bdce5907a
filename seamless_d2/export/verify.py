"""Whether an exported file predicts what the model predicts."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..data.toy_streets import generate_scene
from ..errors import UserError
from .graph import ExportForm
from .session import OUTPUTS, ExportedModel, Metadata, summarize

Outputs = dict[str, np.ndarray]
# (height, width): several, an odd one, one of another orientation; the least size is added.
_SIZES = ((160, 320), (127, 223), (256, 192), (320, 640))
# Images that are tried until one without and one with exactly one detection are found.
_CANDIDATES = 24


@dataclass(frozen=True)
class Example:
    """An image, and what the model itself predicts for it.

    Attributes:
        image: (3, H, W) uint8 RGB.
        expected: The outputs of ``ExportForm``.
    """

    image: np.ndarray
    expected: Outputs


@dataclass(frozen=True)
class Tolerance:
    """What differences a file may have.

    Attributes:
        pixels: The share of pixels of other segments, 0..1, rounded up to a whole pixel.
        score: The largest difference of scores.
        box: The largest difference of boxes in pixels, for each 1024 pixels of the longer side.
        rows: Whether the table must have equal rows, of which those with nearly equal scores may have changed places;
            without, pixels are compared by class.
    """

    pixels: float = 1e-4
    score: float = 1e-4
    box: float = 5e-3
    rows: bool = True


#: The tolerance of each format. In 8-bit integers only the classes of most pixels are asked for.
TOLERANCES = {
    "pt2": Tolerance(pixels=0.0, score=0.0, box=0.0),
    "onnx": Tolerance(),
    "openvino": Tolerance(),
    "int8": Tolerance(pixels=0.2, rows=False),
}


@dataclass(frozen=True)
class Difference:
    """The differences between a file and the model on one example.

    Attributes:
        engine: What ran the file.
        example: The size of the image and the numbers of its segments.
        pixels: The share of pixels that differ, 0..1.
        score, box: The largest difference of a score, and of a box in pixels; None if the tables have other rows.
    """

    engine: str
    example: str
    pixels: float
    score: float | None
    box: float | None

    def __str__(self) -> str:
        table = "other segments" if self.score is None else f"scores {self.score:.1e}, boxes {self.box:.1e} px"
        return f"{self.engine:12} {self.example:38} pixels {100 * self.pixels:.4f} %, {table}"


def make_examples(form: ExportForm, metadata: Metadata) -> list[Example]:
    """Return images within the sizes of a file, among them, if they are found, such with no and with one detection."""
    low, high = metadata.min_size, metadata.max_size
    sizes = [(low, low), *_SIZES]
    sizes = [tuple(int(np.clip(side, low, most)) for side, most in zip(size, high, strict=True)) for size in sizes]
    examples = [run_example(form, draw_street(k, *size)) for k, size in enumerate(sizes)]
    for k in range(_CANDIDATES):
        counts = [int(example.expected["isthing"].sum()) for example in examples]
        missing = [count for count in (0, 1) if count not in counts]
        if not missing:
            break
        image = draw_street(100 + k, *sizes[1])
        if 0 in missing and k % 2 == 0:
            image = np.full_like(image, 10 * k)
        example = run_example(form, image)
        if example.expected["isthing"].sum() in missing:
            examples.append(example)
    return examples


def draw_street(seed: int, height: int, width: int) -> np.ndarray:
    """Return the (3, height, width) uint8 RGB image of a drawn street, of any size."""
    scene = generate_scene(seed, max(height, 96), max(width, 128)).image
    return np.ascontiguousarray(scene[:height, :width].transpose(2, 0, 1))


def run_example(form: ExportForm, image: np.ndarray) -> Example:
    """Return the example of a (3, H, W) uint8 RGB image, with what the model predicts for it."""
    with torch.no_grad():
        outputs = form(torch.from_numpy(image))
    return Example(image, {name: output.numpy() for name, output in zip(OUTPUTS, outputs, strict=True)})


def open_written(path: Path, engine: str) -> ExportedModel:
    """Return the model of a file that was just written.

    Raises:
        UserError: The engine cannot read it.
    """
    try:
        return ExportedModel(path, engine)
    except UserError as error:
        raise _refusal(path, str(error).replace(str(path), path.name)) from None


def verify(model: ExportedModel, examples: list[Example], tolerance: Tolerance) -> list[Difference]:
    """Run a file on the examples.

    Raises:
        UserError: The engine fails, a difference is larger than the tolerance, or the outputs do not fit each other.
    """
    differences = []
    for example in examples:
        height, width = example.image.shape[1:]
        things, stuff = (int((example.expected["isthing"] == kind).sum()) for kind in (True, False))
        name = f"{height}x{width}, {things} things, {stuff} stuff"
        try:
            found = model.run_raw(example.image)
        except Exception as error:  # the engines' own kinds, whose texts have several lines
            raise _refusal(model.path, f"{model.engine:12} {name} fails: {summarize(error)}") from None
        reason = _find_misfit(found, example.expected, tolerance)
        if reason:
            raise _refusal(model.path, f"{model.engine:12} {name} has {reason}")
        difference = _compare(model.engine, name, found, example.expected, tolerance)
        differences.append(difference)
        is_equal = difference.pixels <= np.ceil(tolerance.pixels * height * width) / (height * width)
        if tolerance.rows:
            limit = tolerance.box * max(1.0, max(height, width) / 1024)
            is_equal = is_equal and difference.score is not None and difference.score <= tolerance.score
            is_equal = is_equal and difference.box <= limit
        if not is_equal:
            raise _refusal(model.path, str(difference))
    return differences


def _refusal(path: Path, reason: str) -> UserError:
    return UserError(
        f"{path.name} does not predict what the model predicts, so that it was removed: {reason}; choose another format"
    )


def _find_misfit(found: Outputs, expected: Outputs, tolerance: Tolerance) -> str:
    """Return what is wrong with the form of the outputs, or with the areas in view of the map; "" if nothing is."""
    for name, value in found.items():
        # Without equal rows, a table may be longer or shorter than expected.
        free = not tolerance.rows and name != "panoptic"
        shape = (found["category"].size, *expected[name].shape[1:]) if free else expected[name].shape
        if value.shape != shape:
            return f"{name} of shape {value.shape} instead of {shape}, other segments"
        if value.dtype != expected[name].dtype and name != "isthing":
            return f"{name} as {value.dtype} instead of {expected[name].dtype}"
    count = len(found["area"])
    pixels = np.bincount(np.clip(found["panoptic"].ravel(), -1, count + 1) + 1, minlength=count + 3)
    if pixels[0] or pixels[-1] or not np.array_equal(pixels[2:-1], found["area"]):
        return "areas that are not those of its map"
    return ""


def _compare(engine: str, name: str, found: Outputs, expected: Outputs, tolerance: Tolerance) -> Difference:
    """Return the differences between outputs of the right form."""
    rows = align_rows(found, expected, tolerance.score if tolerance.rows else np.inf)
    score = box = None
    if rows is not None:
        score, box = (float(np.abs(found[k] - expected[k][rows]).max(initial=0)) for k in ("score", "box"))
    if rows is not None and tolerance.rows:
        segments = _look_up(rows + 1, found["panoptic"]), expected["panoptic"]
    else:  # by class
        segments = tuple(_look_up(o["category"] * 2 + o["isthing"] + 1, o["panoptic"]) for o in (found, expected))
    return Difference(engine, name, float(np.mean(segments[0] != segments[1])), score, box)


def align_rows(found: Outputs, expected: Outputs, tie: float) -> np.ndarray | None:
    """Return (K,) for each row of the found table its row in the expected one; None if the tables have other rows, or
    the same in another order.

    Things come by descending score, so that those of nearly equal scores may have changed places.

    Args:
        found, expected: The outputs.
        tie: How much the scores of two such rows differ at most; 0 lets none change places. Of several candidates, the
            nearest box is taken.
    """
    if not np.array_equal(found["isthing"], expected["isthing"]):
        return None
    if not (np.abs(found["score"] - expected["score"]) <= tie).all():
        return None
    free, chosen = np.ones(len(expected["score"]), bool), []
    table = (found[key] for key in ("isthing", "category", "score", "box"))
    for isthing, category, score, box in zip(*table, strict=True):
        same = free & (expected["isthing"] == isthing) & (expected["category"] == category)
        same &= np.abs(expected["score"] - score) <= tie
        if not same.any():
            return None
        chosen.append(int(np.where(same, np.abs(expected["box"] - box).max(axis=1), np.inf).argmin()))
        free[chosen[-1]] = False
    rows, may_move = np.array(chosen, int), expected["isthing"] & (tie > 0)
    return None if (rows != np.arange(len(rows)))[~may_move].any() else rows


def _look_up(values: np.ndarray, panoptic: np.ndarray) -> np.ndarray:
    """Return the value of each pixel's row, 0 for void."""
    return np.concatenate([[0], values])[panoptic]
