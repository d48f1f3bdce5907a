"""One training step: gradient accumulation, mixed precision, moving average, and steps that are not finite."""

import contextlib
import logging
import time
from typing import Any

import torch
import torch.distributed as dist
from detectron2.config import CfgNode
from detectron2.engine import SimpleTrainer
from detectron2.utils import comm
from detectron2.utils.events import get_event_storage
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from ..data.loader import TrainLoader
from ..errors import UserError
from .ema import WeightAverage
from .random_state import get_random_state, set_random_state

#: The types of SOLVER.AMP.DTYPE.
PRECISIONS = {"bf16": torch.bfloat16, "fp16": torch.float16}
# A lower scale than this means that lowering it does not help: the gradient itself is not finite.
_MIN_SCALE = 2.0**-14


def wrap_for_processes(model: nn.Module) -> nn.Module:
    """Wrap ``model`` in ``DistributedDataParallel`` if there are several processes, on GPUs (nccl) or CPUs (gloo).

    Raises:
        UserError: The model is on the CPU, but the processes communicate through GPUs.
    """
    if comm.get_world_size() == 1:
        return model
    device = next(model.parameters()).device
    if device.type == "cpu" and dist.get_backend() == "nccl":
        raise UserError('several processes on CPUs need CUDA_VISIBLE_DEVICES="" in the environment beside MODEL.DEVICE')
    # DistributedDataParallel accepts no device ids on CPUs.
    device_ids = None if device.type == "cpu" else [torch.cuda.current_device()]
    return DistributedDataParallel(model, device_ids=device_ids, broadcast_buffers=False)


