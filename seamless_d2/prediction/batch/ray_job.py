"""Prediction of millions of images on a cluster by Ray Data (extra ``ray``).

The images are planned in blocks. Tasks on CPUs read and decode a block, an actor that holds the model predicts it and
writes it as one file, and Ray bounds what is on the way. A block is finished if its file is there: whatever is killed,
the next run does the other blocks, and a block that is done twice gives the same file.
"""

import io
import json
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from tqdm import tqdm

from ...config import load_config_text
from ...errors import UserError
from ...locks import lock_output
from ...parallel import available_cpus
from ...structures.classes import Classes
from ..options import PredictionOptions
from ..predictor import Predictor
from ..result import PanopticResult
from .part_files import SUFFIXES, Prediction, encode_part
from .pipeline import Job, run_jobs
from .remote_files import Folder, Item, find_items, load_images
from .resume import get_prediction_settings

# Readers of a folder of Parquet files pass over files whose names begin so.
SETTINGS_FILE, FAILURES, _PLAN = "_settings.json", "_failures-", "_plan-"
# Cores of such a task, which waits for downloads; other than those of actors, or Ray would run it inside of them.
_READER_CPUS = 0.25
_Rows = dict[str, list[Any]]


@dataclass(frozen=True)
class RayOptions:
    """How a job is divided.

    Attributes:
        address: The address of a Ray cluster; "" starts Ray on this machine.
        actors: The number of processes that hold the model.
        gpus_per_actor: The number of GPUs of each; 0 predicts on CPUs.
        block_size: The number of images per file of results; decoded, a few blocks must fit into memory.
    """

    address: str = ""
    actors: int = 1
    gpus_per_actor: float = 0
    block_size: int = 64

    def __post_init__(self) -> None:
        if self.actors < 1 or self.block_size < 1 or self.gpus_per_actor < 0:
            raise UserError("--actors and --block-size must be at least 1, and --gpus-per-actor at least 0")


@dataclass
class RaySummary:
    """The outcome of a job.

    Attributes:
        predicted: The number of images predicted now.
        before: The number of images in the parts that were finished before.
        failures: A sentence per image that failed now or before.
    """

    predicted: int
    before: int
    failures: list[str]


def predict_on_ray(
    config: CfgNode,
    options: PredictionOptions,
    inputs: Sequence[str],
    output: str,
    format: str,
    ray_options: RayOptions,
    retry_failed: bool = False,
) -> RaySummary:
    """Predict all images that ``inputs`` name into files of an output folder.

    Args:
        config: The configuration of the model; MODEL.WEIGHTS must be there on every machine.
        options: The options of each actor's ``Predictor``.
        inputs: See ``find_items``.
        output: A folder or an address that fsspec knows. A job that was interrupted, or that has more inputs now, goes
            on in the same one.
        format: "parquet" or "webdataset".
        ray_options: How the job is divided.
        retry_failed: Whether to do parts again in which images failed.

    Raises:
        UserError: Ray is not installed, the weights or an input do not exist, the output holds something else, or
            another program is writing into it.
    """
    ray = import_ray()
    if format not in SUFFIXES:
        raise UserError(f"--format is {format!r}; with --ray it is {' or '.join(SUFFIXES)}")
    check_weights(config)
    folder = Folder(output)
    # In an object store nothing can be locked: two programs with one output there would overwrite each other's plan.
    with lock_output(Path(folder.root) / ".lock", "a job on Ray") if folder.is_local else nullcontext():
        return _predict(ray, config, options, inputs, folder, format, ray_options, retry_failed)


def check_weights(config: CfgNode) -> None:
    """Raise ``UserError`` if the weights are a file that is not there."""
    weights = config.MODEL.WEIGHTS
    if weights and "://" not in weights and not Path(weights).is_file():
        raise UserError(f"MODEL.WEIGHTS {weights} does not exist; check --weights")


