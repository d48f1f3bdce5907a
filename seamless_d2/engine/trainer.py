"""Detectron2's ``DefaultTrainer`` with the data, step, evaluators, optimizer and checkpoints of this package."""

import logging
import weakref
from typing import Any

import torch
from detectron2.config import CfgNode
from detectron2.data import build_detection_test_loader
from detectron2.engine import DefaultTrainer, HookBase, hooks
from detectron2.engine.train_loop import TrainerBase
from detectron2.evaluation import DatasetEvaluator, verify_results
from detectron2.utils import comm
from detectron2.utils.events import EventStorage, EventWriter
from fvcore.nn.precise_bn import get_bn_modules

from ..checkpoint import SeamlessCheckpointer, init_from
from ..data.loader import TrainLoader, build_train_loader
from ..data.mapper import SeamlessMapper
from ..errors import UserError
from ..evaluation import build_evaluators
from .hooks import CheckpointHook, EvaluationHook, RestartingPreciseBN, ResumedWriter
from .launch import is_lost_connection
from .plots import plot_metrics
from .prediction_images import draw_predictions
from .preemption import Preempted, on_preemption
from .progress import build_writers
from .random_state import get_random_state, set_random_state
from .records import get_events, remove_leftovers, set_events
from .setup import iterations_per_epoch
from .solver import build_lr_scheduler, build_optimizer
from .step import TrainingStep, wrap_for_processes


