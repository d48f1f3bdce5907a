"""Starting from a model of other classes."""

import logging
import pickle
import re
from pathlib import Path

import pytest
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from seamless_d2.checkpoint import init_from
from seamless_d2.errors import UserError

THEIRS = (["road", "sky", "building", "wall"], ["car", "person", "rider"])
OURS = (["grass", "sky", "path"], ["person", "dog", "car", "bike"])
MAP = [["path", "road"], ["bike", "rider"]]


def with_classes(cfg: CfgNode, stuff: list[str], things: list[str]) -> CfgNode:
    cfg = cfg.clone()
    cfg.MODEL.SEAMLESS.CLASS_NAMES = [*stuff, *things]
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES = len(stuff) + len(things), len(things)
    return cfg


@pytest.fixture
def pair(toy_cfg: CfgNode, tmp_path: Path) -> tuple[CfgNode, dict[str, Tensor]]:
    """The config of a model that starts from another one, and the weights of that."""
    their_cfg = with_classes(toy_cfg, *THEIRS)
    torch.manual_seed(1)
    state = build_model(their_cfg).state_dict()
    for value in state.values():
        if value.is_floating_point():
            value.normal_()
    torch.save({"model": state, "trainer": {"config": their_cfg.dump()}}, tmp_path / "theirs.pth")
    cfg = with_classes(toy_cfg, *OURS)
    cfg.MODEL.INIT_FROM, cfg.MODEL.INIT_CLASS_MAP = str(tmp_path / "theirs.pth"), MAP
    return cfg, state


def test_rows_follow_the_names(pair, caplog: pytest.LogCaptureFixture) -> None:
    cfg, theirs = pair
    torch.manual_seed(2)
    model = build_model(cfg)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with caplog.at_level(logging.INFO, "seamless_d2"):
        transfer = init_from(model, cfg)
    after = model.state_dict()
    per_class = [k for k in after if k.split(".")[-2] in ("predictor", "cls_score", "bbox_pred")]
    assert len(per_class) == 8
    assert all(torch.equal(after[k], theirs[k]) for k in after if k not in per_class)
    assert transfer.new == [] and set(transfer.copied) == set(after)
    assert transfer.matched == {"sky": "sky", "path": "road", "person": "person", "car": "car", "bike": "rider"}
    assert transfer.new_classes == ["grass", "dog"]

    def rows(name: str, expected: list[int | None], size: int = 1) -> None:
        for kind in ("weight", "bias"):
            key = f"{name}.{kind}"
            for row, source in enumerate(expected):
                ours = after[key][size * row : size * (row + 1)]
                origin, k = (before[key], row) if source is None else (theirs[key], source)
                assert torch.equal(ours, origin[size * k : size * (k + 1)]), (key, row)

    rows("sem_seg_head.predictor", [None, 1, 0, 5, None, 4, 6])
    rows("roi_heads.box_predictor.cls_score", [1, None, 0, 2, 3])  # the background comes last
    rows("roi_heads.box_predictor.bbox_pred", [1, None, 0, 2], 4)
    rows("roi_heads.mask_head.predictor", [1, None, 0, 2])
    assert "206 weights copied (147 of backbone, 7 of proposal_generator, " in caplog.text
    assert "3 classes with the rows of their names: sky, person, car" in caplog.text
    assert "2 classes with those of another name: path from road, bike from rider" in caplog.text
    assert "2 classes with initial rows: grass, dog" in caplog.text
    assert "but /" not in caplog.text  # no setting differs


def test_equal_numbers_of_classes_are_not_copied_in_order(pair) -> None:
    cfg, theirs = pair
    cfg = with_classes(cfg, THEIRS[0][::-1], THEIRS[1][::-1])
    cfg.MODEL.INIT_CLASS_MAP = []
    model = build_model(cfg)
    init_from(model, cfg)
    weight = model.sem_seg_head.predictor.weight
    assert torch.equal(weight, theirs["sem_seg_head.predictor.weight"][[3, 2, 1, 0, 6, 5, 4]])


def test_stuff_that_becomes_a_thing_and_a_name_that_is_to_be_new(pair) -> None:
    cfg, theirs = pair
    cfg.MODEL.INIT_CLASS_MAP = [["dog", "wall"], ["car", ""]]
    model = build_model(cfg)
    before = model.roi_heads.mask_head.predictor.weight.clone()
    transfer = init_from(model, cfg)
    assert torch.equal(model.sem_seg_head.predictor.weight[4], theirs["sem_seg_head.predictor.weight"][3])
    assert torch.equal(model.roi_heads.mask_head.predictor.weight[1:3], before[1:3])
    assert transfer.new_classes == ["grass", "path", "car", "bike"]


def test_names_in_other_case(pair) -> None:
    cfg, theirs = pair
    cfg.MODEL.SEAMLESS.CLASS_NAMES = ["Sky", *cfg.MODEL.SEAMLESS.CLASS_NAMES[1:]]
    cfg.MODEL.INIT_CLASS_MAP = [["sky", ""], ["path", "road"]]
    model = build_model(cfg)
    assert init_from(model, cfg).matched["Sky"] == "sky"


