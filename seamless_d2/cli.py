"""The command ``seamless``: every tool of the repository under one name, after ``pip install``."""

import ast
import importlib
import importlib.util
import sys
from pathlib import Path

from .errors import UserError, run_tool, suggest

#: The tools by command, and by command and its first argument.
COMMANDS: dict[str, str | dict[str, str]] = {
    "train": "train_net",
    "predict": "predict",
    "merge": "merge_predictions",
    "evaluate": "evaluate_predictions",
    "compare": "compare_reports",
    "tune": "tune_thresholds",
    "prepare": "prepare_dataset",
    "convert": {
        "weights": "convert_weights",
        "config": "convert_config",
        "raw": "raw_to_coco_panoptic",
        "labels": "label_pngs_to_panoptic",
    },
    "export": "export_model",
    "demo": "demo",
    "page": "demo_server",
    "plot": "plot_metrics",
}


def main() -> None:
    """Run the tool that the first argument names, with the others."""
    run_tool(_main)


def _main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_list_commands())
        return
    name, commands, words = "seamless", COMMANDS, arguments
    while isinstance(commands, dict):
        if not words or words[0] not in commands:
            raise UserError(_explain(name, words, commands))
        name, commands, words = f"{name} {words[0]}", commands[words[0]], words[1:]
    sys.argv = [name, *words]
    # A module, not a script: the processes of a training import what they run.
    importlib.import_module(_find_tool(commands)).main()


def _find_tool(tool: str) -> str:
    """Return the name of a tool's module: that of the installed package, or in a checkout that in tools/."""
    folder = Path(__file__).parent.parent / "tools"
    if (folder / f"{tool}.py").is_file() and not (Path(__file__).parent / "tools").is_dir():
        if str(folder) not in sys.path:
            sys.path.insert(0, str(folder))
        return tool
    return f"{__package__}.tools.{tool}"


def _explain(name: str, words: list[str], commands: dict[str, str] | dict[str, str | dict[str, str]]) -> str:
    """Return what is wrong with a command that does not exist."""
    known = ", ".join(commands)
    if not words or words[0] in ("-h", "--help"):
        return f"{name} needs one of {known}"
    return f"{name} has no command {words[0]!r}{suggest(words[0], commands, 0.6)} (there are {known})"


def _list_commands() -> str:
    """Return the help: all commands with the first line of their tool."""
    lines = ["seamless COMMAND ...; seamless COMMAND --help says more", ""]
    for command, tools in COMMANDS.items():
        for word, tool in (tools if isinstance(tools, dict) else {"": tools}).items():
            lines.append(f"  {f'{command} {word}'.strip():16} {_read_summary(tool)}")
    return "\n".join(lines)


def _read_summary(tool: str) -> str:
    """Return the first line of a tool's docstring, without importing what the tool imports."""
    spec = importlib.util.find_spec(_find_tool(tool))
    return (ast.get_docstring(ast.parse(Path(spec.origin).read_text(encoding="utf-8"))) or "").splitlines()[0]
