"""The packaging: what a wheel holds and whether it works, the error without Detectron2, and tools/setup_env.py."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parent.parent


def run_python(*args: object, cwd: Path, **env: str) -> subprocess.CompletedProcess[str]:
    """Run this Python elsewhere than in the repository, so that nothing is found by accident."""
    command = [sys.executable, *map(str, args)]
    return subprocess.run(command, cwd=cwd, env={**os.environ, **env}, capture_output=True, text=True)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The project's wheel, built without network from a copy that holds no earlier build."""
    if any(importlib.util.find_spec(name) is None for name in ("pip", "setuptools")):
        pytest.skip("building a wheel needs pip and setuptools")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in ("seamless_d2", "configs", "tools"):
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        if (ROOT / name).exists():
            shutil.copy(ROOT / name, source)
    offline = ("--no-deps", "--no-build-isolation", "--no-index")
    built = run_python("-m", "pip", "wheel", *offline, "--wheel-dir", folder, source, cwd=folder)
    assert built.returncode == 0, built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_every_module_and_config(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        inside = set(archive.namelist())
    configs = {
        f"seamless_d2/configs/{f.relative_to(ROOT / 'configs').as_posix()}" for f in ROOT.glob("configs/**/*.yaml")
    }
    modules = {f.relative_to(ROOT).as_posix() for f in ROOT.glob("seamless_d2/**/*.py")}
    tools = {f"seamless_d2/tools/{f.name}" for f in ROOT.glob("tools/*.py")}
    tools -= {f"seamless_d2/tools/{name}.py" for name in ("benchmark", "setup_env")}
    assert configs and modules and tools
    assert sorted((configs | modules | tools) - inside) == []
    assert {name for name in inside if name.startswith("seamless_d2/tools/")} == tools
    assert {name.split("/")[0] for name in inside} == {"seamless_d2", wheel.name.split("-py3")[0] + ".dist-info"}


def test_installed_wheel_works_outside_the_repository(wheel: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    installed = run_python("-m", "pip", "install", "--no-deps", "--no-index", "--target", target, wheel, cwd=tmp_path)
    assert installed.returncode == 0, installed.stderr
    code = (
        "import seamless_d2; from seamless_d2 import get_config; cfg = get_config('Base-Seamless.yaml');"
        "print(seamless_d2.__file__, cfg.MODEL.META_ARCHITECTURE, seamless_d2.__version__, sep='\\n')"
    )
    result = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(target))
    assert result.returncode == 0, result.stderr
    file, architecture, version = result.stdout.splitlines()[-3:]
    assert Path(file).is_relative_to(target)
    assert architecture == "SeamlessPanoptic"
    assert wheel.name.startswith(f"seamless_d2-{version}-")
    code = "import sys; from seamless_d2.cli import main; sys.argv = ['seamless', *sys.argv[1:]]; main()"
    for arguments, words in (((), "predict"), (("merge", "--help"), "usage: seamless merge")):
        result = run_python("-c", code, *arguments, cwd=tmp_path, PYTHONPATH=str(target))
        assert result.returncode == 0 and words in result.stdout, result.stderr


@pytest.mark.parametrize("use", ["from seamless_d2 import Predictor", "import seamless_d2.config"])
def test_import_without_detectron2_says_how_to_install_it(tmp_path: Path, use: str) -> None:
    code = f"import sys; sys.modules['detectron2'] = None; {use}"
    result = run_python("-c", code, cwd=tmp_path, PYTHONPATH=str(ROOT))
    assert result.returncode == 1
    assert result.stderr.count("Traceback (most recent call last)") == 1  # one error, not a chain of them
    message = re.search(r"^ImportError: (.*)", result.stderr, re.MULTILINE | re.DOTALL)
    assert message, result.stderr
    assert "make install" in message[1]
    assert re.search(r"pip install .*detectron2", message[1])


@pytest.fixture(scope="module")
def setup_env() -> ModuleType:
    """tools/setup_env.py as a module (tools is no package)."""
    spec = importlib.util.spec_from_file_location("setup_env", ROOT / "tools" / "setup_env.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A folder with the three files that a set-up depends on."""
    (tmp_path / "tools").mkdir()
    for name in ("setup.py", "pyproject.toml", "tools/setup_env.py"):
        (tmp_path / name).write_text(f"# {name}\n")
    return tmp_path


def test_old_python_is_named_together_with_the_remedy(setup_env: ModuleType) -> None:
    message = setup_env.python_problem((3, 9, 18, "final", 0))
    assert "3.9.18" in message and "3.11" in message and "PYTHON=" in message
    assert setup_env.python_problem((3, 11, 0)) is None
    assert setup_env.python_problem(sys.version_info) is None


def test_little_disk_space_is_a_problem(setup_env: ModuleType) -> None:
    message = setup_env.disk_problem(3.25, 9.0)
    assert "9 GB" in message and "3.2 GB" in message and "SEAMLESS_MIN_FREE_GB" in message
    assert setup_env.disk_problem(9.0, 9.0) is None


@pytest.mark.parametrize(
    ("log", "expected"),
    [
        ("WARNING: Retrying after NewConnectionError('[Errno 111] Connection refused')\nERROR: No matching", "network"),
        ("ERROR: Could not install packages due to an OSError: [Errno 28] No space left on device", "disk is full"),
        ("2026-01-01T00:00:00,000 ERROR: No matching distribution found for torch", "lacks torch"),
        ("ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE.", "another file than the pinned"),
        ("ERROR: first\n2026-01-01T00:00:00,000 ERROR: Failed building wheel for x", "Failed building wheel for x"),
        ("", "without an error line"),
    ],
)
def test_failures_of_pip_are_explained_in_one_line(setup_env: ModuleType, log: str, expected: str) -> None:
    message = setup_env.explain("torch", log)
    assert expected in message and "torch" in message and "\n" not in message


def test_digest_follows_files_python_arguments_and_folder(setup_env: ModuleType, checkout: Path) -> None:
    first = setup_env.digest("", (3, 11), checkout)
    assert first == setup_env.digest("", (3, 11), checkout)
    others = [setup_env.digest("--pre", (3, 11), checkout), setup_env.digest("", (3, 12), checkout)]
    for name in ("setup.py", "pyproject.toml", "tools/setup_env.py"):
        (checkout / name).write_text("# changed\n")
        others.append(setup_env.digest("", (3, 11), checkout))
    moved = checkout.rename(checkout.with_name("elsewhere"))
    others.append(setup_env.digest("", (3, 11), moved))
    assert len({first, *others}) == 1 + len(others)


def test_finished_steps_are_not_repeated(setup_env: ModuleType) -> None:
    steps = list(setup_env.STEPS)
    everything = {module for modules in setup_env.STEPS.values() for module in modules}
    finished = {"digest": "d", "done": steps}
    assert setup_env.steps_to_do(finished, "d", everything) == []
    assert setup_env.steps_to_do({"digest": "d", "done": steps[:2]}, "d", everything) == steps[2:]  # interrupted
    assert setup_env.steps_to_do(finished, "d", everything - {"torchvision"}) == ["torch"]  # uninstalled by hand
    assert setup_env.steps_to_do(finished, "other", everything) == steps  # setup.py has changed
    assert setup_env.steps_to_do(finished, "d", None) == steps  # the interpreter has gone
    assert setup_env.steps_to_do({}, "d", everything) == steps


def test_stamp_is_read_back_and_a_damaged_one_counts_as_none(setup_env: ModuleType, tmp_path: Path) -> None:
    path = tmp_path / "setup.json"
    assert setup_env.read_stamp(path) == {}
    stamp = {"digest": "d", "pip_args": "--pre", "done": ["venv"]}
    setup_env.write_stamp(path, stamp)
    assert setup_env.read_stamp(path) == stamp
    assert [file.name for file in tmp_path.iterdir()] == ["setup.json"]
    for damaged in (json.dumps(stamp)[:-5], "[]", ""):
        path.write_text(damaged)
        assert setup_env.read_stamp(path) == {}


def test_arguments_of_pip_are_remembered(
    setup_env: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_env, "STAMP", tmp_path / "setup.json")
    monkeypatch.delenv("PIP_ARGS", raising=False)
    assert setup_env.pip_args() == ""
    setup_env.write_stamp(setup_env.STAMP, {"digest": "d", "pip_args": "--pre", "done": []})
    assert setup_env.pip_args() == "--pre"
    monkeypatch.setenv("PIP_ARGS", "--no-cache-dir")
    assert setup_env.pip_args() == "--no-cache-dir"
    monkeypatch.setenv("PIP_ARGS", "")  # an explicit none
    assert setup_env.pip_args() == ""
