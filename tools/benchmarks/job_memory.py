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
_STATUS = Path("/proc/self/status")


def _status(key: str) -> int:
    """Bytes of a line such as "VmHWM: 1234 kB"."""
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(f"{key}:"))
    return 1024 * int(line.split()[1])


def _work(connection: Connection, threads: int, total: bool, job: Job, *arguments: object) -> None:
    """The measured process."""
    torch.set_num_threads(threads)
    try:
        function = job("cpu", *arguments)
        with contextlib.suppress(OSError):  # then the peak of the preparation counts too
            Path("/proc/self/clear_refs").write_text("5")
        before = 0 if total else _status("VmRSS")
        function()
        connection.send(float(max(_status("VmHWM") - before, 1)))
    except Exception:
        connection.send(traceback.format_exc())


def peak_memory(job: Job, device: str, *arguments: object, total: bool = False) -> float | None:
    """The most memory that a piece of work needs at a time.

    Args:
        job: a function of a module; ``job(device, *arguments)`` prepares the work and returns it.
        device: "cpu" or "cuda".
        arguments: of the job; plain values.
        total: count everything that the process (on a GPU: the job) holds, not only what the work adds.

    Returns:
        Bytes, at least 1; None where the system does not tell (no /proc), or ended the process for lack of memory.

    Raises:
        RuntimeError: the job failed; holds its traceback.
    """
    if device.startswith("cuda"):
        outside = torch.cuda.memory_allocated()
        function = job(device, *arguments)
        before = outside if total else torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        function()
        torch.cuda.synchronize()
        return float(max(torch.cuda.max_memory_allocated() - before, 1))
    if not _STATUS.is_file():
        return None
    # Forked from a process that has imported everything and run nothing: fresh, and quick to start.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__package__])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_work, args=(sender, torch.get_num_threads(), total, job, *arguments))
    process.start()
    sender.close()
    try:
        result = receiver.recv()
    except EOFError:
        result = None
    process.join()
    if isinstance(result, str):
        raise RuntimeError(f"{job.__name__} failed:\n{result}")
    return result