def _predict(
    ray: Any,
    config: CfgNode,
    options: PredictionOptions,
    inputs: Sequence[str],
    folder: Folder,
    format: str,
    ray_options: RayOptions,
    retry_failed: bool,
) -> RaySummary:
    _record_settings(folder, config, options, format)
    plan_blocks(folder, inputs, ray_options.block_size)
    todo, before, failures = _list_blocks(folder, format, retry_failed)
    summary = RaySummary(0, before, failures)
    if todo:
        start_ray(ray, ray_options.address)
        context = ray.data.DataContext.get_current()
        context.target_max_block_size = None  # a block of images stays one block of Ray's
        context.enable_progress_bars = False
        actors, gpus = min(ray_options.actors, len(todo)), ray_options.gpus_per_actor
        # Actors leave a core to the tasks that read images.
        cpus = 1 if gpus else max(1, int((ray.cluster_resources()["CPU"] - 1) / actors)) if actors > 1 else 1
        dataset = ray.data.from_items(todo, override_num_blocks=len(todo)).map_batches(
            _load_block, batch_size=1, batch_format="numpy", fn_args=(folder.uri,), num_cpus=_READER_CPUS
        )
        dataset = dataset.map_batches(
            _Actor,
            batch_size=None,
            batch_format="pyarrow",
            fn_constructor_args=(config.dump(), asdict(options), folder.uri, format, gpus > 0),
            compute=ray.data.ActorPoolStrategy(size=actors),
            num_gpus=gpus,
            num_cpus=cpus if gpus or cpus * actors < ray.cluster_resources()["CPU"] else 0.5,
        )
        with tqdm(desc="predict", unit="image", total=sum(block["count"] for block in todo)) as progress:
            for row in dataset.iter_rows():
                failures = json.loads(row["failures"])
                for sentence in failures:
                    tqdm.write(f"error: {sentence}")
                summary.failures += failures
                summary.predicted += int(row["images"])
                progress.update(int(row["images"]) + len(failures))
    return summary


def import_ray() -> Any:
    """Return the module ray; raise ``UserError`` if it is not installed."""
    try:
        import ray
        import ray.data
    except ImportError:
        raise UserError('--ray needs Ray: python -m pip install "seamless_d2[ray]"') from None
    return ray