class SeamlessTrainer(DefaultTrainer):
    """A trainer for one or several processes on CPUs or GPUs, which can be killed at any time and resumed.

    A resumed training takes the same steps as an uninterrupted one, bit for bit on CPUs. A subclass may override
    Detectron2's ``build_*`` methods.
    """

    def __init__(self, cfg: CfgNode) -> None:
        """
        Args:
            cfg: The checked configuration, see ``setup``.

        Raises:
            UserError: Settings contradict each other.
        """
        # DefaultTrainer's constructor wraps the model in a way that CPUs refuse, and has no factory for the step.
        TrainerBase.__init__(self)
        self.cfg = cfg = self.auto_scale_workers(cfg, comm.get_world_size())
        model = self.build_model(cfg)
        optimizer = self.build_optimizer(cfg, model)
        data_loader = self.build_train_loader(cfg)
        self._trainer = TrainingStep.from_config(cfg, wrap_for_processes(model), data_loader, optimizer)
        self.scheduler = self.build_lr_scheduler(cfg, optimizer)
        self.checkpointer = SeamlessCheckpointer(model, cfg.OUTPUT_DIR, trainer=weakref.proxy(self))
        self.start_iter = 0
        self.max_iter = cfg.SOLVER.MAX_ITER
        #: Whether a signal ends the training after the present step.
        self.stopping = False
        self._signal = ""
        self._evaluating = False
        self.resumed_config: str | None = None
        self._events: dict[str, list[Any]] = {}
        self._last_eval_results: dict[str, Any] = {}
        self.register_hooks(self.build_hooks())

    @classmethod
    def build_train_loader(cls, cfg: CfgNode) -> TrainLoader:
        return build_train_loader(cfg, cfg.SEED if cfg.SEED >= 0 else comm.shared_random_seed())

    @classmethod
    def build_test_loader(cls, cfg: CfgNode, dataset_name: str) -> Any:
        return build_detection_test_loader(cfg, dataset_name, mapper=SeamlessMapper(cfg, False))

    @classmethod
    def build_evaluator(cls, cfg: CfgNode, dataset_name: str) -> DatasetEvaluator:
        return build_evaluators(cfg, dataset_name)

    @classmethod
    def test(cls, cfg: CfgNode, model: torch.nn.Module, evaluators: list[DatasetEvaluator] | None = None) -> dict:
        """Evaluate ``model`` on DATASETS.TEST, see Detectron2's ``DefaultTrainer.test``.

        Raises:
            UserError: A process that loads the images was killed.
        """
        try:
            return super().test(cfg, model, evaluators)
        except (RuntimeError, EOFError, ConnectionError) as error:
            died = not isinstance(error, RuntimeError) or "DataLoader worker" in str(error)
            if not died or str(error).startswith("Caught "):  # so begins what the mapper has raised in a process
                raise
            raise UserError(
                f"a data loader process ended in an evaluation ({error}); most often memory ran out: lower "
                "DATALOADER.NUM_WORKERS"
            ) from None

    @classmethod
    def build_optimizer(cls, cfg: CfgNode, model: torch.nn.Module) -> torch.optim.Optimizer:
        return build_optimizer(cfg, model)

    @classmethod
    def build_lr_scheduler(cls, cfg: CfgNode, optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
        return build_lr_scheduler(cfg, optimizer, iterations_per_epoch(cfg))

    @staticmethod
    def auto_scale_workers(cfg: CfgNode, num_workers: int) -> CfgNode:
        """Scale the configuration by SOLVER.REFERENCE_WORLD_SIZE, as Detectron2, including the keys of this package.

        Args:
            cfg: The configuration, which stays as it is.
            num_workers: The number of processes of the training.

        Raises:
            UserError: SOLVER.IMS_PER_BATCH is no multiple of SOLVER.REFERENCE_WORLD_SIZE.
        """
        reference = cfg.SOLVER.REFERENCE_WORLD_SIZE
        if reference in (0, num_workers):
            return cfg
        if cfg.SOLVER.IMS_PER_BATCH % reference:
            raise UserError(
                f"SOLVER.IMS_PER_BATCH {cfg.SOLVER.IMS_PER_BATCH} is not divisible by SOLVER.REFERENCE_WORLD_SIZE "
                f"{reference}; it is the batch of so many processes together"
            )
        scaled = DefaultTrainer.auto_scale_workers(cfg, num_workers).clone()
        scaled.defrost()
        solver, test = scaled.SOLVER, scaled.TEST
        if solver.SCHEDULE_BY == "epoch":  # epochs stay epochs
            solver.WARMUP_ITERS, solver.STEPS = cfg.SOLVER.WARMUP_ITERS, cfg.SOLVER.STEPS
        else:
            solver.STEP_SIZE = max(round(cfg.SOLVER.STEP_SIZE * reference / num_workers), 1)
        # A period must not vanish by rounding.
        solver.CHECKPOINT_PERIOD = max(solver.CHECKPOINT_PERIOD, 1)
        test.EVAL_PERIOD = max(test.EVAL_PERIOD, int(cfg.TEST.EVAL_PERIOD > 0))
        scaled.freeze()
        return scaled

    def resume_or_load(self, resume: bool = True) -> None:
        """Load the last checkpoint in OUTPUT_DIR if ``resume`` is set and there is one, else the initial weights.

        These are MODEL.INIT_FROM or MODEL.WEIGHTS.

        Raises:
            UserError: No checkpoint can be read, or the processes see different ones.
        """
        found = resume and self.checkpointer.has_checkpoint()
        if not found and self.cfg.MODEL.INIT_FROM:
            init_from(self.checkpointer.model, self.cfg)
        else:
            self.checkpointer.resume_or_load(self.cfg.MODEL.WEIGHTS, resume=resume)
        if found:
            self.start_iter = self.iter + 1
        elif self._trainer.ema is not None:
            self._trainer.ema.restart(self.checkpointer.model)
        starts = comm.all_gather(self.start_iter)
        if len(set(starts)) > 1:
            raise UserError(
                f"the processes would start at different iterations ({starts}); put OUTPUT_DIR "
                f"{self.cfg.OUTPUT_DIR} on a file system that all machines share"
            )

    def build_hooks(self) -> list[HookBase]:
        cfg = self.cfg
        result: list[HookBase] = [hooks.IterationTimer(), hooks.LRScheduler()]
        if cfg.TEST.PRECISE_BN.ENABLED and get_bn_modules(self.model):
            # A second set of worker processes would cost memory for a loader that is rarely used.
            loader_cfg = cfg.clone()
            loader_cfg.defrost()
            loader_cfg.DATALOADER.NUM_WORKERS = 0
            loader = self.build_train_loader(loader_cfg)
            result.append(RestartingPreciseBN(cfg.TEST.EVAL_PERIOD, self.model, loader, cfg.TEST.PRECISE_BN.NUM_ITER))
        solver, period = cfg.SOLVER, cfg.TEST.EVAL_PERIOD
        result.append(CheckpointHook(self.checkpointer, solver.CHECKPOINT_PERIOD, period, solver.CHECKPOINTS_TO_KEEP))
        result.append(EvaluationHook(self.checkpointer, period, self._test))
        return result

    def build_writers(self) -> list[EventWriter]:
        return build_writers(self.cfg, self.first_record)

    @property
    def first_record(self) -> int:
        """The first iteration whose records this run writes.

        A run that is killed between a checkpoint and the records of its step has not written those.
        """
        return self.start_iter - bool(self._events and self.start_iter % self.cfg.SOLVER.LOG_PERIOD == 0)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "config": self.cfg.dump(), "events": get_events(self.storage)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        super().load_state_dict(state_dict)
        #: The settings of the checkpoint, as yaml; of older versions of this program None.
        self.resumed_config = state_dict.get("config")
        self._events = state_dict.get("events", {})

    def _test(self) -> dict[str, Any]:
        """Return the results of the weights and, under "ema", of their moving average."""
        # Evaluation must not change the random numbers of the training, because an evaluation that was finished before
        # an interruption is not repeated.
        random_state = get_random_state()
        self._evaluating = True
        # The report names the checkpoint that was just written, not the weights that the training began with.
        cfg = self.cfg.clone()
        cfg.defrost()
        cfg.MODEL.WEIGHTS = self.checkpointer.get_checkpoint_file()
        try:
            results = self.test(cfg, self.checkpointer.model) or {}
            if self._trainer.ema is not None:
                logging.getLogger(__name__).info("evaluation of the moving average of the weights")
                cfg.MODEL.WEIGHTS = f"moving average in {cfg.MODEL.WEIGHTS}"  # no file has it alone
                results["ema"] = self.test(cfg, self._trainer.ema.model) or {}
            if comm.is_main_process():
                for name, image in draw_predictions(self.cfg, self.checkpointer.model):
                    self.storage.put_image(f"image, ground truth, prediction/{name}", image.transpose(2, 0, 1))
        finally:
            self._evaluating = False
            set_random_state(random_state)
        self._last_eval_results = results
        return results

    def prepare_checkpoint(self) -> None:
        """See ``TrainingStep.prepare_checkpoint``."""
        self._trainer.prepare_checkpoint()

    def _on_signal(self, name: str) -> None:
        self._signal = name
        self._trainer.request_stop()
        if self._evaluating:
            # The evaluation may take longer than the time that is left, and a checkpoint has just been written.
            raise Preempted

    def train(self) -> dict[str, Any]:
        """Train from ``start_iter`` to ``max_iter``.

        SIGTERM and SIGUSR1 end the training after the present step, with a checkpoint.

        Returns:
            The metrics of the last evaluation on rank 0; empty on other ranks and if a signal ended the training.
        """
        logger = logging.getLogger(__name__)
        if comm.is_main_process():
            remove_leftovers(self.cfg.OUTPUT_DIR)
            # The writers need the first iteration. Their hook is the last one, so that it sees what the others report.
            self.register_hooks([ResumedWriter(self.build_writers(), self.cfg.SOLVER.LOG_PERIOD)])
        logger.info(f"Starting training from iteration {self.start_iter}")
        self.iter = self.start_iter
        with EventStorage(self.start_iter) as self.storage, on_preemption(self._on_signal):
            set_events(self.storage, self._events)
            try:
                self.before_train()
                for iteration in range(self.start_iter, self.max_iter):
                    self.iter = iteration
                    self.before_step()
                    self.run_step()
                    self.stopping = self._trainer.stop_agreed
                    self.after_step()
                    if self.stopping:
                        raise Preempted
                finished = True
            except (Preempted, RuntimeError) as error:
                # At the same signal, another process may have left an evaluation before this one.
                if isinstance(error, RuntimeError) and not (self._signal and is_lost_connection(error)):
                    raise
                finished = False
                logger.warning(f"stopped by {self._signal or 'a signal to another process'}; resume with --resume")
                self._last_eval_results = {}
            except UserError as error:
                logger.error(f"iteration {self.iter}: {error}")  # so that log.txt has it, too
                raise
            finally:
                self.data_loader.close()
                self.after_train()
        if finished and comm.is_main_process():
            self._write_final_files()
            if len(self.cfg.TEST.EXPECTED_RESULTS):
                verify_results(self.cfg, self._last_eval_results)
        return self._last_eval_results

    def _write_final_files(self) -> None:
        """Write the weights of the moving average and the curves of the training."""
        if self._trainer.ema is not None:
            SeamlessCheckpointer(self.checkpointer.model, self.cfg.OUTPUT_DIR).save(
                "model_final_ema", model=self._trainer.ema.model.state_dict()
            )
        try:
            plot_metrics(self.cfg.OUTPUT_DIR)
        except UserError as error:
            logging.getLogger(__name__).warning(error)
