"""Hooks for checkpoints and evaluations of a training that may be killed at any time."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from detectron2.engine import HookBase, hooks
from detectron2.evaluation.testing import flatten_results_dict
from detectron2.utils import comm

from ..checkpoint import SeamlessCheckpointer
from ..io import write_json
from .records import EVALUATIONS, read_evaluations

BEST_METRIC = "panoptic_seg/PQ"


class CheckpointHook(HookBase):
    """Writes the checkpoints model_<iteration> and, at the end, model_final.

    A checkpoint is written every ``period`` steps, before each evaluation and if a signal stops the training. The hook
    runs in all processes: they agree on what is saved, and the main process writes.
    """

    def __init__(self, checkpointer: SeamlessCheckpointer, period: int, eval_period: int, keep: int) -> None:
        """
        Args:
            checkpointer: Writes the checkpoints.
            period: The number of steps between two checkpoints.
            eval_period: The number of steps between two evaluations; 0 for none before the end.
            keep: The number of numbered checkpoints to keep; 0 keeps all.
        """
        self.checkpointer = checkpointer
        self.period = period
        self.eval_period = eval_period
        self.keep = keep

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        last = done >= self.trainer.max_iter
        due = any(period > 0 and done % period == 0 for period in (self.period, self.eval_period))
        if last or due or self.trainer.stopping:
            self.trainer.prepare_checkpoint()
            if comm.is_main_process():
                name = "model_final" if last else f"model_{self.trainer.iter:07d}"
                self.checkpointer.save(name, iteration=self.trainer.iter)
                self.checkpointer.remove_old(self.keep)


class EvaluationHook(HookBase):
    """Evaluates every ``period`` steps and at the end, and writes model_best and the history of all evaluations.

    The history, OUTPUT_DIR/evaluations.json, is {number of steps: flat results}; checkpoints have it too. If the
    process is killed during an evaluation, the evaluation is repeated when the training resumes.
    """

    def __init__(
        self, checkpointer: SeamlessCheckpointer, period: int, evaluate: Callable[[], dict[str, Any] | None]
    ) -> None:
        """
        Args:
            checkpointer: Writes model_best.
            period: The number of steps between two evaluations; 0 evaluates only at the end.
            evaluate: Returns the nested results in the main process.
        """
        self.checkpointer = checkpointer
        self.period = period
        self.evaluate = evaluate
        self.history: dict[int, dict[str, float]] = {}

    @property
    def _file(self) -> Path:
        return Path(self.checkpointer.save_dir) / EVALUATIONS

    def before_train(self) -> None:
        start, end = self.trainer.start_iter, self.trainer.max_iter
        if comm.is_main_process():
            # A checkpoint is written before the evaluation of its weights, so that only the file has that one.
            self.history |= {k: v for k, v in read_evaluations(self._file).items() if k <= start}
            # For a line of metrics.json that a killed run has not written.
            self._record(start, self.history.get(start, {}))
        known = start in comm.all_gather(list(self.history))[0]
        if start >= end or (0 < start and self.period > 0 and start % self.period == 0 and not known):
            logging.getLogger(__name__).info(f"evaluation after {start} steps, which an earlier run has taken")
            self._evaluate(start)

    def after_step(self) -> None:
        done = self.trainer.iter + 1
        due = done >= self.trainer.max_iter or (self.period > 0 and done % self.period == 0)
        if due and not self.trainer.stopping:
            self._evaluate(done)

    def state_dict(self) -> dict[int, dict[str, float]]:
        return self.history

    def load_state_dict(self, state: dict[int, dict[str, float]]) -> None:
        self.history = dict(state)

    def _record(self, done: int, flat: dict[str, float]) -> None:
        self.trainer.storage.put_scalars(**flat, smoothing_hint=False, cur_iter=max(done - 1, 0))

    def _evaluate(self, done: int) -> None:
        results = self.evaluate()
        if comm.is_main_process() and results:
            flat = {k: float(v) for k, v in flatten_results_dict(results).items()}
            self._record(done, flat)
            earlier = [h[BEST_METRIC] for k, h in self.history.items() if k < done and BEST_METRIC in h]
            best = flat.get(BEST_METRIC, float("nan"))
            # A comparison with NaN is false: undefined results are never the best.
            if best > max([x for x in earlier if x == x], default=float("-inf")):
                self.checkpointer.save("model_best", iteration=done - 1)
                logging.getLogger(__name__).info(f"best {BEST_METRIC} so far: {best:.3f}, in model_best.pth")
            self.history[done] = flat
            # This comes last, so that the evaluation is repeated if the process is killed before.
            write_json(self._file, self.history)
        comm.synchronize()


class ResumedWriter(hooks.PeriodicWriter):
    """Detectron2's ``PeriodicWriter`` that begins with the records of the step before a resume, if they are due."""

    def before_train(self) -> None:
        if self.trainer.first_record < self.trainer.start_iter:
            for writer in self._writers:
                writer.write()


class RestartingPreciseBN(hooks.PreciseBN):
    """Detectron2's ``PreciseBN`` that always uses the first batches of its loader, so that it can be repeated."""

    def update_stats(self) -> None:
        self._data_loader.load_state_dict({**self._data_loader.state_dict(), "images": 0})
        self._data_iter = None
        super().update_stats()
        self._data_loader.close()
