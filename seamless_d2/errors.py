"""The exception for mistakes that a user can correct, and its handling by the tools."""

import difflib
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterable
from types import FrameType


class UserError(Exception):
    """A mistake in the user's input.

    The message is one sentence that names the file or key and says what to do.
    """

    def __init__(self, message: str) -> None:
        # The worker of a data loader raises an error again with the traceback as its message.
        if message.startswith("Caught UserError in "):
            message = message.rstrip().rsplit("UserError: ", 1)[-1]
        super().__init__(message)


def suggest(name: str, known: Iterable[str], cutoff: float = 0.5, more: Iterable[str] = ()) -> str:
    """Return the part of an error message that names what a misspelt word may have meant.

    Args:
        name: The word that is not known; upper and lower case are the same.
        known: The words that are.
        cutoff: The least similarity, in 0..1, of a word that is named.
        more: Further words, of which three are named, however little they resemble ``name``.

    Returns:
        "; did you mean A or B?" with at most three words of ``known``, or "" if there is nothing to name.
    """
    by_lower = {word.lower(): word for word in known}
    close = [by_lower[word] for word in difflib.get_close_matches(name.lower(), by_lower, cutoff=cutoff)]
    words = [*close, *[word for word in more if word not in close][:3]]
    return f"; did you mean {' or '.join(words)}?" if words else ""


def run_tool(main: Callable[[], object]) -> None:
    """Run the ``main`` function of a tool.

    A ``UserError``, or an ``OSError`` of a file (no permission, disk full, not a folder), becomes one line on stderr
    and exit code 1; Ctrl-C becomes exit code 130. SIGTERM, which a scheduler sends, becomes exit code 143, with
    temporary files and processes removed as after Ctrl-C.
    """
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, exit_on_signal)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_forget_handler)
    try:
        main()
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.filename is None:
            raise
        sys.exit(f"error: {error.filename}: {error.strerror}; check the path, its permissions and the free disk space")
    except KeyboardInterrupt:
        sys.exit(130)


def _forget_handler() -> None:
    """Let SIGTERM end a forked child at once, as the pools of other packages rely on.

    With a handler of Python's, a signal that comes right before a child waits for a lock would be noticed only after
    that, which may be never: the pool would wait for its worker, and the program for its pool.
    """
    if signal.getsignal(signal.SIGTERM) is exit_on_signal:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def exit_on_signal(number: int, frame: FrameType | None) -> None:
    """Raise ``SystemExit`` with the exit code that shells use for a signal; a handler for ``signal.signal``."""
    sys.exit(128 + number)
