"""The fenced blocks of the documentation, a workspace in which they run, and what runs them.

An HTML comment right before a block says what is done with it:

    <!-- test: parse, REASON -->        nothing is executed; tools, options, config files and keys are checked
    <!-- test: with KEY VALUE ... -->   the overrides are appended to each command that takes overrides
    <!-- test: save PATH -->            a yaml block is also written to this file
    <!-- test: build -->                the model of a yaml block is built and predicts an image
"""

import argparse
import io
import json
import re
import runpy
import shlex
import shutil
import sys
import zipfile
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from functools import partialmethod
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from detectron2.modeling import build_model
from PIL import Image

from seamless_d2.config import load_config
from seamless_d2.data.toy_streets import write_toy_streets
from seamless_d2.seamseg.raw import make_raw
from seamless_d2.structures.classes import Classes

from ..conftest import small_config
from .original_files import NUM_STUFF, NUM_THINGS, ini_text, metadata_bytes, save, small_model, snapshot_content

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
HEIGHT, WIDTH = 64, 128
# Of road, sky, a car and a person.
BOXES = [(0, 32, 128, 64), (0, 0, 128, 32), (20, 30, 50, 50), (80, 20, 90, 50)]
# The same few small scenes as in the workspace instead of hundreds.
SCENES = ["--num-train", "6", "--num-val", "2", "--height", str(HEIGHT), "--width", str(WIDTH), "--workers", "1"]
TAKES_OVERRIDES = ("train_net.py", "predict.py", "tune_thresholds.py")
_DIRECTIVE = re.compile(r"<!-- test: (parse|with|save|build)(?:,? (.*?))? ?-->")
_EXECUTED = {"bash", "python", "yaml"}
# JavaScript is run by tests/export/exported_files.py.
_SHOWN = {"text", "bibtex", "javascript"}


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        page: The file.
        line: The number of its first line.
        language: bash, python or yaml.
        text: What is between the fences.
        kind: parse, with, save, build, or empty.
        argument: What the comment says beside the kind.
    """

    page: Path
    line: int
    language: str
    text: str
    kind: str = ""
    argument: str = ""

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def read_blocks(page: Path) -> Iterator[Block]:
    """The blocks of a page that a test executes; blocks of other languages than those known are a mistake."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = None
    for number, line in enumerate(lines):
        if not line.startswith("```"):
            continue
        if start is None:
            start = number
            continue
        language = lines[start].removeprefix("```")
        assert language in _EXECUTED | _SHOWN, f"{page.name}:{start + 1}: language {language!r}"
        before = lines[start - 1].strip()
        directive = _DIRECTIVE.fullmatch(before)
        assert directive or not before.startswith("<!--"), f"{page.name}:{start}: {before}"
        if language in _EXECUTED:
            text = "\n".join(lines[start + 1 : number])
            kind, argument = (directive[1], directive[2] or "") if directive else ("", "")
            yield Block(page, start + 1, language, text, kind, argument)
        start = None
    assert start is None, f"{page.name}: a block is not closed"


def read_commands(text: str) -> Iterator[list[str]]:
    """The words of each command of a bash block."""
    for line in text.replace("\\\n", " ").splitlines():
        if words := shlex.split(line, comments=True):
            yield words


# --- the workspace -------------------------------------------------------------------------------------------------


def _write_model(root: Path, categories: list[dict]) -> None:
    """output/toy_streets as training leaves it, with an untrained model."""
    cfg = small_config()
    toy = "toy_streets"
    cfg.DATASETS.PANOPTIC = [[f"{toy}_val", f"{toy}/val", f"{toy}/panoptic_val", f"{toy}/panoptic_val.json"]]
    cfg.DATASETS.TEST = (f"{toy}_val",)
    cfg.INPUT.MIN_SIZE_TEST = HEIGHT
    cfg.DATALOADER.NUM_WORKERS = 0
    cfg.MODEL.PANOPTIC_FPN.COMBINE.STUFF_AREA_LIMIT = 1
    # An untrained model is sure of nothing.
    cfg.MODEL.PANOPTIC_FPN.COMBINE.INSTANCES_CONFIDENCE_THRESH = 0.3
    cfg.OUTPUT_DIR = f"output/{toy}"
    Classes.from_categories(categories, toy).to_config(cfg)
    folder = root / cfg.OUTPUT_DIR
    folder.mkdir(parents=True)
    torch.manual_seed(0)
    torch.save({"model": build_model(cfg).state_dict()}, folder / "model_final.pth")
    (folder / "config.yaml").write_text(cfg.dump())


