"""The training loader: the same batches from any position, with any number of workers, whatever dies."""

import itertools
import os
import random
import signal
from pathlib import Path

import numpy as np
import pytest
import torch
from detectron2.data.common import AspectRatioGroupedDataset
from detectron2.data.samplers import TrainingSampler

from seamless_d2 import get_config
from seamless_d2.data.loader import BatchPlan, TrainLoader, micro_batch_size
from seamless_d2.errors import UserError

WIDE = [True, False, True, True, True, False, True, False, True, True, False, True, True]
RECORDS = [
    {"file_name": f"image{k}", "width": 6 if wide else 4, "height": 5, "number": k} for k, wide in enumerate(WIDE)
]


def draw(record: dict) -> dict:
    """A mapper that draws random numbers as augmentations do."""
    return {**record, "numpy": np.random.rand(), "python": random.random()}


def make(mapper=draw, **settings) -> TrainLoader:
    settings = {"batch_size": 2, "seed": 3, "grouping": True, **settings}
    return TrainLoader(RECORDS, mapper, lambda seed: TrainingSampler(len(RECORDS), seed=seed), **settings)


def take(loader: TrainLoader, count: int) -> list[list[tuple]]:
    keys = ("number", "numpy", "python", "seed")
    return [[tuple(x[k] for k in keys) for x in batch] for batch in itertools.islice(loader, count)]


@pytest.mark.parametrize("workers", [0, 2])
def test_goes_on_from_any_position(workers: int) -> None:
    torch_state = torch.get_rng_state()
    expected = take(make(), 20)
    assert len({x[1] for batch in expected for x in batch}) == 40  # no two samples alike
    for start in (0, 1, 7):
        before = make(num_workers=workers)
        assert take(before, start) == expected[:start]
        after = make(num_workers=2 - workers, seed=99)
        after.load_state_dict(before.state_dict())
        assert take(after, 20 - start) == expected[start:]
        before.close(), after.close()
    assert torch.equal(torch_state, torch.get_rng_state())


def test_position_counts_images() -> None:
    loader = make(batch_size=4, grouping=False)
    take(loader, 3)
    other = make(batch_size=2, grouping=False)
    other.load_state_dict(loader.state_dict())
    assert take(other, 2) == [b[i : i + 2] for b in take(loader, 1) for i in (0, 2)]


def test_groups_as_detectron2_does() -> None:
    plan = BatchPlan(TrainingSampler(len(RECORDS), seed=3), 3, WIDE)
    ours = [[RECORDS[index]["number"] for _, index in batch] for batch in itertools.islice(plan, 30)]
    stream = (RECORDS[index] for index in TrainingSampler(len(RECORDS), seed=3))
    theirs = itertools.islice(AspectRatioGroupedDataset(stream, 3), 30)
    assert ours == [[record["number"] for record in batch] for batch in theirs]
    assert all(len({WIDE[number] for number in batch}) == 1 for batch in ours)


def test_samples_of_all_processes_are_numbered_together() -> None:
    single = itertools.islice(BatchPlan(TrainingSampler(13, seed=3), 1), 26)
    sampler = TrainingSampler(13, seed=3)
    sampler._rank, sampler._world_size = 1, 2
    second = itertools.islice(BatchPlan(sampler, 1, rank=1, world_size=2), 13)
    assert list(second) == list(single)[1::2]


def vanish(record: dict) -> dict:
    if record["number"] in (4, 5):
        raise UserError(f"image {record['file_name']} does not exist")
    if record["number"] == 8:
        raise PermissionError(13, "Permission denied")
    return draw(record)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_vanished_file_stops_or_is_replaced(workers: int, caplog: pytest.LogCaptureFixture) -> None:
    with pytest.raises(UserError, match=r"^image image\d"):
        take(make(vanish, num_workers=workers), 13)
    loader = make(vanish, num_workers=workers, on_fault="skip", grouping=False, batch_size=1)
    found, expected = take(loader, 13), take(make(grouping=False, batch_size=1), 13)
    for ((theirs, *drawn),), ((number, *others),) in zip(found, expected, strict=True):
        assert theirs == {4: 6, 5: 6, 8: 9}.get(number, number) and drawn == others
    assert loader.faults == loader.state_dict()["faults"] == 4  # image 5 stood in for image 4, in vain
    assert "image image8: [Errno 13] Permission denied" in caplog.text and "image6 takes its place" in caplog.text
    with pytest.raises(UserError, match="fault 3 of the data, more than DATALOADER.MAX_FAULTS"):
        take(make(vanish, num_workers=workers, on_fault="skip", max_faults=2), 13)
    loader.close()


def test_other_errors_name_the_image() -> None:
    def fail(record: dict) -> dict:
        raise ZeroDivisionError("bug")

    with pytest.raises(ZeroDivisionError) as caught:
        next(make(fail, on_fault="skip"))
    assert "while image image" in caught.value.__notes__[0]


class Dying:
    """Kills its process at image 4, the first time."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __call__(self, record: dict) -> dict:
        if record["number"] == 4 and not self.file.exists():
            self.file.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return draw(record)


def test_a_worker_that_dies_is_replaced(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    expected = take(make(), 13)
    loader = make(Dying(tmp_path / "died"), num_workers=1, on_fault="skip")
    assert take(loader, 13) == expected  # nothing is lost
    assert loader.faults == 1
    (message,) = (r.getMessage() for r in caplog.records if r.levelname == "WARNING")
    assert (
        "data loader process was killed by SIGKILL" in message
        and "image4" in message
        and "DATALOADER.NUM_WORKERS" in message
    )
    with pytest.raises(UserError, match="boom"):
        make()._count_fault("boom", "")  # policy "stop"
    loader.close()


@pytest.mark.parametrize(("images", "steps", "size"), [(8, 1, 8), (8, 4, 2), (6, 4, None), (4, 0, None)])
def test_micro_batches_divide_the_batch(images: int, steps: int, size: int | None) -> None:
    cfg = get_config("Base-Seamless")
    cfg.SOLVER.IMS_PER_BATCH, cfg.SOLVER.ACCUMULATE_STEPS = images, steps
    if size is None:
        with pytest.raises(UserError, match="ACCUMULATE_STEPS"):
            micro_batch_size(cfg)
    else:
        assert micro_batch_size(cfg) == size


def test_unknown_policy() -> None:
    with pytest.raises(UserError, match="ON_FAULT is 'ignore'"):
        make(on_fault="ignore")
