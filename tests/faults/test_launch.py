"""The start and the end of trainings in several processes."""

import argparse
import socket
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from seamless_d2.engine import launch


def arguments(*command: str) -> argparse.Namespace:
    return default_argument_parser().parse_args(command)


def meet(args: argparse.Namespace) -> None:
    (Path(args.config_file) / f"{comm.get_rank()} of {comm.get_world_size()}").touch()


@pytest.mark.slow
def test_two_trainings_on_one_machine(tmp_path: Path) -> None:
    args = arguments("--num-gpus", "2", "--config-file", str(tmp_path))
    with socket.create_server(("127.0.0.1", int(args.dist_url.rsplit(":", 1)[1]))):  # by another training
        launch(meet, args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 of 2", "1 of 2"]


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (("--num-gpus", "2"), "auto"),
        (("--num-gpus", "2", "--dist-url", "tcp://localhost:1234"), "tcp://localhost:1234"),
        (("--num-machines", "2"), arguments().dist_url),
    ],
)
def test_the_port_that_is_used(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], url: str) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr("detectron2.engine.launch", lambda *call: calls.append(call))
    launch(meet, arguments(*command))
    assert calls[0][4] == url
