"""Exported files predict what the model predicts, in every engine, without PyTorch and Detectron2 too."""

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from benchmarks.engines import compare_engines, write_int8_file
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image

from seamless_d2 import Predictor, runtime
from seamless_d2.config import load_config
from seamless_d2.data.toy_streets import CATEGORIES, generate_scene
from seamless_d2.engine import run
from seamless_d2.errors import UserError
from seamless_d2.export import exporter, onnx_file, verify
from seamless_d2.export.exporter import ExportOptions, export_model
from seamless_d2.export.graph import ExportForm
from seamless_d2.export.session import ENGINES, OUTPUTS, ExportedModel
from seamless_d2.modeling.ops.fold import prepare_for_inference
from seamless_d2.prediction import PredictionOptions
from seamless_d2.prediction.batch.run import predict_files
from seamless_d2.structures.classes import Classes

from ..conftest import small_config
from ..helpers.documentation import Runner, read_blocks
from ..helpers.processes import run_or_dump
from ..test_docs import catalogs, template, workspace  # noqa: F401  (fixtures)

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parents[2]
READERS = [("onnx", "onnxruntime"), ("onnx", "openvino"), ("xml", "openvino")]
Models = dict[tuple[str, str], ExportedModel]
SIZES = ((65, 65), (96, 128), (101, 67), (160, 224), (130, 333))


