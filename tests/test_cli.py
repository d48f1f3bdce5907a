"""The command ``seamless``."""

import sys
from pathlib import Path

import pytest

from seamless_d2 import cli

ROOT = Path(__file__).parent.parent


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["seamless", *arguments])
    monkeypatch.setattr(sys, "path", list(sys.path))
    cli._main()


def test_every_command_is_a_tool(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    run(monkeypatch, "--help")
    lines = capsys.readouterr().out.splitlines()[2:]
    tools = [
        tool for value in cli.COMMANDS.values() for tool in (value.values() if isinstance(value, dict) else [value])
    ]
    assert len(lines) == len(tools) and all(line.endswith(".") for line in lines)
    assert len(set(tools)) == len(tools) and all((ROOT / "tools" / f"{tool}.py").is_file() for tool in tools)
    others = {path.stem for path in (ROOT / "tools").glob("*.py")} - set(tools)
    assert others == {"benchmark", "setup_env"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["predicct"], "no command 'predicct'; did you mean predict?"),
        (["convert"], "seamless convert needs one of weights, config, raw, labels"),
        (["convert", "x"], "seamless convert has no command 'x'"),
    ],
)
def test_mistakes(arguments: list[str], words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(cli.UserError, match=words.replace("?", "[?]")):
        run(monkeypatch, *arguments)


def test_a_tool_gets_its_arguments(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        run(monkeypatch, "convert", "weights", "--help")
    assert end.value.code == 0 and "usage: seamless convert weights" in capsys.readouterr().out
