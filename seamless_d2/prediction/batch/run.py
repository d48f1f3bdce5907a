"""Prediction of files, folders, lists, videos and cameras into files: the body of ``tools/predict.py``."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ...errors import UserError
from ...io import read_json, remove_temporaries, summarize_failures, write_json
from ...locks import lock_output
from ...parallel import map_parallel
from ..formats import check_formats, list_files, write_formats
from ..frames import Frames, Selection, redact
from ..options import PredictionOptions
from ..predictor import Predictor
from .coco_folder import assemble_coco, number_images, read_image_ids
from .pipeline import Job, run_jobs
from .resume import get_prediction_settings, is_fresh, record_run
from .sources import Source, check_output, find_sources
from .video_job import VideoJob, frame_name, list_videos


@dataclass
class Summary:
    """The outcome of a run.

    Attributes:
        written: The files that exist now, those of earlier runs included, in the order of the inputs.
        skipped: The number of inputs that were finished before.
        failures: One sentence per input that failed.
    """

    written: list[Path] = field(default_factory=list)
    skipped: int = 0
    failures: list[str] = field(default_factory=list)

    def fail(self, error: UserError) -> None:
        """Note a failure, and report it at once."""
        self.failures.append(str(error))
        tqdm.write(f"error: {error}")

    def report(self, output: Path) -> None:
        """Print what was written to ``output``; raise ``UserError`` that lists the failures, if there are any."""
        skipped = f", {self.skipped} inputs were finished before" if self.skipped else ""
        print(f"{len(self.written)} files in {output}{skipped}")
        if self.failures:
            sentences = summarize_failures(self.failures, output / "failures.txt")
            raise UserError(f"{len(self.failures)} inputs failed:\n  {sentences}")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: str | Path,
    formats: Iterable[str] = ("labelled",),
    *,
    overwrite: bool = False,
    image_ids: str | Path | None = None,
    **selection: Any,
) -> Summary:
    """Predict everything that ``inputs`` name; outputs keep the folder structure.

    Args:
        predictor: The model; made with ``raw=True`` for the format "raw".
        inputs: Images, folders, lists, videos and camera numbers, see ``find_sources``.
        output: The output folder, created if needed.
        formats: Registered formats, see ``formats.FORMATS``.
        overwrite: Whether to predict finished inputs again.
        image_ids: A COCO json whose image ids the images get; default numbers.
        selection: The fields of ``Selection``, which frames of videos are predicted: start, stop, stride, max_frames.

    Raises:
        UserError: An input does not exist, the output cannot be written, or the output folder holds predictions of
            another model, of other settings or of other inputs of the same names.
    """
    settings = get_prediction_settings(predictor.cfg, predictor.options)
    with lock_output(check_output(output) / ".lock", "a prediction"):
        run = _Run.prepare(settings, inputs, output, formats, overwrite, image_ids, Selection(**selection))
        summary = run.predict(predictor, run.sources)
        run.assemble()
    return summary


def predict_files_on(
    devices: Sequence[str],
    config: CfgNode,
    options: PredictionOptions,
    inputs: Sequence[str | Path],
    output: str | Path,
    formats: Iterable[str],
    *,
    overwrite: bool = False,
    image_ids: str | Path | None = None,
    **selection: Any,
) -> Summary:
    """Do the work of ``predict_files`` in one process per device; each takes every n-th input.

    Args:
        devices: The devices, for instance ["cuda:0", "cuda:1"].
        config: The configuration of the model, with its MODEL.WEIGHTS.
        options: The options of each process's ``Predictor``.
        inputs, output, formats, overwrite, image_ids, selection: See ``predict_files``.
    """
    settings = get_prediction_settings(options.apply(config), options)
    killed = "a process was killed, perhaps for want of memory; start the same command again to resume"
    summary = Summary()
    with lock_output(check_output(output) / ".lock", "a prediction"):
        run = _Run.prepare(settings, inputs, output, formats, overwrite, image_ids, Selection(**selection))
        shares = [(device, run.sources[k :: len(devices)]) for k, device in enumerate(devices)]
        work = partial(_predict_share, run, config, options)
        with closing(map_parallel(work, shares, len(devices), killed, start_method="spawn")) as results:
            for _, part in sorted(results, key=lambda result: result[0]):
                summary.written += part.written
                summary.skipped += part.skipped
                summary.failures += part.failures
        run.assemble()
    return summary


def _predict_share(
    run: "_Run", config: CfgNode, options: PredictionOptions, share: tuple[str, list[Source]]
) -> Summary:
    device, sources = share
    return run.predict(Predictor(config, None, device, **asdict(options)), sources) if sources else Summary()


@dataclass(frozen=True)
class _Run:
    """One run: what is read, and where it goes."""

    sources: list[Source]
    output: Path
    formats: tuple[str, ...]
    overwrite: bool
    image_ids: dict[str, int | str] | None
    selection: Selection
    settings: dict[str, Any]
    since: int  # see ``record_run``

    @classmethod
    def prepare(
        cls,
        settings: dict[str, Any],
        inputs: Sequence[str | Path],
        output: str | Path,
        formats: Iterable[str],
        overwrite: bool,
        image_ids: str | Path | None,
        selection: Selection,
    ) -> "_Run":
        output, formats = Path(output), check_formats(formats)
        sources = find_sources(inputs, output)
        ids = None if image_ids is None else read_image_ids(image_ids)
        if ids is not None:  # an image without an id is told now, not after the last image
            number_images([s.name for s in sources if s.kind == "image"], ids)
        files = {s.name: s.path for s in sources if isinstance(s.path, Path)}
        outputs = {s.name: _list_outputs(s, output, formats) for s in sources if s.name in files}
        since = record_run(output, settings, files, overwrite, outputs)
        remove_temporaries(output)
        return cls(sources, output, formats, overwrite, ids, selection, settings, since)

    def predict(self, predictor: Predictor, sources: list[Source]) -> Summary:
        """Predict some of the sources, and report on them."""
        summary = Summary()
        images = [s for s in sources if s.kind == "image"]
        todo = [s for s in images if self.overwrite or not self._finished(s, self.formats)]
        summary.skipped = len(images) - len(todo)
        failed = self._predict_images(predictor, todo, summary)
        for source in images:
            if source.name not in failed:
                summary.written += _list_outputs(source, self.output, self.formats)
        for source in sources:
            if source.kind != "image":
                self._try_video(predictor, source, summary)
        return summary

    def _finished(self, source: Source, formats: Iterable[str]) -> bool:
        return is_fresh(_list_outputs(source, self.output, formats), self.since, source.path)

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
            record = self._frames_record(source)
            earlier = self._finished_frames(source)
            job = VideoJob(self.output, source.name, self.formats, self._made_of(source))
            finished = set(self.formats) <= set(earlier["formats"]) and is_fresh(job.videos.values(), self.since)
            if finished and not earlier["live"] and not self.overwrite:
                summary.skipped += 1
            else:
                if self.overwrite:
                    job.remove_parts()
                elif isinstance(source.path, str):
                    self._check_url(source)
                frames = Frames(source.path, self.selection)
                record.unlink(missing_ok=True)  # until the last frame is there
                count, lost = job.run(predictor, frames)
                formats = sorted({*earlier["formats"], *self.formats})
                content = {"frames": count, "selection": asdict(self.selection), "formats": formats}
                write_json(record, {**content, "live": frames.is_live, "source": redact(source.path)})
                if lost is not None:
                    summary.fail(lost)
            job.remove_parts()
            summary.written += job.videos.values()
        except UserError as error:
            summary.fail(error)

    def _made_of(self, source: Source) -> dict[str, Any]:
        """Return all that the frames of a video depend on."""
        state = source.path.stat() if isinstance(source.path, Path) and source.path.exists() else None
        file = [redact(source.path)] if state is None else [state.st_size, state.st_mtime_ns]
        return {"settings": self.settings, "source": file, "selection": asdict(self.selection)}

    def _frames_record(self, source: Source) -> Path:
        return self.output / f"{source.name}.frames.json"

    def _finished_frames(self, source: Source) -> dict[str, Any]:
        """Return the record of the finished frames and formats of a video; empty if it is of other settings."""
        record = self._frames_record(source)
        path = source.path if isinstance(source.path, Path) else None
        done = json.loads(record.read_text(encoding="utf-8")) if is_fresh([record], self.since, path) else {}
        other_url = path is None and done.get("source") != redact(source.path)
        if other_url or "formats" not in done or done.get("selection") != asdict(self.selection):
            return {"frames": 0, "formats": [], "live": False}
        return done

    def _check_url(self, source: Source) -> None:
        """Raise ``UserError`` if the results under the name of a URL are those of another one."""
        record = self._frames_record(source)
        before = read_json(record, "record").get("source") if record.is_file() else None
        if before not in (None, redact(source.path)):
            raise UserError(
                f"{self.output} holds predictions of another address called {source.name} ({before}, now "
                f"{redact(source.path)}); choose another folder, or do them again with --overwrite"
            )

    def _names(self) -> Iterator[str]:
        """Yield the names of all finished images and frames."""
        for source in self.sources:
            if source.kind != "image":
                frames = self._finished_frames(source)["frames"]
                yield from (frame_name(source.name, number) for number in range(1, frames + 1))
            elif self._finished(source, ("coco",)):
                yield source.name

    def assemble(self) -> None:
        """Write the COCO json files of everything that is finished."""
        if "coco" in self.formats:
            assemble_coco(self.output, self._names(), self.image_ids)


def _list_outputs(source: Source, output: Path, formats: Iterable[str]) -> list[Path]:
    """Return the files that are made of a source, except those of single frames."""
    if source.kind != "image":
        return list(list_videos(output, source.name, formats).values())
    return [path for paths in list_files(output, source.name, formats).values() for path in paths]
