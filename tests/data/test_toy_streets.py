import hashlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from seamless_d2.data import toy_streets
from seamless_d2.data.toy_streets import CATEGORIES, generate_scene, generation, street, write_toy_streets
from seamless_d2.data.toy_streets.__main__ import main

THINGS = {c["id"] for c in CATEGORIES if c["isthing"]}
SMALL = {"num_train": 20, "num_val": 3, "height": 80, "width": 160, "progress": False}


@pytest.fixture(scope="module")
def val_scenes():
    return [generate_scene(street.FIRST_SEED["val"] + i) for i in range(50)]


@pytest.fixture
def small_set(tmp_path):
    return write_toy_streets(tmp_path / "streets", workers=2, **SMALL)


def read_rgb(path):
    return cv2.imread(str(path))[..., ::-1]


def read_ids(path):
    return read_rgb(path).astype(np.int64) @ [1, 256, 65536]


def snapshot(root):
    return {p.relative_to(root): p.read_bytes() for p in root.rglob("*") if p.is_file()}


def check_segments(ids, segments):
    """Ids, areas and boxes say what the map shows; nothing is in one of them only."""
    assert {s["id"] for s in segments} == set(np.unique(ids).tolist()) - {0}
    assert len({s["id"] for s in segments}) == len(segments)
    for segment in segments:
        y, x = np.nonzero(ids == segment["id"])
        assert segment["area"] == len(y) >= 1
        assert segment["bbox"] == [x.min(), y.min(), x.max() - x.min() + 1, y.max() - y.min() + 1]
        assert all(type(v) is int for v in [segment["id"], segment["category_id"], segment["area"], *segment["bbox"]])
        assert segment["iscrowd"] == 0 or segment["category_id"] in THINGS
    stuff = [s["category_id"] for s in segments if s["category_id"] not in THINGS]
    assert len(stuff) == len(set(stuff))


def test_categories():
    ids = [c["id"] for c in CATEGORIES]
    assert ids == list(range(1, 9))
    assert len({c["name"] for c in CATEGORIES}) == len({tuple(c["color"]) for c in CATEGORIES}) == 8
    kinds = [c["isthing"] for c in CATEGORIES]
    assert sum(kinds) == 3 and kinds != sorted(kinds) and kinds != sorted(kinds, reverse=True)


@pytest.mark.parametrize(
    "seed, image_sum, ids_sum",
    [(0, "d8c4c1d32dfb6dc0", "63f276008fd1c924"), (1_000_002, "9dce5a9349fa7d17", "6ac5ec09f8d06da2")],
)
def test_pixels_of_a_seed_never_change(seed, image_sum, ids_sum):
    # The same under NumPy 1.26 and 2.4, OpenCV 4.6 and 5.0. Another sum means: raise VERSION.
    scene = generate_scene(seed)
    assert hashlib.sha256(scene.image.tobytes()).hexdigest()[:16] == image_sum
    assert hashlib.sha256(scene.panoptic.astype("<i4").tobytes()).hexdigest()[:16] == ids_sum


def test_scene_is_consistent(val_scenes):
    for scene in val_scenes:
        assert scene.image.shape == (160, 320, 3) and scene.image.dtype == np.uint8
        assert scene.panoptic.shape == (160, 320) and scene.panoptic.dtype == np.int32
        assert [s["id"] for s in scene.segments] == list(range(1, len(scene.segments) + 1))
        assert min(s["area"] for s in scene.segments) >= street.MIN_AREA
        check_segments(scene.panoptic, scene.segments)


@pytest.mark.parametrize("height, width", [(64, 96), (80, 160), (123, 457), (300, 100), (512, 1024)])
def test_other_sizes(height, width):
    for seed in range(4):
        scene = generate_scene(seed, height, width)
        assert scene.image.shape == (height, width, 3) and scene.panoptic.shape == (height, width)
        check_segments(scene.panoptic, scene.segments)


@pytest.mark.parametrize("height, width", [(63, 320), (160, 95), (0, 0), (-1, 100)])
def test_tiny_sizes_are_refused(height, width, tmp_path):
    with pytest.raises(ValueError, match="at least 64x96 pixels"):
        generate_scene(0, height, width)
    with pytest.raises(ValueError, match="at least 64x96 pixels"):
        write_toy_streets(tmp_path / "streets", 1, 1, height, width)
    assert not (tmp_path / "streets").exists()


def test_validation_scenes_hold_every_case(val_scenes):
    segments = [s for scene in val_scenes for s in scene.segments]
    assert {s["category_id"] for s in segments} == {c["id"] for c in CATEGORIES}
    assert 1 <= sum(s["iscrowd"] for s in segments) <= 8
    assert any((scene.panoptic == 0).any() for scene in val_scenes)
    assert np.mean([(scene.panoptic == 0).mean() for scene in val_scenes]) < 0.02
    counts = [sum(s["category_id"] in THINGS and not s["iscrowd"] for s in scene.segments) for scene in val_scenes]
    assert min(counts) == 0 and max(counts) == 8 and counts.count(0) <= 6
    things = [s for s in segments if s["category_id"] in THINGS and not s["iscrowd"]]
    assert min(np.bincount([s["category_id"] for s in things])[sorted(THINGS)]) >= 40
    assert np.mean([s["bbox"][3] >= 12 for s in things]) > 0.85


