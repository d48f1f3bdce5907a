"""The writer: order, resuming, whole files, failures."""

import json
import os
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from seamless_d2.data.prepare.writer import PanopticImage, write_panoptic_dataset
from seamless_d2.errors import UserError
from seamless_d2.io import ids_to_rgb, read_id_map
from seamless_d2.structures.id_maps import measure_segments, present_ids, replace_ids

from ...helpers.processes import run_forked

CATEGORIES = [{"id": 4, "name": "car", "isthing": 1}, {"id": 9, "name": "road", "isthing": 0}]


def convert(name: str, root: Path) -> PanopticImage:
    """An image that depends on the name; leaves a line per call in log.txt, and obeys bad.txt and deadly.txt."""
    with open(root / "log.txt", "a") as file:
        file.write(f"{name}\n")
    if name in (root / "deadly.txt").read_text().split():
        os._exit(9)
    if name in (root / "bad.txt").read_text().split():
        raise UserError(f"{name} is broken")
    ids = np.full((20, 30), 70_000)
    ids[5:15, 3:9] = 1 + int(name)
    ids[0] = 0
    segments = [{"id": 70_000, "category_id": 9, "iscrowd": 0}, {"id": 1 + int(name), "category_id": 4, "iscrowd": 0}]
    segments.append({"id": 12345, "category_id": 4, "iscrowd": 0})  # without a pixel
    return PanopticImage(f"city/{name}.jpg", f"{name}.png", ids, segments)


def write(
    root: Path, names: list[str], workers: int = 1, categories=CATEGORIES, bad: str = "", deadly: str = ""
) -> list[str]:
    """Returns the names that were converted."""
    log = root / "log.txt"
    log.unlink(missing_ok=True)
    (root / "bad.txt").write_text(bad)
    (root / "deadly.txt").write_text(deadly)
    try:
        write_panoptic_dataset(
            names,
            names,
            partial(convert, root=root),
            inputs=[[] for _ in names],
            png_dir=root / "panoptic",
            panoptic_json=root / "panoptic.json",
            instance_json=root / "instances.json",
            categories=categories,
            workers=workers,
        )
    finally:
        write.converted = log.read_text().split() if log.exists() else []
    return write.converted


NAMES = ["30", "10", "20", "50", "40"]


@pytest.mark.parametrize("workers", [1, 2])
def test_what_is_written(tmp_path, workers: int) -> None:
    assert sorted(write(tmp_path, NAMES, workers)) == sorted(NAMES)
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert [i["file_name"] for i in content["images"]] == [f"city/{n}.jpg" for n in NAMES]
    assert [i["id"] for i in content["images"]] == [a["image_id"] for a in content["annotations"]] == [1, 2, 3, 4, 5]
    assert content["annotations"][0]["segments_info"] == [
        {"id": 70_000, "category_id": 9, "iscrowd": 0, "area": 510, "bbox": [0, 1, 30, 19]},
        {"id": 31, "category_id": 4, "iscrowd": 0, "area": 60, "bbox": [3, 5, 6, 10]},
    ]
    ids = read_id_map(tmp_path / "panoptic" / "30.png")
    assert np.array_equal(ids, convert("30", tmp_path).ids)
    instances = json.loads((tmp_path / "instances.json").read_text())
    assert instances["categories"] == [{"id": 4, "name": "car", "supercategory": "car"}]
    assert [a["id"] for a in instances["annotations"]] == [1, 2, 3, 4, 5]
    assert instances["annotations"][0]["image_id"] == 1
    assert np.array_equal(coco_mask.decode(instances["annotations"][0]["segmentation"]), ids == 31)
    visible = sorted(p.name for p in tmp_path.iterdir() if not p.name.startswith("."))
    assert visible == ["bad.txt", "deadly.txt", "instances.json", "log.txt", "panoptic", "panoptic.json"]


def test_a_finished_set_is_left_alone_until_something_changes(tmp_path) -> None:
    write(tmp_path, NAMES)
    before = (tmp_path / "panoptic.json").stat().st_mtime_ns
    assert write(tmp_path, NAMES) == []
    assert (tmp_path / "panoptic.json").stat().st_mtime_ns == before
    (tmp_path / "panoptic" / "10.png").unlink()
    assert write(tmp_path, NAMES) == ["10"]
    assert write(tmp_path, NAMES[:3]) == []
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["annotations"]) == 3
    (tmp_path / "panoptic.json").write_text("{")
    assert write(tmp_path, NAMES[:3]) == []
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["annotations"]) == 3


