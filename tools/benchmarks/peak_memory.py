"""Peak memory of one piece of work: on a CPU in a process of its own, on a GPU by PyTorch's own count."""

import contextlib
import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path

import torch

# Prepares a piece of work and returns it; called with the device and further arguments.
Job = Callable[..., Callable[[], object]]
# Seconds between two measurements of the process and its children.
_INTERVAL = 0.02
_PROC = Path("/proc")


def _status(key: str) -> int:
    """Return the bytes of a line such as "VmHWM: 1234 kB" of this process's status."""
    lines = (_PROC / "self" / "status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(f"{key}:")).split()[1])


def _tree_memory(pid: int) -> int:
    """Return the bytes of a process and its descendants; pages that they share count once."""
    total, found = 0, [pid]
    with contextlib.suppress(OSError):  # one has just ended
        for process in found:
            for children in (_PROC / str(process) / "task").glob("*/children"):
                found += map(int, children.read_text().split())
            lines = (_PROC / str(process) / "smaps_rollup").read_text().splitlines()
            total += sum(1024 * int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total


def _work(connection: Connection, threads: int, total: bool, job: Job, *arguments: object) -> None:
    """Run in the measured process: prepare, report the memory before, work when told, report the peak."""
    torch.set_num_threads(threads)
    # A job may start processes of its own, which should start as they would without this measurement.
    multiprocessing.set_start_method(None, force=True)
    try:
        function = job("cpu", *arguments)
        with contextlib.suppress(OSError):  # then the peak of the preparation counts too
            (_PROC / "self" / "clear_refs").write_text("5")
        before = 0 if total else _status("VmRSS")
        connection.send(None)
        connection.recv()
        function()
        connection.send(float(max(_status("VmHWM") - before, 1)))
    except Exception:
        connection.send(traceback.format_exc())


def peak_memory(job: Job, device: str, *arguments: object, total: bool = False) -> float | None:
    """Measure the most memory that a piece of work needs at a time, including that of processes that it starts.

    Args:
        job: A function of a module; ``job(device, *arguments)`` prepares the work and returns it.
        device: "cpu" or "cuda".
        arguments: The plain values that the job takes.
        total: Whether to count everything that the process (on a GPU: the job) holds, not only what the work adds.

    Returns:
        Bytes, at least 1; None if the system does not tell (no /proc), or ended the process for lack of memory.

    Raises:
        RuntimeError: The job failed; the message holds its traceback.
    """
    if device.startswith("cuda"):
        outside = torch.cuda.memory_allocated()
        function = job(device, *arguments)
        before = outside if total else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return float(max(torch.cuda.max_memory_allocated() - before, 1))
    if not (_PROC / "self" / "smaps_rollup").is_file():
        return None
    # Forked from a process that has imported everything and run nothing: fresh, and quick to start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__package__])
    ours, theirs = context.Pipe()
    process = context.Process(target=_work, args=(theirs, torch.get_num_threads(), total, job, *arguments))
    process.start()
    theirs.close()
    result: float | str | None = None
    with contextlib.suppress(EOFError):
        result = ours.recv()
        if result is None:  # ready
            before = peak = _tree_memory(process.pid)
            ours.send("go")
            while not ours.poll(_INTERVAL):
                peak = max(peak, _tree_memory(process.pid))
            result = ours.recv()
            if not isinstance(result, str):  # its own peak is exact, that of its children is sampled
                result = max(result, float(peak if total else peak - before))
    process.join()
    if isinstance(result, str):
        raise RuntimeError(f"{job.__name__} failed:\n{result}")
    return result
