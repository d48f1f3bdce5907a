"""Training on crops: open sides, instance-scale-uniform sampling, large-scale jitter, copy-paste."""

import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T

from seamless_d2 import get_config, register_panoptic
from seamless_d2.config_checks import check_config
from seamless_d2.data.copy_paste import Scene, paste_instances, touched_sides
from seamless_d2.data.loader import build_train_loader
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.data.sampling import InstanceScaleUniformSampler
from seamless_d2.data.seeding import join_index, seeded, split_index
from seamless_d2.data.transforms import Focus, ResizeCropAround, build_augmentations
from seamless_d2.errors import UserError

from ..helpers.panoptic_files import scene, unique_name, write_dataset
from .test_mapper import make_mapper, make_records


def crops_config(*overrides: object) -> CfgNode:
    cfg = get_config("toy_streets/seamless_R_18_FPN")
    cfg.MODEL.ROI_HEADS.NUM_CLASSES, cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = 2, 4
    cfg.INPUT.CROP.ENABLED, cfg.INPUT.CROP.TYPE, cfg.INPUT.CROP.SIZE = True, "absolute", [24, 32]
    cfg.merge_from_list(list(overrides))
    return cfg


# --- open sides -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("augmentations", "expected"),
    [
        ([], [[0, 0, 0, 0], [0, 0, 0, 0]]),  # cars at 5,22..15,30 and 30,25..50,38 of 60x40
        ([T.CropTransform(10, 24, 30, 10)], [[1, 1, 0, 0], [0, 0, 1, 1]]),
        ([T.CropTransform(5, 22, 45, 18)], [[1, 1, 0, 0], [0, 0, 1, 0]]),  # exactly at the border: it may go on
        ([T.CropTransform(10, 24, 30, 10), T.HFlipTransform(30)], [[0, 1, 1, 0], [1, 0, 0, 1]]),
        ([T.ResizeTransform(40, 60, 80, 120), T.CropTransform(20, 0, 90, 80)], [[1, 0, 0, 0], [0, 0, 0, 0]]),
        ([T.CropTransform(0, 24, 60, 16), T.PadTransform(0, 0, 8, 8)], [[0, 1, 0, 0], [0, 0, 0, 0]]),
    ],
    ids=["whole", "crop", "touching", "flipped", "resized", "padded"],
)
def test_open_sides(tmp_path, augmentations, expected) -> None:
    (record,) = make_records(tmp_path)
    instances = make_mapper(*augmentations)(record)["instances"]
    assert instances.gt_open_sides.dtype == torch.bool
    assert instances.gt_open_sides.int().tolist() == expected


def test_an_object_at_the_border_of_the_image_is_whole(tmp_path) -> None:
    ids = np.full((30, 30), 2)
    ids[10:30, 0:30] = 1
    segments = [{"id": 1, "category_id": 7, "iscrowd": 0}, {"id": 2, "category_id": 3, "iscrowd": 0}]
    (record,) = make_records(tmp_path, a=(ids, segments))
    for crop, expected in (((0, 0, 30, 30), [0, 0, 0, 0]), ((0, 5, 20, 25), [0, 0, 1, 0]), ((4, 12, 9, 9), [1] * 4)):
        open_sides = make_mapper(T.CropTransform(*crop))(record)["instances"].gt_open_sides
        assert open_sides.int().tolist() == [expected]


