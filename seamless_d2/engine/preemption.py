"""SIGTERM and SIGUSR1 (what Slurm, torchrun and clouds send before they take a machine away)."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """Leaves the training loop where the state is safe already; no error, hence no ``Exception``."""


@contextlib.contextmanager
def on_preemption(react: Callable[[str], None]) -> Iterator[None]:
    """Within the block, call ``react`` with the signal's name instead of ending the process.

    Does nothing outside the main thread, where Python cannot set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _: FrameType | None) -> None:
        react(signal.Signals(number).name)

    before = {number: signal.signal(number, handler) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            # None stands for a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if old is None else old)
