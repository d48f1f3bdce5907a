"""What hangs is ended and reported."""

import faulthandler
import signal
import time

from ..helpers.processes import run_forked


def test_a_child_process_that_hangs_is_ended() -> None:
    def hang() -> None:
        faulthandler.disable()  # the stacks are not wanted here
        time.sleep(60)

    assert run_forked(hang, lambda: None, limit=0.3) == [-signal.SIGABRT, 0]
