"""The stages of many predictions: order, batches, failures, memory."""

import threading
import time

import numpy as np
import pytest

from seamless_d2 import Predictor
from seamless_d2.errors import UserError
from seamless_d2.prediction.batch.pipeline import Job, StageTimes, run_jobs

from ...helpers.images import make_image


def test_results_do_not_depend_on_batches(model_files, predictor) -> None:
    sizes = [(50, 70), (50, 70), (64, 64), (50, 70), (50, 70), (50, 70), (40, 90)]
    images = [make_image(*size, seed=k) for k, size in enumerate(sizes)]
    batched = Predictor(*model_files, device="cpu", batch_size=3)
    seen = []
    network = batched.run_network
    batched.run_network = lambda prepared: seen.append(len(prepared)) or network(prepared)
    results = {}
    jobs = [Job(str(k), lambda k=k: images[k], lambda r, k=k: results.update({k: r})) for k in range(len(images))]
    assert [job.name for job, error in run_jobs(batched, jobs) if error is None] == [str(k) for k in range(7)]
    assert seen == [2, 1, 3, 1]
    for k, image in enumerate(images):
        alone = predictor.predict(image)
        assert results[k].image is image
        assert (results[k].panoptic_seg != alone.panoptic_seg).mean() < 1e-3  # sums in another order
    assert [r.panoptic_seg.shape for r in batched.predict(images)] == sizes


def test_failures_keep_their_place_and_the_rest_goes_on(predictor) -> None:
    def load(k: int) -> np.ndarray:
        if k in (1, 2, 5):
            raise UserError(f"image {k} is broken")
        return make_image(seed=k)

    def save(k: int) -> None:
        if k == 3:
            raise UserError("no room for 3")

    jobs = (Job(str(k), lambda k=k: load(k), lambda r, k=k: save(k)) for k in range(6))
    outcomes = [(job.name, str(error) if error else "") for job, error in run_jobs(predictor, jobs)]
    assert outcomes == [
        ("0", ""),
        ("1", "image 1 is broken"),
        ("2", "image 2 is broken"),
        ("3", "no room for 3"),
        ("4", ""),
        ("5", "image 5 is broken"),
    ]


def test_a_image_that_does_not_fit_is_named(model_files) -> None:
    small = Predictor(*model_files, device="cpu", batch_size=2)
    network = small.run_network

    def limited(prepared):
        if len(prepared) > 1 or prepared[0].image.shape[0] > 100:
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes.")
        return network(prepared)

    small.run_network = limited
    saved = []
    images = [make_image(), make_image(), make_image(120, 70)]
    jobs = (Job(f"{k}.jpg", lambda k=k: images[k], lambda r, k=k: saved.append(k)) for k in range(3))
    errors = [error for _, error in run_jobs(small, jobs)]
    assert sorted(saved) == [0, 1] and errors[:2] == [None, None]
    assert "2.jpg does not fit into memory; use tiles" in str(errors[2])
    small.run_network = lambda prepared: 1 / 0
    with pytest.raises(ZeroDivisionError):
        list(run_jobs(small, [Job("x", make_image, saved.append)]))


@pytest.mark.slow
def test_stages_overlap_and_wait_for_each_other(predictor) -> None:
    """The network goes on while an image is being written, but not for ever."""
    release, loaded = threading.Event(), []

    def load(k: int) -> np.ndarray:
        loaded.append(k)
        return make_image()

    def save(k: int) -> None:
        if k == 0:
            assert release.wait(60)

    outcomes = run_jobs(predictor, (Job(str(k), lambda k=k: load(k), lambda r, k=k: save(k)) for k in range(20)))
    threading.Timer(2, release.set).start()
    assert next(outcomes)[0].name == "0"
    assert 4 <= len(loaded) <= 12
    assert len(list(outcomes)) == 19


def test_nothing_is_begun_after_the_end(predictor) -> None:
    loaded = []
    outcomes = run_jobs(predictor, (Job(str(k), lambda k=k: loaded.append(k) or make_image(), id) for k in range(50)))
    next(outcomes)
    outcomes.close()
    count = len(loaded)
    assert count < 15 and len(loaded) == count


def test_failures_without_a_name_get_one(predictor) -> None:
    def too_large() -> None:
        raise MemoryError

    jobs = [Job("huge.tif", too_large, id), Job("thin.png", lambda: make_image(1, 3000), id)]
    errors = [str(error) for _, error in run_jobs(predictor, jobs)]
    assert errors[0].startswith("huge.tif does not fit into memory")
    assert errors[1].startswith("thin.png: an image of 3000 x 1 pixels")


def test_times_of_the_stages(predictor, monkeypatch: pytest.MonkeyPatch) -> None:
    images = [make_image(seed=k) for k in range(6)]
    plain = predictor.run_network
    monkeypatch.setattr(predictor, "run_network", lambda batch: (time.sleep(0.1), plain(batch))[1])
    times = StageTimes()
    jobs = [Job(str(k), lambda image=image: image, lambda result: None) for k, image in enumerate(images)]
    assert len(list(run_jobs(predictor, jobs, times=times))) == 6
    assert times.images == 6 and times.seconds["network"] > 0.6
    assert min(times.seconds[stage] for stage in ("reading", "fusion", "writing")) > 0
    text = times.describe()
    assert text.startswith("6 images in ") and text.endswith("bound by network") and "% busy" in text
