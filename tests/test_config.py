"""The configuration: every shipped config builds a model, every mistake is one sentence."""

import pytest
import torch
from detectron2.config import get_cfg

from seamless_d2 import add_seamless_config, get_config
from seamless_d2.config import config_file, load_config, resolve_config
from seamless_d2.errors import UserError
from seamless_d2.modeling import SeamlessPanoptic

SHIPPED = sorted(
    p.relative_to(config_file("Base-Seamless.yaml").parent).as_posix()
    for p in config_file("Base-Seamless.yaml").parent.rglob("*.yaml")
)


@pytest.mark.parametrize("name", [name for name in SHIPPED if name != "Base-Seamless.yaml"])
def test_every_shipped_config_builds(name: str) -> None:
    cfg = get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.TIMM.PRETRAINED = "cpu", ""
    with torch.device("meta"):
        model = SeamlessPanoptic(cfg)
    assert model.num_stuff == cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES - cfg.MODEL.ROI_HEADS.NUM_CLASSES
    assert len(cfg.MODEL.ANCHOR_GENERATOR.SIZES) == len(cfg.MODEL.RPN.IN_FEATURES) == 4 + cfg.MODEL.FPN.EXTRA_LEVELS
    head = config_file(name).read_text().split("MODEL:")[0]
    assert "ImageNet weights:" in head, "each config says where its initial weights come from"


