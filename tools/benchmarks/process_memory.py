"""Peak memory of an evaluation, measured from outside on a process of its own."""

import subprocess
import sys
import time
from pathlib import Path

# Seconds between two looks.
INTERVAL = 0.02
_READY = "ready to be measured"


def _tree(pid: int) -> list[int]:
    """A process and all its descendants."""
    found = [pid]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def _memory(pid: int) -> int:
    """Bytes of a process and its descendants; pages that they share count once."""
    total = 0
    try:
        for process in _tree(pid):
            for line in Path(f"/proc/{process}/smaps_rollup").read_text().splitlines():
                if line.startswith("Pss:"):
                    total += 1024 * int(line.split()[1])
    except OSError:  # one has just ended
        pass
    return total


def _work(root: Path, count: int, method: str) -> None:
    """The measured process: says when it is ready, starts when told, ends when done."""
    from .evaluation import Evaluations

    evaluations = Evaluations(root, count)
    sys.stderr.write(f"{_READY}\n")
    sys.stderr.flush()
    sys.stdin.readline()
    getattr(evaluations, method)()


def peak_memory(root: Path, count: int, method: str) -> float | None:
    """What one of ``Evaluations`` adds to a fresh process at its peak.

    Args:
        root, count: of ``Evaluations``.
        method: the name of one of its evaluations.

    Returns:
        Bytes, at least 1; None where the system does not tell (no /proc).
    """
    if not Path("/proc/self/smaps_rollup").is_file():
        return None
    # Not by multiprocessing: that would change how panopticapi starts its own processes.
    command = [sys.executable, "-W", "ignore", "-m", __name__, str(root), str(count), method]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=subprocess.DEVNULL, stderr=pipe, text=True) as process:
        lines = []
        while not lines or _READY not in lines[-1]:
            lines.append(process.stderr.readline())
            if not lines[-1]:
                raise RuntimeError(f"{method} ended early:\n{''.join(lines)}")
        before = peak = _memory(process.pid)
        process.stdin.write("go\n")
        process.stdin.flush()
        while process.poll() is None:
            peak = max(peak, _memory(process.pid))
            time.sleep(INTERVAL)
        if process.returncode:
            raise RuntimeError(f"{method} failed:\n{process.stderr.read()}")
    return float(max(peak - before, 1))


if __name__ == "__main__":
    _work(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
