"""The rules of the layout that import-linter does not know."""

import re
import sys
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
MODULES = [path for path in (ROOT / "seamless_d2").rglob("*.py") if path.name != "__init__.py"]


def test_no_file_over_400_lines() -> None:
    files = [*(ROOT / "seamless_d2").rglob("*.py"), *(ROOT / "tools").rglob("*.py")]
    assert not [path for path in files if len(path.read_text(encoding="utf-8").splitlines()) > 400]


def test_no_two_modules_of_one_name() -> None:
    names = Counter(path.name for path in MODULES if path.name != "__main__.py")
    assert not [name for name, count in names.items() if count > 1]


def test_no_module_has_a_standard_library_name() -> None:
    # ``io``, everything that touches a disk, is the one exception that the layout makes.
    assert {path.stem for path in MODULES} & sys.stdlib_module_names <= {"io"} | {"__main__"}


def test_classes_know_neither_torch_nor_detectron2() -> None:
    for name in ("structures/classes.py", "errors.py"):
        source = (ROOT / "seamless_d2" / name).read_text(encoding="utf-8")
        assert not re.search(r"^\s*(import|from) (torch|detectron2)", source, re.M)


def test_the_words_of_the_field() -> None:
    """The field says image and ground truth."""
    for path in MODULES:
        source = path.read_text(encoding="utf-8")
        assert not re.search(r"\b(picture|photo)s?\b", source.replace("--pictures", ""), re.I), path
        assert not re.search(r"(?<!ground[ -])\btruth\b", source.replace("--truth-dir", ""), re.I), path
