"""Prediction of files, folders, lists, videos and cameras into files: what ``tools/predict.py`` does."""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ..errors import UserError
from ..files import remove_temporaries, write_json
from .formats import assemble_coco, check_formats, format_files, read_image_ids, write_formats
from .pipeline import Job, run_jobs
from .predictor import Predictor
from .result import PanopticResult
from .sources import Source, find_sources
from .video import Frames, Tracker, VideoFile

SETTINGS_FILE = "settings.json"
_PICTURE_FORMATS = ("overlay", "labelled")


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
        image_ids: a COCO json whose image ids the pictures get; default numbers.
        max_frames: of each video or camera.

    Raises:
        UserError: an input that does not exist, an output that cannot be written, an output folder that holds
            predictions of another model or other settings.
    """
    run = _Run.prepare(predictor.cfg, predictor_options(predictor), inputs, output, formats, overwrite, image_ids)
    summary = run.predict(predictor, run.sources, max_frames)
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
    run = _Run.prepare(config, options, inputs, output, formats, overwrite, image_ids)
    shares = [run.sources[k :: len(devices)] for k in range(len(devices))]
    summary = Summary()
    with ProcessPoolExecutor(len(devices), mp_context=get_context("spawn")) as pool:
        work = partial(_predict_share, run, config, weights, options, max_frames)
        for part in pool.map(work, devices, shares):
            summary.written += part.written
            summary.skipped += part.skipped
            summary.failures += part.failures
    run.assemble()
    return summary


def _predict_share(
    run: "_Run",
    config: CfgNode,
    weights: str | None,
    options: dict[str, Any],
    max_frames: int | None,
    device: str,
    sources: list[Source],
) -> Summary:
    return run.predict(Predictor(config, weights, device, **options), sources, max_frames) if sources else Summary()


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

    @classmethod
    def prepare(
        cls,
        config: CfgNode,
        options: dict[str, Any],
        inputs: Sequence[str | Path],
        output: str | Path,
        formats: Iterable[str],
        overwrite: bool,
        image_ids: str | Path | None,
    ) -> "_Run":
        run = cls(
            find_sources(inputs),
            Path(output),
            check_formats(formats),
            overwrite,
            None if image_ids is None else read_image_ids(image_ids),
        )
        run._check_settings(config, options)
        remove_temporaries(run.output)
        return run

    def _check_settings(self, config: CfgNode, options: dict[str, Any]) -> None:
        """Finished files are skipped: they must not be those of another model."""
        model = config.MODEL.clone()
        model.defrost()
        model.DEVICE = model.WEIGHTS = ""
        weights = Path(config.MODEL.WEIGHTS)
        state = [weights.stat().st_size, weights.stat().st_mtime_ns] if weights.is_file() else []
        settings = {
            "weights": [config.MODEL.WEIGHTS, *state],
            "thresholds": dict(config.MODEL.PANOPTIC_FPN.COMBINE),
            "short_side": config.INPUT.MIN_SIZE_TEST,
            **{k: list(v) if isinstance(v, tuple) else v for k, v in options.items() if k not in ("batch_size", "raw")},
            "model": hashlib.sha256((model.dump() + config.INPUT.dump()).encode()).hexdigest()[:16],
        }
        path = self.output / SETTINGS_FILE
        try:
            earlier = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError, ValueError):
            earlier = settings
        different = sorted(k for k in settings.keys() | earlier.keys() if settings.get(k) != earlier.get(k))
        if different and not self.overwrite:
            raise UserError(
                f"{self.output} holds predictions made with other settings ({', '.join(different)}); choose another "
                "folder, or do them again with --overwrite"
            )
        write_json(path, settings, indent=2)

    def predict(self, predictor: Predictor, sources: list[Source], max_frames: int | None) -> Summary:
        """Predict some of the sources."""
        summary = Summary()
        pictures = [s for s in sources if s.kind == "picture"]
        todo = [s for s in pictures if self.overwrite or not self._finished(s.name, self.formats)]
        summary.skipped = len(pictures) - len(todo)
        failed = self._predict_pictures(predictor, todo, summary)
        for source in pictures:
            if source.name not in failed:
                files = format_files(self.output, source.name, self.formats)
                summary.written += [path for paths in files.values() for path in paths]
        for source in sources:
            if source.kind != "picture":
                self._try_video(predictor, source, max_frames, summary)
        return summary

    def _finished(self, name: str, formats: Iterable[str]) -> bool:
        files = format_files(self.output, name, formats)
        return all(path.is_file() for paths in files.values() for path in paths)

    def _predict_pictures(self, predictor: Predictor, todo: list[Source], summary: Summary) -> set[str]:
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

    def _try_video(self, predictor: Predictor, source: Source, max_frames: int | None, summary: Summary) -> None:
        try:
            videos = {f: self.output / f"{source.name}_{f}.mp4" for f in self.formats if f in _PICTURE_FORMATS}
            done = self.output / f"{source.name}.frames.json"
            finished = done.is_file() and all(v.is_file() for v in videos.values())
            if source.kind == "video" and finished and not self.overwrite:
                summary.skipped += 1
            else:
                count = self._predict_video(predictor, source, videos, max_frames)
                write_json(done, {"frames": count})
            summary.written += videos.values()
        except UserError as error:
            summary.fail(error)

    def _predict_video(
        self, predictor: Predictor, source: Source, videos: dict[str, Path], max_frames: int | None
    ) -> int:
        """Frame by frame in order; returns the number of frames."""
        frames = Frames(source.path, max_frames)
        tracker = Tracker()
        files = {f: VideoFile(path, frames.fps) for f, path in videos.items()}
        per_frame = [f for f in self.formats if f not in videos]

        def save(result: PanopticResult, number: int) -> None:
            result = tracker.update(result)
            for format, file in files.items():
                file.write(result.overlay(labels=format == "labelled"))
            if per_frame:
                write_formats(result, self.output, f"{source.name}/{number:06d}", per_frame)

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
        """Of all pictures and frames."""
        for source in self.sources:
            if source.kind == "picture":
                yield source.name
            else:
                folder = self.output / "panoptic" / source.name
                yield from (f"{source.name}/{p.stem}" for p in folder.glob("*.json"))

    def assemble(self) -> None:
        """Write the COCO json files of all that is there."""
        if "coco" in self.formats:
            assemble_coco(self.output, self._names(), self.image_ids)
