"""The comparison of two evaluations."""

import json
import math
from pathlib import Path

import numpy as np
import pytest

from seamless_d2.errors import UserError
from seamless_d2.evaluation.comparison import compare_evaluations, format_comparison, make_comparison_page

from .test_dataset_statistics import segments
from .test_report import Page, write

IDS = np.array([[1, 1, 2, 2], [1, 1, 2, 2]])
BOTH, LEFT = segments((1, 0), (2, 2)), segments((1, 0))
NOTHING = IDS, BOTH, np.zeros_like(IDS), segments()
HALF = IDS, BOTH, np.where(IDS == 1, 1, 0), LEFT
ALL = IDS, BOTH, IDS, BOTH


def facts(score: float, rate: float, **more: object) -> dict:
    return {
        "weights": {"file": "<m>.pth", "sha256": "0123"},
        "thresholds": {"score": score},
        "config": {"SOLVER.BASE_LR": rate, "MODEL.DEVICE": "cpu", **more},
    }


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    """A finds half of image 0 and all of 1, 2 and 4; B all of 0, nothing of 1, all of 2 and half of 3."""
    results = {
        "segm": {"AP": 12.5, "AP50": 25.0, "APs": math.nan, "AP-class 2": 12.5},
        "sem_seg": {"mIoU": 50.0, "IoU-class 2": 40.0},
    }
    better = {
        "segm": {"AP": 15.0, "AP50": 20.0, "APs": math.nan, "AP-class 2": 15.0},
        "sem_seg": {"mIoU": 50.0, "IoU-class 2": 40.0},
    }
    write(tmp_path / "A", 3, [HALF, ALL, ALL, NOTHING, ALL], False, results=results, facts=facts(0.5, 0.1))
    write(tmp_path / "B", 3, [ALL, NOTHING, ALL, HALF], False, results=better, facts=facts(0.4, 0.1, NEW="<b>"))
    return tmp_path / "A", tmp_path / "B"


def test_differences(folders: tuple[Path, Path]) -> None:
    comparison = compare_evaluations(*folders)
    overall = {change.label: change for change in comparison.overall}
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in folders)
    for part, suffix in (("All", ""), ("Things", " things"), ("Stuff", " stuff")):
        for key in ("pq", "sq", "rq"):
            assert overall[f"{key.upper()}{suffix}"][1:] == (a[part][key], b[part][key])
    assert overall["mIoU"].difference == 0
    assert overall["mask AP"].difference == pytest.approx(0.025)
    assert overall["mask AP50"].difference == pytest.approx(-0.05) and "mask AP small" not in overall
    # Class 1 has no segment: nothing is known of it. The road is found in 4 of 5 images, then in 3 of 4.
    assert set(comparison.classes) == {"<road> & sky", "class 1", "class 2"} and not comparison.classes["class 1"]
    road = comparison.classes["<road> & sky"]
    assert road["rq"].difference == pytest.approx(3 / 3.5 - 4 / 4.5)
    assert comparison.classes["class 2"]["mask_ap"].difference == pytest.approx(0.025)
    # Image 4 is in A alone.
    names = [f"image <{k}>.jpg" for k in range(4)]
    assert [(c.label, c.difference) for c in comparison.lost] == [(names[1], -1)]
    assert [(c.label, c.difference) for c in comparison.gained] == [(names[3], 2 / 3), (names[0], 1 - 2 / 3)]
    assert len(comparison.images) == 4 and comparison.num_images == (5, 4)
    assert comparison.facts == [("images", 5, 4), ("thresholds: score", 0.5, 0.4), ("NEW", None, "<b>")]


def test_the_tool(folders: tuple[Path, Path], tmp_path: Path, tool) -> None:
    code, text = tool("compare_reports.py", *folders, "--output", tmp_path / "compare.html")
    assert code == 0 and "+2.50" in text and "-100.00" in text and "thresholds: score  0.5  0.4" in text
    assert "PQ of 1 images that lost" in text and "class 2" in text
    page = (tmp_path / "compare.html").read_text()
    Page(page)
    assert '<td class="better">+2.5</td>' in page and '<td class="worse">−100.0</td>' in page
    assert "image &lt;3&gt;.jpg" in page and "&lt;b&gt;" in page and "<b>" not in page
    code, text = tool("compare_reports.py", *folders, "--output", folders[0] / "metrics.json")
    assert code.startswith("error: ") and "is a file that is read" in code


def test_files_have_no_config(folders: tuple[Path, Path]) -> None:
    path = folders[1] / "metrics.json"
    metrics = json.loads(path.read_text())
    metrics["facts"] = {"predictions": {"sha256": "77"}}
    path.write_text(json.dumps(metrics))
    names = [name for name, _, _ in compare_evaluations(*folders).facts]
    assert "predictions: sha256" in names and "weights: file" in names and "MODEL.DEVICE" not in names


def test_one_evaluation_twice(folders: tuple[Path, Path]) -> None:
    comparison = compare_evaluations(folders[0], folders[0])
    assert not comparison.facts and not comparison.gained and not comparison.lost
    assert all(change.difference == 0 for change in comparison.overall)
    assert 'class="better"' not in make_comparison_page(comparison) and "gained" not in format_comparison(comparison)


def test_mistakes(folders: tuple[Path, Path], tmp_path: Path) -> None:
    write(tmp_path / "four", 4, [ALL], False)
    with pytest.raises(UserError, match="different classes, for instance thing class 3 with id 8 in one of them only"):
        compare_evaluations(folders[0], tmp_path / "four")
    with pytest.raises(UserError, match=r"none/metrics\.json does not exist"):
        compare_evaluations(tmp_path / "none", folders[0])
    metrics = json.loads((folders[0] / "metrics.json").read_text())
    wrong = [{**metrics, key: {"x": 3}} for key in ("All", "facts", "average_precision", "per_class")]
    for content in ("{}", "[1]", *map(json.dumps, wrong)):
        (folders[0] / "metrics.json").write_text(content)
        with pytest.raises(UserError, match="A does not hold a report of an evaluation by this version"):
            compare_evaluations(*folders)
    (folders[1] / "per_image.csv").write_text("a,b\n1,2\n")
    with pytest.raises(UserError, match="B does not hold a report"):
        compare_evaluations(folders[1], folders[1])
