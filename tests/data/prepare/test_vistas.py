"""Mapillary Vistas: both versions and layouts, the release's own panoptic files, memory."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from seamless_d2.data.prepare.validate import validate
from seamless_d2.data.prepare.vistas import prepare_vistas
from seamless_d2.errors import UserError
from seamless_d2.io import ids_to_rgb, read_id_map

LABELS = [
    {"name": "animal--bird", "readable": "Bird", "instances": True, "evaluate": True, "color": [165, 42, 42]},
    {"name": "construction--road", "readable": "Road", "instances": False, "evaluate": True, "color": [1, 2, 3]},
    {"name": "void--unlabeled", "readable": "Unlabeled", "instances": False, "evaluate": False, "color": [0, 0, 0]},
    {"name": "object--car", "readable": "Car", "instances": True, "evaluate": True, "color": [0, 0, 142]},
    {"name": "void--thing", "readable": "Dynamic", "instances": True, "evaluate": False, "color": [9, 9, 9]},
]
BIRD, ROAD, UNLABELED, CAR, DYNAMIC = (256 * k for k in range(5))


def instance_map() -> np.ndarray:
    values = np.full((40, 60), ROAD, np.uint16)
    values[30:] = ROAD + 3  # stuff is one segment all the same
    values[:8] = UNLABELED
    values[10:20, 5:15] = CAR
    values[10:20, 20:30] = CAR + 255
    values[10:20, 40:50] = BIRD  # value 0
    values[22:25] = DYNAMIC + 2
    return values


def write_release(root: Path, version: str, folder: str, config: str, labels=LABELS, name: str = "x") -> Path:
    """Returns the folder of the annotations."""
    root.mkdir(parents=True, exist_ok=True)
    (root / config).write_text(json.dumps({"labels": labels, "version": version}))
    annotations = root / "training" / folder
    for path in (root / "training" / "images", annotations / "instances"):
        path.mkdir(parents=True, exist_ok=True)
    Image.fromarray(instance_map()).save(annotations / "instances" / f"{name}.png")
    Image.new("RGB", (60, 40)).save(root / "training" / "images" / f"{name}.jpg")
    return annotations


def add_panoptic(folder: Path, name: str = "panoptic_2018.json", readable: bool = True) -> Path:
    """The release's own files, with ids and category ids of its own."""
    values = instance_map()
    ids = np.zeros(values.shape, int)
    segments = []
    for k, (index, mask) in enumerate(
        [(1, values // 256 == 1), (3, values == CAR), (3, values == CAR + 255), (0, values == 0), (2, values == 512)]
    ):
        ids[mask] = 66_000 + k
        segments.append({"id": 66_000 + k, "category_id": 50 + index, "iscrowd": int(k == 2), "area": 1})
    (folder / "panoptic").mkdir()
    Image.fromarray(ids_to_rgb(ids)).save(folder / "panoptic" / "x.png")
    key = "readable" if readable else "name"
    content = {
        "images": [{"id": "x", "file_name": "x.jpg", "height": 40, "width": 60}],
        "annotations": [{"image_id": "x", "file_name": "x.png", "segments_info": segments}],
        "categories": [{"id": 50 + k, "name": label[key], "isthing": 1} for k, label in enumerate(LABELS)],
    }
    (folder / "panoptic" / name).write_text(json.dumps(content))
    return folder / "panoptic" / name


EXPECTED = {  # category id -> number of segments, pixels
    1: (1, 100),
    2: (1, 32 * 60 - 300 - 180),
    4: (2, 200),
}


def check(path: Path, images: Path) -> dict:
    report, categories = validate(path, images, workers=1)
    assert report.problems == []
    assert {c: (n, report.pixels[c]) for c, n in report.segments.items()} == EXPECTED
    assert report.pixels[None] == 8 * 60 + 3 * 60
    assert [(c.id, c.name, c.isthing) for c in categories] == [
        (1, "animal--bird", 1),
        (2, "construction--road", 0),
        (4, "object--car", 1),
    ]
    return json.loads(path.read_text())


@pytest.mark.parametrize(
    ("version", "folder", "config"),
    [("v1.2", "", "config.json"), ("v1.2", "v1.2", "config_v1.2.json"), ("v2.0", "v2.0", "config_v2.0.json")],
)
@pytest.mark.parametrize("own", [False, True])
def test_versions_and_layouts(tmp_path, version: str, folder: str, config: str, own: bool) -> None:
    annotations = write_release(tmp_path, version, folder, config)
    if own:
        add_panoptic(
            annotations, "panoptic_2020.json" if version == "v2.0" else "panoptic_2018.json", version == "v1.2"
        )
    (path,) = prepare_vistas(tmp_path, workers=1)
    assert path == tmp_path / f"seamless_{version}" / "panoptic_training.json"
    content = check(path, tmp_path / "training" / "images")
    assert content["images"][0]["file_name"] == "x.jpg"
    ids = set(np.unique(read_id_map(path.with_suffix("") / "x.png")).tolist())
    assert ids == ({0, 66_000, 66_001, 66_002, 66_003} if own else {0, 1, 257, 769, 1024})
    crowds = sum(s["iscrowd"] for s in content["annotations"][0]["segments_info"])
    assert crowds == int(own)
    assert len(json.loads((path.parent / "instances_training.json").read_text())["annotations"]) == 3


def test_both_versions_beside_each_other(tmp_path) -> None:
    write_release(tmp_path, "v1.2", "v1.2", "config_v1.2.json")
    write_release(tmp_path, "v2.0", "v2.0", "config_v2.0.json", [*LABELS, {**LABELS[0], "name": "new"}])
    first, second = prepare_vistas(tmp_path, workers=1)
    assert (first.parent.name, second.parent.name) == ("seamless_v1.2", "seamless_v2.0")
    assert len(json.loads(second.read_text())["categories"]) == 4


def test_own_panoptic_files_that_contradict(tmp_path) -> None:
    annotations = write_release(tmp_path, "v1.2", "", "config.json")
    own = add_panoptic(annotations)
    content = json.loads(own.read_text())

    def expect(words: str, **changes) -> None:
        own.write_text(json.dumps({**content, **changes}))
        with pytest.raises(UserError, match=words):
            prepare_vistas(tmp_path, workers=1)

    swapped = json.loads(json.dumps(content["annotations"]))
    swapped[0]["segments_info"][1]["category_id"] = 50
    expect("66001 is animal--bird, but .*x.png has object--car there", annotations=swapped)
    expect("does not list x.png", annotations=[])
    expect("'tree' that the config lacks", categories=[{"id": 50, "name": "tree", "isthing": 0}])
    ids = read_id_map(annotations / "panoptic" / "x.png")
    Image.fromarray(ids_to_rgb(ids[1:])).save(annotations / "panoptic" / "x.png")
    expect("different sizes")


def test_mistakes_are_named(tmp_path) -> None:
    with pytest.raises(UserError, match="holds no config json"):
        prepare_vistas(tmp_path)
    write_release(tmp_path, "v1.2", "", "config.json", LABELS[:3])
    with pytest.raises(UserError, match="x.png holds class 3, but the config lists 3"):
        prepare_vistas(tmp_path, workers=1)
    write_release(tmp_path, "v1.2", "", "config.json", [{"name": "a"}])
    with pytest.raises(UserError, match=r"config\.json is malformed: .* field instances at labels\[0\]"):
        prepare_vistas(tmp_path, workers=1)
    write_release(tmp_path, "v1.2", "", "config.json")
    (tmp_path / "training" / "images" / "x.jpg").unlink()
    with pytest.raises(UserError, match="x.jpg, the image of x.png, does not exist"):
        prepare_vistas(tmp_path, workers=1)


# Of this process alone: what getrusage tells begins with the memory of the process that started it.
MEASURE = """
import re, sys
from seamless_d2.data.prepare.vistas import prepare_vistas
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read()).group(1)) // 1024
before = peak()
prepare_vistas(sys.argv[1], workers=1)
print(before, peak())
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc/self/status")
@pytest.mark.parametrize("own", [False, True])
def test_memory_of_a_worker(tmp_path, own: bool) -> None:
    height, width = 3000, 4000
    annotations = write_release(tmp_path, "v1.2", "", "config.json")
    values = np.full((height, width), ROAD, np.uint16)
    for k in range(60):
        values[40 * k : 40 * k + 35, 50 * k : 50 * k + 700] = CAR + k
    Image.fromarray(values).save(annotations / "instances" / "x.png")
    if own:
        json_file = add_panoptic(annotations)
        content = json.loads(json_file.read_text())
        content["annotations"][0]["segments_info"] = [
            {"id": value, "category_id": 50 + value // 256} for value in np.unique(values).tolist()
        ]
        json_file.write_text(json.dumps(content))
        Image.fromarray(ids_to_rgb(values)).save(annotations / "panoptic" / "x.png")
    done = subprocess.run([sys.executable, "-c", MEASURE, str(tmp_path)], capture_output=True, text=True, check=True)
    before, peak = map(int, done.stdout.split())
    print(f"{before} MB after the imports (torch and Detectron2), {peak} MB at the peak")
    assert peak - before < 260
    assert peak < 1024
