"""README.md and docs/: every block runs, every link leads somewhere, every key, name and message exists."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from seamless_d2.config import get_config

from .helpers.documentation import PAGES, ROOT, Runner, read_blocks, write_workspace

# Pages whose blocks run in other tests, because they need an exported model.
ELSEWHERE = {"deploy.md"}
# Pages whose blocks take more than a few seconds together.
SLOW = {"getting_started.md", "original_models.md", "train.md"}
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ (.+)$", re.MULTILINE)
_KEY = re.compile(r"\b(?:[A-Z][A-Z0-9_]*)(?:\.[A-Z][A-Z0-9_]*)+\b")


def page_id(page: Path) -> str:
    return page.name


def pages_with_blocks() -> list:
    marks = {page: [pytest.mark.slow] if page.name in SLOW else [] for page in PAGES}
    pages = [page for page in PAGES if page.name not in ELSEWHERE and list(read_blocks(page))]
    return [pytest.param(page, id=page.name, marks=marks[page]) for page in pages]


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_workspace(tmp_path_factory.mktemp("documentation"))


@pytest.fixture
def catalogs() -> Iterator[None]:
    """Data sets that other tests registered are out of the way, and ours are gone afterwards."""
    before = [(catalog, dict(catalog.data)) for catalog in (DatasetCatalog, MetadataCatalog)]
    for catalog, entries in before:
        for name in entries:
            if name.startswith(("toy_streets", "my_")):
                del catalog.data[name]
    yield
    for catalog, entries in before:
        catalog.data.clear()
        catalog.data.update(entries)


@pytest.fixture
def workspace(template: Path, tmp_path: Path, catalogs: None, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A fresh copy, as the current directory, in which tools start no further processes."""
    root = tmp_path / "workspace"
    shutil.copytree(template, root, symlinks=True)
    monkeypatch.chdir(root)
    monkeypatch.setenv("DETECTRON2_DATASETS", "datasets")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0}, raising=False)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_blocks())
def test_blocks(page: Path, workspace: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    runner = Runner(monkeypatch)
    for block in read_blocks(page):
        runner.run(block)


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCED.sub("", page.read_text(encoding="utf-8"))


def anchors(page: Path) -> set[str]:
    """As MkDocs and GitHub make them of headings."""
    titles = [re.sub(r"[^\w\- ]", "", title.lower()) for title in _HEADING.findall(prose(page))]
    return {title.strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_links_lead_somewhere(page: Path) -> None:
    for link in _LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = (page.parent / name).resolve() if name else page
        assert target.is_file(), f"{page.name}: {link}"
        assert not anchor or anchor in anchors(target), f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_files_of_the_repository_exist(page: Path) -> None:
    named = set(re.findall(r"\b(?:tools|tests|configs|seamless_d2)/[\w./-]+\b", prose(page)))
    lacking = {name for name in named if not (ROOT / name).exists()}
    assert lacking <= {"configs/mine/seamless_R_50_FPN.yaml"}, lacking


def known_keys(cfg: CfgNode, prefix: str = "") -> Iterator[str]:
    for name, value in cfg.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from known_keys(value, f"{prefix}{name}.")


@pytest.mark.parametrize("page", PAGES, ids=page_id)
def test_config_keys_exist(page: Path) -> None:
    known = set(known_keys(get_config("toy_streets/seamless_R_18_FPN")))
    # The one that a message complains about is wrong on purpose.
    text = re.sub(r"there is no key [\w.]+", "", page.read_text(encoding="utf-8"))
    sections = {key.split(".")[0] for key in known}
    named = {key for key in _KEY.findall(text) if key.split(".")[0] in sections}
    assert named <= known, sorted(named - known)


def names_of(path: Path) -> set[str]:
    """What a module defines: functions, classes and their methods, as Class.method."""
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
            names |= {f"{node.name}.{n.name}" for n in getattr(node, "body", []) if isinstance(n, ast.FunctionDef)}
    return names


def test_files_and_functions_of_the_method_exist() -> None:
    text = prose(ROOT / "docs" / "method.md")
    package = ROOT / "seamless_d2"
    files = set(re.findall(r"`((?:modeling|engine|evaluation|seamseg)/[\w/]+\.py)`", text))
    assert len(files) >= 9 and all((package / file).is_file() for file in files)
    named = re.findall(r"`([\w/]+\.py)`:\s((?:`[\w.]+`(?:,\s|\sand\s)?)+)", text)
    assert len(named) >= 9
    for file, names in named:
        lacking = set(re.findall(r"`([\w.]+)`", names)) - names_of(package / file)
        assert not lacking, f"{file} does not define {lacking}"


def string_patterns() -> Iterator[str]:
    """Every text of the package as a regular expression; what an f-string fills in matches anything."""
    for path in (ROOT / "seamless_d2").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) > 20:
                yield re.escape(node.value)
            elif isinstance(node, ast.JoinedStr):
                parts = [re.escape(v.value) if isinstance(v, ast.Constant) else "(.+)" for v in node.values]
                if sum(len(v.value) for v in node.values if isinstance(v, ast.Constant)) > 15:
                    yield "".join(parts)


def test_messages_of_troubleshooting_are_the_programs() -> None:
    text = (ROOT / "docs" / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"^```text\n(.+?)\n```$", text, re.MULTILINE | re.DOTALL)
    assert len(messages) == 17
    patterns = [re.compile(pattern) for pattern in set(string_patterns())]
    for message in messages:
        assert "\n" not in message
        assert any(pattern.fullmatch(message) for pattern in patterns), message


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("mkdocstrings_handlers") is None, reason="needs pip install -e .[docs]")
def test_site_builds_without_a_warning(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "-q", "-d", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    for name in ("Predictor", "PredictionOptions", "PanopticResult", "Segment", "SeamlessPanoptic", "fuse_panoptic"):
        assert re.search(rf'id="seamless_d2\.[\w.]+\.{name}"', api), name
    assert (tmp_path / "images" / "toy_streets.jpg").is_file()
    for page in tmp_path.rglob("*.html"):
        loaded = re.findall(r'<(?:script|link|img|iframe)[^>]+(?:src|href)="(https?:[^"]+)"', page.read_text("utf-8"))
        assert not loaded, f"{page.name} loads {loaded[0]}"