def make_config() -> CfgNode:
    cfg = small_config()
    cfg.MODEL.DEVICE = "cpu"
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 0
    # So that the verification finds images without and with exactly one detection.
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.62
    cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST = 96, 400
    cfg.INPUT.FORMAT = "BGR"  # so that a wrong order of channels would be noticed
    Classes.from_categories(CATEGORIES, "test").to_config(cfg)
    return cfg


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model as model.pth and in all formats. Its weights are random, but its scores differ clearly.

    It is exported in a process of its own: after torch.export, forked children of this one could not train any more.
    """
    for package in ("onnxscript", "onnxruntime", "openvino"):
        pytest.importorskip(package)
    root = tmp_path_factory.mktemp("exported")
    cfg = make_config()
    torch.manual_seed(3)
    model = build_model(cfg)
    with torch.no_grad():
        heads = model.roi_heads
        heads.box_predictor.cls_score.weight.mul_(300)
        heads.box_predictor.bbox_pred.weight.mul_(100)
        heads.mask_head.predictor.weight.mul_(100)
        model.proposal_generator.rpn_head.objectness_logits.weight.mul_(100)
        model.sem_seg_head.predictor.weight.mul_(10)
    torch.save({"model": model.state_dict()}, root / "model.pth")
    (root / "model.yaml").write_text(cfg.dump())
    (root / "images").mkdir()
    for k in range(4):
        Image.fromarray(generate_scene(k, 96, 128).image).save(root / "images" / f"{k}.png")
    command = [sys.executable, "-X", "faulthandler", ROOT / "tools" / "export_model.py"]
    command += ["--config-file", root / "model.yaml", "--weights", root / "model.pth", "--output", root / "model.onnx"]
    command += ["--format", "onnx,openvino,pt2", "--max-size", "512x1024", "--int8", root / "images"]
    printed, _ = run_or_dump(command, ROOT)
    for name in ("model.onnx", "model.xml", "model.pt2", "model_int8.onnx"):
        assert f"{root / name}: verified" in printed
    assert {path.name for path in root.iterdir()} == {
        *("images", "model.pth", "model.yaml"),
        *("model.onnx", "model.xml", "model.bin", "model.pt2", "model_int8.onnx"),
    }
    return root


@pytest.fixture(scope="module")
def models(folder: Path) -> Models:
    """Every file in every engine."""
    return {(name, engine): ExportedModel(folder / f"model.{name}", engine) for name, engine in READERS}


@pytest.fixture(scope="module")
def eager(folder: Path) -> ExportForm:
    predictor = Predictor(folder / "model.yaml", folder / "model.pth", device="cpu")
    return ExportForm(predictor.model, "BGR")


@pytest.fixture(scope="module")
def predictor(folder: Path) -> Predictor:
    return Predictor(folder / "model.yaml", folder / "model.pth", device="cpu")


def image_of(height: int, width: int, seed: int = 5) -> np.ndarray:
    return generate_scene(seed, max(height, 64), max(width, 96)).image[:height, :width]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(("name", "engine"), READERS)
def test_equal_to_the_model(models: Models, eager: ExportForm, name: str, engine: str, size: tuple[int, int]) -> None:
    image = np.ascontiguousarray(image_of(*size).transpose(2, 0, 1))
    with torch.no_grad():
        expected = [output.numpy() for output in eager(torch.from_numpy(image))]
    check_equal(expected, models[name, engine].run_raw(image))


def check_equal(expected: list[np.ndarray], found: dict[str, np.ndarray]) -> None:
    """Compare the outputs of the model with those of an engine."""
    for output, (key, value) in zip(expected, found.items(), strict=True):
        assert output.dtype == value.dtype or key == "isthing", key
        assert output.shape == value.shape, key
    panoptic, category, isthing, score, area, box = expected
    assert isthing.any() and not isthing.all()
    assert np.array_equal(found["category"], category) and np.array_equal(found["isthing"], isthing)
    assert np.count_nonzero(found["panoptic"] != panoptic) <= np.ceil(1e-4 * panoptic.size)
    assert np.abs(found["score"] - score).max() <= 1e-4 and np.abs(found["box"] - box).max() <= 1e-3
    counts = np.bincount(found["panoptic"].ravel(), minlength=len(category) + 1)[1:]
    assert counts.tolist() == found["area"].tolist()


PT2 = """
import sys
import numpy as np
import torch
torch.set_num_threads(1)  # as in the tests: the order of sums depends on it
from seamless_d2 import Predictor
folder, images, output = sys.argv[1:]
predictor = Predictor(None, f"{folder}/model.pt2", engine="torch")
model = predictor.model.exported
images = np.load(images)
arrays = {f"{key} {output}": value for key in images for output, value in model.run_raw(images[key]).items()}
predicted = predictor.predict(f"{folder}/images/0.png")
np.savez(output, metadata=model.metadata.to_json(), predicted=predicted.panoptic_seg, **arrays)
"""


def test_pt2_is_the_model_bit_for_bit(
    folder: Path, models: Models, eager: ExportForm, predictor: Predictor, tmp_path: Path
) -> None:
    images = {str(k): np.ascontiguousarray(image_of(*size).transpose(2, 0, 1)) for k, size in enumerate(SIZES)}
    np.savez(tmp_path / "images.npz", **images)
    command = [sys.executable, "-X", "faulthandler", "-c", PT2, folder, tmp_path / "images.npz", tmp_path / "out.npz"]
    run_or_dump(command, ROOT)
    found = np.load(tmp_path / "out.npz")
    for k, image in images.items():
        with torch.no_grad():
            outputs = dict(zip(OUTPUTS, eager(torch.from_numpy(image)), strict=True))
        for name, expected in outputs.items():
            assert np.array_equal(found[f"{k} {name}"], expected.numpy()), (name, image.shape)
    assert str(found["metadata"]) == models["onnx", "onnxruntime"].metadata.to_json()
    assert np.array_equal(found["predicted"], predictor.predict(folder / "images" / "0.png").panoptic_seg)


def test_the_form_is_what_the_model_predicts(predictor: Predictor, eager: ExportForm) -> None:
    image = torch.from_numpy(np.ascontiguousarray(image_of(96, 128).transpose(2, 0, 1)))
    panoptic_seg, segments = predictor.model([{"image": image.flip(0)}])[0]["panoptic_seg"]
    with torch.no_grad():
        panoptic, category, isthing, score, area, _ = eager(image)
    assert torch.equal(panoptic, panoptic_seg)
    assert [s["category_id"] for s in segments] == category.tolist()
    assert [s["isthing"] for s in segments] == isthing.tolist()
    assert [s["area"] for s in segments] == area.tolist()
    assert [s.get("score", 0.0) for s in segments] == pytest.approx(score.tolist())


def test_metadata(models: Models) -> None:
    for model in models.values():
        metadata = model.metadata
        assert metadata.classes.names == [c["name"] for c in sorted(CATEGORIES, key=lambda c: c["isthing"])]
        assert (metadata.min_size, metadata.max_size, metadata.short_side) == (65, (512, 1024), 96)
        assert metadata.thresholds == {"score": 0.62, "overlap": 0.5, "stuff_area": 0}
        assert len(metadata.weights_sha256) == 64 and "torch" in metadata.versions


WITHOUT = """
import sys
for name in ("torch", "torchvision", "detectron2", "pycocotools", "msgspec", "fvcore", "matplotlib", "tqdm"):
    sys.modules[name] = None
