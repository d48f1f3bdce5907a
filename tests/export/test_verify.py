"""What counts as a difference between an exported file and its model; nothing is exported here."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.export.verify import (
    TOLERANCES,
    Difference,
    Example,
    Outputs,
    Tolerance,
    align_rows,
    open_written,
    verify,
)

# Two cars, a person and a road: rows 0 to 3, ids 1 to 4.
MAP = np.array([[1, 1, 2, 2], [3, 3, 4, 4], [0, 4, 4, 4]], np.int32)


def make_outputs(scores: tuple[float, ...] = (0.9, 0.8, 0.7), categories: tuple[int, ...] = (1, 1, 0, 0)) -> Outputs:
    boxes = [[0, 0, 2, 1], [2, 0, 4, 1], [0, 1, 2, 2], [0, 0, 0, 0]]
    return {
        "panoptic": MAP.copy(),
        "category": np.array(categories, np.int32),
        "isthing": np.array([True, True, True, False]),
        "score": np.array([*scores, 0.0], np.float32),
        "area": np.array([2, 2, 2, 5], np.int32),
        "box": np.array(boxes, np.float32),
    }


def count_areas(outputs: Outputs) -> Outputs:
    """Return the outputs with the areas that their segments have in the map."""
    areas = [np.count_nonzero(outputs["panoptic"] == k + 1) for k in range(len(outputs["score"]))]
    return {**outputs, "area": np.array(areas, np.int32)}


def swap(outputs: Outputs, a: int, b: int) -> Outputs:
    """Return the same segments with two rows in the other order, and the scores as they were."""
    order = np.arange(len(outputs["score"]))
    order[[a, b]] = b, a
    swapped = {key: value if key in ("panoptic", "score") else value[order] for key, value in outputs.items()}
    ids = np.concatenate([[0], order + 1])
    return {**swapped, "panoptic": ids[outputs["panoptic"]].astype(np.int32)}


def run(found: Outputs, expected: Outputs, tolerance: Tolerance = TOLERANCES["onnx"]) -> Difference:
    model = SimpleNamespace(engine="onnxruntime", path=Path("model.onnx"), run_raw=lambda image: found)
    example = Example(np.zeros((3, *expected["panoptic"].shape), np.uint8), expected)
    (difference,) = verify(model, [example], tolerance)
    return difference


def refuse(found: Outputs, expected: Outputs, words: str, tolerance: Tolerance = TOLERANCES["onnx"]) -> None:
    with pytest.raises(UserError, match=f"model.onnx does not predict what the model predicts.*{words}"):
        run(found, expected, tolerance)


def test_equal() -> None:
    difference = run(make_outputs(), make_outputs(), TOLERANCES["pt2"])
    assert (difference.pixels, difference.score, difference.box) == (0, 0, 0)
    assert str(difference).startswith("onnxruntime  3x4, 3 things, 1 stuff")


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2)])  # of one class, and of two
def test_equal_scores_in_another_order(a: int, b: int) -> None:
    expected = make_outputs((0.9, 0.9 - 1e-6, 0.9 - 2e-6))
    difference = run(swap(expected, a, b), expected)
    assert difference.pixels == 0 and difference.box == 0 and difference.score == pytest.approx(1e-6, rel=0.2)
    refuse(swap(expected, a, b), expected, "", TOLERANCES["pt2"])


@pytest.mark.parametrize(("a", "b"), [(0, 1), (1, 2)])
def test_other_scores_in_another_order(a: int, b: int) -> None:
    refuse(swap(make_outputs(), a, b), make_outputs(), "")


@pytest.mark.parametrize("tolerance", [TOLERANCES["pt2"], TOLERANCES["onnx"]])
@pytest.mark.parametrize("order", [(2, 1, 0, 3), (3, 0, 1, 2)])  # the least score first, stuff first
def test_whole_rows_in_another_order(order: tuple[int, ...], tolerance: Tolerance) -> None:
    found = {key: value if key == "panoptic" else value[list(order)] for key, value in make_outputs().items()}
    found["panoptic"] = np.concatenate([[0], np.argsort(order) + 1])[MAP].astype(np.int32)
    refuse(found, make_outputs(), "other segments", tolerance)


def test_only_things_of_nearly_equal_scores_change_places() -> None:
    expected = make_outputs((0.9, 0.9, 0.7))
    for a, b, tie, is_allowed in ((0, 1, 1e-4, True), (0, 1, 0.0, False), (1, 2, 1e-4, False)):
        assert (align_rows(swap(expected, a, b), expected, tie) is not None) == is_allowed
    # Two stuff classes in the other order.
    stuff = {key: np.concatenate([value, value[-1:]]) for key, value in expected.items() if key != "panoptic"}
    stuff |= {"category": np.array([1, 1, 0, 0, 1], np.int32), "panoptic": MAP}
    assert align_rows(stuff, stuff, 1e-4).tolist() == [0, 1, 2, 3, 4]
    assert align_rows(swap(stuff, 3, 4), stuff, 1e-4) is None
    # Two things of one place: each has a row of its own.
    twins = {**expected, "box": np.zeros((4, 4), np.float32)}
    assert align_rows(twins, twins, 1e-4).tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("tolerance", TOLERANCES.values())
def test_outputs_of_another_form(tolerance: Tolerance) -> None:
    for key, value in (
        ("panoptic", MAP[None]),
        ("panoptic", MAP[:2]),
        ("panoptic", MAP.astype(np.int64)),
        ("panoptic", np.where(MAP == 0, -7, MAP)),
        ("area", np.array([2, 2, 2, 5, 0], np.int32)),
        ("category", np.array([1, 1, 0], np.int32)),
    ):
        refuse({**make_outputs(), key: value}, make_outputs(), "", tolerance)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (
            RuntimeError("Exception from src/infer_request.cpp:224:\nInteger modulo\n by zero\n"),
            "Integer modulo by zero",
        ),
        (MemoryError(), "MemoryError"),
    ],
)
def test_an_engine_that_fails(error: Exception, words: str) -> None:
    def fail(image: np.ndarray) -> Outputs:
        raise error

    model = SimpleNamespace(engine="onnxruntime", path=Path("model.onnx"), run_raw=fail)
    example = Example(np.zeros((3, 3, 4), np.uint8), make_outputs())
    with pytest.raises(UserError, match=f" 3x4, 3 things, 1 stuff fails: .*{words}; choose"):
        verify(model, [example], TOLERANCES["int8"])


def test_a_file_that_cannot_be_read_is_named_without_its_temporary_folder(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(b"no model\n")
    pytest.importorskip("onnxruntime")
    with pytest.raises(
        UserError, match="^model.onnx does not predict .* removed: model.onnx cannot be read by ONNX Ru"
    ):
        open_written(path, "onnxruntime")


def test_other_rows() -> None:
    refuse(make_outputs(categories=(1, 0, 0, 0)), make_outputs(), "other segments")
    fewer = {key: value if key == "panoptic" else value[1:] for key, value in make_outputs().items()}
    refuse(fewer, make_outputs(), "other segments")
    assert align_rows(fewer, make_outputs(), 1.0) is None


@pytest.mark.parametrize(
    ("key", "value"), [("score", 2e-4), ("box", 6e-3), ("panoptic", 1), ("panoptic", 9), ("panoptic", -1), ("area", 1)]
)
def test_too_large_a_difference(key: str, value: float) -> None:
    found = make_outputs()
    found[key][..., :2] += np.asarray(value, found[key].dtype)
    refuse(found if key == "area" else count_areas(found), make_outputs(), "")


def test_one_pixel_of_any_image_may_differ() -> None:
    found = make_outputs()
    found["panoptic"][0, 0] = 4
    refuse(found, make_outputs(), "areas that are not those of its map")
    found = count_areas(found)
    assert run(found, make_outputs()).pixels == pytest.approx(1 / 12)
    refuse(found, make_outputs(), "pixels 8.3333 %", TOLERANCES["pt2"])


def test_integers_are_compared_by_class() -> None:
    found = swap(make_outputs((0.9, 0.8, 0.7)), 0, 1)
    found["panoptic"][0, 0] = 4
    difference = run(count_areas(found), make_outputs((0.85, 0.82, 0.7)), TOLERANCES["int8"])
    assert difference.pixels == pytest.approx(1 / 12) and difference.box == 0
    found["panoptic"][:2] = 4
    refuse(count_areas(found), make_outputs(), "pixels 50.0000 %", TOLERANCES["int8"])


def test_empty_tables() -> None:
    empty = {key: value[:0] for key, value in make_outputs().items()} | {"panoptic": np.zeros((3, 4), np.int32)}
    difference = run(empty, empty)
    assert (difference.pixels, difference.score, difference.box) == (0, 0, 0)
    refuse(empty, make_outputs(), "other segments")
