"""PQ against panopticapi, against published numbers, and against the original's own measure."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from panopticapi.evaluation import pq_compute, pq_compute_single_core
from PIL import Image

from seamless_d2.errors import UserError
from seamless_d2.evaluation import with_hotcoco
from seamless_d2.evaluation.from_files import evaluate_files, read_pairs
from seamless_d2.evaluation.panoptic_quality import PanopticStatistics, Segments, match_image
from seamless_d2.io import ids_to_rgb
from seamless_d2.structures.id_maps import measure_segments

from ..helpers.reference import ASSETS, SHARED

CATEGORIES = [{"id": 3 * i + 2, "name": f"c{i}", "isthing": int(i % 2), "color": [i, i, i]} for i in range(7)]

Images = list[tuple[np.ndarray, list[dict]]]


def random_map(random: np.random.RandomState, size: tuple[int, int], crowds: bool) -> tuple[np.ndarray, list[dict]]:
    """Rectangles of random classes with ids up to 2^24, some void, several crowd regions of a class."""
    ids = np.zeros(size, np.int64)
    segments = []
    # The last class never occurs.
    for _ in range(random.randint(1, 14)):
        low, high = [(1, 300), (60_000, 70_000), (1 << 23, 1 << 24)][random.randint(3)]
        new = random.randint(low, high)
        category = CATEGORIES[random.randint(6)]
        y, x = random.randint(size[0]), random.randint(size[1])
        ids[y : y + random.randint(1, size[0] + 1), x : x + random.randint(1, size[1] + 1)] = new
        crowd = int(crowds and category["isthing"] and random.rand() < 0.4)
        segments = [s for s in segments if s["id"] != new] + [
            {"id": new, "category_id": category["id"], "iscrowd": crowd}
        ]
    return ids, measure_segments(ids, segments)


def write(root: Path, name: str, images: Images) -> Path:
    (root / name).mkdir()
    annotations = []
    for number, (ids, segments) in enumerate(images):
        Image.fromarray(ids_to_rgb(ids)).save(root / name / f"{number}.png")
        annotations.append({"image_id": number, "file_name": f"{number}.png", "segments_info": segments})
    content = {
        "images": [{"id": n, "file_name": f"{n}.jpg"} for n in range(len(images))],
        "annotations": annotations,
        "categories": CATEGORIES,
    }
    (root / f"{name}.json").write_text(json.dumps(content))
    return root / f"{name}.json"


def iou_of_classes(ground_truth: Images, prediction: Images) -> dict[int, float | None]:
    """The IoU of each category over the pixels that the ground truth labels, None where it has none of them."""
    true, found = (
        np.concatenate([sum((ids == s["id"]) * s["category_id"] for s in info) + 0 * ids for ids, info in images], None)
        for images in (ground_truth, prediction)
    )
    true, found = true[true > 0], found[true > 0]
    return {
        c: ((true == c) & (found == c)).sum() / ((true == c) | (found == c)).sum() if (true == c).any() else None
        for c in (category["id"] for category in CATEGORIES)
    }


@pytest.mark.parametrize("seed", range(4))
def test_random_maps_equal_panopticapi(tmp_path: Path, seed: int) -> None:
    random = np.random.RandomState(seed)
    ground_truth, prediction = [], []
    for _ in range(8):
        size = (random.randint(1, 40), random.randint(1, 40))
        ground_truth.append(random_map(random, size, crowds=True))
        ids, segments = ground_truth[-1]
        if random.rand() < 0.7:  # a disturbed copy of the ground truth, so that there are matches
            ids = ids.copy()
            ids[: random.randint(1, size[0] + 1), : random.randint(1, size[1] + 1)] = 0
            segments = measure_segments(ids, [{**s, "iscrowd": 0} for s in segments])
            prediction.append((ids, segments))
        else:
            prediction.append(random_map(random, size, crowds=False))
    # Images of one pixel, without ground truth, and without prediction.
    one = (np.full((1, 1), 9), [{"id": 9, "category_id": 2, "iscrowd": 0, "area": 1, "bbox": [0, 0, 1, 1]}])
    empty = (np.zeros((1, 1), np.int64), [])
    ground_truth += [one, empty, one]
    prediction += [one, one, empty]
    files = write(tmp_path, "pred", prediction), write(tmp_path, "ground_truth", ground_truth)
    # A prediction of an image that the ground truth does not have counts for nothing.
    content = json.loads(files[0].read_text())
    content["annotations"].append({**content["annotations"][0], "image_id": 999})
    files[0].write_text(json.dumps(content))
    expected: dict[str, Any] = pq_compute(str(files[1]), str(files[0]))
    pairs = list(zip(json.loads(files[1].read_text())["annotations"], content["annotations"], strict=False))
    folders = (str(f.with_suffix("")) for f in reversed(files))
    sums = pq_compute_single_core(0, pairs, *folders, {c["id"]: c for c in CATEGORIES})
    ways: dict[str, dict[str, Any]] = {"threads": {"workers": 2}, "one": {"workers": 1}}
    if with_hotcoco.PanopticEval is not None:
        ways["hotcoco"] = {"class_iou": False}
        assert read_pairs(*files).quality_by_hotcoco() is not None
    class_iou = iou_of_classes(ground_truth, prediction)
    for way, options in ways.items():
        result, _ = evaluate_files(*files, **options)
        for part in ("All", "Things", "Stuff"):
            for key in ("pq", "sq", "rq", "n"):
                assert result[part][key] == pytest.approx(expected[part][key], abs=1e-9)
        for category, values in expected["per_class"].items():
            found = result["per_class"][category]
            for key in ("pq", "sq", "rq"):
                assert found[key] == pytest.approx(values[key], abs=1e-9)
            for key in ("tp", "fp", "fn"):
                assert found[key] == getattr(sums[category], key)
            assert found["sq"] * found["tp"] == pytest.approx(sums[category].iou, abs=1e-9)
            expected_iou = None if way == "hotcoco" else class_iou[category]
            assert found["iou"] == pytest.approx(expected_iou, abs=1e-12)
        assert sum(v["tp"] for v in result["per_class"].values()) > 3


def test_grey_maps_hold_the_ids_themselves(tmp_path: Path) -> None:
    ids = np.zeros((4, 6), np.int64)
    ids[:2], ids[2:, 3:] = 7, 200
    info = [{"id": 7, "category_id": 2, "iscrowd": 0}, {"id": 200, "category_id": 5, "iscrowd": 0}]
    image = ids, measure_segments(ids, info)
    files = write(tmp_path, "pred", [image]), write(tmp_path, "ground_truth", [image])
    for name in ("pred", "ground_truth"):
        Image.fromarray(ids.astype(np.uint8)).save(tmp_path / name / "0.png")
        result, _ = evaluate_files(*files)
        assert result["All"] == {"pq": 1, "sq": 1, "rq": 1, "n": 2}


PUBLISHED = {
    "deeplab2/coco_team": {"All": (0.6215629, 0.6466499, 0.9666667)},
    "deeplab2/coco_three": {"All": (0.7685550, 0.7769174, 0.9888889)},
    "bdd100k/coco_two": {"All": (0.66463011, 0.68352059, 0.85294118)},
}


@pytest.mark.parametrize("case", PUBLISHED)
def test_published_numbers(shared: Path, case: str) -> None:
    folder = SHARED.parent / "data" / "pq_cases" / case
    result, _ = evaluate_files(folder / "pred.json", folder / "gt.json", workers=1)
    for part, expected in PUBLISHED[case].items():
        assert [result[part][k] for k in ("pq", "sq", "rq")] == pytest.approx(expected, abs=1e-6)
    if case == "bdd100k/coco_two":
        assert result["Things"]["pq"] == pytest.approx(0.82038526, abs=1e-6)
        assert result["Stuff"]["pq"] == pytest.approx(0.64386275, abs=1e-6)


def original_image(data: Any, case: int, part: str) -> tuple[np.ndarray, Segments]:
    """One map of the original's cases; crowd predictions become void before its measure."""
    ids = data[f"{case:02d}_{part}_msk"].astype(np.int64).squeeze()
    classes, crowd = data[f"{case:02d}_{part}_cat"], data[f"{case:02d}_{part}_iscrowd"].astype(bool)
    used = np.arange(1, len(classes))
    if part == "pred":
        ids[np.isin(ids, used[crowd[1:]])] = 0
        used = used[~crowd[1:]]
        used = used[np.isin(used, ids)]
    return ids, Segments(used, classes[used].astype(np.int64), crowd[used] & (part == "gt"))