class TrainingStep(SimpleTrainer):
    """Detectron2's ``SimpleTrainer`` whose step may have several forward passes, in a selectable precision.

    A loss or gradient that is not finite in one process makes all processes skip the step or stop.
    """

    def __init__(
        self,
        model: nn.Module,
        data_loader: TrainLoader,
        optimizer: torch.optim.Optimizer,
        *,
        accumulate_steps: int = 1,
        precision: torch.dtype | None = None,
        ema_decay: float | None = None,
        on_nonfinite: str = "stop",
        max_skipped: int = 10,
    ) -> None:
        """
        Args:
            model: The model; in training it returns a dict of losses.
            data_loader: The loader, which returns one micro-batch at a time.
            optimizer: The optimizer, which clips gradients itself if they are to be clipped.
            accumulate_steps: The number of micro-batches per step; the step follows the mean of their losses.
            precision: The type of autocast; float16 scales the loss. Default: no autocast.
            ema_decay: The decay of the moving average, see ``WeightAverage``. Default: no moving average.
            on_nonfinite: What happens if a loss or gradient is not finite: "stop", or "skip" the step.
            max_skipped: The number of skipped steps above which "skip" stops, too.
        """
        super().__init__(model, data_loader, optimizer)
        self.bare_model = model.module if isinstance(model, DistributedDataParallel) else model
        self.device = next(self.bare_model.parameters()).device
        self.accumulate_steps = accumulate_steps
        self.precision = precision
        # Gradients in float16 underflow without a scale; bfloat16 has the range of float32.
        self.grad_scaler = torch.amp.GradScaler(self.device.type) if precision == torch.float16 else None
        self.ema = None if ema_decay is None else WeightAverage(self.bare_model, ema_decay)
        self.on_nonfinite = on_nonfinite
        self.max_skipped = max_skipped
        self.skipped = 0
        self._stop_requested = False
        #: Whether the processes have agreed, at the end of the last step, that the training stops.
        self.stop_agreed = False
        self._rank_states: list[dict[str, Any]] | None = None

    @classmethod
    def from_config(
        cls, cfg: CfgNode, model: nn.Module, data_loader: TrainLoader, optimizer: torch.optim.Optimizer
    ) -> "TrainingStep":
        """Make the step that the SOLVER keys of a configuration describe."""
        solver = cfg.SOLVER
        return cls(
            model,
            data_loader,
            optimizer,
            accumulate_steps=solver.ACCUMULATE_STEPS,
            precision=PRECISIONS[solver.AMP.DTYPE] if solver.AMP.ENABLED else None,
            ema_decay=solver.EMA.DECAY if solver.EMA.ENABLED else None,
            on_nonfinite=solver.ON_NONFINITE,
            max_skipped=solver.MAX_SKIPPED_STEPS,
        )

    def request_stop(self) -> None:
        """Ask for the end of the training; the processes agree on it in the next step. Safe in a signal handler."""
        self._stop_requested = True

    def run_step(self) -> None:
        """Take one step and record its losses.

        Raises:
            UserError: A loss or gradient is not finite, and ``on_nonfinite`` is "stop" or too many steps were skipped;
                or the data cannot be read.
        """
        # A skipped step must not change the running statistics either.
        buffers = [b.clone() for b in self.bare_model.buffers()] if self.on_nonfinite == "skip" else None
        self.optimizer.zero_grad()
        data_time, files, losses = 0.0, [], []
        for number in range(self.accumulate_steps):
            start = time.perf_counter()
            data = next(self._data_loader_iter)
            data_time += time.perf_counter() - start
            files.append([str(entry.get("file_name", "?")) for entry in data])
            losses.append(self._backward(data, last=number == self.accumulate_steps - 1))
        self.after_backward()
        names = list(losses[0])
        values = torch.stack([torch.stack([loss[name] for name in names]) for loss in losses]).double().cpu()
        problem = self._find_problem(names, values, files)
        means, some_problem, self.stop_agreed = self._reduce(values.mean(dim=0), problem is not None)
        if some_problem:
            self._skip(problem, buffers)
        else:
            self._update_weights()
            if comm.is_main_process():
                losses = dict(zip(names, means.tolist(), strict=True))
                images = sum(len(f) for f in files) * comm.get_world_size()
                get_event_storage().put_scalars(
                    **losses, total_loss=sum(losses.values()), data_time=data_time, images=images
                )

    def _backward(self, data: list[dict], last: bool) -> dict[str, Tensor]:
        """Run the forward and backward pass of one micro-batch; the last one exchanges gradients between processes.

        Returns:
            The float32 losses by name.
        """
        wait = isinstance(self.model, DistributedDataParallel) and not last
        with self.model.no_sync() if wait else contextlib.nullcontext():
            with torch.autocast(self.device.type, self.precision, enabled=self.precision is not None):
                losses = self.model(data)
            total = sum(losses.values()) / self.accumulate_steps
            (total if self.grad_scaler is None else self.grad_scaler.scale(total)).backward()
        return {name: loss.detach().float() for name, loss in losses.items()}

    def _find_problem(self, names: list[str], values: Tensor, files: list[list[str]]) -> str | None:
        """Return what is not finite in this process: the first loss, else the gradient of a parameter, with its images.

        Args:
            names: The n names of the losses.
            values: (accumulate_steps, n) losses.
            files: The file names of the images of each micro-batch.

        Returns:
            The beginning of a sentence, or None if everything is finite.
        """
        bad = (~torch.isfinite(values)).nonzero()
        if len(bad):
            batch = int(bad[0, 0])
            names = ", ".join(dict.fromkeys(names[i] for b, i in bad.tolist() if b == batch))
            return f"{names} not finite, images {', '.join(files[batch])}"
        everything = ", ".join(file for batch in files for file in batch)
        if self.grad_scaler is not None:
            # The scaler skips such steps itself and lowers the scale, until that does not help any more.
            if self.grad_scaler.get_scale() >= _MIN_SCALE:
                return None
            return f"gradients not finite whatever the scale, images {everything}"
        gradients = {n: p.grad for n, p in self.bare_model.named_parameters() if p.grad is not None}
        norms = torch.stack(torch._foreach_norm(list(gradients.values()))) if gradients else torch.zeros(1)
        if bool(torch.isfinite(norms).all()):
            return None
        name = list(gradients)[int((~torch.isfinite(norms)).nonzero()[0, 0])]
        return f"gradient of {name} not finite, images {everything}"

    def _reduce(self, losses: Tensor, problem: bool) -> tuple[Tensor, bool, bool]:
        """Combine what all processes report.

        Args:
            losses: (n,) losses of this process.
            problem: Whether something is not finite in this process.

        Returns:
            The mean losses, whether any process has a problem, and whether any process shall stop.
        """
        flags = torch.tensor([problem, self._stop_requested], dtype=torch.float64)
        if comm.get_world_size() == 1:
            return losses, problem, self._stop_requested
        message = torch.cat([losses, flags]).to(self.device)
        messages = [torch.zeros_like(message) for _ in range(comm.get_world_size())]
        dist.all_gather(messages, message)
        messages = torch.stack(messages).cpu()
        return messages[:, :-2].mean(dim=0), bool(messages[:, -2].any()), bool(messages[:, -1].any())

    def _skip(self, problem: str | None, buffers: list[Tensor] | None) -> None:
        """Leave out the step, or raise ``UserError`` as ``on_nonfinite`` says; see ``_find_problem``."""
        problems = [(rank, text) for rank, text in enumerate(comm.all_gather(problem)) if text is not None]
        # A loss that is not finite spoils the gradients of all processes: report only the process that has it.
        problems = [entry for entry in problems if "gradient" not in entry[1]] or problems[:1]
        where = "process {}: " if comm.get_world_size() > 1 else ""
        what = "; ".join(where.format(rank) + text for rank, text in problems)
        self.optimizer.zero_grad()
        self.skipped += 1
        if self.on_nonfinite == "stop":
            raise UserError(
                f"iteration {self.iter}: {what}; lower SOLVER.BASE_LR, look at the images, or set SOLVER.ON_NONFINITE "
                "to skip"
            )
        with torch.no_grad():
            for buffer, before in zip(self.bare_model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        if self.skipped > self.max_skipped:
            raise UserError(
                f"iteration {self.iter}: {what}; this would be skipped step {self.skipped}, more than "
                f"SOLVER.MAX_SKIPPED_STEPS {self.max_skipped}; lower SOLVER.BASE_LR"
            )
        logging.getLogger(__name__).warning(
            f"iteration {self.iter}: {what}; step skipped ({self.skipped} of at most {self.max_skipped})"
        )

    def _update_weights(self) -> None:
        if self.grad_scaler is None:
            self.optimizer.step()
        else:
            # Fused optimizers divide by the scale themselves, but only after gradients were clipped.
            self.grad_scaler.unscale_(self.optimizer)
            self.grad_scaler.step(self.optimizer)
            self.grad_scaler.update()
        if self.ema is not None:
            self.ema.update(self.bare_model)

    def prepare_checkpoint(self) -> None:
        """Agree on what a checkpoint holds; all processes call this before an evaluation and before a checkpoint.

        The running statistics of the main process, which writes it, become those of all, and their random states are
        collected.
        """
        self._rank_states = comm.gather(get_random_state())
        if comm.get_world_size() > 1:
            for model in (self.bare_model, *([] if self.ema is None else [self.ema.model])):
                for buffer in model.buffers():
                    dist.broadcast(buffer, src=0)

    def state_dict(self) -> dict[str, Any]:
        """Return everything, except the weights, that the next steps depend on."""
        state = super().state_dict()
        state.update(data=self.data_loader.state_dict(), skipped=self.skipped, random=self._rank_states or [])
        if self.grad_scaler is not None:
            state["grad_scaler"] = self.grad_scaler.state_dict()
        if self.ema is not None:
            state["ema"] = self.ema.state_dict()
        return state

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` has returned.

        A checkpoint may lack some of the states if it was written by Detectron2, with another config or by another
        number of processes. The others are restored, and the log says what is missing.

        Raises:
            UserError: The groups of parameters of the optimizer differ.
        """
        logger = logging.getLogger(__name__)
        try:
            super().load_state_dict(state)
        except ValueError as error:
            raise UserError(
                f"the checkpoint's optimizer does not fit this config ({error}); resume with the config it was trained "
                "with, or start a new training in another OUTPUT_DIR with MODEL.WEIGHTS"
            ) from None
        self.skipped = state.get("skipped", 0)
        if "data" in state:
            self.data_loader.load_state_dict(state["data"])
        if len(state.get("random", [])) == comm.get_world_size():
            set_random_state(state["random"][comm.get_rank()])
        else:
            logger.warning(
                "the checkpoint has no random states for this number of processes; images come in another order"
            )
        if self.grad_scaler is not None and "grad_scaler" in state:
            self.grad_scaler.load_state_dict(state["grad_scaler"])
        if self.ema is not None and "ema" in state:
            self.ema.load_state_dict(state["ema"])
        elif self.ema is not None:
            logger.warning("the checkpoint has no moving average: it starts from the weights")
            self.ema.restart(self.bare_model)
