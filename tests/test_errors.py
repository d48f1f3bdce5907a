"""One sentence and a non-zero exit for what a user can put right."""

import os
import subprocess
import sys

import pytest

from seamless_d2.errors import UserError, run_tool, suggest


def test_run_tool_turns_user_errors_into_one_line() -> None:
    def main() -> None:
        raise UserError("file x is missing; make it")

    with pytest.raises(SystemExit) as stop:
        run_tool(main)
    assert stop.value.code == "error: file x is missing; make it"


def test_other_errors_are_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_tool(lambda: 1 / 0)


def test_a_file_that_the_system_refuses(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit) as stop:
        run_tool(lambda: (tmp_path / "file" / "deeper").mkdir())
    assert str(stop.value.code).startswith(f"error: {tmp_path}/file/deeper: Not a directory; check the path")
    with pytest.raises(OSError):
        run_tool(lambda: (_ for _ in ()).throw(OSError("no file in it")))


def test_interruption() -> None:
    def main() -> None:
        raise KeyboardInterrupt

    with pytest.raises(SystemExit) as stop:
        run_tool(main)
    assert stop.value.code == 130


def test_message_from_a_loader_worker_is_the_sentence_alone() -> None:
    worker = (
        "Caught UserError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n"
        '  File "x.py", line 1, in f\nseamless_d2.errors.UserError: image a.png does not exist; check the path\n'
    )
    assert str(UserError(worker)) == "image a.png does not exist; check the path"


@pytest.mark.parametrize(
    ("name", "known", "more", "expected"),
    [
        ("bke", ["bike", "car"], [], "; did you mean bike?"),
        ("BIKE", ["bike", "bikes", "car"], [], "; did you mean bike or bikes?"),
        ("zebra", ["bike", "car"], [], ""),
        ("zebra", ["bike", "car"], ["car"], "; did you mean car?"),
        ("bike", ["Bike", "car"], ["Bike", "car"], "; did you mean Bike or car?"),
        ("bike", [], [], ""),
    ],
)
def test_suggest(name: str, known: list[str], more: list[str], expected: str) -> None:
    assert suggest(name, known, more=more) == expected


@pytest.mark.slow
@pytest.mark.parametrize(
    ("tool", "arguments", "words"),
    [
        ("train_net.py", [], "--config-file"),
        ("train_net.py", ["--config-file", "nothing.yaml"], "nothing.yaml"),
        ("predict.py", ["--config-file", "x.yaml", "--input", "a", "--output", "b"], "x.yaml"),
        ("convert_weights.py", ["seamseg", "no.pth.tar", "out.pth"], "no.pth.tar"),
        ("convert_config.py", ["no.ini", "out.yaml"], "no.ini"),
    ],
)
def test_tools_exit_with_one_sentence(tool: str, arguments: list[str], words: str, tmp_path, request) -> None:
    script = request.config.rootpath / "tools" / tool
    result = subprocess.run(
        [sys.executable, "-W", "ignore", str(script), *arguments], cwd=tmp_path, capture_output=True, text=True
    )
    assert result.returncode != 0
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ") and words in last
    assert "Traceback" not in result.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_sigterm_ends_forked_children_at_once() -> None:
    """A handler of Python's may run too late in a child that waits for a lock: pools of other packages then hang."""
    code = (
        "import os, signal; from seamless_d2.errors import exit_on_signal, run_tool\n"
        "def main():\n"
        "    assert signal.getsignal(signal.SIGTERM) is exit_on_signal\n"
        "    if not (child := os.fork()):\n"
        "        os._exit(signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL)\n"
        "    raise SystemExit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))\n"
        "run_tool(main)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