from seamless_d2 import runtime
model = runtime.load(sys.argv[1], sys.argv[2])
result = model.predict(sys.argv[3])
print(result.save(sys.argv[4], "image", ("labelled", "ids")))
print(model.predict(result.image).segments == result.segments, model.classes.names)
"""


@pytest.mark.parametrize(("name", "engine"), READERS)
def test_runs_without_pytorch_and_detectron2(
    folder: Path, predictor: Predictor, tmp_path: Path, name: str, engine: str
) -> None:
    image = folder / "images" / "0.png"
    command = [sys.executable, "-c", WITHOUT, folder / f"model.{name}", engine, image, tmp_path]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    expected = predictor.predict(image)
    found = np.asarray(Image.open(tmp_path / "image_ids.png"))
    assert np.mean(found != expected.panoptic_seg) <= 1e-4
    described = json.loads((tmp_path / "image_ids.json").read_text())["segments"]
    assert [s["class"] for s in described] == [s.class_name for s in expected.segments]


@pytest.mark.parametrize(("name", "engine"), READERS)
def test_the_predictor_with_every_engine(
    folder: Path, models: Models, predictor: Predictor, name: str, engine: str
) -> None:
    exported = Predictor(None, folder / f"model.{name}", engine=engine)
    image = image_of(150, 210)
    expected, found = predictor.predict(image), exported.predict([image])[0]
    assert np.mean(found.panoptic_seg != expected.panoptic_seg) <= 1e-4
    assert [s.class_name for s in found.segments] == [s.class_name for s in expected.segments]
    alone = runtime.Runtime(models[name, engine]).predict(image)
    assert np.array_equal(alone.panoptic_seg, found.panoptic_seg) and alone.segments == found.segments


@pytest.mark.parametrize("tile", [None, (96, 96)])
def test_a_checkpoint_in_another_engine(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tile: tuple[int, int] | None
) -> None:
    """It is exported first; a file for tiles keeps all stuff, whose threshold applies to the whole map."""
    areas = []

    def copy(cfg: CfgNode, output: Path, options: ExportOptions) -> dict[Path, list]:
        assert options.formats == ("openvino",)
        areas.append(cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT)
        for suffix in (".xml", ".bin"):
            shutil.copyfile(folder / f"model{suffix}", output.with_suffix(suffix))
        return {output.with_suffix(".xml"): []}

    monkeypatch.setattr(exporter, "export_model", copy)
    cfg = make_config()
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 300
    options = {"tile": tile, "overlap": 16}
    found = Predictor(cfg, folder / "model.pth", engine="openvino", **options).predict(image_of(96, 128))
    assert areas == [0 if tile else 300]
    if tile:
        expected = Predictor(cfg, folder / "model.pth", device="cpu", **options).predict(image_of(96, 128))
        assert np.mean(found.panoptic_seg != expected.panoptic_seg) <= 1e-4
        assert all(s.isthing or s.area >= 300 for s in found.segments)


def test_tiles(folder: Path) -> None:
    options = {"tile": (96, 96), "overlap": 16}
    torch_tiles = Predictor(folder / "model.yaml", folder / "model.pth", device="cpu", **options)
    exported = Predictor(folder / "model.yaml", folder / "model.onnx", **options)
    image = image_of(160, 224)
    expected, found = torch_tiles.predict(image), exported.predict(image)
    assert np.mean(found.panoptic_seg != expected.panoptic_seg) <= 1e-4


def test_files_and_videos(folder: Path, tmp_path: Path) -> None:
    from ..helpers.videos import write_clip

    (tmp_path / "in").mkdir()
    write_clip(tmp_path / "in" / "clip.mp4", 3)
    predictor = Predictor(None, folder / "model.onnx")
    summary = predict_files(predictor, [folder / "images", tmp_path / "in"], tmp_path / "out", ["coco", "labelled"])
    assert not summary.failures and (tmp_path / "out" / "clip_labelled.mp4").is_file()
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    assert len(content["annotations"]) == 4 + 3


def test_evaluation(arguments: Callable, folder: Path, tmp_path: Path) -> None:
    """The evaluator of training finds the PQ of the model, and other settings than the file's are refused."""
    opts = ["MODEL.DEVICE", "cpu", "INPUT.FORMAT", "BGR", "INPUT.MIN_SIZE_TEST", "96"]
    opts += ["MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH", "0.62"]
    same = [*opts, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "0"]
    expected = run(arguments("MODEL.WEIGHTS", str(folder / "model.pth"), *same, flags=("--eval-only",)))
    for name, engine in (("xml", "openvino"), ("onnx", "onnxruntime")):
        weights = ("MODEL.WEIGHTS", str(folder / f"model.{name}"))
        found = run(arguments(*weights, *same, flags=("--eval-only", "--engine", engine)))
        assert found.keys() == {"panoptic_seg"}
        assert found["panoptic_seg"]["PQ"] == pytest.approx(expected["panoptic_seg"]["PQ"], abs=0.05)
    with pytest.raises(UserError, match=r"STUFF_AREA_LIMIT is 1024, but .*model.onnx was exported with 0"):
        run(arguments(*weights, *opts, "MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT", "1024", flags=("--eval-only",)))


