"""The tests of exported files run in a process of their own.

Afterwards a process holds the threads of torch.export and of the engines, and other tests train in forked children of
this one, which such threads can crash.
"""

import sys
from pathlib import Path

import pytest

from ..helpers.processes import run_or_dump

HERE = Path(__file__).parent


@pytest.mark.slow
def test_exported_files(tmp_path: Path) -> None:
    options = ["-q", "-p", "no:cacheprovider", "--basetemp", str(tmp_path / "base")]
    command = [sys.executable, "-X", "faulthandler", "-m", "pytest", *options, HERE / "exported_files.py"]
    printed, _ = run_or_dump(command, HERE.parents[1], seconds=540)
    assert " passed" in printed
