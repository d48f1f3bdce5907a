"""The benchmarks run and report ratios; nothing is timed here."""

import json
import multiprocessing
import runpy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest
import torch
from benchmarks import BENCHMARKS
from benchmarks.fusion import NUM_STUFF, detectron2_fusion, make_scene
from benchmarks.inference import agreement
from benchmarks.loss import make_inputs, our_loss, plain_loss
from benchmarks.machine import compute_rates, memory_rate
from benchmarks.measure import Case, case_of_times, format_cases, measure_times
from benchmarks.memory import matching_job, saved_bytes
from benchmarks.models import training_batch
from benchmarks.peak_memory import peak_memory

from seamless_d2.modeling import fuse_panoptic

from ..helpers.processes import run_or_dump

pytestmark = pytest.mark.slow

MIB = 2**20


def test_ratio() -> None:
    assert Case("a", ours=2.0, other=6.0).ratio == 3
    assert Case("a", ours=2.0, other=None).to_json()["ratio"] is None


def test_medians_and_spreads() -> None:
    case = case_of_times("a", [1.0, 4.0, 2.0], [6.0, 6.0, 9.0], target=2.0)
    assert (case.ours, case.other, case.ratio) == (2, 6, 3)
    assert (case.spread, case.other_spread) == (1.5, 0.5)
    assert "3.00" in format_cases([case]) and "150 %, 50 %" in format_cases([case])


@pytest.mark.parametrize(("repeats", "kept"), [(0, 1), (2, 2)])
def test_functions_run_in_turn_after_a_warm_up(repeats: int, kept: int) -> None:
    calls: list[str] = []
    times = measure_times([partial(calls.append, "a"), partial(calls.append, "b")], "cpu", repeats)
    assert calls == ["a", "b"] * (repeats + 1)
    assert [len(t) for t in times] == [kept, kept]


def test_both_fusions_see_the_same_instances() -> None:
    scene = make_scene(128, 256, 12, "cpu")
    ours, info = fuse_panoptic(**scene, num_stuff=NUM_STUFF)
    theirs, their_info = detectron2_fusion(scene)
    things = {s["instance_id"]: s["area"] for s in info if s["isthing"]}
    their_things = {s["instance_id"]: int((theirs == s["id"]).sum()) for s in their_info if s["isthing"]}
    assert things.keys() == their_things.keys() and len(things) > 5
    # The mask's edge is strict in one and not in the other, hence single pixels.
    assert all(abs(things[k] - their_things[k]) <= 0.01 * things[k] + 2 for k in things)


def test_both_losses_are_the_same_loss() -> None:
    logits, target = make_inputs("cpu", (5, 32, 64))
    assert our_loss(logits, target).item() == pytest.approx(plain_loss(logits, target).item(), rel=1e-5)


def test_agreement_follows_class_and_overlap() -> None:
    def info(*kinds: tuple[bool, int]) -> list[dict]:
        return [{"id": k, "isthing": t, "category_id": c} for k, (t, c) in enumerate(kinds, 1)]

    first = torch.tensor([[0, 1, 1, 2], [3, 3, 3, 2]], dtype=torch.int32)
    kinds = info((True, 0), (True, 0), (False, 0))
    assert agreement((first, kinds), (first, kinds)) == 1
    # Other ids, the same segments.
    second = torch.tensor([[0, 3, 3, 1], [2, 2, 2, 1]], dtype=torch.int32)
    assert agreement((first, kinds), (second, info((True, 0), (False, 0), (True, 0)))) == 1
    # The two things have become one, and the stuff has another class.
    merged = torch.tensor([[0, 1, 1, 1], [2, 2, 2, 1]], dtype=torch.int32)
    assert agreement((first, kinds), (merged, info((True, 0), (False, 1)))) == 5 / 8
    # Void is never a segment.
    assert agreement((first, kinds), (torch.zeros_like(first), [])) == 1 / 8


def test_rates_are_positive() -> None:
    assert min(*compute_rates("cpu", torch.float32, quick=True), memory_rate("cpu", quick=True)) > 1e6


def test_saved_bytes_are_the_activations_of_the_backward_pass() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 16), torch.nn.ReLU(inplace=True), torch.nn.Linear(16, 4))
    # The input, and the one tensor that ReLU and the second layer share.
    assert saved_bytes(partial(model, torch.randn(10, 8)), model) == 4 * 10 * (8 + 16)


