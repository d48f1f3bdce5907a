"""The start and the end of trainings in several processes."""

import argparse
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from detectron2.engine import default_argument_parser
from detectron2.utils import comm

from seamless_d2.engine import SeamlessTrainer, launch, run
from seamless_d2.engine.hooks import EvaluationHook
from seamless_d2.errors import exit_on_signal

from ..engine.test_resume import at
from ..helpers.processes import run_forked, run_in_two_processes


def parse(*command: str) -> argparse.Namespace:
    return default_argument_parser().parse_args(command)


def meet(args: argparse.Namespace) -> None:
    (Path(args.config_file) / f"{comm.get_rank()} of {comm.get_world_size()}").touch()


@pytest.mark.slow
def test_two_trainings_on_one_machine(tmp_path: Path) -> None:
    args = parse("--num-gpus", "2", "--config-file", str(tmp_path))
    with socket.create_server(("127.0.0.1", int(args.dist_url.rsplit(":", 1)[1]))):  # by another training
        launch(meet, args)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0 of 2", "1 of 2"]


@pytest.mark.parametrize(
    ("command", "url"),
    [
        (("--num-gpus", "2"), "auto"),
        (("--num-gpus", "2", "--dist-url", "tcp://localhost:1234"), "tcp://localhost:1234"),
        (("--num-machines", "2"), parse().dist_url),
    ],
)
def test_the_port_that_is_used(monkeypatch: pytest.MonkeyPatch, command: tuple[str, ...], url: str) -> None:
    calls: list[tuple] = []
    monkeypatch.setattr("detectron2.engine.launch", lambda *call: calls.append(call))
    launch(meet, parse(*command))
    assert calls[0][4] == url


def test_a_signal_while_other_processes_are_awaited() -> None:
    def work() -> None:
        os.environ.update(RANK="0", WORLD_SIZE="2", MASTER_ADDR="127.0.0.1", MASTER_PORT="0")
        signal.signal(signal.SIGTERM, exit_on_signal)  # as ``run_tool`` does
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        launch(meet, argparse.Namespace(resume=False))

    assert run_forked(work, limit=10) == [-signal.SIGTERM]


@pytest.mark.slow
def test_a_signal_that_finds_processes_at_different_places(tmp_path: Path, arguments, capfd) -> None:
    """One is in an evaluation, which it leaves at once; the other is about to begin it."""

    def work() -> None:
        owner, name = ((SeamlessTrainer, "test"), (EvaluationHook, "_evaluate"))[comm.get_rank()]
        at(owner, name, 1, lambda: os.kill(os.getpid(), signal.SIGTERM))()
        run(arguments("SOLVER.MAX_ITER", "4", "TEST.EVAL_PERIOD", "2", "TEST.NUM_VISUALIZED_IMAGES", "0"))

    run_in_two_processes(work)
    assert "Traceback" not in capfd.readouterr().err
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000001.pth"
    assert "stopped by SIGTERM; resume with --resume" in (tmp_path / "out" / "log.txt").read_text()


@pytest.mark.slow
def test_sigterm_under_torchrun(tmp_path: Path, request: pytest.FixtureRequest, arguments) -> None:
    args = arguments("SOLVER.MAX_ITER", "100000", "SOLVER.LOG_PERIOD", "1", "DATALOADER.NUM_WORKERS", "1")
    root = request.config.rootpath
    tool = [root / "tools" / "train_net.py", "--config-file", args.config_file, *args.opts]
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *tool]
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    log = tmp_path / "screen.txt"
    with open(log, "w") as screen:
        process = subprocess.Popen(command, env=environment, stdout=screen, stderr=screen)
    out, end = tmp_path / "out", time.monotonic() + 120
    while process.poll() is None and time.monotonic() < end and not (out / "metrics.json").is_file():
        time.sleep(0.1)
    process.terminate()
    process.wait(60)
    text = log.read_text()
    # What torchrun itself prints is its own traceback, and its exit code is 1.
    assert text.count("Traceback") == text.count("SignalException: ") == 1, text
    assert "stopped by SIGTERM" in text and "error:" not in text
    assert (out / "last_checkpoint").is_file()