def _write_annotations(root: Path) -> None:
    """The images with polygons, label PNGs, and panoptic predictions."""
    for folder in ("images", "labels", "instances"):
        (root / folder).mkdir()
    validation = root / "datasets" / "toy_streets"
    export = {
        "images": [],
        "annotations": [],
        "categories": [{"id": i, "name": n} for i, n in enumerate(("road", "sky", "car", "person"), 1)],
    }
    for number, file in enumerate(sorted((validation / "val").glob("*.png")), 1):
        shutil.copy(file, root / "images")
        export["images"].append({"id": number, "file_name": file.name, "height": HEIGHT, "width": WIDTH})
        for category, (x0, y0, x1, y1) in enumerate(BOXES, 1):
            export["annotations"].append(
                {
                    "id": len(export["annotations"]),
                    "image_id": number,
                    "category_id": category,
                    "segmentation": [[x0, y0, x1, y0, x1, y1, x0, y1]],
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0,
                }
            )
        labels, instances = np.full((HEIGHT, WIDTH), 1, np.uint8), np.zeros((HEIGHT, WIDTH), np.uint16)
        labels[30:50, 20:50], instances[30:50, 20:50] = 4, 1
        Image.fromarray(labels).save(root / "labels" / file.name)
        Image.fromarray(instances).save(root / "instances" / file.name)
    (root / "classes.txt").write_text("1 road stuff\n4 car thing\n")
    (root / "export.json").write_text(json.dumps(export))
    for name in ("ground_truth", "predictions"):
        shutil.copy(validation / "panoptic_val.json", root / f"{name}.json")
        shutil.copytree(validation / "panoptic_val", root / name)