def test_open_sides_without_instances(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    assert make_mapper(T.CropTransform(20, 0, 5, 5))(record)["instances"].gt_open_sides.shape == (0, 4)


# --- instance-scale-uniform sampling ----------------------------------------------------------------------------


def segment(isthing: bool, category: int, iscrowd: int = 0) -> dict:
    return {"isthing": isthing, "category_id": category, "iscrowd": iscrowd}


RECORDS = [
    {"segments_info": [segment(False, 0), segment(True, 1)]},
    *({"segments_info": [segment(False, 0)]} for _ in range(8)),
    {"segments_info": [segment(False, 0), segment(True, 0, 1)]},  # crowd alone does not count
]


def test_classes_are_uniform_then_images() -> None:
    sampler = InstanceScaleUniformSampler(RECORDS, 2, seed=1, rank=0, world_size=1)
    drawn = Counter(split_index(joined, len(RECORDS)) for joined in itertools.islice(sampler, 4000))
    assert {label for _, label in drawn} == {0, 3}  # road, and the second thing after two kinds of stuff
    assert drawn[0, 3] == pytest.approx(2000, abs=150)
    assert all(drawn[image, 0] == pytest.approx(200, abs=60) for image in range(10))
    with pytest.raises(UserError, match="no image has a segment"):
        InstanceScaleUniformSampler([{"segments_info": []}], 2, seed=1, rank=0, world_size=1)


def test_processes_share_one_sequence() -> None:
    def draw(rank: int, world_size: int, count: int) -> list[int]:
        sampler = InstanceScaleUniformSampler(RECORDS, 2, seed=4, rank=rank, world_size=world_size)
        return list(itertools.islice(sampler, count))

    whole = draw(0, 1, 30)
    assert [x for pair in zip(draw(0, 2, 15), draw(1, 2, 15), strict=True) for x in pair] == whole
    assert [draw(0, 3, 10), draw(1, 3, 10), draw(2, 3, 10)] == [whole[k::3] for k in range(3)]


def test_joined_index() -> None:
    for index, focus in itertools.product((0, 3, 6), (None, 0, 5)):
        assert split_index(join_index(index, focus, 7), 7) == (index, focus)


def test_sizes_are_log_uniform_and_the_crop_shows_the_instance() -> None:
    class Plain(T.ResizeShortestEdge):
        def __init__(self) -> None:
            super().__init__(100)

    augmentation = ResizeCropAround(Plain(), T.RandomCrop("absolute", (64, 64)), (16.0, 128.0), (0.25, 8.0))
    image = np.zeros((200, 300, 3), np.uint8)
    box = np.array([250.0, 20.0, 290.0, 30.0])  # 40 x 10: its size is 20
    sizes = []
    np.random.seed(0)
    for _ in range(600):
        transform = augmentation.get_transform(image, Focus(tuple(box), True))
        sizes.append(20 * transform.new_size[0] / 200)
        corners = transform.apply_coords(box.reshape(2, 2))
        shown = np.clip(corners, 0, 64)
        visible = shown[1] - shown[0]
        whole = corners[1] - corners[0]
        # All of it along each axis on which it fits, or else a crop that is full of it; up to rounding.
        assert (visible >= np.minimum(whole, 64) - 1.5).all()
        assert transform.apply_image(image).shape == (64, 64, 3) or transform.new_size[0] < 64
    counts = np.histogram(np.log2(sizes), bins=3, range=(4, 7))[0]
    assert all(count == pytest.approx(200, abs=45) for count in counts)


def test_scales_are_bounded_and_stuff_keeps_the_usual_scale() -> None:
    cfg = crops_config("DATALOADER.SAMPLER_TRAIN", "InstanceScaleUniformSampler", "INPUT.INSTANCE_SCALES", [0.5, 2.0])
    (augmentation,) = (a for a in build_augmentations(cfg, True) if isinstance(a, ResizeCropAround))
    image = np.zeros((200, 300, 3), np.uint8)
    scales = {augmentation.get_transform(image, Focus((5.0, 5, 7, 7), True)).new_size[0] for _ in range(50)}
    assert scales == {400}
    for focus in (None, Focus((250.0, 150.0, 251.0, 151.0), False)):
        transform = augmentation.get_transform(image, focus)
        assert transform.new_size == (160, 240)
    x, y = transform.apply_coords(np.array([[250.5, 150.5]]))[0]
    assert -1 <= x <= 33 and -1 <= y <= 25


def test_a_large_image_may_be_enlarged_much() -> None:
    """Only the crop is ever computed, however large the whole would be."""
    cfg = crops_config(
        "DATALOADER.SAMPLER_TRAIN", "InstanceScaleUniformSampler", "INPUT.INSTANCE_SIZES", [400.0, 512.0]
    )
    (augmentation,) = (a for a in build_augmentations(cfg, True) if isinstance(a, ResizeCropAround))
    image = np.zeros((3000, 4000, 3), np.uint8)
    transform = augmentation.get_transform(image, Focus((10.0, 10, 30, 30), True))
    assert transform.new_size == (12000, 16000) and transform.apply_image(image).shape == (24, 32, 3)


def test_the_loader_crops_around_the_class(tmp_path) -> None:
    """Of every batch the chosen class is in the crop, and a resumed loader goes on with the same crops."""
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", {"a": scene(), "b": scene()}))
    cfg = crops_config(
        "DATALOADER.SAMPLER_TRAIN",
        "InstanceScaleUniformSampler",
        "SOLVER.IMS_PER_BATCH",
        "2",
        "INPUT.INSTANCE_SIZES",
        [12.0, 40.0],
        "INPUT.COPY_PASTE",
        "0.3",
    )
    cfg.DATASETS.TRAIN = (name,)
    loader = build_train_loader(cfg, seed=3)
    batches = [next(loader) for _ in range(12)]
    chosen = [split_index(index, 2)[1] for batch in itertools.islice(build_train_loader(cfg, 3).plan_batches(), 12)
              for _, index in batch]  # fmt: skip
    assert set(chosen) == {0, 1, 2}  # road, sky, car: persons are a crowd
    images = [x for batch in batches for x in batch]
    assert all((x["sem_seg"] == label).any() for x, label in zip(images, chosen, strict=True))
    assert all("focus" not in x and x["image"].shape == (3, *x["sem_seg"].shape) for x in images)
    resumed = build_train_loader(cfg, seed=3)
    resumed.load_state_dict({"seed": 3, "images": 8, "faults": 0})
    again = next(resumed)
    assert all(torch.equal(a["image"], b["image"]) for a, b in zip(again, batches[4], strict=True))


# --- large-scale jitter, color jitter, copy-paste -----------------------------------------------------------------


def test_large_scale_jitter_has_one_size_and_pads_with_void(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    cfg = crops_config("INPUT.LARGE_SCALE_JITTER", [0.2, 2.0])
    mapper = SeamlessMapper(cfg, True)
    with seeded(0, 0):
        results = [mapper(record) for _ in range(40)]
    assert {tuple(x["image"].shape) for x in results} == {(3, 24, 32)}
    assert {tuple(x["sem_seg"].shape) for x in results} == {(24, 32)}
    padded = [x for x in results if (x["sem_seg"][-1] == 255).all()]
    assert padded and all((x["image"][:, -1] == 128).all() for x in padded)
    assert any(x["instances"].gt_open_sides.any() for x in results)
    assert not any(x["instances"].gt_open_sides[:, 2:].any() for x in padded if (x["sem_seg"][:, -1] == 255).all())


def test_color_jitter_changes_colors_alone(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    cfg = crops_config("INPUT.CROP.ENABLED", "False", "INPUT.RANDOM_FLIP", "none")
    plain = SeamlessMapper(cfg, True)(record)
    cfg.INPUT.COLOR_JITTER = 0.4
    with seeded(1, 1):
        rgb = SeamlessMapper(cfg, True)(record)
    cfg.INPUT.FORMAT = "BGR"
    with seeded(1, 1):
        bgr = SeamlessMapper(cfg, True)(record)
    assert torch.equal(plain["sem_seg"], rgb["sem_seg"]) and not torch.equal(plain["image"], rgb["image"])
    assert torch.equal(rgb["image"], bgr["image"].flip(0))
    assert rgb["image"].dtype == torch.uint8


def make_scene(color: int, *boxes: tuple[int, int, int, int], isthing: bool = True, iscrowd: int = 0) -> Scene:
    labels = np.ones((20, 30), np.int32)
    segments = [{"id": 1, "isthing": False, "category_id": 0, "iscrowd": 0}]
    for x0, y0, x1, y1 in boxes:
        segments.append({"id": 7, "isthing": isthing, "category_id": 1, "iscrowd": iscrowd})
        labels[y0:y1, x0:x1] = len(segments)
    open_sides = touched_sides(labels, len(segments)) & [False, False, True, True]  # the crop of a larger image
    return Scene(np.full((20, 30, 3), color, np.uint8), labels, segments, open_sides)


def test_pasted_instances_cover_what_is_there() -> None:
    target, source = make_scene(10, (0, 0, 10, 10), (20, 0, 30, 10)), make_scene(200, (5, 5, 15, 15), (12, 0, 18, 3))
    numbers = Counter()
    for seed in range(40):
        np.random.seed(seed)
        result = paste_instances(target, source)
        numbers[len(result.segments)] += 1
        pasted = result.labels > len(target.segments)
        # Each pixel belongs to one segment: pasted ones show the source, the others are as they were.
        assert (result.image[pasted] == 200).all() and (result.image[~pasted] == 10).all()
        assert (result.labels[~pasted] == target.labels[~pasted]).all()
        assert result.segments[: len(target.segments)] == target.segments
        for k, s in enumerate(result.segments[len(target.segments) :], len(target.segments) + 1):
            assert s in source.segments and (result.labels == k).sum() in (100, 18)
    assert set(numbers) == {3, 4, 5} and numbers[4] > numbers[5]
    assert (target.image == 10).all() and target.labels.max() == 3  # the input is unchanged


@pytest.mark.parametrize("options", [{"isthing": False}, {"iscrowd": 1}])
def test_only_instances_are_pasted(options: dict) -> None:
    target, source = make_scene(10), make_scene(200, (5, 5, 15, 15), **options)
    assert all(paste_instances(target, source) is target for _ in range(20))


def test_scenes_of_other_sizes() -> None:
    target, small = make_scene(10), make_scene(200, (0, 0, 12, 8))
    small = Scene(small.image[:8, :12], small.labels[:8, :12], small.segments, np.array([[False] * 4, [True] * 4]))
    np.random.seed(1)
    results = [paste_instances(target, small) for _ in range(20)]
    assert {(r.labels == 2).sum() for r in results} == {0, 96}
    np.random.seed(1)
    assert {paste_instances(small, target) is small for _ in range(5)} == {True}


def paste_all(target: Scene, source: Scene) -> Scene:
    """The first of many random pastes in which every instance of the source is there."""
    results = (paste_instances(target, source) for _ in range(200))
    return next(r for r in results if len(r.segments) == len(target.segments) + len(source.segments) - 1)


def test_open_sides_after_pasting() -> None:
    """Each instance keeps its own: the border of its crop, not that of the other image."""
    target = make_scene(10, (24, 2, 30, 8), (24, 12, 30, 18), (0, 0, 5, 5))
    source = make_scene(200, (20, 12, 30, 20), (10, 0, 12, 20))
    source.open_sides = touched_sides(source.labels, 3) & [False, True, False, False]  # its crop is another one
    result = paste_all(target, source)
    # Open at the right; hidden there by a pasted one; whole; then the pasted ones: whole, and cut above.
    assert result.open_sides[1:].astype(int).tolist() == [[0, 0, 1, 0], [0] * 4, [0] * 4, [0] * 4, [0, 1, 0, 0]]


def test_what_a_smaller_source_has_cut_is_no_open_side() -> None:
    """The border of its crop lies within the result, and beyond it is another object."""
    target, source = make_scene(10), make_scene(200, (5, 5, 12, 8))
    source = Scene(source.image[:8, :12], source.labels[:8, :12], source.segments, np.array([[False] * 4, [True] * 4]))
    assert not paste_all(target, source).open_sides[1].any()
    at_corner = make_scene(200, (0, 0, 12, 8))
    source = Scene(source.image, at_corner.labels[:8, :12], source.segments, source.open_sides)
    assert paste_all(target, source).open_sides[1].tolist() == [True, True, False, False]


def test_a_larger_source_is_cut_by_the_target() -> None:
    target, source = make_scene(10), make_scene(200, (5, 5, 20, 9))
    target = Scene(target.image[:, :10], target.labels[:, :10], target.segments, target.open_sides)
    assert paste_all(target, source).open_sides[1].tolist() == [False, False, True, False]


def test_copy_paste_of_the_mapper(tmp_path) -> None:
    """Boxes, masks and labels agree after pasting; the same seed gives the same image."""
    records = make_records(tmp_path, a=scene(), b=scene())
    cfg = crops_config("INPUT.CROP.ENABLED", "False", "INPUT.COPY_PASTE", "1.0", "INPUT.MIN_SIZE_TRAIN", (40,))
    mapper = SeamlessMapper(cfg, True, sources=records)
    counts = set()
    for sample in range(20):
        with seeded(0, sample):
            result = mapper(records[0])
        with seeded(0, sample):
            again = mapper(records[0])
        assert torch.equal(result["image"], again["image"])
        instances = result["instances"]
        counts.add(len(instances))
        masks = instances.gt_masks.bitmasks()
        assert torch.equal(instances.gt_boxes.tensor, instances.gt_masks.get_bounding_boxes().tensor)
        labels = result["sem_seg"][None].expand(len(masks), -1, -1)
        assert all((labels[k][masks[k]] == instances.gt_classes[k] + 2).all() for k in range(len(masks)))
    assert len(counts) > 1
    assert SeamlessMapper(cfg, True).copy_paste == 0  # without sources there is nothing to paste


# --- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["DATALOADER.SAMPLER_TRAIN", "InstanceScaleUniformSampler", "INPUT.CROP.ENABLED", "False"], "CROP.ENABLED"),
        (["INPUT.LARGE_SCALE_JITTER", [0.1, 2.0], "INPUT.CROP.TYPE", "absolute_range"], "CROP.TYPE absolute"),
        (["INPUT.CROP.SIZE", [0.9, 0.9]], r"CROP.SIZE is \[0.9, 0.9\]; with .* absolute it must be whole numbers"),
        (["INPUT.CROP.TYPE", "relative"], "it must be shares of the image"),
        (
            ["MODEL.RPN.BBOX_REG_LOSS_TYPE", "crop_aware_smooth_l1", "MODEL.PROPOSAL_GENERATOR.NAME", "RPN"],
            "MODEL.RPN.BBOX_REG_LOSS_TYPE is crop_aware_smooth_l1, which RPN of Detectron2 does not know",
        ),
        (["INPUT.LARGE_SCALE_JITTER", [2.0, 0.1]], "LARGE_SCALE_JITTER is .*ascending"),
        (["INPUT.INSTANCE_SIZES", [0.0, 5.0]], "INSTANCE_SIZES is"),
        (["INPUT.COPY_PASTE", "1.5"], "COPY_PASTE is 1.5"),
        (
            ["DATALOADER.SAMPLER_TRAIN", "InstanceScaleUniformSampler", "INPUT.LARGE_SCALE_JITTER", [0.1, 2.0]],
            "both choose the scale",
        ),
    ],
)
def test_mistakes(overrides: list, words: str) -> None:
    with pytest.raises(UserError, match=words):
        check_config(crops_config(*overrides))
