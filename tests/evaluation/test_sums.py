"""Evaluation in shards: sums in files that add up to exactly one evaluation."""

import json
from pathlib import Path

import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.evaluation.dataset_statistics import DatasetStatistics
from seamless_d2.evaluation.from_files import accumulate, evaluate_files, read_pairs, read_sums, write_sums
from seamless_d2.evaluation.panoptic_quality import join_iou, split_iou
from seamless_d2.shard import Shard

from ..helpers.panoptic_files import write_dataset


def test_parts_of_iou_are_exact_in_any_order() -> None:
    generator = np.random.default_rng(0)
    iou = 1 - generator.random(10_000) / 2
    iou[:2] = 1.0, np.nextafter(0.5, 1)
    parts = np.stack(split_iou(iou))
    assert np.array_equal(parts, np.floor(parts)) and parts.max() <= 2**27
    assert np.array_equal(join_iou(parts), iou)
    from fractions import Fraction

    total = join_iou(parts.astype(np.int64).sum(axis=1))
    assert total == float(sum(map(Fraction, iou.tolist())))


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """A prediction and a ground truth of 13 images with random segments."""
    generator = np.random.default_rng(1)
    paths = []
    for kind in ("prediction", "ground_truth"):
        images = {}
        for k in range(13):
            ids = np.repeat(np.repeat(np.arange(1, 10).reshape(3, 3), 8, 0), 8, 1)
            if kind == "prediction":
                ids = np.where(generator.random(ids.shape) < 0.2 * generator.random(), 0, ids)
            categories = [3, 11, 7, 90, 7, 90, 3, 11, 7]
            segments = [
                {"id": i, "category_id": categories[i - 1], "iscrowd": 0, "area": int((ids == i).sum())}
                | ({"score": float(generator.random())} if kind == "prediction" else {})
                for i in range(1, 10)
            ]
            images[f"{k:02}"] = ids, segments
        paths.append(write_dataset(tmp_path / kind, images)["panoptic_json"])
    return Path(paths[0]), Path(paths[1])


@pytest.mark.parametrize("count", [1, 3, 20])
def test_shards_add_up_to_one_evaluation(files: tuple[Path, Path], tmp_path: Path, count: int) -> None:
    pairs = read_pairs(*files)
    for number in range(count, 0, -1):
        write_sums(pairs, tmp_path / "sums", Shard(number, count), rules="panopticapi")
    assert evaluate_files(*files, sums=tmp_path / "sums") == evaluate_files(*files)
    whole, total = accumulate(pairs), read_sums(pairs, tmp_path / "sums", "panopticapi")
    assert_equal(whole, total)
    assert 0.5 < evaluate_files(*files)[0]["All"]["pq"] < 1


def assert_equal(one: DatasetStatistics, two: DatasetStatistics) -> None:
    for key in ("confusion", "curve", "unscored", "images"):
        assert np.array_equal(getattr(one, key), getattr(two, key))
    assert one.worst_first() == two.worst_first() and len(one.rows) == 13
    for a, b in zip(one.best + one.worst, two.best + two.worst, strict=True):
        assert (a.quality, a.image_id) == (b.quality, b.image_id) and np.array_equal(a.ids, b.ids)
        assert np.array_equal(a.segments.scores, b.segments.scores)


def test_mistakes(files: tuple[Path, Path], tmp_path: Path) -> None:
    pairs, sums = read_pairs(*files), tmp_path / "sums"
    with pytest.raises(UserError, match="holds no sums"):
        read_sums(pairs, sums, "panopticapi")
    write_sums(pairs, sums, Shard(1, 2), rules="panopticapi")
    with pytest.raises(UserError, match="lacks the sums of shard 2/2"):
        read_sums(pairs, sums, "panopticapi")
    path = write_sums(pairs, sums, Shard(2, 2), rules="panopticapi")
    with pytest.raises(UserError, match="of other files or rules"):
        read_sums(pairs, sums, "original")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(UserError, match=r"sums-2-of-2\.npz is damaged"):
        read_sums(pairs, sums, "panopticapi")
    write_sums(pairs, sums, Shard(1, 3), rules="panopticapi")
    with pytest.raises(UserError, match="several divisions"):
        read_sums(pairs, sums, "panopticapi")


def test_the_tool(files: tuple[Path, Path], tmp_path: Path, tool) -> None:
    common = ("evaluate_predictions.py", *files)
    for number in (1, 2):
        code, text = tool(*common, "--shard", f"{number}/2", "--sums", tmp_path / "sums")
        assert code == 0 and f"shard {number}/2" in text
    assert tool(*common, "--sums", tmp_path / "sums", "--json", tmp_path / "merged.json")[0] == 0
    assert tool(*common, "--json", tmp_path / "whole.json")[0] == 0
    assert json.loads((tmp_path / "merged.json").read_text()) == json.loads((tmp_path / "whole.json").read_text())
    code, _ = tool(*common, "--shard", "1/2")
    assert "a shard leaves its sums in the folder --sums" in str(code)