def _write_original_files(root: Path) -> None:
    """What the original program leaves: the released zip, a snapshot, an ini, metadata, raw outputs."""
    content = snapshot_content(small_model())
    metadata = metadata_bytes()
    save(content, root / "model_best.pth.tar")
    (root / "metadata.bin").write_bytes(metadata)
    (root / "old.ini").write_text(ini_text())
    weights = save({k: v for k, v in content.items() if k != "config"}, root / "weights.tar")
    with zipfile.ZipFile(root / "seamseg_r50_vistas.zip", "w") as archive:
        archive.write(weights, "seamseg_r50_vistas.tar")
        archive.writestr("config.ini", content["config"])
        archive.writestr("metadata.bin", metadata)
    weights.unlink()
    (root / "raw").mkdir()
    for file in (root / "images").iterdir():
        labels = torch.zeros(HEIGHT, WIDTH, dtype=torch.int64)
        labels[:, WIDTH // 2 :] = NUM_STUFF - 1
        outputs = argparse.Namespace(
            sem_seg=labels,
            boxes=torch.tensor([[10.0, 10.0, 60.0, 50.0]]),
            classes=torch.tensor([NUM_THINGS - 1]),
            scores=torch.tensor([0.9]),
            mask_logits=torch.full((1, 28, 28), 5.0),
        )
        torch.save(make_raw(outputs), root / "raw" / f"{file.stem}.pth.tar")


def write_workspace(root: Path) -> Path:
    """Everything that the commands of the documentation name, small."""
    shutil.copytree(ROOT / "configs", root / "configs")
    for name in ("tools", "tests"):
        (root / name).symlink_to(ROOT / name)
    data = write_toy_streets(root / "datasets" / "toy_streets", 6, 2, HEIGHT, WIDTH, workers=1, progress=False)
    categories = json.loads((data / "panoptic_val.json").read_text())["categories"]
    _write_model(root, categories)
    _write_annotations(root)
    _write_original_files(root)
    image = root / "images" / "000000.png"
    Image.open(image).save(root / "street.jpg")
    (root / "list.txt").write_text("images/000001.png\n")
    video = cv2.VideoWriter(str(root / "drive.mp4"), cv2.VideoWriter_fourcc(*"mp4v"), 10, (WIDTH, HEIGHT))
    for _ in range(2):
        video.write(cv2.imread(str(image)))
    video.release()
    return root


# --- execution -----------------------------------------------------------------------------------------------------


class Parsed(BaseException):
    """Raised in place of a tool's work, as soon as it has understood its arguments."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        super().__init__("parsed")
        self.arguments = arguments


def run_script(
    words: list[str], place: str, monkeypatch: pytest.MonkeyPatch, parse: bool = False
) -> argparse.Namespace | None:
    """Run ``tools/x.py ...`` or ``-m module ...`` in this process, or only its argument parser."""
    output = io.StringIO()
    script, arguments = (words[1], words[2:]) if words[0] == "-m" else (words[0], words[1:])
    with monkeypatch.context() as patch, redirect_stdout(output), redirect_stderr(output):
        patch.setattr(sys, "argv", [script, *arguments])
        if parse:
            original = argparse.ArgumentParser.parse_args
            strict = partialmethod(argparse.ArgumentParser.__init__, allow_abbrev=False)
            patch.setattr(argparse.ArgumentParser, "__init__", strict)

            def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
                raise Parsed(original(parser, *args, **kwargs))

            patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        try:
            if words[0] == "-m":
                runpy.run_module(script, run_name="__main__", alter_sys=True)
            else:
                runpy.run_path(script, run_name="__main__")
        except Parsed as parsed:
            return parsed.arguments
        except SystemExit as end:
            assert not end.code, f"{place}: {shlex.join(words)}\n{end.code}\n{output.getvalue()[-2000:]}"
    assert not parse, f"{place}: {script} parses no arguments"
    return None


def check_arguments(arguments: argparse.Namespace, place: str) -> None:
    """Config files exist, and so does every key of the overrides."""
    options = list(getattr(arguments, "opts", []))
    assert not any(option.startswith("--") for option in options), f"{place}: options after the overrides: {options}"
    if config := getattr(arguments, "config_file", ""):
        load_config(config, options)


class Runner:
    """Executes the blocks of a page in order, in the current directory."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.namespace: dict[str, object] = {"__name__": "documentation"}

    def run(self, block: Block) -> None:
        getattr(self, f"run_{block.language}")(block)

    def run_python(self, block: Block) -> None:
        # Line numbers of a traceback are those of the page.
        code = compile("\n" * block.line + block.text, str(block.page), "exec")
        if block.kind != "parse":
            with redirect_stdout(io.StringIO()):
                exec(code, self.namespace)

    def run_yaml(self, block: Block) -> None:
        path = Path(block.argument if block.kind == "save" else f"configs/block_{block.line}/config.yaml")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text)
        cfg = load_config(path)
        if block.kind == "build":
            with torch.no_grad():
                result = build_model(cfg).eval()([{"image": torch.zeros(3, HEIGHT, WIDTH)}])[0]
            assert result["panoptic_seg"][0].shape == (HEIGHT, WIDTH)

    def run_bash(self, block: Block) -> None:
        for words in read_commands(block.text):
            self.run_command(words, block)

    def run_command(self, words: list[str], block: Block) -> None:
        program, place = words[0], block.place
        if program == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"{place}: {words}"
        elif program == "pip":
            extras = re.findall(r"\[(\w+)\]", words[-1])
            assert words[1:3] == ["install", "-e"] and all(
                f'"{extra}": ' in (ROOT / "setup.py").read_text() for extra in extras
            ), f"{place}: {words}"
        elif program == "source":
            assert words[1] == ".venv/bin/activate", place
        elif program == "export":
            self.monkeypatch.setenv(*words[1].split("=", 1))
        elif program == "md5sum":
            assert Path(words[1]).is_file(), f"{place}: {words}"
        elif program in ("torchrun", "srun"):
            script = next(i for i, word in enumerate(words) if word.startswith("tools/"))
            check_arguments(run_script(words[script:], place, self.monkeypatch, parse=True), place)
        else:
            assert program == "python", f"{place}: the test does not know {program}"
            self.run_tool(words[1:], block)

    def run_tool(self, words: list[str], block: Block) -> None:
        if words[:2] == ["-m", "pytest"]:
            assert all(Path(word).is_file() for word in words[2:] if not word.startswith("-")), block.place
            return
        if words[:2] == ["-m", "seamless_d2.data.toy_streets"]:
            words = [*words, *SCENES]
        if block.kind == "with" and Path(words[0]).name in TAKES_OVERRIDES:
            words = [*words, *shlex.split(block.argument)]
        check_arguments(run_script(words, block.place, self.monkeypatch, parse=True), block.place)
        if block.kind != "parse":
            run_script(words, block.place, self.monkeypatch)