def test_another_backbone_is_refused(pair) -> None:
    cfg, _ = pair
    cfg.MODEL.RESNETS.RES2_OUT_CHANNELS = cfg.MODEL.RESNETS.STEM_OUT_CHANNELS = 12
    with pytest.raises(UserError, match="shares no weight with this backbone; .*use the config of that model"):
        init_from(build_model(cfg), cfg)


def test_class_agnostic_heads(pair, toy_cfg: CfgNode, tmp_path: Path) -> None:
    cfg, _ = pair
    their_cfg = with_classes(toy_cfg, *THEIRS)
    for c in (cfg, their_cfg):
        c.MODEL.ROI_MASK_HEAD.CLS_AGNOSTIC_MASK = c.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    theirs = build_model(their_cfg).state_dict()
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    (tmp_path / "theirs.yaml").write_text(their_cfg.dump())
    model = build_model(cfg)
    init_from(model, cfg)
    for name in ("box_predictor.bbox_pred", "mask_head.predictor"):
        assert torch.equal(model.state_dict()[f"roi_heads.{name}.weight"], theirs[f"roi_heads.{name}.weight"])


def test_another_number_of_channels_and_other_statistics(pair, caplog: pytest.LogCaptureFixture) -> None:
    cfg, _ = pair
    cfg.MODEL.SEM_SEG_HEAD.CONVS_DIM *= 2
    cfg.MODEL.PIXEL_MEAN = [1.0, 2.0, 3.0]
    model = build_model(cfg)
    transfer = init_from(model, cfg)
    assert "sem_seg_head.predictor.weight" in transfer.new and "sem_seg_head.predictor.bias" in transfer.copied
    assert "weights keep their initial values" in caplog.text
    assert "MODEL.PIXEL_MEAN is [1.0, 2.0, 3.0], but" in caplog.text


def test_config_beside_the_file(pair, toy_cfg: CfgNode, tmp_path: Path) -> None:
    cfg, theirs = pair
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"theirs.pth \(MODEL.INIT_FROM\) are not known: .*neither theirs.yaml nor"):
        init_from(build_model(cfg), cfg)
    (tmp_path / "config.yaml").write_text(with_classes(toy_cfg, *THEIRS).dump())
    assert init_from(build_model(cfg), cfg).new_classes == ["grass", "dog"]


def test_config_of_other_weights_beside_the_file(pair, toy_cfg: CfgNode, tmp_path: Path) -> None:
    """Rows of unknown classes are not copied in order, even where the numbers of ours are equal to theirs."""
    cfg, theirs = pair
    torch.save({"model": theirs}, tmp_path / "theirs.pth")
    (tmp_path / "config.yaml").write_text(with_classes(toy_cfg, ["road", "sky"], ["car", "person", "rider"]).dump())
    with pytest.raises(UserError, match=r"sem_seg_head.predictor.weight has 7 outputs, but 5 by its config, .*beside"):
        init_from(build_model(cfg), cfg)


