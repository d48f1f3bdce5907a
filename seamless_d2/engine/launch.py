"""Start of one or several processes: by torchrun, or by Detectron2's --num-gpus and --num-machines."""

import argparse
import contextlib
import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import detectron2.engine
import torch
import torch.distributed as dist
from detectron2.utils import comm

from ..errors import UserError
from .preemption import on_preemption

TIMEOUT = timedelta(minutes=30)


def launch(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in every process of the training.

    Args:
        main: A function at the top level of a module, so that other processes can import it.
        args: The arguments of ``detectron2.engine.default_argument_parser``; num_gpus, num_machines, machine_rank and
            dist_url are used. On one machine, the default dist_url stands for a free port.

    Returns:
        The result of ``main``, or None if it ran in other processes.

    Raises:
        UserError: There are more processes than GPUs, or a process was killed.
    """
    if "TORCHELASTIC_RUN_ID" in os.environ or {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= set(os.environ):
        return _under_torchrun(main, args)
    if args.num_gpus < 1:
        raise UserError(f"--num-gpus must be at least 1, not {args.num_gpus}; the CPU is MODEL.DEVICE cpu")
    gpus = torch.cuda.device_count()
    if args.num_gpus > 1 and 0 < gpus < args.num_gpus:
        raise UserError(f"--num-gpus {args.num_gpus}, but this machine has {gpus}")
    if args.num_gpus * args.num_machines == 1:
        return main(args)
    # Detectron2's default is one port for all trainings of a user.
    default = detectron2.engine.default_argument_parser().get_default("dist_url")
    dist_url = "auto" if args.num_machines == 1 and args.dist_url == default else args.dist_url
    # A signal to this process alone would leave the others behind.
    with on_preemption(_forward_to_children):
        try:
            detectron2.engine.launch(
                _one_process, args.num_gpus, args.num_machines, args.machine_rank, dist_url, (main, args), TIMEOUT
            )
        except torch.multiprocessing.ProcessExitedException as error:
            if error.exit_code == 1:  # it has printed its error already
                sys.exit(1)
            raise UserError(
                f"process {error.error_index} of the training was ended ({error}); most often memory ran out, see "
                "the log"
            ) from None
    return None


def _one_process(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> None:
    try:
        with _report_lost_processes():
            main(args)
    except UserError as error:
        _wait_for_main_process()
        print(f"error: {error}", file=sys.stderr, flush=True)
        # sys.exit would wait for other processes, which may wait for this one.
        os._exit(1)
    finally:
        if dist.is_initialized():
            dist.destroy_process_group()


@contextlib.contextmanager
def _report_lost_processes() -> Iterator[None]:
    """Turn the errors that follow the end of another process into a ``UserError``.

    Raises:
        UserError: A connection broke during an exchange because another process ended.
    """
    try:
        yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise UserError(
            f"another process of the training ended, see its message ({str(error).splitlines()[0][:120]}); resume "
            "with --resume"
        ) from None


def is_lost_connection(error: RuntimeError) -> bool:
    """Return whether an exchange between processes has failed because another process ended."""
    broken = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")
    return isinstance(error, dist.DistBackendError) or any(words in str(error) for words in broken)


def _wait_for_main_process() -> None:
    """Give the main process the time to report an error and end the others, which mostly have found the same one."""
    if not comm.is_main_process():
        time.sleep(3)


def _forward_to_children(name: str) -> None:
    """Send the signal ``name`` to all child processes."""
    for child in multiprocessing.active_children():
        os.kill(child.pid, signal.Signals[name])


def _under_torchrun(main: Callable[[argparse.Namespace], Any], args: argparse.Namespace) -> Any:
    """Run ``main(args)`` in one of the processes that torchrun has started, as its environment variables say."""
    gpu = torch.cuda.is_available()
    local_rank, local_size = int(os.environ.get("LOCAL_RANK", 0)), int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    if gpu:
        if local_rank >= torch.cuda.device_count():
            raise UserError(f"torchrun started {local_size} processes, but there are {torch.cuda.device_count()} GPUs")
        torch.cuda.set_device(local_rank)
    # After a failure torchrun starts all processes again; they resume from the last checkpoint.
    restarts = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    args.resume = args.resume or restarts > 0
    with on_preemption(None):  # while the processes wait for each other
        store, rank, size = next(dist.rendezvous("env://", timeout=TIMEOUT))
        # torchrun's store outlives a restart: without a prefix gloo would connect to processes that have ended.
        store = dist.PrefixStore(f"start_{restarts}", store)
        dist.init_process_group("nccl" if gpu else "gloo", store=store, rank=rank, world_size=size, timeout=TIMEOUT)
        comm.create_local_process_group(local_size)
        comm.synchronize()
    try:
        with _report_lost_processes():
            return main(args)
    except UserError:
        _wait_for_main_process()
        raise
    finally:
        dist.destroy_process_group()
