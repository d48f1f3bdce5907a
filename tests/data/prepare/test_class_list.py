"""Class lists in text files, and images without labels."""

from pathlib import Path

import pytest
from PIL import Image

from seamless_d2.data.prepare.class_list import list_images, print_unlabelled, read_class_list
from seamless_d2.errors import UserError


def test_names_may_contain_spaces(tmp_path: Path) -> None:
    (tmp_path / "classes.txt").write_text("7 traffic sign (back) stuff\n\n 0 car thing \n")
    assert read_class_list(tmp_path / "classes.txt") == [
        {"id": 7, "name": "traffic sign (back)", "isthing": 0},
        {"id": 0, "name": "car", "isthing": 1},
    ]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1 road stuff\n1 sky stuff\n", "line '1 sky stuff' has the number of a class above"),
        ("1 road stuff\n2 road thing\n", "line '2 road thing' has the name of a class above"),
        ("1 road\n", "line '1 road' is not 'NUMBER NAME thing'"),
        ("one road stuff\n", "is not 'NUMBER NAME thing'"),
        ("1 road Stuff\n", "is not 'NUMBER NAME thing'"),
        ("\n", "classes.txt is empty; write a line"),
        (None, "classes.txt does not exist; write a line"),
    ],
)
def test_mistakes(tmp_path: Path, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=words):
        read_class_list(tmp_path / "classes.txt")


def test_images_without_labels_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("b.JPG", "deep/a.png", "c.jpeg"):
        Image.new("RGB", (2, 2)).save(tmp_path / name, format="PNG")
    (tmp_path / "notes.txt").touch()
    (tmp_path / ".c.jpg.tmp.jpg").touch()
    assert [path.name for path in list_images(tmp_path)] == ["b.JPG", "c.jpeg", "a.png"]
    print_unlabelled(tmp_path, {"b.JPG", "c.jpeg", "deep/a.png"})
    assert capsys.readouterr().out == ""
    print_unlabelled(tmp_path, {"c.jpeg"})
    said = capsys.readouterr().out
    assert said == f"2 of 3 images in {tmp_path} have no labels and are left out (b.JPG, ...)\n"