def test_the_originals_own_measure() -> None:
    data = np.load(ASSETS / "pq_cases.npz")
    cases = json.loads((ASSETS / "pq_cases.json").read_text())
    for case in cases:
        gt_ids, ground_truth = original_image(data, case["case"], "gt")
        predicted_ids, predicted = original_image(data, case["case"], "pred")
        statistics = PanopticStatistics(256)
        statistics.add(match_image(gt_ids, ground_truth, predicted_ids, predicted, rules="original"))
        for key, expected in (("iou_sum", "iou"), ("tp", "tp"), ("fp", "fp"), ("fn", "fn")):
            assert getattr(statistics, key).sum() == pytest.approx(case[expected], abs=1e-4), (case["case"], key)


def test_original_mean_counts_absent_classes_as_zero() -> None:
    statistics = PanopticStatistics(4)
    statistics.tp[0], statistics.iou_parts[0, 0] = 2, 1.5 * 2**26
    assert statistics.average()["pq"] == 0.75 and statistics.average()["n"] == 1
    assert statistics.average(rules="original")["pq"] == 0.75 / 4
    assert statistics.average(np.array([False, True, True, True])) == {"pq": 0, "sq": 0, "rq": 0, "n": 0}


def test_contradictions_are_named(tmp_path: Path) -> None:
    good = np.ones((2, 2), np.int64), [{"id": 1, "category_id": 2, "iscrowd": 0, "area": 4}]
    ground_truth = write(tmp_path, "ground_truth", [good])
    for name, image, words in (
        ("twice", (good[0], [*good[1], {"id": 1, "category_id": 5}]), "0.png lists a segment id twice"),
        ("keyless", (good[0], [{"id": 1}]), "field category_id at .*0.png"),
        ("text", (good[0], ["x"]), "got str at .*0.png"),
        ("words", (good[0], [{"id": "x", "category_id": 2}]), "got str at .*id .*0.png"),
        ("area", (good[0], [{"id": 1, "category_id": 2, "area": "x"}]), "got str at .*area .*0.png"),
        ("score", (good[0], [{"id": 1, "category_id": 2, "score": [1]}]), "got array at .*score .*0.png"),
        ("seven", (good[0], 7), "got int at .*segments_info .*0.png"),
        ("id", (np.full((2, 2), 5), good[1]), "0.png: the predicted map holds an id"),
        ("none", (good[0], [*good[1], {"id": 8, "category_id": 2}]), "segment 8 has no pixel"),
        ("class", (good[0], [{"id": 1, "category_id": 77}]), "category 77"),
        ("size", (np.ones((3, 2), np.int64), good[1]), "2 x 3 pixels and the ground truth 2 x 2"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate_files(write(tmp_path, name, [image]), ground_truth)
    (tmp_path / "few.json").write_text(json.dumps({"annotations": []}))
    with pytest.raises(UserError, match="no prediction for image 0"):
        evaluate_files(tmp_path / "few.json", ground_truth)
    with pytest.raises(UserError, match="nothing.json"):
        evaluate_files(tmp_path / "nothing.json", ground_truth)
    (tmp_path / "list.json").write_text(json.dumps([1]))
    (tmp_path / "bare.json").write_text(json.dumps({"annotations": [{"image_id": 0}]}))
    (tmp_path / "all.json").write_text((tmp_path / "ground_truth.json").read_text())
    for name, words in (
        ("list", "list.json is malformed: Expected object, got array"),
        ("bare", "bare.json is malformed: .* field file_name at .*image_id 0"),
        ("all", "folder .*all with the PNGs of .* does not exist; name it with --pred-dir"),
    ):
        with pytest.raises(UserError, match=words):
            evaluate_files(tmp_path / f"{name}.json", ground_truth)
    prediction = write(tmp_path, "damaged", [good])
    file = tmp_path / "damaged" / "0.png"
    file.write_bytes(file.read_bytes()[:45])
    with pytest.raises(UserError, match="0.png cannot be read"):
        evaluate_files(prediction, ground_truth)
    file.unlink()
    with pytest.raises(UserError, match="0.png does not exist"):
        evaluate_files(prediction, ground_truth)
    void = write(tmp_path, "void", [(good[0] * 0, [{"id": 0, "category_id": 2, "iscrowd": 0, "area": 4}])])
    with pytest.raises(UserError, match="Expected int >= 1 at .*id .*0.png"):
        evaluate_files(ground_truth, void)