def test_things_occlude_each_other(val_scenes):
    touching = 0
    for scene in val_scenes:
        is_thing = np.array([False] + [s["category_id"] in THINGS for s in scene.segments])
        left, right = scene.panoptic[:, :-1], scene.panoptic[:, 1:]
        border = (left != right) & is_thing[left] & is_thing[right]
        touching += len({tuple(sorted(p)) for p in zip(left[border].tolist(), right[border].tolist(), strict=True)})
    assert touching >= 20


def test_splits_share_no_scene():
    train, val = (street.FIRST_SEED[s] for s in ("train", "val"))
    assert train + 1_000_000 <= val  # the largest training set that is allowed
    assert not np.array_equal(generate_scene(train).image, generate_scene(val).image)
    with pytest.raises(ValueError, match="1 to 1000000 scenes"):
        write_toy_streets("unused", num_train=1_000_001)


def test_small_remains_go_to_their_neighbour():
    ids = np.full((20, 20), 3, np.uint8)
    ids[:, 10:] = 5
    ids[4:7, 8:10] = 9  # 6 pixels, most of their border on 3
    ids[15, 15:18] = 0  # void may be thin
    generation._absorb_remains(ids)
    assert np.bincount(ids.ravel()).tolist() == [3, 0, 0, 200, 0, 197]


def test_written_files(small_set):
    for split, count in (("train", 20), ("val", 3)):
        content = json.loads((small_set / f"panoptic_{split}.json").read_text())
        assert set(content) == {"info", "images", "annotations", "categories"}
        assert content["categories"] == CATEGORIES
        assert content["info"]["version"] == street.VERSION and content["info"]["num_train"] == 20
        assert len(content["images"]) == len(content["annotations"]) == count
        for i, (image, annotation) in enumerate(zip(content["images"], content["annotations"], strict=True)):
            assert image == {"id": annotation["image_id"], "file_name": f"{i:06d}.png", "height": 80, "width": 160}
            # written by another process, compared with this one
            scene = generate_scene(street.FIRST_SEED[split] + i, 80, 160)
            assert np.array_equal(read_rgb(small_set / split / image["file_name"]), scene.image)
            ids = read_ids(small_set / f"panoptic_{split}" / annotation["file_name"])
            check_segments(ids, annotation["segments_info"])
            mapping = np.array([0] + [s["id"] for s in annotation["segments_info"]])
            assert np.array_equal(ids, mapping[scene.panoptic])
            assert mapping[1:].min() > 255  # colours, not 1..K


def test_complete_set_is_left_alone(small_set, monkeypatch):
    monkeypatch.setattr(generation, "_write_split", None)
    before = snapshot(small_set)
    assert write_toy_streets(str(small_set), **SMALL) == small_set
    assert snapshot(small_set) == before


def test_interrupted_set_is_completed(small_set):
    before = snapshot(small_set)
    (small_set / "panoptic_val.json").unlink()
    (small_set / "val" / "000001.png").unlink()
    (small_set / "panoptic_train" / "000007.png").unlink()
    old, recent = small_set / "train" / ".000003.png.1.tmp", small_set / "train" / ".000004.png.2.tmp"
    for leftover in (old, recent):
        leftover.write_bytes(b"\x89PNG trunc")
    os.utime(old, (time.time() - 86400,) * 2)
    write_toy_streets(small_set, workers=1, **SMALL)
    assert not old.exists() and recent.exists()  # the recent one may belong to a run under way
    recent.unlink()
    assert snapshot(small_set) == before


def test_nothing_of_other_parameters_is_mixed_in(small_set, tmp_path):
    before = snapshot(small_set)
    for change in ({"height": 96}, {"num_train": 19}):
        with pytest.raises(FileExistsError, match=f"{small_set}.*another folder or delete"):
            write_toy_streets(small_set, **(SMALL | change))
    assert snapshot(small_set) == before
    (tmp_path / "foreign" / "train").mkdir(parents=True)
    with pytest.raises(FileExistsError, match="foreign"):
        write_toy_streets(tmp_path / "foreign", **SMALL)


def test_command_line(tmp_path, capsys):
    arguments = [str(tmp_path / "streets"), "--num-train", "2", "--num-val", "1", "--height", "64", "--width", "96"]
    main(arguments)
    assert capsys.readouterr().out.strip() == arguments[0]
    assert len(list((tmp_path / "streets").rglob("*.png"))) == 6
    with pytest.raises(SystemExit):
        main(arguments[:-1] + ["97"])
    assert "already holds" in capsys.readouterr().err


def test_module_needs_neither_torch_nor_detectron2():
    code = (
        "import sys; sys.path.insert(0, sys.argv[1]); import toy_streets; "
        "assert not {'torch', 'detectron2', 'tqdm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code, str(Path(toy_streets.__file__).parents[1])], check=True)
