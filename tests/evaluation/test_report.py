"""The report: complete in itself, right in its numbers, whatever the data."""

import csv
import html.parser
import json
from pathlib import Path

import numpy as np
import pytest

from seamless_d2.evaluation.dataset_statistics import DatasetStatistics
from seamless_d2.evaluation.panoptic_quality import match_image
from seamless_d2.evaluation.report import ImageSource, write_reports
from seamless_d2.evaluation.tables import format_tables
from seamless_d2.structures.classes import Classes

from .test_dataset_statistics import random_image, segments

VOID_TAGS = {"meta", "img", "line", "polyline", "circle"}
FACTS = {"weights": {"file": "<model>.pth", "sha256": "0123"}, "config": {"MODEL.A": "<1>", "MODEL.B": [2, 3]}}


class Page(html.parser.HTMLParser):
    """Tags that are opened and closed in order, and what is loaded from where."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list) -> None:
        attributes = dict(attrs)
        assert not {"href", "srcset"} & set(attributes) and tag not in ("link", "iframe")
        assert "src" not in attributes or tag == "img"
        if tag == "img":
            self.images.append(attributes["src"])
        if tag not in VOID_TAGS:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        assert tag in VOID_TAGS

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def make_classes(number: int) -> Classes:
    names = ["<road> & sky", *(f"class {i}" for i in range(1, number))]
    return Classes(names, [(i * 3 % 256, 90, 200) for i in range(number)], list(range(5, 5 + number)), 2)


def write(root: Path, number: int, images: list, with_images: bool, **options) -> tuple[Page, str]:
    statistics = DatasetStatistics(number)
    ground_truths = {}
    for k, (gt_ids, ground_truth, ids, predicted) in enumerate(images):
        statistics.add(match_image(gt_ids, ground_truth, ids, predicted), k, ids)
        id_image = np.stack([gt_ids % 256, gt_ids // 256 % 256, gt_ids // 65536], axis=-1).astype(np.uint8)
        image = np.full((2 * id_image.shape[0], 2 * id_image.shape[1], 3), 99, np.uint8) if with_images else None
        ground_truths[k] = image, id_image, ground_truth
    source = ImageSource("image <{}>.jpg".format, ground_truths.__getitem__)
    write_reports(root, "A <test>", make_classes(number), statistics, "panopticapi", source, **options)
    text = (root / "report.html").read_text()
    assert "http:" not in text and "https:" not in text and "url(" not in text and "@import" not in text
    return Page(text), text


@pytest.mark.parametrize(("number", "images"), [(4, True), (65, False)])
def test_page_is_complete_in_itself(tmp_path: Path, number: int, images: bool) -> None:
    random = np.random.RandomState(0)
    page, text = write(tmp_path, number, [random_image(random) for _ in range(6)], images, facts=FACTS)
    assert len(page.images) == (24 if images else 16) and all(
        src.startswith("data:image/jpeg;base64,") for src in page.images
    )
    assert "&lt;road&gt; &amp; sky" in text and "image &lt;3&gt;.jpg" in text and "<road>" not in text
    assert "file &lt;model&gt;.pth, sha256 0123" in text and "MODEL.A: &lt;1&gt;\nMODEL.B: [2, 3]" in text
    assert "<polyline" in text and "Highest PQ of things" in text
    # metrics.json is strict json and says the same as per_class.csv.
    metrics = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)
    with open(tmp_path / "per_class.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(metrics["per_class"]) == number and metrics["images"] == 6 and metrics["facts"] == FACTS
    for row, (category, values) in zip(rows, metrics["per_class"].items(), strict=True):
        assert row["category_id"] == category and list(row) == ["category_id", *values] and "box_ap" not in row
        assert float(row["pq"]) == values["pq"] and int(row["tp"]) == values["tp"]
        assert values["iou"] is None or 0 <= float(row["iou"]) == values["iou"] <= 1
    assert f"<b>{100 * metrics['All']['pq']:.1f}</b><span>PQ</span>" in text


def test_results_of_the_heads_are_shown(tmp_path: Path) -> None:
    results = {
        "segm": {"AP": 12.5, "AP-class 2": 25.0, "AP-class 3": float("nan"), "AP75": 9.25, "APs": float("nan")},
        "bbox": {"AP": 13.5, "AP-class 2": 27.0, "AP-class 3": -1.0},
        "sem_seg": {
            **{"mIoU": 44.25, "IoU-<road> & sky": 61.0, "IoU-class 1": float("nan")},
            **{"BoundaryIoU-<road> & sky": 31.25, "BoundaryIoU-class 1": float("nan"), "BoundaryIoU-class 2": 20.25},
        },
    }
    images = [random_image(np.random.RandomState(0))]
    _, text = write(tmp_path, 4, images, False, results=results)
    assert "<b>12.5</b><span>mask AP</span>" in text and "<b>44.2</b><span>mIoU</span>" in text
    per_class = json.loads((tmp_path / "metrics.json").read_text(), parse_constant=pytest.fail)["per_class"]
    assert per_class["7"]["mask_ap"] == 0.25 and per_class["8"]["mask_ap"] is None and per_class["8"]["box_ap"] is None
    assert per_class["5"]["iou"] == 0.61 and per_class["6"]["iou"] is None
    assert [per_class[i]["boundary_iou"] for i in "5678"] == [0.3125, None, 0.2025, None]
    assert ">boundary IoU</button></th>" in text and "<td>31.2</td>" in text
    with open(tmp_path / "per_class.csv", newline="") as file:
        assert [row["boundary_iou"] for row in csv.DictReader(file)] == ["0.3125", "", "0.2025", ""]
    statistics = DatasetStatistics(4)
    table = format_tables(make_classes(4), statistics, "panopticapi", results)
    assert "mIoU 44.25   boundary mIoU 25.75   box AP 13.50" in table and "boundary IoU" in table and "31.25" in table
    # AP by threshold and size; what cannot be measured is neither 0 nor missing.
    precision = json.loads((tmp_path / "metrics.json").read_text())["average_precision"]
    assert precision["mask"] == {"AP": 0.125, "AP50": None, "AP75": 0.0925, "APs": None, "APm": None, "APl": None}
    assert '<td class="name">mask</td><td>12.5</td><td>–</td><td>9.2</td>' in text and "medium" in table
    del results["sem_seg"], results["bbox"]
    assert "boundary" not in format_tables(make_classes(4), statistics, "panopticapi", results)


def test_nothing_to_show(tmp_path: Path) -> None:
    nothing = np.zeros((3, 5), np.int64)
    page, text = write(tmp_path, 3, [(nothing, segments(), nothing, segments())], False)
    assert not page.images and "no scores" in text


def test_rows_of_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seamless_d2.evaluation.report.MAX_IMAGES", 3)
    ids = np.array([[1, 1, 2, 2], [1, 1, 0, 0]])
    ground_truth, nothing = segments((1, 0), (2, 1)), np.zeros_like(ids)
    images = [
        (ids, ground_truth, np.where(ids == 1, 5, 0), segments((5, 0))),  # one of two found
        (nothing, segments(), nothing, segments()),  # nothing to find
        (ids, ground_truth, ids, ground_truth),  # all found
        (ids, ground_truth, np.full_like(ids, 9), segments((9, 2))),  # a wrong one
    ]
    _, text = write(tmp_path, 3, images, False)
    with open(tmp_path / "per_image.csv", newline="") as file:
        rows = [list(row.values()) for row in csv.DictReader(file)]
    assert rows == [
        ["3", "image <3>.jpg", "0.0", "0.0", "0.0", "0", "1", "2"],
        ["0", "image <0>.jpg", str(2 / 3), "1.0", str(2 / 3), "1", "0", "1"],
        ["2", "image <2>.jpg", "1.0", "1.0", "1.0", "2", "0", "0"],
        ["1", "image <1>.jpg", "", "", "", "0", "0", "0"],
    ]
    assert "The 3 worst of 4 images; per_image.csv has all." in text and "image &lt;1&gt;.jpg" not in text
    # Name, PQ, SQ, RQ, matched, missed, false.
    cells = "".join(f"<td>{value}</td>" for value in ("66.7", "100.0", "66.7", 1, 1, 0))
    assert f'<tr><td class="name">image &lt;0&gt;.jpg</td>{cells}</tr>' in text
    monkeypatch.undo()
    _, text = write(tmp_path, 3, images, False)
    assert "worst of" not in text and "image &lt;1&gt;.jpg</td><td>–</td>" in text