def test_a_killed_run_goes_on(tmp_path) -> None:
    assert run_forked(lambda: write(tmp_path, NAMES, deadly="20")) == [9]
    assert not (tmp_path / "panoptic.json").exists() and not (tmp_path / "instances.json").exists()
    assert write(tmp_path, NAMES) == NAMES[2:]
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["annotations"]) == 5


def test_a_killed_worker_is_one_sentence(tmp_path) -> None:
    with pytest.raises(UserError, match="fewer --workers"):
        write(tmp_path, NAMES, workers=2, deadly="40")
    write(tmp_path, NAMES)
    assert len(json.loads((tmp_path / "panoptic.json").read_text())["annotations"]) == 5


@pytest.mark.parametrize("workers", [1, 2])
def test_all_failures_are_named_and_the_others_kept(tmp_path, workers: int) -> None:
    with pytest.raises(UserError, match="2 of 5 images .* 10: 10 is broken\n  50: 50 is broken"):
        write(tmp_path, NAMES, workers, bad="50 10")
    assert sorted(write.converted) == sorted(NAMES)
    assert not (tmp_path / "panoptic.json").exists()
    assert sorted(write(tmp_path, NAMES, workers)) == ["10", "50"]


def test_what_does_not_depend_on_a_change_is_kept(tmp_path) -> None:
    with pytest.raises(UserError):
        write(tmp_path, NAMES, bad="10")
    assert write(tmp_path, NAMES[1:]) == ["10"]
    assert write(tmp_path, NAMES[1:], categories=[{**c, "name": f"new {c['name']}"} for c in CATEGORIES]) == []
    assert json.loads((tmp_path / "panoptic.json").read_text())["categories"][0]["name"] == "new car"
    # Instances depend on what is a thing.
    assert write(tmp_path, NAMES[1:], categories=[{**c, "isthing": 1} for c in CATEGORIES]) == NAMES[1:]


def test_no_half_file_has_a_final_name(tmp_path, monkeypatch) -> None:
    def die(self, file, format) -> None:
        file.write(b"half a PNG")
        raise RuntimeError

    monkeypatch.setattr("PIL.Image.Image.save", die)
    with pytest.raises(RuntimeError):
        write(tmp_path, NAMES)
    assert list((tmp_path / "panoptic").iterdir()) == []
    monkeypatch.undo()
    assert write(tmp_path, NAMES) == NAMES


def test_nothing_to_write(tmp_path) -> None:
    assert write(tmp_path, []) == []
    content = json.loads((tmp_path / "panoptic.json").read_text())
    assert content["images"] == content["annotations"] == [] and content["categories"] == CATEGORIES


def test_names_must_be_distinct(tmp_path) -> None:
    with pytest.raises(UserError, match="10 occurs twice"):
        write(tmp_path, ["10", "10"])
    with pytest.raises(UserError, match="share the PNG same.png"):
        write_panoptic_dataset(
            ["a", "b"],
            ["a", "b"],
            lambda name: PanopticImage(name, "same.png", np.zeros((2, 2), int), []),
            inputs=[[], []],
            png_dir=tmp_path / "p",
            panoptic_json=tmp_path / "p.json",
            instance_json=None,
            categories=CATEGORIES,
            workers=1,
        )


def test_measuring_by_rows_agrees_with_brute_force() -> None:
    random = np.random.RandomState(0)
    ids = random.choice([0, 1, 255, 256, 65_535, 65_536, (1 << 24) - 1], (700, 33)).astype(np.int32)
    ids[300:] = 65_536
    ids[650:, 4] = 7
    segments = [{"id": i} for i in present_ids(ids) if i]
    assert [s["id"] for s in segments] == np.unique(ids)[1:].tolist()
    for segment in measure_segments(ids, segments):
        y, x = np.nonzero(ids == segment["id"])
        box = [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert segment["area"] == len(x) and segment["bbox"] == box
    new = replace_ids(ids, {256: 5, 65_536: 1})
    assert np.array_equal(new, (ids == 256) * 5 + (ids == 65_536))
    colours = ids_to_rgb(ids)
    assert np.array_equal(colours @ np.array([1, 256, 65_536]), ids)


@pytest.mark.parametrize(("value", "words"), [(1 << 24, "16777215"), (-1, "-1 to"), (77, "id 77 is in the map")])
def test_impossible_ids(value: int, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        measure_segments(np.array([[1, value]]), [{"id": 1}])