def start_ray(ray: Any, address: str) -> None:
    """Connect to a Ray cluster, or start Ray on this machine if the address is "".

    Raises:
        UserError: No cluster answers.
    """
    if ray.is_initialized():
        return
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    try:
        if address:
            ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING)
        else:
            cpus = available_cpus()
            ray.init(num_cpus=cpus, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    except ConnectionError as error:
        raise UserError(f"no Ray cluster answers at {address} ({error}); check --ray") from None


def _record_settings(folder: Folder, config: CfgNode, options: PredictionOptions, format: str) -> None:
    """Record what the results depend on, or raise ``UserError`` if the folder holds other ones."""
    classes = Classes.from_config(config) or Classes.numbered(
        config.MODEL.SEM_SEG_HEAD.NUM_CLASSES, config.MODEL.ROI_HEADS.NUM_CLASSES
    )
    settings = get_prediction_settings(options.apply(config), options)
    content = {"format": format, "settings": settings, "categories": classes.to_categories()}
    if SETTINGS_FILE in folder.list(".json"):
        earlier = json.loads(folder.read(SETTINGS_FILE))
        if earlier != json.loads(json.dumps(content)):
            raise UserError(f"{folder.uri} holds predictions made with other settings; choose another --output")
    elif [name for name in folder.list("") if name != ".lock"]:
        raise UserError(f"{folder.uri} holds files that are no predictions of a job; choose another --output")
    else:
        folder.write(SETTINGS_FILE, json.dumps(content, indent=2).encode())


def plan_blocks(folder: Folder, inputs: Sequence[str], block_size: int) -> None:
    """Record the images that no earlier run has planned, in a file of their own."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    plans = list_plans(folder)
    known: dict[str, tuple[str, str]] = {}
    for plan in plans:
        table = pq.read_table(io.BytesIO(folder.read(plan)), columns=["name", "uri", "state"])
        names, *others = (table[key].to_pylist() for key in ("name", "uri", "state"))
        known |= dict(zip(names, zip(*others, strict=True), strict=True))
    new = []
    for item in find_items(inputs, folder):
        if item.name not in known:
            new.append(item)
        elif known[item.name] != (item.uri, item.state):
            raise UserError(
                f"{folder.uri} holds a prediction of another file called {item.name} ({known[item.name][0]}, now "
                f"{item.uri}, or changed since); choose another --output"
            )
    if new:
        columns = {f.name: [getattr(item, f.name) for item in new] for f in fields(Item)}
        table = pa.table(columns).replace_schema_metadata({"block_size": str(block_size)})
        name, content = f"{_PLAN}{len(plans):04d}.parquet", _to_bytes(table, block_size)
        folder.write(name, content)
        if folder.read(name) != content:
            raise UserError(f"another program plans its work in {folder.uri}; wait until it has ended")


def _to_bytes(table: Any, rows: int | None = None) -> bytes:
    """Return the content of a Parquet file with groups of so many rows."""
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=rows, compression="zstd")
    return buffer.getvalue()


def _list_blocks(folder: Folder, format: str, retry_failed: bool) -> tuple[list[dict[str, Any]], int, list[str]]:
    """Return the blocks that are to be done, the number of images in the others, and the failures in these."""
    import pyarrow.parquet as pq

    done = {name.removesuffix(SUFFIXES[format]) for name in folder.list(SUFFIXES[format])}
    failed = {name for name in folder.list(".parquet") if name.startswith(FAILURES)}
    todo, before, failures = [], 0, []
    for block in iterate_blocks(folder):
        name = _name_failures(block["block"])
        if block["block"] not in done or (retry_failed and name in failed):
            todo.append(block)
            continue
        before += block["count"]
        if name in failed:
            reasons = pq.read_table(io.BytesIO(folder.read(name)))["reason"].to_pylist()
            failures += [f"{reason} (in an earlier run; --retry-failed tries it again)" for reason in reasons]
    return todo, before, failures


def _name_failures(block: str) -> str:
    """Return the name of the file that lists the failures of a block."""
    return f"{FAILURES}{block.removeprefix('part-')}.parquet"


def list_plans(folder: Folder) -> list[str]:
    """Return the names of the files that say which images belong to which block."""
    return [name for name in folder.list(".parquet") if name.startswith(_PLAN)]


def iterate_blocks(folder: Folder) -> Iterator[dict[str, Any]]:
    """Yield all planned blocks: their name, which is that of their file, and which rows of which plan they are."""
    import pyarrow.parquet as pq

    for plan in list_plans(folder):
        with folder.open(plan) as file:
            metadata = pq.read_metadata(file)
        size = int(metadata.metadata[b"block_size"])
        for number, start in enumerate(range(0, metadata.num_rows, size)):
            count = min(size, metadata.num_rows - start)
            yield {"block": f"part-{plan[len(_PLAN) :][:4]}-{number:07d}", "plan": plan, "start": start, "count": count}


def _load_block(batch: dict[str, Any], uri: str) -> _Rows:
    """Read and decode the images of a block; a task of Ray."""
    import pyarrow.parquet as pq

    plan, start, count = str(batch["plan"][0]), int(batch["start"][0]), int(batch["count"][0])
    with Folder(uri).open(plan) as file:
        content = pq.ParquetFile(file)
        table = content.read_row_group(start // int(content.metadata.metadata[b"block_size"]))
    items = [Item(**row) for row in table.to_pylist()]
    rows = [_make_row(item, image) for item, image in zip(items, load_images(items), strict=True)]
    columns = {key: [row[key] for row in rows] for key in rows[0]}
    return columns | {"block": [str(batch["block"][0])] * count, "count": [count] * count}


def _make_row(item: Item, image: np.ndarray | UserError) -> dict[str, Any]:
    row = {"name": item.name, "image": item.image, "uri": item.uri}
    if isinstance(image, UserError):
        return row | {"height": 0, "width": 0, "pixels": b"", "error": str(image)}
    return row | {"height": image.shape[0], "width": image.shape[1], "pixels": image.tobytes(), "error": ""}


class _Actor:
    """A process of Ray that holds the model; it predicts a block and writes its file."""

    def __init__(self, config: str, options: dict[str, Any], uri: str, format: str, gpu: bool) -> None:
        if not gpu:
            torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
        cfg = load_config_text(config, "of the job")
        self.predictor = Predictor(cfg, device="cuda" if gpu else "cpu", **options)
        self.folder, self.format = Folder(uri), format

    def __call__(self, table: Any) -> dict[str, list[Any]]:
        import pyarrow as pa

        rows = table.to_pylist()
        block, count = rows[0]["block"], rows[0]["count"]
        if len(rows) != count or any(row["block"] != block for row in rows):
            raise RuntimeError(f"block {block} came in pieces")
        found: list[Prediction | None] = [None] * count
        failures = [(row["name"], row["uri"], row["error"]) for row in rows if row["error"]]

        def make_job(number: int, row: dict[str, Any]) -> Job:
            def save(result: PanopticResult) -> None:
                found[number] = Prediction.from_result(result, row["name"], row["image"], row["uri"])

            shape = (row["height"], row["width"], 3)
            return Job(row["uri"], lambda: np.frombuffer(row["pixels"], np.uint8).reshape(shape), save)

        readable = [(number, row) for number, row in enumerate(rows) if not row["error"]]
        outcomes = run_jobs(self.predictor, (make_job(number, row) for number, row in readable))
        for (_, row), (_, error) in zip(readable, outcomes, strict=True):
            if error is not None:
                failures.append((row["name"], row["uri"], str(error)))
        if failures:
            table = pa.Table.from_pylist([dict(zip(("name", "uri", "reason"), row, strict=True)) for row in failures])
            self.folder.write(_name_failures(block), _to_bytes(table))
        else:
            self.folder.remove(_name_failures(block))  # of an earlier try
        done = [prediction for prediction in found if prediction is not None]
        self.folder.write(f"{block}{SUFFIXES[self.format]}", encode_part(done, self.format))
        return {"block": [block], "images": [len(done)], "failures": [json.dumps([f[2] for f in failures])]}
