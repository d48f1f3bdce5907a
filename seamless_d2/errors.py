"""The one exception for what a user can put right."""

import sys
from collections.abc import Callable


class UserError(Exception):
    """A mistake in the user's input; the message is one sentence that names the file or key and the remedy."""

    def __init__(self, message: str) -> None:
        # A data-loader worker re-raises with its whole traceback as the message; the last line is ours.
        if message.startswith("Caught UserError in "):
            message = message.rstrip().rsplit("UserError: ", 1)[-1]
        super().__init__(message)


def run_tool(main: Callable[[], object]) -> None:
    """Run a tool's ``main``: a :class:`UserError` becomes one line on stderr and exit code 1, Ctrl-C exit code 130.

    So does a file that the system refuses (no permission, disk full, not a folder).
    """
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
