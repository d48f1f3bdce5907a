"""Samplers by configuration key."""

import itertools

import pytest
from detectron2.data import DatasetCatalog, build_detection_train_loader, get_detection_dataset_dicts
from detectron2.data.samplers import RandomSubsetTrainingSampler, RepeatFactorTrainingSampler, TrainingSampler

from seamless_d2 import get_config
from seamless_d2.data.sampling import GroupedBatchSampler, build_train_sampler, repeat_factors
from seamless_d2.errors import UserError

from ..helpers.panoptic_files import unique_name

LANDSCAPE = [True, False, True, True, True, False, True, False, True, True, False, True, True]  # 9 and 4


def samplers(world_size: int, per_process: int, seed: int = 3) -> list[GroupedBatchSampler]:
    return [
        GroupedBatchSampler(LANDSCAPE, per_process, seed, rank=rank, world_size=world_size)
        for rank in range(world_size)
    ]


@pytest.mark.parametrize(
    ("world_size", "per_process", "batches"), [(1, 1, 13), (1, 2, 6), (2, 1, 6), (2, 2, 3), (4, 2, 1), (1, 3, 4)]
)
def test_batches_are_of_one_kind_and_processes_do_not_overlap(world_size, per_process, batches) -> None:
    taken = [list(itertools.islice(s, 3 * batches * per_process)) for s in samplers(world_size, per_process)]
    for epoch in range(3):
        seen = []
        for indices in taken:
            for number in range(epoch * batches, (epoch + 1) * batches):
                batch = indices[number * per_process : (number + 1) * per_process]
                assert len({LANDSCAPE[index] for index in batch}) == 1
                seen += batch
        assert len(set(seen)) == len(seen) == world_size * batches * per_process  # nothing twice in an epoch


def test_epochs_are_shuffled_by_seed_plus_epoch() -> None:
    (sampler,) = samplers(1, 2)
    assert sampler.list_batches(0) != sampler.list_batches(1)
    assert sampler.list_batches(1) == samplers(1, 2, seed=4)[0].list_batches(0)
    assert list(itertools.islice(sampler, 30)) == list(itertools.islice(samplers(1, 2)[0], 30))
    dropped = [set(range(13)) - set(itertools.chain(*sampler.list_batches(number))) for number in range(9)]
    assert all(len(indices) == 1 for indices in dropped) and len(set.union(*dropped)) > 1  # not always the same


def test_too_few_images_for_a_batch() -> None:
    with pytest.raises(UserError, match="9 landscape and 4 other images do not fill a batch of 10"):
        GroupedBatchSampler(LANDSCAPE, 10, 0, rank=0, world_size=1)
    with pytest.raises(UserError, match="of 2 for each of 7 processes"):
        GroupedBatchSampler(LANDSCAPE, 2, 0, rank=0, world_size=7)


def record(*classes: tuple[bool, int], size: tuple[int, int] = (4, 6), name: str = "x") -> dict:
    segments = [{"id": k, "isthing": t, "category_id": c, "iscrowd": 0} for k, (t, c) in enumerate(classes, 1)]
    return {"file_name": name, "image_id": name, "height": size[0], "width": size[1], "segments_info": segments}


def test_repeat_factors_count_things_and_stuff() -> None:
    stuff, thing = (False, 0), (True, 0)  # the same number, but another class
    records = [record(stuff, thing, thing), record(stuff), record(stuff), record(), record((False, 1))]
    factors = repeat_factors(records, threshold=0.6)
    assert factors.tolist() == pytest.approx([3**0.5, 1, 1, 1, 3**0.5])
    assert repeat_factors(records, 0.6, sqrt=False)[0].item() == pytest.approx(3)


@pytest.fixture
def cfg():
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.SEED = 5
    cfg.SOLVER.IMS_PER_BATCH = 2
    cfg.DATALOADER.NUM_WORKERS = 0
    return cfg


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("TrainingSampler", TrainingSampler),
        ("RepeatFactorTrainingSampler", RepeatFactorTrainingSampler),
        ("RandomSubsetTrainingSampler", RandomSubsetTrainingSampler),
        ("GroupedBatchSampler", GroupedBatchSampler),
    ],
)
def test_the_key_chooses(cfg, name: str, kind: type) -> None:
    cfg.DATALOADER.SAMPLER_TRAIN = name
    cfg.DATALOADER.REPEAT_THRESHOLD = 0.5
    cfg.DATALOADER.RANDOM_SUBSET_RATIO = 0.5
    records = [record((False, k % 3), size=(4, 6) if k % 2 else (6, 4)) for k in range(12)]
    first, second = (build_train_sampler(cfg, records) for _ in range(2))
    assert type(first) is kind
    indices = list(itertools.islice(first, 40))
    assert indices == list(itertools.islice(second, 40))  # SEED alone decides
    assert set(indices) <= set(range(12))
    cfg.DATALOADER.SAMPLER_TRAIN = "Nonsense"
    with pytest.raises(UserError, match="'Nonsense'; use TrainingSampler"):
        build_train_sampler(cfg, records)


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_arrive_whole_from_detectron2s_loader(cfg, workers: int) -> None:
    name = unique_name()
    made = [record((True, 0), size=(4, 6) if wide else (6, 4), name=str(k)) for k, wide in enumerate(LANDSCAPE)]
    DatasetCatalog.register(name, lambda: made)
    records = get_detection_dataset_dicts([name], filter_empty=True)
    assert len(records) == len(LANDSCAPE)  # none is dropped for want of "annotations"
    cfg.DATALOADER.SAMPLER_TRAIN = "GroupedBatchSampler"
    cfg.DATALOADER.NUM_WORKERS = workers
    loader = build_detection_train_loader(
        dataset=records,
        sampler=build_train_sampler(cfg, records),
        mapper=identity,
        total_batch_size=2,
        aspect_ratio_grouping=False,
        num_workers=workers,
    )
    expected = GroupedBatchSampler(LANDSCAPE, 2, 5, rank=0, world_size=1).list_batches(0)
    found = [[int(entry["image_id"]) for entry in batch] for batch in itertools.islice(loader, len(expected))]
    assert found == expected


def identity(entry: dict) -> dict:
    return entry
