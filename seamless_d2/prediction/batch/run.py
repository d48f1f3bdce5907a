"""Prediction of files, folders, lists, videos and cameras into files: what ``tools/predict.py`` does."""

import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ...errors import UserError
from ...io import remove_temporaries, write_json
from ..formats import assemble_coco, check_formats, format_files, number_images, read_image_ids, write_formats
from ..predictor import Predictor, prediction_config
from ..result import PanopticResult
from ..tiles import DEFAULT_OVERLAP
from .pipeline import Job, run_jobs
from .resume import begin, is_fresh, prediction_settings
from .sources import Source, find_sources
from .video import Frames, Tracker, VideoFile

_IMAGE_FORMATS = ("overlay", "labelled")


@dataclass
class Summary:
    """What became of the inputs.

    Attributes:
        written: files that are there now, those of earlier runs too, in the order of the inputs.
        skipped: inputs that were finished before.
        failures: one sentence per input that failed.
    """

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, error: UserError) -> None:
        """Note a failure, and say so at once."""
        self.failures.append(str(error))
        tqdm.write(f"error: {error}")

    def report(self, output: Path) -> None:
        """Print what is there; raise ``UserError``, which lists the failures, where there are any."""
        skipped = f", {self.skipped} inputs were finished before" if self.skipped else ""
        print(f"{len(self.written)} files in {output}{skipped}")
        if self.failures:
            sentences = "\n  ".join(self.failures)
            raise UserError(f"{len(self.failures)} inputs failed:\n  {sentences}")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: str | Path,
    formats: Iterable[str] = ("labelled",),
    *,
    overwrite: bool = False,
    image_ids: str | Path | None = None,
    max_frames: int | None = None,
) -> Summary:
    """Predict everything that ``inputs`` name; outputs keep the folder structure.

    Args:
        predictor: the model; with ``raw=True`` for the format "raw".
        inputs: see ``find_sources``.
        output: folder, created where needed.
        formats: see ``formats.FORMATS``.
        overwrite: whether to do finished inputs again.
        image_ids: a COCO json whose image ids the images get; default numbers.
        max_frames: of each video or camera.

    Raises:
        UserError: an input that does not exist, an output that cannot be written, an output folder that holds
            predictions of another model, other settings or other inputs of the same names.
    """
    settings = prediction_settings(predictor.cfg, predictor_options(predictor))
    run = _Run.prepare(settings, inputs, output, formats, overwrite, image_ids, max_frames)
    summary = run.predict(predictor, run.sources)
    run.assemble()
    return summary


def predict_files_on(
    devices: Sequence[str],
    config: CfgNode,
    weights: str | None,
    options: dict[str, Any],
    inputs: Sequence[str | Path],
    output: str | Path,
    formats: Iterable[str],
    *,
    overwrite: bool = False,
    image_ids: str | Path | None = None,
    max_frames: int | None = None,
) -> Summary:
    """``predict_files`` by one process per device; each takes every n-th input.

    Args:
        devices: for instance ["cuda:0", "cuda:1"].
        config, weights, options: what each process makes its ``Predictor`` of.
    """
    made = prediction_config(config, weights, **{k: v for k, v in options.items() if k not in ("amp", "compile")})
    affecting = {"amp": False, "tile": None, "overlap": DEFAULT_OVERLAP, "tta": ()}
    settings = prediction_settings(made, affecting | {k: v for k, v in options.items() if k in affecting})
    run = _Run.prepare(settings, inputs, output, formats, overwrite, image_ids, max_frames)
    shares = [run.sources[k :: len(devices)] for k in range(len(devices))]
    summary = Summary()
    with ProcessPoolExecutor(len(devices), mp_context=get_context("spawn")) as pool:
        work = partial(_predict_share, run, config, weights, options)
        try:
            for part in pool.map(work, devices, shares):
                summary.written += part.written
                summary.skipped += part.skipped
                summary.failures += part.failures
        except BrokenProcessPool:
            raise UserError("a process was killed, perhaps for want of memory; start again to go on") from None
    run.assemble()
    return summary


def _predict_share(
    run: "_Run",
    config: CfgNode,
    weights: str | None,
    options: dict[str, Any],
    device: str,
    sources: list[Source],
) -> Summary:
    return run.predict(Predictor(config, weights, device, **options), sources) if sources else Summary()


def predictor_options(predictor: Predictor) -> dict[str, Any]:
    """Those options of a predictor that change its results."""
    return {"amp": predictor.amp, "tile": predictor.tile, "overlap": predictor.overlap, "tta": list(predictor.tta)}


