"""Handling of SIGTERM and SIGUSR1, which Slurm, torchrun and clouds send before they take a machine away."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class Preempted(BaseException):
    """Leaves the training loop after a signal, when a checkpoint exists; it is no error, hence no ``Exception``."""


@contextlib.contextmanager
def on_preemption(react: Callable[[str], None] | None) -> Iterator[None]:
    """Within the block, call ``react`` with the name of the signal instead of ending the process.

    With None the system ends the process, at once even if it waits in compiled code, where Python handles no signal.
    The context manager does nothing outside the main thread, where Python cannot set handlers.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def handler(number: int, _: FrameType | None) -> None:
        react(signal.Signals(number).name)

    before = {number: signal.signal(number, handler if react else signal.SIG_DFL) for number in SIGNALS}
    try:
        yield
    finally:
        for number, old in before.items():
            # None is a handler that was not set from Python.
            signal.signal(number, signal.SIG_DFL if old is None else old)
