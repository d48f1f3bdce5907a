"""The mapper: boxes, masks, semantic labels, void and crowd from the panoptic PNG after augmentation."""

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog
from detectron2.data import transforms as T
from PIL import Image

from seamless_d2 import register_panoptic
from seamless_d2.data.mapper import SeamlessMapper
from seamless_d2.errors import UserError
from seamless_d2.structures.classes import Classes
from seamless_d2.structures.id_maps import label_boxes

from ..helpers.panoptic_files import id_to_rgb, scene, unique_name, write_dataset


def make_records(tmp_path, **maps) -> list[dict]:
    name = unique_name()
    register_panoptic(name, **write_dataset(tmp_path / "d", maps or {"a": scene()}))
    return DatasetCatalog.get(name)


def make_mapper(*augmentations: T.Augmentation, is_train: bool = True, format: str = "RGB") -> SeamlessMapper:
    return SeamlessMapper(
        is_train=is_train, augmentations=list(augmentations), image_format=format, classes=Classes.numbered(4, 2)
    )


def test_targets_of_the_scene(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    ids, _ = scene()
    out = make_mapper()(record)
    image = np.asarray(Image.open(record["file_name"]))
    assert np.array_equal(out["image"].numpy(), image.transpose(2, 0, 1))
    expected = np.full(ids.shape, 255)
    for segment, label in ((100_000, 1), (300, 0), (1, 2), (70_000, 2), (5, 3)):
        expected[ids == segment] = label
    assert np.array_equal(out["sem_seg"].numpy(), expected)  # crowd keeps its class here
    instances = out["instances"]
    assert instances.gt_boxes.tensor.tolist() == [[5, 22, 15, 30], [30, 25, 50, 38]]
    assert instances.gt_classes.tolist() == [0, 0]
    masks = instances.gt_masks
    assert np.array_equal(masks.bitmasks().numpy(), np.stack([ids == 1, ids == 70_000]))
    assert np.array_equal((masks.segment_map == 0).numpy(), ids == 0)
    assert np.array_equal(torch.isin(masks.segment_map, masks.crowd_ids).numpy(), ids == 5)


def test_flip_and_resize_keep_everything_together(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    ids, _ = scene()
    out = make_mapper(T.RandomFlip(prob=1.0), T.ResizeTransform(40, 60, 80, 120))(record)
    flipped = np.asarray(Image.fromarray(np.ascontiguousarray(ids[:, ::-1]).astype(np.int32)).resize((120, 80), 0))
    assert out["instances"].image_size == (80, 120) == tuple(out["image"].shape[1:])
    assert out["instances"].gt_boxes.tensor.tolist() == [[90, 44, 110, 60], [20, 50, 60, 76]]
    assert np.array_equal(out["instances"].gt_masks.bitmasks()[1].numpy(), flipped == 70_000)
    assert np.array_equal(out["sem_seg"].numpy() == 255, flipped == 0)


def test_crop_clips_boxes_to_what_is_visible(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    out = make_mapper(T.CropTransform(10, 24, 30, 10))(record)
    assert out["instances"].gt_boxes.tensor.tolist() == [[0, 0, 5, 6], [20, 1, 30, 10]]


def crop(x: int, y: int, w: int, h: int) -> T.Augmentation:
    return T.CropTransform(x, y, w, h)


@pytest.mark.parametrize(
    ("augmentation", "labels", "crowd"),
    [
        (crop(0, 0, 5, 5), {255}, 0),  # void alone
        (crop(20, 0, 10, 10), {1}, 0),  # stuff alone
        (crop(53, 16, 5, 5), {3}, 1),  # crowd alone
    ],
)
def test_crops_without_instances(tmp_path, augmentation, labels: set[int], crowd: int) -> None:
    (record,) = make_records(tmp_path)
    out = make_mapper(augmentation)(record)
    assert len(out["instances"]) == 0
    assert out["instances"].gt_boxes.tensor.shape == (0, 4)
    assert set(out["sem_seg"].unique().tolist()) == labels
    assert len(out["instances"].gt_masks.crowd_ids) == crowd


def test_more_segments_than_a_byte_counts(tmp_path) -> None:
    ids = 1 + np.arange(900).reshape(30, 30) * 3
    segments = [{"id": int(i), "category_id": 7, "iscrowd": 0} for i in ids.ravel()]
    (record,) = make_records(tmp_path, many=(ids, segments))
    out = make_mapper(T.ResizeTransform(30, 30, 60, 60))(record)
    assert len(out["instances"]) == 900
    assert out["instances"].gt_boxes.tensor[31].tolist() == [2, 2, 4, 4]
    assert out["instances"].gt_boxes.tensor[899].tolist() == [58, 58, 60, 60]


def test_channel_order(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    rgb, bgr = make_mapper()(record)["image"], make_mapper(format="BGR")(record)["image"]
    assert torch.equal(rgb, bgr.flip(0))
    with pytest.raises(UserError, match="YUV"):
        make_mapper(format="YUV")


def test_test_time_keeps_the_records_size_and_needs_no_labels(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    (tmp_path / "d" / "panoptic" / "a.png").unlink()
    out = make_mapper(T.ResizeShortestEdge(20, 100), is_train=False)(record)
    assert out["image"].shape == (3, 20, 30)
    assert (out["height"], out["width"], out["image_id"]) == (40, 60, 17)
    assert "instances" not in out and "sem_seg" not in out


def test_contradictions_are_named(tmp_path) -> None:
    (record,) = make_records(tmp_path)
    png = tmp_path / "d" / "panoptic" / "a.png"
    ids, _ = scene()
    ids[0, 0] = 4321
    Image.fromarray(id_to_rgb(ids)).save(png)
    with pytest.raises(UserError, match=r"a.png holds id 4321"):
        make_mapper()(record)
    Image.fromarray(id_to_rgb(ids[:-1])).save(png)
    with pytest.raises(UserError, match=r"60 x 39 pixels but its annotation says 60 x 40"):
        make_mapper()(record)
    with pytest.raises(UserError, match="a.png is 60 x 40"):
        make_mapper()({**record, "width": 61})


def test_label_boxes_against_brute_force() -> None:
    labels = np.random.RandomState(1).randint(0, 9, (13, 17))
    labels[labels == 4] = 5
    boxes = label_boxes(labels, 9)
    for label in range(9):
        y, x = np.nonzero(labels == label)
        expected = [x.min(), y.min(), x.max() + 1, y.max() + 1] if len(x) else [0, 0, 0, 0]
        assert boxes[label].tolist() == expected
