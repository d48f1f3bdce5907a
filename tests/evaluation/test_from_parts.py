"""Evaluation of the parts that a job on Ray has written: the numbers of an evaluation of COCO files."""

import json
from pathlib import Path

import msgspec
import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.evaluation.from_files import accumulate, read_pairs, summarize

from ..helpers.panoptic_files import write_dataset

pytest.importorskip("pyarrow")
pytest.importorskip("fsspec")

from seamless_d2.evaluation.from_parts import accumulate_parts  # noqa: E402
from seamless_d2.prediction.batch.merge_parts import merge_parts  # noqa: E402
from seamless_d2.prediction.batch.part_files import SUFFIXES, Prediction, encode_part  # noqa: E402

CATEGORIES = [3, 11, 7, 90]


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    """The jsons of a prediction and a ground truth of nine images with four segments."""
    generator = np.random.default_rng(3)
    paths = []
    for kind in ("prediction", "ground_truth"):
        images = {}
        for k in range(9):
            ids = np.repeat(np.repeat(np.arange(1, 5).reshape(2, 2), 8, 0), 8, 1)
            if kind == "prediction":
                ids = np.where(generator.random(ids.shape) < 0.4 * generator.random(), 0, ids)
            images[f"city_{k}"] = (
                ids,
                [
                    {"id": i, "category_id": CATEGORIES[i - 1], "iscrowd": 0, "area": int((ids == i).sum())}
                    | ({"score": 0.1 * i} if kind == "prediction" and i > 2 else {})
                    for i in range(1, 5)
                ],
            )
        paths.append(Path(write_dataset(tmp_path / kind, images)["panoptic_json"]))
    return paths[0], paths[1]


def write_parts(prediction_json: Path, folder: Path, format: str, size: int) -> None:
    """Write the predictions of a json as parts of so many images."""
    content = json.loads(prediction_json.read_text())
    names = {i["id"]: i["file_name"] for i in content["images"]}
    found = [
        Prediction(
            Path(names[a["image_id"]]).with_suffix("").as_posix(),
            names[a["image_id"]],
            "somewhere",
            16,
            16,
            (prediction_json.with_suffix("") / a["file_name"]).read_bytes(),
            [{"bbox": [0, 0, 1, 1], "score": None, "isthing": s["category_id"] > 11} | s for s in a["segments_info"]],
        )
        for a in content["annotations"]
    ]
    folder.mkdir()
    (folder / "_settings.json").write_text(json.dumps({"format": format, "categories": content["categories"]}))
    for number, start in enumerate(range(0, len(found), size)):
        data = encode_part(found[start : start + size], format)
        (folder / f"part-0000-{number:07d}{SUFFIXES[format]}").write_bytes(data)


@pytest.mark.parametrize(("format", "size"), [("parquet", 2), ("parquet", 100), ("webdataset", 4)])
def test_equal_to_files(files: tuple[Path, Path], tmp_path: Path, format: str, size: int) -> None:
    pairs = read_pairs(*files)
    expected = summarize(accumulate(pairs), pairs)
    write_parts(files[0], tmp_path / "parts", format, size)
    statistics, ground_truth = accumulate_parts(str(tmp_path / "parts"), files[1])
    assert summarize(statistics, ground_truth) == expected and statistics.images == 9
    assert 0.3 < expected["All"]["pq"] < 1 and statistics.curve.any()


def test_mistakes(files: tuple[Path, Path], tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    write_parts(files[0], parts, "parquet", 3)
    first, second = sorted(parts.glob("part-*"))[:2]
    first.rename(tmp_path / "away.parquet")
    with pytest.raises(UserError, match=r"no prediction for image .* \(3 images in all\)"):
        accumulate_parts(str(parts), files[1])
    first.write_bytes(second.read_bytes())
    with pytest.raises(UserError, match="several predictions of image"):
        accumulate_parts(str(parts), files[1])
    (tmp_path / "away.parquet").rename(first)
    content = msgspec.json.decode(files[1].read_bytes())
    content["images"][0]["file_name"] = "other.jpg"
    files[1].write_bytes(msgspec.json.encode(content))
    with pytest.raises(UserError, match="is not in the json"):
        accumulate_parts(str(parts), files[1])


@pytest.mark.parametrize("format", SUFFIXES)
def test_damaged_files_of_a_job(files: tuple[Path, Path], tmp_path: Path, format: str) -> None:
    folder = tmp_path / "parts"
    write_parts(files[0], folder, format, 9)
    (part,) = folder.glob("part-*")
    part.write_bytes(b"no part" * 500)
    with pytest.raises(UserError, match=f"{part.name} is damaged; remove it and start the job again"):
        accumulate_parts(str(folder), files[1])
    with pytest.raises(UserError, match=f"{part.name} is damaged; remove it and start the job again"):
        merge_parts(str(folder), tmp_path / "merged", partial=True)
    for text in ("{", "{}", '{"format": "x", "categories": []}'):
        (folder / "_settings.json").write_text(text)
        with pytest.raises(UserError, match=r"_settings\.json is damaged"):
            accumulate_parts(str(folder), files[1])


def test_the_tool(files: tuple[Path, Path], tmp_path: Path, tool) -> None:
    write_parts(files[0], tmp_path / "parts", "parquet", 4)
    for number, prediction in enumerate((tmp_path / "parts", files[0])):
        assert tool("evaluate_predictions.py", prediction, files[1], "--json", tmp_path / f"{number}.json")[0] == 0
    assert (tmp_path / "0.json").read_bytes() == (tmp_path / "1.json").read_bytes()
    code, _ = tool("evaluate_predictions.py", *files, "--ray")
    assert "is no output of a job on Ray" in str(code)
