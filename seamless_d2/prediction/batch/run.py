"""Prediction of files, folders, lists, videos and cameras into files: the body of ``tools/predict.py``."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from tqdm import tqdm

from ...errors import UserError
from ...io import remove_temporaries, summarize_failures, write_json
from ...locks import lock_output
from ...parallel import map_parallel
from ...shard import Shard
from ..formats import FORMATS, IMAGE_FORMATS, check_formats, list_files, write_formats
from ..frames import Frames, Selection
from ..options import PredictionOptions
from ..predictor import Predictor
from .coco_folder import assemble_coco, find_images, read_image_ids
from .manifest import DONE, FAILED, Entry, Manifest, describe_file, read_manifests
from .pipeline import Job, StageTimes, run_jobs
from .resume import (
    NO_FRAMES,
    frames_record,
    get_prediction_settings,
    is_fresh,
    list_coco_images,
    read_frames,
    record_inputs,
    record_settings,
)
from .sources import Source, check_output, find_sources
from .video_job import VideoJob, list_videos


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

    def report(self, output: Path, shard: Shard | None = None) -> None:
        """Print what was written to ``output``; raise ``UserError`` that lists the failures, if there are any."""
        skipped = f", {self.skipped} inputs were finished before" if self.skipped else ""
        print(f"{len(self.written)} files in {output}{skipped}")
        if self.failures:
            sentences = summarize_failures(self.failures, output / f"failures{f'-{shard.label}' if shard else ''}.txt")
            raise UserError(f"{len(self.failures)} inputs failed:\n  {sentences}")


def predict_files(
    predictor: Predictor,
    inputs: Sequence[str | Path],
    output: str | Path,
    formats: Iterable[str] = ("labelled",),
    *,
    overwrite: bool = False,
    image_ids: str | Path | None = None,
    shard: Shard | None = None,
    retry_failed: bool = False,
    **selection: Any,
) -> Summary:
    """Predict everything that ``inputs`` name; outputs keep the folder structure.

    Args:
        predictor: The model; made with ``raw=True`` for the format "raw".
        inputs: Images, folders, lists, videos and camera numbers, see ``find_sources``.
        output: The output folder, created if needed.
        formats: Registered formats, see ``formats.FORMATS``.
        overwrite: Whether to predict finished inputs again.
        image_ids: A COCO json whose image ids and file names the images get; default see ``number_images``.
        shard: The part of the inputs that is predicted. Processes with other parts may write into the same folder at
            the same time, and ``merge_predictions`` joins what they leave. Default all inputs.
        retry_failed: Whether to try inputs again that failed before and have not changed.
        selection: The fields of ``Selection``, which frames of videos are predicted: start, stop, stride, max_frames.

    Raises:
        UserError: An input does not exist, the output cannot be written, or the output folder holds predictions of
            another model, of other settings or of other inputs of the same names.
    """
    settings = get_prediction_settings(predictor.cfg, predictor.options)
    frames, image_format = Selection(**selection), predictor.options.image_format
    with _Run.open(
        settings, inputs, output, formats, overwrite, image_ids, frames, shard, retry_failed, image_format
    ) as run:
        return run.predict(predictor, run.sources)


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
    shard: Shard | None = None,
    retry_failed: bool = False,
    **selection: Any,
) -> Summary:
    """Do the work of ``predict_files`` in one process per device; each takes every n-th input.

    Args:
        devices: The devices, for instance ["cuda:0", "cuda:1"].
        config: The configuration of the model, with its MODEL.WEIGHTS.
        options: The options of each process's ``Predictor``.
        inputs, output, formats, overwrite, image_ids, shard, retry_failed, selection: See ``predict_files``.
    """
    settings = get_prediction_settings(options.apply(config), options)
    killed = "a process was killed, perhaps for want of memory; start the same command again to resume"
    summary = Summary()
    frames, image_format = Selection(**selection), options.image_format
    with _Run.open(
        settings, inputs, output, formats, overwrite, image_ids, frames, shard, retry_failed, image_format
    ) as run:
        shares = [(device, run.sources[k :: len(devices)]) for k, device in enumerate(devices)]
        work = partial(_predict_share, run, config, options)
        with closing(map_parallel(work, shares, len(devices), killed, start_method="spawn")) as results:
            for _, part in sorted(results, key=lambda result: result[0]):
                summary.written += part.written
                summary.skipped += part.skipped
                summary.failures += part.failures
    return summary


def _predict_share(
    run: "_Run", config: CfgNode, options: PredictionOptions, share: tuple[str, list[Source]]
) -> Summary:
    device, sources = share
    return run.predict(Predictor(config, None, device, **asdict(options)), sources) if sources else Summary()


@contextmanager
def _lock(output: Path, shard: Shard | None) -> Iterator[bool]:
    """Hold the lock of an output folder, which shards share; yield whether nothing else writes into the folder."""
    if shard is None:
        with lock_output(output / ".lock", "a prediction") as is_held:
            yield is_held
    else:
        with (
            lock_output(output / ".lock", "shards of a prediction", shared=True),
            lock_output(output / f".lock-{shard.label}", f"shard {shard} of a prediction"),
        ):
            yield False


@dataclass(frozen=True)
class _Run:
    """One run: what is read, and where it goes."""

    sources: list[Source]
    output: Path
    formats: tuple[str, ...]
    overwrite: bool
    selection: Selection
    settings: dict[str, Any]
    since: int  # see ``record_settings``
    manifest: Manifest
    known: dict[str, Entry]  # what became of these inputs before
    is_shard: bool
    retry_failed: bool
    image_format: str

    @classmethod
    @contextmanager
    def open(
        cls,
        settings: dict[str, Any],
        inputs: Sequence[str | Path],
        output: str | Path,
        formats: Iterable[str],
        overwrite: bool,
        image_ids: str | Path | None,
        selection: Selection,
        shard: Shard | None,
        retry_failed: bool,
        image_format: str,
    ) -> Iterator["_Run"]:
        """Lock the output folder, yield the run, and at the end of the block join what the folder holds."""
        with _lock(check_output(output), shard) as is_alone:
            output, formats = Path(output), check_formats(formats)
            if shard is not None and overwrite:
                raise UserError("--overwrite would take the results of other shards away; choose another --output")
            sources = [s for s in find_sources(inputs, output) if shard is None or shard.takes(s.name)]
            entries = {s.name: describe_file(s.path, s.relative, s.kind) for s in sources}
            if image_ids is not None:  # an image without an id is told now, not after the last image
                images = find_images((s.name for s in sources if s.kind == "image"), read_image_ids(image_ids))
                entries |= {
                    name: replace(entries[name], image_id=i.id, image=i.file_name) for name, i in images.items()
                }
            since = record_settings(output, settings, overwrite)
            manifest = Manifest(output, shard.label if shard else "")
            known = read_manifests(output, entries.__contains__)
            files = [s for s in sources if s.kind != "camera"]
            outputs = {s.name: _list_outputs(s, output, formats, image_format) for s in files}
            stale = {
                s.name: [
                    *(path for kind in IMAGE_FORMATS for path in _list_outputs(s, output, FORMATS, kind)),
                    frames_record(output, s.name),
                ]
                for s in files
            }
            record_inputs(manifest, known, entries, overwrite, outputs, stale)
            known = {name: entry for name, entry in known.items() if entry.as_pending() == entries[name]}
            if is_alone:
                remove_temporaries(output)
            run = cls(
                sources,
                output,
                formats,
                overwrite,
                selection,
                settings,
                since,
                manifest,
                known,
                shard is not None,
                retry_failed,
                image_format,
            )
            yield run
            run.assemble()

    def predict(self, predictor: Predictor, sources: list[Source]) -> Summary:
        """Predict some of the sources, and report on them."""
        summary = Summary()
        images = [s for s in sources if s.kind == "image"]
        todo, failed = [], set()
        for source in images:
            before = self.known.get(source.name)
            if not self.overwrite and self._finished(source, self.formats):
                summary.skipped += 1
                if before is None or before.outcome != DONE:  # a kill came between the files and their record
                    self.manifest.finish(source.name)
            elif before and before.outcome == FAILED and not (self.overwrite or self.retry_failed):
                failed.add(source.name)
                summary.failures.append(f"{before.reason} (in an earlier run; --retry-failed tries it again)")
            else:
                todo.append(source)
        failed |= self._predict_images(predictor, todo, summary)
        for source in images:
            if source.name not in failed:
                summary.written += _list_outputs(source, self.output, self.formats, self.image_format)
        for source in sources:
            if source.kind != "image":
                self._try_video(predictor, source, summary)
        return summary

    def _finished(self, source: Source, formats: Iterable[str]) -> bool:
        """Return whether the files of an image are there."""
        return is_fresh(_list_outputs(source, self.output, formats, self.image_format), self.since, source.path)

    def _predict_images(self, predictor: Predictor, todo: list[Source], summary: Summary) -> set[str]:
        jobs = (
            Job(
                str(s.path),
                partial(lambda path: path, s.path),
                partial(write_formats, folder=self.output, name=s.name, formats=self.formats),
            )
            for s in todo
        )
        failed, times = set(), StageTimes()
        outcomes = zip(todo, run_jobs(predictor, jobs, times=times), strict=True)
        for source, (_, error) in tqdm(outcomes, desc="predict", unit="image", total=len(todo), disable=not todo):
            self.manifest.finish(source.name, None if error is None else str(error))
            if error is not None:
                failed.add(source.name)
                summary.fail(error)
        if times.images:
            tqdm.write(times.describe())
        return failed

    def _try_video(self, predictor: Predictor, source: Source, summary: Summary) -> None:
        try:
            record = frames_record(self.output, source.name)
            earlier = self._finished_frames(source)
            job = VideoJob(self.output, source.name, self.formats, self._made_of(source))
            finished = set(self.formats) <= set(earlier["formats"]) and is_fresh(job.videos.values(), self.since)
            lost = None
            if finished and not earlier["live"] and not self.overwrite:
                summary.skipped += 1
            else:
                if self.overwrite:
                    job.remove_parts()
                frames = Frames(source.path, self.selection)
                record.unlink(missing_ok=True)  # until the last frame is there
                count, lost = job.run(predictor, frames)
                formats = sorted({*earlier["formats"], *self.formats})
                content = {"frames": count, "selection": asdict(self.selection), "formats": formats}
                write_json(record, {**content, "live": frames.is_live})
            job.remove_parts()
            summary.written += job.videos.values()
            self.manifest.finish(source.name, None if lost is None else str(lost))
            if lost is not None:
                summary.fail(lost)
        except UserError as error:
            self.manifest.finish(source.name, str(error))
            summary.fail(error)

    def _made_of(self, source: Source) -> dict[str, Any]:
        """Return all that the frames of a video depend on."""
        entry = describe_file(source.path, source.relative, source.kind)
        # A file is still the same in another place.
        state = list(entry.state) or entry.source
        return {"settings": self.settings, "source": state, "selection": asdict(self.selection)}

    def _finished_frames(self, source: Source) -> dict[str, Any]:
        """Return the record of the finished frames and formats of a video; empty if it is of other settings."""
        path = source.path if isinstance(source.path, Path) else None
        done = read_frames(self.output, source.name, self.since, path)
        return done if done["selection"] == asdict(self.selection) else NO_FRAMES

    def assemble(self) -> None:
        """Write the COCO json files of everything in the folder that is finished; shards leave that to a merge."""
        if "coco" in self.formats and not self.is_shard:
            assemble_coco(self.output, list_coco_images(self.output, read_manifests(self.output)))


def _list_outputs(source: Source, output: Path, formats: Iterable[str], image_format: str) -> list[Path]:
    """Return the files that are made of a source, except those of single frames."""
    if source.kind != "image":
        return list(list_videos(output, source.name, formats).values())
    return [path for paths in list_files(output, source.name, formats, image_format).values() for path in paths]
