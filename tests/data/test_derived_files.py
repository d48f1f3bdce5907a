"""The files that a registered data set has for Detectron2 without anybody having written them."""

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from detectron2.data import DatasetCatalog, DatasetMapper, MetadataCatalog
from detectron2.data.transforms import NoOpTransform
from detectron2.evaluation.sem_seg_evaluation import load_image_into_numpy_array
from detectron2.utils.file_io import PathManager

from seamless_d2 import register_panoptic
from seamless_d2.errors import UserError

from ..helpers.panoptic_files import scene, unique_name, write_dataset


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the json of things; it does not exist yet."""
    monkeypatch.setenv("FVCORE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "seamless_d2"


def expected_labels(ids: np.ndarray) -> np.ndarray:
    labels = np.full(ids.shape, 255)
    for segment, label in ((100_000, 1), (300, 0), (1, 2), (70_000, 2), (5, 3)):
        labels[ids == segment] = label
    return labels


def test_registration_reads_and_writes_no_map(tmp_path: Path, cache: Path) -> None:
    files = write_dataset(tmp_path / "d", {"a": scene()})
    png = next(files["panoptic_dir"].iterdir())
    content = png.read_bytes()
    png.unlink()
    name = unique_name()
    before = sorted(tmp_path.rglob("*"))
    register_panoptic(name, **files)
    path = MetadataCatalog.get(name).json_file
    assert sorted(tmp_path.rglob("*")) == before
    with pytest.raises(UserError, match="a.png does not exist"):
        PathManager.get_local_path(path)
    assert not list(cache.glob("*"))
    png.write_bytes(content)
    written = Path(PathManager.get_local_path(path))
    assert written.parent == cache and len(json.loads(written.read_text())["annotations"]) == 3
    with PathManager.open(path) as file:
        assert json.load(file) == json.loads(written.read_text())


def test_a_changed_map_gets_a_new_json(tmp_path: Path, cache: Path) -> None:
    name = unique_name()
    files = write_dataset(tmp_path / "d", {"a": scene()})
    register_panoptic(name, **files)
    path = MetadataCatalog.get(name).json_file
    first = Path(PathManager.get_local_path(path))
    time = first.stat().st_mtime_ns
    assert PathManager.get_local_path(path) == str(first) and first.stat().st_mtime_ns == time
    png = next(files["panoptic_dir"].iterdir())
    png.write_bytes(png.read_bytes())
    second = Path(PathManager.get_local_path(path))
    assert second != first and second.read_text() == first.read_text()


def test_processes_may_ask_at_once(tmp_path: Path, cache: Path) -> None:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {str(k): scene() for k in range(20)}))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(PathManager.get_local_path, [MetadataCatalog.get(name).json_file] * 8))
    assert [Path(path) for path in set(found)] == list(cache.iterdir())
    assert len(json.loads(Path(found[0]).read_text())["annotations"]) == 60


def test_labels_are_read_by_detectron2(tmp_path: Path) -> None:
    ids, segments = scene()
    ids[0, 50:] = 123  # an id that the json does not list is void
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene(), "b": (ids, segments)}))
    for record, true_ids in zip(DatasetCatalog.get(name), (scene()[0], ids), strict=True):
        path = record["sem_seg_file_name"]
        labels = load_image_into_numpy_array(path, dtype=int)
        assert labels.dtype == np.int64 and np.array_equal(labels, expected_labels(true_ids))
        labels[labels == 255] = 4  # as SemSegEvaluator does
        again = load_image_into_numpy_array(path, copy=True, dtype=np.uint8)
        assert again.dtype == np.uint8 and np.array_equal(again, expected_labels(true_ids))
        mapped = DatasetMapper(True, augmentations=[NoOpTransform()], image_format="RGB")(dict(record))
        assert np.array_equal(mapped["sem_seg"].numpy(), expected_labels(true_ids))
        with pytest.raises(FileNotFoundError, match="PathManager"):
            PathManager.get_local_path(path)


def test_given_instances(tmp_path: Path) -> None:
    files = write_dataset(tmp_path / "d", {"a": scene()})
    given = tmp_path / "things.json"
    with pytest.raises(UserError, match="things.json of data set .* does not exist"):
        register_panoptic(unique_name(), **files, instance_json=given)
    given.write_text("{}")
    first, second = unique_name(), unique_name()
    register_panoptic(first, **files, instance_json=given)
    MetadataCatalog.get(second).json_file = "mine.json"
    register_panoptic(second, **files)
    assert MetadataCatalog.get(first).json_file == str(given) and MetadataCatalog.get(second).json_file == "mine.json"