def allocating_job(device: str, mebibytes: int) -> Callable[[], object]:
    """For ``peak_memory``."""
    if mebibytes < 0:
        raise ValueError("less than nothing")
    torch.zeros(300 * MIB // 4, device=device)  # the preparation does not count
    return lambda: torch.ones(mebibytes * MIB // 4, device=device).sum()


def fill_in_child(mebibytes: int) -> None:
    block = bytearray(mebibytes * MIB)
    block[::4096] = b"x" * len(block[::4096])
    time.sleep(0.3)


def job_with_child(device: str, mebibytes: int) -> Callable[[], None]:
    """For ``peak_memory``: the memory is that of a process that the job starts."""

    def run() -> None:
        child = multiprocessing.Process(target=fill_in_child, args=(mebibytes,))
        child.start()
        child.join()

    return run


@pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="needs /proc")
def test_peak_memory_of_a_child_process() -> None:
    assert peak_memory(job_with_child, "cpu", 200) == pytest.approx(200 * MIB, rel=0.25)


def test_peak_memory_of_a_job() -> None:
    assert peak_memory(allocating_job, "cpu", 200) == pytest.approx(200 * MIB, rel=0.1)
    with pytest.raises(RuntimeError, match="less than nothing"):
        peak_memory(allocating_job, "cpu", -1)


def test_both_matchings_find_the_same_boxes() -> None:
    best_iou, best_ground_truth, *_ = matching_job("cpu", "ours", 20, 500)()
    rows, labels = matching_job("cpu", "other", 20, 500)()
    positive = best_iou >= 0.7
    assert torch.equal(best_ground_truth[positive], rows[positive]) and (labels[positive] == 1).all()


def test_both_models_train_on_the_same_ground_truth() -> None:
    ours, stock = (training_batch(128, 512, 1, 11, stock=s)[0] for s in (False, True))
    assert torch.equal(ours["image"], stock["image"]) and ours["image"].shape == (3, 128, 512)
    assert torch.equal(ours["instances"].gt_boxes.tensor, stock["instances"].gt_boxes.tensor)
    assert torch.equal(ours["instances"].gt_masks.bitmasks(), stock["instances"].gt_masks.tensor)
    assert len(ours["instances"]) >= 12
    things = (ours["sem_seg"] >= 11) & (ours["sem_seg"] < 255)
    assert torch.equal(things, stock["sem_seg"] == 0)
    assert torch.equal(ours["sem_seg"][~things].clamp(max=254) + 1, stock["sem_seg"][~things].clamp(max=255))


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> dict[str, dict[str, dict]]:
    """The json of all benchmarks at their quick sizes."""
    folder = tmp_path_factory.mktemp("benchmark")
    script = str(request.config.rootpath / "tools" / "benchmark.py")
    command = [sys.executable, "-X", "faulthandler", "-W", "ignore", script, "all", "--quick", "--device", "cpu"]
    command += ["--against", "detectron2", "--json", "b.json"]
    output, _ = run_or_dump(command, folder, seconds=540)
    content = json.loads((folder / "b.json").read_text())
    assert all(name in output for cases in content.values() for name in cases)
    return content


@pytest.mark.slow
@pytest.mark.parametrize("name", BENCHMARKS)
def test_every_benchmark_compares_two_sides(quick: dict, name: str) -> None:
    assert set(quick) == set(BENCHMARKS)
    assert quick[name]
    for title, case in quick[name].items():
        assert set(case) >= {"name", "ours", "other", "ratio", "unit", "spread", "other_spread", "target", "note"}
        assert case["name"] == title and case["unit"] in ("s", "bytes")
        assert case["ours"] > 0 and case["other"] > 0
        assert case["ratio"] == pytest.approx(case["other"] / case["ours"])


@pytest.mark.slow
def test_sizes_are_plausible(quick: dict) -> None:
    for title, case in quick["memory"].items():
        if title.startswith("saved tensors"):
            assert MIB < case["ours"] < case["other"]
        if title.startswith("inference"):  # a process with PyTorch and 45 million parameters
            assert min(case["ours"], case["other"]) > 300 * MIB
    (case,) = [case for title, case in quick["loss"].items() if "memory" in title]
    assert case["other"] > 2 * 19 * 512 * 1024 * 4  # scores and their gradient at full resolution
    (whole,) = [case for title, case in quick["inference"].items() if title.endswith(" fp32, whole")]
    words = whole["note"].split()
    counts = [int(word) for word, following in zip(words, words[1:], strict=False) if following == "detections"]
    assert len(counts) == 2 and min(counts) > 10


def test_mistakes_are_one_sentence(
    tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = str(request.config.rootpath / "tools" / "benchmark.py")
    wrong = [(["--json", str(tmp_path / "none" / "b.json")], "the folder of")]
    if not torch.cuda.is_available():
        wrong.append((["--device", "cuda"], "this PyTorch sees no GPU"))
    for arguments, message in wrong:
        monkeypatch.setattr(sys, "argv", [script, "fusion", "--quick", *arguments])
        with pytest.raises(SystemExit) as stopped:
            runpy.run_path(script, run_name="__main__")
        assert str(stopped.value).startswith(f"error: {message}") and "\n" not in str(stopped.value)
