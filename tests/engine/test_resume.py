"""Killed anywhere and resumed, a training ends with the weights of one that was left in peace, bit for bit."""

import json
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from detectron2.utils.events import EventStorage

from seamless_d2.checkpoint import SeamlessCheckpointer
from seamless_d2.checkpoint import checkpointer as checkpointer_module
from seamless_d2.engine import SeamlessTrainer, run
from seamless_d2.engine import step as step_module
from seamless_d2.engine.plots import plot_metrics
from seamless_d2.engine.records import ResumedJSONWriter, remove_leftovers
from seamless_d2.errors import UserError

from ..helpers.processes import run_forked

pytestmark = pytest.mark.slow

OPTS = """
SOLVER.MAX_ITER 7 SOLVER.CHECKPOINT_PERIOD 2 TEST.EVAL_PERIOD 4 SEED 11 SOLVER.EMA.ENABLED True
TEST.NUM_VISUALIZED_IMAGES 0
SOLVER.IMS_PER_BATCH 4 SOLVER.ACCUMULATE_STEPS 2 INPUT.MIN_SIZE_TRAIN (48,64) SOLVER.LOG_PERIOD 2
""".split()


@pytest.fixture
def start(arguments) -> Callable[..., int]:
    """Starts the training in a child process, where ``before`` may prepare its end; the exit code."""

    def start(folder: Path, *opts: str, before: Callable[[], None] = lambda: None) -> int:
        def child() -> None:
            before()
            # Each test has its own data set, and trainings of others go on with it.
            flags = ("--resume", "--allow-config-change")
            run(arguments(*OPTS, "OUTPUT_DIR", str(folder), *opts, flags=flags))

        return run_forked(child)[0]

    return start


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def at(
    owner: object, name: str, count: int, react: Callable[[], None] = die, after: bool = False
) -> Callable[[], None]:
    """For a child process: at call ``count`` of ``owner.name`` do ``react`` before (or after) it."""

    def prepare() -> None:
        original, calls = getattr(owner, name), 0

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == count and not after:
                react()
            result = original(*args, **kwargs)
            if calls == count and after:
                react()
            return result

        setattr(owner, name, counted)

    return prepare


def in_the_middle_of_checkpoint(count: int, react: Callable[[], None] = die) -> Callable[[], None]:
    def prepare() -> None:
        original, calls = torch.save, 0

        def half(data, stream) -> None:
            nonlocal calls
            calls += 1
            if calls == count:
                stream.write(b"PK\x03\x04" + bytes(100_000))
                stream.flush()
                react()
            original(data, stream)

        checkpointer_module.torch.save = half

    return prepare


# One after the other in the same folder; counts are those of calls since the last start. Checkpoints are due after
# steps 2, 4, 6 and 7, evaluations after 4 and 7.
KILLS = {
    "before the first checkpoint": at(SeamlessTrainer, "run_step", 2),
    "in the middle of the second checkpoint": in_the_middle_of_checkpoint(2),
    "between a checkpoint and its tag": at(SeamlessCheckpointer, "tag_last_checkpoint", 1),
    "in an evaluation": at(SeamlessTrainer, "_test", 1),
    "between best weights and history": at(SeamlessCheckpointer, "save", 1, after=True),
    "between two forward passes": at(step_module.TrainingStep, "_backward", 4),
    "after the optimizer's step": at(step_module.TrainingStep, "_update_weights", 2, after=True),
    "in the middle of the last checkpoint": in_the_middle_of_checkpoint(2),
    "in the last evaluation": at(SeamlessTrainer, "_test", 1),
    "between the last evaluation and its line in metrics.json": at(ResumedJSONWriter, "write", 1),
}


# Scalars that no two trainings share.
MEASURED = {"time", "data_time", "rank_data_time", "images_per_second", "eta_seconds", "memory_gb"}


def final(folder: Path) -> dict:
    """The last checkpoint, without what differs between two trainings of the same steps."""
    content = torch.load(folder / "model_final.pth", weights_only=True)
    del content["trainer"]["config"]
    for name in MEASURED & content["trainer"]["events"].keys():
        del content["trainer"]["events"][name]
    return content