def test_a_head_with_other_outputs(pair, toy_cfg: CfgNode, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Detectron2's PanopticFPN numbers semantic labels in its own way: rows are those of the same classes or new."""
    cfg, _ = pair
    name = "sem_seg_head.predictor.weight"

    def stock(cfg: CfgNode, stuff: list[str], things: list[str]) -> tuple[CfgNode, torch.nn.Module]:
        cfg = with_classes(cfg, stuff, things)
        cfg.MODEL.SEM_SEG_HEAD.NAME, cfg.MODEL.SEM_SEG_HEAD.NORM = "SemSegFPNHead", ""
        whole = cfg.clone()
        whole.MODEL.META_ARCHITECTURE, whole.MODEL.SEM_SEG_HEAD.NUM_CLASSES = "PanopticFPN", len(stuff) + 1
        model = build_model(whole)
        cfg.MODEL.META_ARCHITECTURE = "PanopticFPN"  # with the names of all classes
        return cfg, model

    their_cfg, their_model = stock(toy_cfg, *THEIRS)
    theirs = their_model.state_dict()
    torch.save({"model": theirs, "trainer": {"config": their_cfg.dump()}}, tmp_path / "theirs.pth")
    cfg.MODEL.INIT_CLASS_MAP = [["car", ""]]
    for start, classes, is_new in ((cfg, OURS, True), (cfg, THEIRS, False)):
        our_cfg, model = stock(start, *classes)
        transfer = init_from(model, our_cfg)
        assert (name in transfer.new) is is_new
        assert torch.equal(model.state_dict()[name], theirs[name]) is not is_new
    # Into our own model: five outputs are not those of seven classes.
    model = build_model(with_classes(cfg, *OURS))
    assert name in init_from(model, cfg).new
    assert "INTERPOLATION" not in caplog.text


def test_files_that_hold_something_else(pair, tmp_path: Path) -> None:
    cfg, theirs = pair
    content = torch.load(tmp_path / "theirs.pth")
    torch.save({**content, "model": [torch.zeros(3)]}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="shares no weight with this model"):
        init_from(build_model(cfg), cfg)
    theirs["sem_seg_head.predictor.weight"] = torch.tensor(1.0)
    torch.save({**content, "model": theirs}, tmp_path / "theirs.pth")
    assert init_from(build_model(cfg), cfg).new == ["sem_seg_head.predictor.weight"]


def test_one_class_agnostic_side(pair, tmp_path: Path) -> None:
    """With one thing class, agnostic layers have the shape of others; only those of the same kind are copied."""
    cfg, _ = pair
    their_cfg = with_classes(cfg, ["sky"], ["car"])
    cfg = with_classes(cfg, ["sky"], ["dog"])
    cfg.MODEL.INIT_CLASS_MAP = []
    cfg.MODEL.ROI_BOX_HEAD.CLS_AGNOSTIC_BBOX_REG = True
    theirs = build_model(their_cfg).state_dict()
    torch.save({"model": theirs, "trainer": {"config": their_cfg.dump()}}, tmp_path / "theirs.pth")
    model = build_model(cfg)
    transfer = init_from(model, cfg)
    names = ["roi_heads.box_predictor.bbox_pred", "roi_heads.mask_head.predictor"]
    assert transfer.new == [f"{name}.{kind}" for name in names for kind in ("weight", "bias")]
    assert not torch.equal(model.state_dict()[names[0] + ".weight"], theirs[names[0] + ".weight"])


def test_arrays_of_detectron2(pair, toy_cfg: CfgNode, tmp_path: Path) -> None:
    cfg, theirs = pair
    content = {"model": {k: v.numpy() for k, v in theirs.items()}, "__author__": "somebody"}
    (tmp_path / "theirs.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "theirs.yaml").write_text(with_classes(toy_cfg, *THEIRS).dump())
    cfg.MODEL.INIT_FROM = str(tmp_path / "theirs.pkl")
    assert init_from(build_model(cfg), cfg).new == []


def test_weights_that_are_no_numbers(pair, tmp_path: Path) -> None:
    cfg, theirs = pair
    theirs["sem_seg_head.predictor.bias"][0] = torch.nan
    content = torch.load(tmp_path / "theirs.pth")
    torch.save({**content, "model": theirs}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match=r"theirs.pth: 1 weights of the checkpoint are NaN"):
        init_from(build_model(cfg), cfg)


def test_settings_under_which_weights_mean_something_else(pair, caplog: pytest.LogCaptureFixture) -> None:
    cfg, _ = pair
    cfg.MODEL.RPN.NORM, cfg.MODEL.SEAMLESS.ACTIVATION = "Affine", "elu"
    cfg.MODEL.ANCHOR_GENERATOR.SIZES = [[4 * s for s in sizes] for sizes in cfg.MODEL.ANCHOR_GENERATOR.SIZES]
    # The same weights as those of BN, and the same resizing.
    cfg.MODEL.RESNETS.NORM, cfg.INPUT.INTERPOLATION = "FrozenBN", "bilinear"
    init_from(build_model(cfg), cfg)
    warned = re.findall(r"(MODEL\.\S+) is .*, but .* was trained with", caplog.text)
    assert warned == ["MODEL.SEAMLESS.ACTIVATION", "MODEL.ANCHOR_GENERATOR.SIZES", "MODEL.RPN.NORM"]


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["MODEL.INIT_CLASS_MAP", [["bike", "rider"], ["bike", "car"]]], "'bike' twice"),
        (["MODEL.INIT_CLASS_MAP", [["bke", "rider"]]], "the data set has no class 'bke'; did you mean bike"),
        (["MODEL.INIT_CLASS_MAP", [["bike", "riders"]]], "theirs.pth has no class 'riders'; did you mean rider"),
        (["MODEL.INIT_CLASS_MAP", [["bike", "zzz"]]], "its classes are road, sky"),
        (["MODEL.INIT_CLASS_MAP", ["bike"]], "its entries are"),
        (["MODEL.WEIGHTS", "resnet.pth"], "are both set"),
        (["MODEL.INIT_FROM", "gone.pth"], "gone.pth does not exist"),
    ],
)
def test_mistakes(pair, overrides: list, words: str) -> None:
    cfg, _ = pair
    cfg.merge_from_list(overrides)
    with pytest.raises(UserError, match=words):
        init_from(build_model(cfg), cfg)


def test_another_architecture(pair, tmp_path: Path) -> None:
    cfg, _ = pair
    content = torch.load(tmp_path / "theirs.pth")
    torch.save({**content, "model": {"layer.weight": torch.zeros(3)}}, tmp_path / "theirs.pth")
    with pytest.raises(UserError, match="shares no weight with this model"):
        init_from(build_model(cfg), cfg)
