"""What cannot be exported is refused in one sentence before anything is traced."""

from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.modeling import build_model

from seamless_d2.errors import UserError
from seamless_d2.export.exporter import ExportOptions, choose_traced_size, export_model, find_min_size
from seamless_d2.export.graph import ExportForm
from seamless_d2.export.onnx_file import check_packages
from seamless_d2.export.quantize import find_images

from ..helpers import components  # noqa: F401  (registers its backbones)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"formats": ("onnx", "coreml")}, "export format 'coreml' is unknown; use onnx, openvino, pt2"),
        ({"formats": ()}, "export format '' is unknown"),
        ({"opset": 21}, "--opset is 21; use 18, 19 or 20"),
        ({"formats": ("pt2",), "int8": Path("images")}, "8-bit integers exist in ONNX files only"),
    ],
)
def test_options(options: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        ExportOptions(**options)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("MODEL.ROI_HEADS.NAME", "StandardROIHeads", "StandardROIHeads has no export form"),
        ("MODEL.PROPOSAL_GENERATOR.NAME", "RPN", "RPN has no export form"),
        ("MODEL.BACKBONE.NAME", "build_tiny_vitdet_backbone", "SimpleFeaturePyramid takes square images only"),
        ("MODEL.SEAMLESS.FUSE_AT", "output", "FUSE_AT output has no export form"),
    ],
)
def test_components_without_an_export_form(toy_cfg: CfgNode, key: str, value: str, message: str) -> None:
    toy_cfg.MODEL.DEVICE = "cpu"
    toy_cfg.merge_from_list([key, value])
    with pytest.raises(UserError, match=message):
        ExportForm(build_model(toy_cfg), "RGB")


@pytest.mark.parametrize(
    ("extra_levels", "options", "expected"),
    [
        (1, {}, 65),
        (2, {}, 129),
        (1, {"min_size": 300}, 300),
        (1, {"min_size": 64}, "--min-size is 64, which is too small for this model; it can be 65 or more"),
        (2, {"min_size": 65}, "--min-size is 65, .* 129 or more"),
        (1, {"min_size": 300, "max_size": (200, 400)}, "--max-size is 200x400; both must be larger than .* 300 pixels"),
        (1, {"max_size": (65, 400)}, "--max-size is 65x400; both must be larger than the least size, 65 pixels"),
    ],
)
def test_least_size(toy_cfg: CfgNode, extra_levels: int, options: dict, expected: int | str) -> None:
    """It is above the stride of the coarsest level, 64 or 128."""
    toy_cfg.MODEL.DEVICE, toy_cfg.MODEL.FPN.EXTRA_LEVELS = "cpu", extra_levels
    model = build_model(toy_cfg)
    if isinstance(expected, int):
        assert find_min_size(model, ExportOptions(**options)) == expected
    else:
        with pytest.raises(UserError, match=expected):
            find_min_size(model, ExportOptions(**options))


@pytest.mark.parametrize(
    ("least", "largest", "expected"),
    [
        (65, (2048, 4096), (131, 163)),
        (129, (2048, 4096), (131, 163)),
        (300, (2048, 4096), (301, 300)),
        (65, (128, 512), (128, 163)),
        (65, (66, 66), (66, 65)),
        (201, (2048, 4096), (201, 202)),
        (65, (4096, 66), (131, 66)),
    ],
)
def test_traced_size(least: int, largest: tuple[int, int], expected: tuple[int, int]) -> None:
    """It is within the range, and not square."""
    assert choose_traced_size(least, largest) == expected


def test_other_architectures(toy_cfg: CfgNode, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript")
    toy_cfg.MODEL.DEVICE, toy_cfg.MODEL.META_ARCHITECTURE = "cpu", "GeneralizedRCNN"
    with pytest.raises(UserError, match="only models of MODEL.META_ARCHITECTURE SeamlessPanoptic can be exported"):
        export_model(toy_cfg, tmp_path / "m.pt2", ExportOptions(("pt2",)))


def test_nothing_is_replaced(toy_cfg: CfgNode, tmp_path: Path) -> None:
    (tmp_path / "m.onnx").write_text("of somebody")
    with pytest.raises(UserError, match="m.onnx exists already"):
        export_model(toy_cfg, tmp_path / "m.onnx", ExportOptions())
    assert (tmp_path / "m.onnx").read_text() == "of somebody"


def test_missing_packages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    check_packages(["pt2"])
    with pytest.raises(UserError, match="the format openvino needs onnx, which is not installed; run `python -m pip"):
        check_packages(["openvino"])


def test_images_to_calibrate_by(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no images to calibrate"):
        find_images(tmp_path)
    for k in range(130):
        (tmp_path / f"{k:03}.png").touch()
    images = find_images(tmp_path)
    assert len(images) == 44 and images[0].name == "000.png" and images[-1].name == "129.png"