def test_settings_that_are_fixed_in_a_file(folder: Path) -> None:
    cfg = make_config()
    cfg.MODEL.PANOPTIC_FPN.COMBINE.OVERLAP_THRESH = 0.4
    with pytest.raises(UserError, match=r"OVERLAP_THRESH is 0.4, but .*model.onnx was exported with 0.5"):
        Predictor(cfg, folder / "model.onnx")
    with pytest.raises(UserError, match="need the engine torch and a checkpoint"):
        Predictor(None, folder / "model.onnx", tta=(1.0,))
    with pytest.raises(UserError, match="without a config, the weights must be an exported file"):
        Predictor(None, folder / "model.pth")


def test_images_outside_the_sizes(models: Models) -> None:
    model = models["onnx", "onnxruntime"]
    for size in ((64, 100), (100, 1025)):
        with pytest.raises(UserError, match="takes images of 65x65 to 512x1024 pixels"):
            model.run(np.zeros((3, *size), np.uint8))


def test_a_file_of_another_program(folder: Path, tmp_path: Path) -> None:
    import onnx

    model = onnx.load(folder / "model.onnx")
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "other.onnx")
    for engine in ENGINES[".onnx"]:
        with pytest.raises(UserError, match="other.onnx is no model that tools/export_model.py has written"):
            ExportedModel(tmp_path / "other.onnx", engine)


class Sort(torch.nn.Module):
    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return x.argsort(descending=True, stable=True), x.argsort(stable=True)