def test_paper_recipes() -> None:
    city, vistas = get_config("cityscapes/seamless_R_50_FPN"), get_config("vistas/seamless_R_50_FPN")
    assert (city.MODEL.ROI_HEADS.NUM_CLASSES, city.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (8, 19)
    assert (vistas.MODEL.ROI_HEADS.NUM_CLASSES, vistas.MODEL.SEM_SEG_HEAD.NUM_CLASSES) == (37, 65)
    # 18000 images, 8 a batch, 85 epochs; a released snapshot of the original counts the same steps.
    assert vistas.SOLVER.MAX_ITER == 18000 // 8 * 85 == 191250
    assert city.SOLVER.MAX_ITER == 2975 // 8 * 130
    for cfg, factors, size in ((city, (0.5, 2.0), 1024), (vistas, (0.8, 1.25), 1920)):
        assert [s / size for s in cfg.INPUT.MIN_SIZE_TRAIN] == list(factors)
        assert cfg.INPUT.MIN_SIZE_TEST == size
        assert cfg.SOLVER.IMS_PER_BATCH == 8 and cfg.SOLVER.BASE_LR == 0.01


CITYSCAPES = """
road, sidewalk, building, wall, fence, pole, traffic light, traffic sign, vegetation, terrain, sky, person,
rider, car, truck, bus, train, motorcycle, bicycle"""
# Mapillary Vistas 1.2.
VISTAS = """
Bird, Ground Animal, Curb, Fence, Guard Rail, Barrier, Wall, Bike Lane, Crosswalk - Plain, Curb Cut, Parking,
Pedestrian Area, Rail Track, Road, Service Lane, Sidewalk, Bridge, Building, Tunnel, Person, Bicyclist,
Motorcyclist, Other Rider, Lane Marking - Crosswalk, Lane Marking - General, Mountain, Sand, Sky, Snow, Terrain,
Vegetation, Water, Banner, Bench, Bike Rack, Billboard, Catch Basin, CCTV Camera, Fire Hydrant, Junction Box,
Mailbox, Manhole, Phone Booth, Pothole, Street Light, Pole, Traffic Sign Frame, Utility Pole, Traffic Light,
Traffic Sign (Back), Traffic Sign (Front), Trash Can, Bicycle, Boat, Bus, Car, Caravan, Motorcycle, On Rails,
Other Vehicle, Trailer, Truck, Wheeled Slow, Car Mount, Ego Vehicle"""


def test_class_map_from_vistas_to_cityscapes() -> None:
    city, vistas = (" ".join(text.split()).split(", ") for text in (CITYSCAPES, VISTAS))
    assert (len(city), len(vistas)) == (19, 65)
    ours, theirs = zip(*get_config("cityscapes/seamless_R_50_FPN_from_vistas").MODEL.INIT_CLASS_MAP, strict=True)
    assert sorted(ours) == sorted(city) and set(theirs) <= set(vistas) and len(set(theirs)) == 19


def test_keys_are_added_to_detectron2s() -> None:
    cfg = get_cfg()
    add_seamless_config(cfg)
    assert cfg.MODEL.SEAMLESS.FUSE_AT == "input"


@pytest.mark.parametrize(
    ("file", "overrides", "words"),
    [
        ("no/such.yaml", [], ["no/such.yaml", "cityscapes/seamless_R_50_FPN.yaml"]),
        ("/no/such.yaml", [], ["/no/such.yaml"]),
        ("Base-Seamless.yaml", ["MODEL.NO_SUCH_KEY", "1"], ["NO_SUCH_KEY"]),
        ("Base-Seamless.yaml", ["SOLVER.BASE_LR", "fast"], ["BASE_LR"]),
        ("Base-Seamless.yaml", ["SOLVER.BASE_LR"], ["Base-Seamless.yaml"]),
    ],
)
def test_mistakes(file: str, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        load_config(file, overrides)
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("overrides", "advice"),
    [
        (["SOLVER.BASELR", "0.1"], "there is no key SOLVER.BASELR; did you mean SOLVER.BASE_LR"),
        (["SOLVR.MAX_ITER", "1"], "there is no key SOLVR.MAX_ITER; did you mean SOLVER.MAX_ITER"),
        (["solver.max_iter", "1"], "did you mean SOLVER.MAX_ITER"),
        (["MODEL.EVAL_PERIOD", "5"], "TEST.EVAL_PERIOD"),  # another section
        (["NOTHING.LIKE.IT", "1"], "there is no key NOTHING.LIKE.IT"),
        (["SOLVER.BASE_LR", "1"], "SOLVER.BASE_LR must be a number with a point such as 0.01, not '1'"),
        (["SOLVER.MAX_ITER", "2.5"], "SOLVER.MAX_ITER must be a whole number such as 40000, not '2.5'"),
        (["MODEL.MASK_ON", "yes"], "MODEL.MASK_ON must be True or False such as True, not 'yes'"),
        (["INPUT.MIN_SIZE_TRAIN", "640"], "INPUT.MIN_SIZE_TRAIN must be a tuple such as (800, 800), not '640'"),
        (["SOLVER.AMP", "True"], "SOLVER.AMP is a section; set one of its keys: SOLVER.AMP.ENABLED, SOLVER.AMP.DTYPE"),
    ],
)
def test_mistaken_keys_are_told_with_advice(overrides: list[str], advice: str) -> None:
    with pytest.raises(UserError) as error:
        load_config("Base-Seamless.yaml", overrides)
    assert advice in str(error.value)


def test_mistaken_keys_of_a_file_too(tmp_path) -> None:
    (tmp_path / "mine.yaml").write_text(f"_BASE_: {config_file('Base-Seamless.yaml')}\nSOLVER:\n  MAX_ITERS: 5\n")
    with pytest.raises(UserError, match=r"mine.yaml .*there is no key SOLVER.MAX_ITERS; did you mean SOLVER.MAX_ITER"):
        load_config(tmp_path / "mine.yaml")


def test_yaml_cannot_run_code(tmp_path) -> None:
    (tmp_path / "evil.yaml").write_text("OUTPUT_DIR: !!python/object/apply:os.getcwd []\n")
    with pytest.raises(UserError, match="evil.yaml"):
        load_config(tmp_path / "evil.yaml")


def test_names_and_paths_both_resolve() -> None:
    assert resolve_config("configs/coco/seamless_R_50_FPN.yaml") == resolve_config("coco/seamless_R_50_FPN.yaml") or (
        resolve_config("configs/coco/seamless_R_50_FPN.yaml").samefile(resolve_config("coco/seamless_R_50_FPN.yaml"))
    )


def test_model_mistakes_name_the_key() -> None:
    for key, value in (("FUSE_AT", "middle"), ("OUTPUTS", ["panoptic"]), ("ACTIVATION", "swish")):
        cfg = get_config("toy_streets/seamless_R_18_FPN")
        cfg.MODEL.SEAMLESS[key] = value
        with pytest.raises(UserError, match=str(key) if key != "ACTIVATION" else "swish"):
            SeamlessPanoptic(cfg)