def read_metrics(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.json").read_text().splitlines()]
    return [{k: v for k, v in line.items() if k not in MEASURED} for line in lines]


def assert_same(a: object, b: object, where: str = "") -> None:
    """Equal to the last bit, however nested."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            assert_same(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for k, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}/{k}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b or (a != a and b != b), where


@pytest.fixture(scope="module")
def calm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For the training that is left in peace; the first test that needs it runs it."""
    return tmp_path_factory.mktemp("calm")


@pytest.fixture
def calm(calm_folder: Path, start) -> dict:
    """Its last checkpoint."""
    if not (calm_folder / "model_final.pth").exists():
        assert start(calm_folder) == 0
    return final(calm_folder)


def test_killed_anywhere(tmp_path: Path, start, calm: dict, calm_folder: Path) -> None:
    folder = tmp_path / "out"
    for number, (name, kill) in enumerate(KILLS.items()):
        workers = str(number % 2)  # it does not matter
        assert start(folder, "DATALOADER.NUM_WORKERS", workers, before=kill) == -signal.SIGKILL, name
    assert start(folder) == 0
    # Not only weights: optimiser, schedule, random states, position, moving average.
    assert_same(final(folder), calm)
    assert (folder / "evaluations.json").read_text() == (calm_folder / "evaluations.json").read_text()
    assert not list(folder.glob(".*.tmp"))  # half a checkpoint is cleared away
    assert_same(read_metrics(folder), read_metrics(calm_folder))


def test_another_seed_gives_other_weights(tmp_path: Path, start, calm: dict) -> None:
    # So that the comparisons of this file can fail.
    assert start(tmp_path / "out", "SEED", "12", "SOLVER.MAX_ITER", "1", "TEST.EVAL_PERIOD", "0") == 0
    with pytest.raises(AssertionError):
        assert_same(final(tmp_path / "out")["model"], calm["model"])


def test_preemption_writes_a_checkpoint_and_ends_cleanly(tmp_path: Path, start, calm: dict) -> None:
    def send(name: str) -> Callable[[], None]:
        return lambda: os.kill(os.getpid(), signal.Signals[name])

    # In the third step, after which no checkpoint is due.
    assert start(tmp_path / "out", before=at(SeamlessTrainer, "run_step", 3, send("SIGUSR1"))) == 0
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000002.pth"
    assert "stopped by SIGUSR1" in (tmp_path / "out" / "log.txt").read_text()
    # In the evaluation after the fourth step, which is left at once and done again.
    assert start(tmp_path / "out", before=at(SeamlessTrainer, "test", 1, send("SIGTERM"))) == 0
    assert (tmp_path / "out" / "last_checkpoint").read_text() == "model_0000003.pth"
    assert not list((tmp_path / "out").glob("evaluations.json")) + list((tmp_path / "out").glob("model_[bf]*.pth"))
    assert start(tmp_path / "out") == 0
    assert_same(final(tmp_path / "out"), calm)
    assert list(json.loads((tmp_path / "out" / "evaluations.json").read_text())) == ["4", "7"]


@pytest.fixture
def unfinished(tmp_path: Path, calm: dict, calm_folder: Path) -> Path:
    """The folder of the same training, killed after its sixth step."""
    folder = tmp_path / "out"
    shutil.copytree(calm_folder, folder)
    for file in folder.glob("model_final*.pth"):
        file.unlink()
    (folder / "last_checkpoint").write_text("model_0000005.pth")
    return folder


def test_a_damaged_checkpoint_is_passed_over(unfinished: Path, start, arguments, calm: dict) -> None:
    numbered = sorted(unfinished.glob("model_0*.pth"))
    assert [f.name for f in numbered] == ["model_0000001.pth", "model_0000003.pth", "model_0000005.pth"]
    os.truncate(numbered[-1], numbered[-1].stat().st_size // 2)
    content = bytearray(numbered[-2].read_bytes())
    content[len(content) // 2] ^= 1  # one bit
    numbered[-2].write_bytes(content)
    assert start(unfinished) == 0
    log = (unfinished / "log.txt").read_text()
    for file, earlier in ((numbered[2], numbered[1]), (numbered[1], numbered[0])):
        assert f"checkpoint {file} cannot be read" in log and f"Resuming from an earlier one: {earlier}" in log
    assert "wrong checksum" in log
    assert_same(final(unfinished), calm)
    for file in unfinished.glob("model_*.pth"):
        file.write_bytes(b"")
    with pytest.raises(UserError, match=r"model_0000001.pth cannot be read .* damaged"):
        run(arguments(*OPTS, "OUTPUT_DIR", str(unfinished), flags=("--resume",)))


def test_a_full_disk_is_told_and_loses_nothing(unfinished: Path, start) -> None:
    def fill_disk() -> None:
        # The limit on a file's size acts as a full disk does: a write fails in the middle.
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (400_000, resource.RLIM_INFINITY))

    before = (unfinished / "model_0000005.pth").read_bytes()
    assert start(unfinished, before=at(SeamlessCheckpointer, "save", 1, fill_disk)) == 1
    log = (unfinished / "log.txt").read_text()
    assert f"checkpoint {unfinished / 'model_final.pth'} cannot be written (File too large); the earlier ones" in log
    assert (unfinished / "last_checkpoint").read_text() == "model_0000005.pth"
    assert (unfinished / "model_0000005.pth").read_bytes() == before
    assert not (unfinished / "model_final.pth").exists() and not list(unfinished.glob(".*.tmp"))


def test_old_checkpoints_go_and_a_longer_schedule_goes_on(unfinished: Path, start, monkeypatch) -> None:
    monkeypatch.setattr("seamless_d2.engine.trainer.plot_metrics", plot_metrics)
    opts = ("SOLVER.CHECKPOINTS_TO_KEEP", "2", "SOLVER.MAX_ITER", "9")
    assert start(unfinished, *opts) == 0
    names = sorted(f.name for f in unfinished.glob("*.pth"))
    expected = ["model_0000005.pth", "model_0000007.pth", "model_best.pth", "model_final.pth", "model_final_ema.pth"]
    assert names == expected
    assert final(unfinished)["iteration"] == 8
    ema = torch.load(unfinished / "model_final_ema.pth", weights_only=True)["model"]
    assert_same(ema, final(unfinished)["trainer"]["_trainer"]["ema"]["weights"])
    assert (unfinished / "curves.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        (("MODEL.FPN.OUT_CHANNELS", "8"), "model_0000005.pth: .*does not fit this model"),
        (("SOLVER.NORM_LR_FACTOR", "0.5", "SOLVER.WEIGHT_DECAY_BIAS", "0.5"), "optimizer does not fit this config"),
    ],
)
def test_a_checkpoint_of_another_config(unfinished: Path, arguments, opts: tuple[str, ...], words: str) -> None:
    with pytest.raises(UserError, match=words):
        run(arguments(*OPTS, "OUTPUT_DIR", str(unfinished), *opts, flags=("--resume",)))


def test_records_of_a_killed_run_are_mended(tmp_path: Path) -> None:
    file = tmp_path / "metrics.json"
    ResumedJSONWriter(file, 3).close()
    assert file.read_text() == ""
    file.write_text(
        '{"iteration": 1, "x": 2.0}\n{"iteration": 3, "x": 1.0}\nnonsense\n{"iteration": 2, "x": 3.0}\n{"ite'
    )
    writer = ResumedJSONWriter(file, 3)
    assert [json.loads(line)["iteration"] for line in file.read_text().splitlines()] == [1, 2]
    with EventStorage(3) as storage:
        storage.put_scalar("x", 4.0, cur_iter=2)  # is there already
        storage.put_scalar("y", 5.0)
        writer.write()
    writer.close()
    assert json.loads(file.read_text().splitlines()[-1]) == {"iteration": 3, "y": 5.0}
    (tmp_path / ".model_final.pth.abc.tmp").touch()
    remove_leftovers(tmp_path)
    assert [f.name for f in tmp_path.iterdir()] == ["metrics.json"]