def test_equal_scores_stay_in_their_order(tmp_path: Path) -> None:
    """Confident detections have scores of exactly 1, and the one that comes first claims its pixels first."""
    onnxruntime, openvino, _ = (pytest.importorskip(name) for name in ("onnxruntime", "openvino", "onnxscript"))

    program = torch.export.export(Sort(), (torch.rand(9),), dynamic_shapes={"x": {0: torch.export.Dim("n", max=9999)}})
    with onnx_file.quiet():
        onnx_file.convert(program, 20, ["x"], ["down", "up"]).save(tmp_path / "sort.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "sort.onnx")
    request = openvino.Core().compile_model(tmp_path / "sort.onnx", "CPU").create_infer_request()
    for count, values in ((0, 5), (1, 5), (2, 5), (3, 5), (17, 5), (100, 5), (500, 5), (4000, 10**6)):
        x = np.random.RandomState(count).randint(0, values, count).astype(np.float32)
        expected = [order.numpy() for order in Sort()(torch.from_numpy(x))]
        request.infer({"x": x})
        found = [request.get_tensor(name).data for name in ("down", "up")]
        assert all(np.array_equal(*pair) for pair in zip(session.run(None, {"x": x}), expected, strict=True))
        assert all(np.array_equal(*pair) for pair in zip(found, expected, strict=True))


def test_no_sum_is_scattered_by_threads(folder: Path) -> None:
    """ONNX Runtime loses sums where two threads of a ScatterND add to one element."""
    import onnx

    def list_nodes(graph: "onnx.GraphProto") -> Iterator["onnx.NodeProto"]:
        for node in graph.node:
            yield node
            for attribute in node.attribute:
                yield from list_nodes(attribute.g)

    nodes = list(list_nodes(onnx.load(folder / "model.onnx").graph))
    assert any(node.op_type == "Loop" for node in nodes)
    for node in nodes:
        if node.op_type == "ScatterND":
            assert all(attribute.s in (b"", b"none") for attribute in node.attribute), node.name


def test_a_file_that_differs_is_removed(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = Predictor(folder / "model.yaml", folder / "model.pth", device="cpu")
    form = ExportForm(prepare_for_inference(predictor.model), "BGR")
    model = ExportedModel(folder / "model.onnx")
    examples = verify.make_examples(form, model.metadata)
    assert {(e.image.shape[1:]) for e in examples} >= {(65, 65), (127, 223)}
    assert {int(e.expected["isthing"].sum()) for e in examples} >= {0, 1}
    verify.verify(model, examples, verify.TOLERANCES["onnx"])
    examples[0].expected["panoptic"][:3] += 1
    with pytest.raises(UserError, match="does not predict what the model predicts, so that it was removed"):
        verify.verify(model, examples, verify.TOLERANCES["onnx"])

    def fail(*_: object) -> None:
        raise UserError("it differs")

    def copy(_: object, path: Path, *__: object) -> None:
        path.write_bytes((folder / "model.onnx").read_bytes())

    monkeypatch.setattr(exporter, "trace", lambda *_: None)
    monkeypatch.setattr(exporter, "write_onnx", copy)
    monkeypatch.setattr(exporter, "verify", fail)
    cfg = PredictionOptions().apply(make_config(), str(folder / "model.pth"), "cpu")
    with pytest.raises(UserError, match="it differs"):
        export_model(cfg, tmp_path / "new" / "model.onnx", ExportOptions())
    assert not list((tmp_path / "new").iterdir())


def test_a_network_that_needs_padding(tmp_path: Path) -> None:
    """Images are padded to a multiple of 32 inside the file, as the model pads them."""
    pytest.importorskip("timm")
    cfg = make_config()
    cfg.MODEL.BACKBONE.NAME, cfg.MODEL.TIMM.NAME = "build_timm_fpn_backbone", "test_convnext"
    torch.manual_seed(3)
    torch.save({"model": build_model(cfg).state_dict()}, tmp_path / "model.pth")
    cfg = PredictionOptions().apply(cfg, str(tmp_path / "model.pth"), "cpu")
    export_model(cfg, tmp_path / "model.pt2", ExportOptions(("pt2",), max_size=(512, 1024)))
    model, image = Predictor(cfg, device="cpu").model, np.ascontiguousarray(image_of(101, 67).transpose(2, 0, 1))
    padded = model.preprocess_image([{"image": torch.from_numpy(image[::-1].copy())}])
    assert padded.tensor.shape == (1, 3, 128, 96)
    panoptic, _ = model([{"image": torch.from_numpy(image[::-1].copy())}])[0]["panoptic_seg"]
    assert np.array_equal(panoptic, ExportedModel(tmp_path / "model.pt2", "torch").run_raw(image)["panoptic"])


def test_the_page(
    folder: Path,
    workspace: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every block of docs/deploy.md runs, with the files that are there already in place of another export."""

    def copy(cfg: CfgNode, output: Path, options: ExportOptions) -> dict[Path, list]:
        shutil.copyfile(folder / "model.onnx", output)
        return {output: []}

    trained = workspace / "output" / "toy_streets"
    cfg = load_config(trained / "config.yaml")
    merged = make_config()
    merged.DATASETS, merged.OUTPUT_DIR = cfg.DATASETS, cfg.OUTPUT_DIR
    (trained / "config.yaml").write_text(merged.dump())
    shutil.copyfile(folder / "model.pth", trained / "model_final.pth")
    monkeypatch.setattr(exporter, "export_model", copy)
    runner = Runner(monkeypatch)
    for block in read_blocks(ROOT / "docs" / "deploy.md"):
        runner.run(block)
    assert list((workspace / "predictions" / "onnx").glob("*_labelled.jpg"))


def test_javascript(folder: Path, tmp_path: Path) -> None:
    """The snippet of docs/deploy.md, where NODE_MODULES names a node_modules folder with its two packages."""
    modules = os.environ.get("NODE_MODULES")
    if not modules:
        pytest.skip("needs NODE_MODULES, a folder with onnxruntime-node and pngjs")
    page = (ROOT / "docs" / "deploy.md").read_text(encoding="utf-8")
    (tmp_path / "segment.mjs").write_text(re.search(r"```javascript\n(.*?)```", page, re.DOTALL)[1])
    (tmp_path / "node_modules").symlink_to(modules)
    (tmp_path / "model.onnx").symlink_to(folder / "model.onnx")
    Image.fromarray(image_of(96, 128)).save(tmp_path / "street.png")
    done = subprocess.run(["node", "segment.mjs"], cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    result = runtime.load(folder / "model.onnx").predict(image_of(96, 128))
    expected = [
        f"{s.id} {'thing' if s.isthing else 'stuff'} {s.category_id} {s.score or 0:.2f} {s.area}"
        for s in result.segments
    ]
    assert done.stdout.splitlines() == ["map [ 96, 128 ]", *expected]


def test_the_benchmark_of_the_engines(folder: Path, tmp_path: Path) -> None:
    int8 = write_int8_file(Path(shutil.copy(folder / "model.onnx", tmp_path)))
    cases = compare_engines(make_config(), folder / "model.onnx", int8, 96, 128, False, 0)
    names = " ".join(case.name for case in cases)
    assert all(case.ratio > 0 for case in cases)
    assert "openvino int8, other: openvino fp32" in names and "onnxruntime int8, other: onnxruntime fp32" in names