@dataclass(frozen=True)
class _Run:
    """One call: what is read, and where it goes."""

    sources: list[Source]
    output: Path
    formats: tuple[str, ...]
    overwrite: bool
    image_ids: dict[str, int | str] | None
    max_frames: int | None
    since: int  # see ``resume.begin``

    @classmethod
    def prepare(
        cls,
        settings: dict[str, Any],
        inputs: Sequence[str | Path],
        output: str | Path,
        formats: Iterable[str],
        overwrite: bool,
        image_ids: str | Path | None,
        max_frames: int | None,
    ) -> "_Run":
        if max_frames is not None and max_frames < 1:
            raise UserError(f"max_frames (--max-frames) must be at least 1, not {max_frames}")
        output, formats = Path(output), check_formats(formats)
        sources = find_sources(inputs, output)
        ids = None if image_ids is None else read_image_ids(image_ids)
        if ids is not None:  # an image without an id is told now, not after the last image
            number_images([s.name for s in sources if s.kind == "image"], ids)
        files = {s.name: s.path for s in sources if isinstance(s.path, Path)}
        since = begin(output, settings, files, overwrite)
        remove_temporaries(output)
        return cls(sources, output, formats, overwrite, ids, max_frames, since)

    def predict(self, predictor: Predictor, sources: list[Source]) -> Summary:
        """Predict some of the sources."""
        summary = Summary()
        images = [s for s in sources if s.kind == "image"]
        todo = [s for s in images if self.overwrite or not self._finished(s, self.formats)]
        summary.skipped = len(images) - len(todo)
        failed = self._predict_images(predictor, todo, summary)
        for source in images:
            if source.name not in failed:
                files = format_files(self.output, source.name, self.formats)
                summary.written += [path for paths in files.values() for path in paths]
        for source in sources:
            if source.kind != "image":
                self._try_video(predictor, source, summary)
        return summary

    def _finished(self, source: Source, formats: Iterable[str]) -> bool:
        files = format_files(self.output, source.name, formats)
        return is_fresh((path for paths in files.values() for path in paths), self.since, source.path)

    def _predict_images(self, predictor: Predictor, todo: list[Source], summary: Summary) -> set[str]:
        jobs = (
            Job(
                str(s.path),
                partial(lambda path: path, s.path),
                partial(write_formats, folder=self.output, name=s.name, formats=self.formats),
            )
            for s in todo
        )
        failed = set()
        outcomes = zip(todo, run_jobs(predictor, jobs), strict=True)
        for source, (_, error) in tqdm(outcomes, desc="predict", unit="image", total=len(todo), disable=not todo):
            if error is not None:
                failed.add(source.name)
                summary.fail(error)
        return failed

    def _try_video(self, predictor: Predictor, source: Source, summary: Summary) -> None:
        try:
            videos = {f: self.output / f"{source.name}_{f}.mp4" for f in self.formats if f in _IMAGE_FORMATS}
            record = self._frames_record(source)
            earlier = self._finished_frames(source)
            finished = set(self.formats) <= set(earlier["formats"]) and is_fresh(videos.values(), self.since)
            if source.kind == "video" and finished and not self.overwrite:
                summary.skipped += 1
            else:
                record.unlink(missing_ok=True)  # until the last frame is there
                count = self._predict_video(predictor, source, videos)
                formats = sorted({*earlier["formats"], *self.formats})
                write_json(record, {"frames": count, "max_frames": self.max_frames, "formats": formats})
            summary.written += videos.values()
        except UserError as error:
            summary.fail(error)

    def _frames_record(self, source: Source) -> Path:
        return self.output / f"{source.name}.frames.json"

    def _finished_frames(self, source: Source) -> dict[str, Any]:
        """What is finished of a video, no frames and formats where that is of other settings."""
        record = self._frames_record(source)
        path = source.path if isinstance(source.path, Path) else None
        done = json.loads(record.read_text(encoding="utf-8")) if is_fresh([record], self.since, path) else {}
        if "formats" not in done or done.get("max_frames") != self.max_frames:
            return {"frames": 0, "formats": []}
        return done

    def _predict_video(self, predictor: Predictor, source: Source, videos: dict[str, Path]) -> int:
        """Frame by frame in order; returns the number of frames."""
        frames = Frames(source.path, self.max_frames)
        tracker = Tracker()
        files = {f: VideoFile(path, frames.fps) for f, path in videos.items()}
        per_frame = [f for f in self.formats if f not in videos]

        def save(result: PanopticResult, number: int) -> None:
            result = tracker.update(result)
            for format, file in files.items():
                file.write(result.overlay(labels=format == "labelled"))
            if per_frame:
                write_formats(result, self.output, _frame_name(source, number), per_frame)

        jobs = (
            Job(f"{frames.name}, frame {number}", partial(lambda f: f, frame), partial(save, number=number))
            for number, frame in enumerate(frames, 1)
        )
        try:
            try:
                for _, error in tqdm(
                    run_jobs(predictor, jobs, readers=1, writers=1),
                    desc=source.name,
                    unit="frame",
                    total=frames.total,
                ):
                    if error is not None:
                        raise error
            except KeyboardInterrupt:
                if source.kind != "camera":
                    raise
                # The one way to end a camera: what it has shown is kept.
            frames.check_complete()
            for file in files.values():
                file.finish()
        finally:
            for file in files.values():
                file.discard()
        return frames.read

    def _names(self) -> Iterator[str]:
        """Of all finished images and frames."""
        for source in self.sources:
            if source.kind != "image":
                frames = self._finished_frames(source)["frames"]
                yield from (_frame_name(source, number) for number in range(1, frames + 1))
            elif self._finished(source, ("coco",)):
                yield source.name

    def assemble(self) -> None:
        """Write the COCO json files of all that is there."""
        if "coco" in self.formats:
            assemble_coco(self.output, self._names(), self.image_ids)


def _frame_name(source: Source, number: int) -> str:
    return f"{source.name}/{number:06d}"
