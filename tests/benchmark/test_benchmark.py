"""The benchmarks run and report ratios; nothing is timed here."""

import json
import subprocess
import sys

import pytest
import torch

from seamless_d2.benchmark.fusion import NUM_STUFF, detectron2_fusion, make_scene
from seamless_d2.benchmark.measure import Case
from seamless_d2.modeling import fuse_panoptic


def test_ratio() -> None:
    assert Case("a", ours=2.0, other=6.0).ratio == 3
    assert Case("a", ours=2.0, other=None).to_json()["ratio"] is None


def test_both_fusions_see_the_same_instances() -> None:
    scene = make_scene(128, 256, 12, "cpu")
    ours, info = fuse_panoptic(**scene, num_stuff=NUM_STUFF)
    theirs, their_info = detectron2_fusion(scene)
    things = {s["instance_id"]: s["area"] for s in info if s["isthing"]}
    their_things = {s["instance_id"]: int((theirs == s["id"]).sum()) for s in their_info if s["isthing"]}
    assert things.keys() == their_things.keys() and len(things) > 5
    # The mask's edge is strict in one and not in the other, hence single pixels.
    assert all(abs(things[k] - their_things[k]) <= 0.01 * things[k] + 2 for k in things)


@pytest.mark.slow
def test_command_line_writes_the_json(tmp_path, request) -> None:
    script = str(request.config.rootpath / "tools" / "benchmark.py")
    command = [sys.executable, "-W", "ignore", script, "all", "--quick", "--against", "detectron2", "--json", "b.json"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    content = json.loads((tmp_path / "b.json").read_text())
    assert set(content) == {"fusion", "loss", "evaluation"}
    for cases in content.values():
        for case in cases.values():
            assert case["ratio"] == pytest.approx(case["other"] / case["ours"])
    if not torch.cuda.is_available():
        result = subprocess.run([*command[:4], "fusion", "--device", "cuda"], capture_output=True, text=True)
        assert result.returncode == 1
        assert result.stderr.strip().splitlines()[-1].startswith("error: this PyTorch sees no GPU")
