"""Child processes of tests, which may be killed or fail, but never hang."""

import multiprocessing
import os
import signal
import subprocess
import time
from argparse import Namespace
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch.distributed as dist

from seamless_d2.engine import launch

#: Seconds after which a child counts as hanging; the longest takes less than a minute.
LIMIT = 300.0


def run_forked(*functions: Callable[[], object], limit: float = LIMIT) -> list[int]:
    """Run each function in a forked process, which need not import PyTorch again, all at the same time.

    Returns:
        The exit codes: -9 after SIGKILL, -6 after more than ``limit`` seconds; pytest then prints the process's stacks.
    """
    children = [multiprocessing.get_context("fork").Process(target=function) for function in functions]
    for child in children:
        child.start()
    end = time.monotonic() + limit
    # Not ``join`` with a limit: it waits for the children of the child too, which may outlive a kill. The limit is not
    # set by ``faulthandler.dump_traceback_later`` in the child: it hangs there if pytest has set it in this process.
    while any(child.exitcode is None for child in children):
        if time.monotonic() > end:
            for child in children:
                if child.exitcode is None:
                    os.kill(child.pid, signal.SIGABRT)
            end += limit
        time.sleep(0.01)
    return [child.exitcode for child in children]


def run_in_two_processes(function: Callable[[], object], *, codes: Sequence[int] = (0, 0)) -> None:
    """Run ``function`` in two forked processes through ``launch``, with the environment that torchrun sets.

    The test fails if their exit codes are not ``codes``.
    """
    # As torchrun does, this process has the store: no other can take the port before it is used.
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    environment = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(store.port), "TORCHELASTIC_USE_AGENT_STORE": "True"}

    def child(rank: int) -> None:
        os.environ.update(environment, RANK=str(rank), WORLD_SIZE="2", LOCAL_RANK=str(rank), LOCAL_WORLD_SIZE="2")
        launch(lambda _: function(), Namespace(resume=False))

    assert run_forked(partial(child, 0), partial(child, 1)) == list(codes)


def start_command(command: Sequence[str | Path], **options: object) -> subprocess.Popen:
    """Start a command that Ctrl-C reaches, also where pytest itself runs in the background and ignores it."""
    return subprocess.Popen(command, preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL), **options)


def run_or_dump(command: Sequence[str | Path], cwd: Path, seconds: float = LIMIT) -> tuple[str, str]:
    """Return what a Python command, which must succeed, has written to stdout and stderr.

    The test fails with the stacks of its threads if it takes longer; give Python ``-X faulthandler`` for that.
    """
    with subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            output, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGABRT)
            output, errors = process.communicate(timeout=60)
    assert process.returncode == 0, f"{output}\n{errors}"
    return output, errors
