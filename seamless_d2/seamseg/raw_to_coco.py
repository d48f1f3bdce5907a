"""Raw predictions of the original program to COCO files: the body of ``tools/raw_to_coco_panoptic.py``."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
from detectron2.config import CfgNode
from tqdm import tqdm

from ..config import load_config
from ..errors import UserError
from ..io import read_bytes, read_image_size, remove_temporaries
from ..locks import lock_output
from ..modeling.fusion import resize_panoptic
from ..prediction.batch.coco_folder import assemble_coco, find_images, read_image_ids
from ..prediction.batch.manifest import Manifest, describe_file, read_manifests
from ..prediction.batch.resume import is_fresh, list_coco_images, record_inputs, record_settings
from ..prediction.batch.run import Summary
from ..prediction.batch.sources import IMAGE_SUFFIXES
from ..prediction.formats import list_files, write_formats
from ..prediction.result import PanopticResult
from ..structures.classes import Classes
from .dataset import read_metadata
from .raw import SUFFIX, fuse_raw, load_raw


def read_classes(metadata: str | Path | None, config: str | Path | None) -> tuple[Classes, CfgNode | None]:
    """Read classes from the original's metadata.bin or from one of our configs, which has thresholds too.

    Returns:
        The classes, and the configuration if that was given.

    Raises:
        UserError: None or both are given, or the file holds no classes.
    """
    if (metadata is None) == (config is None):
        raise UserError("give one of --metadata (the original's metadata.bin) and --config (a yaml)")
    if metadata is not None:
        return read_metadata(read_bytes(metadata, "metadata"), str(metadata))[0], None
    cfg = load_config(config)
    classes = Classes.from_config(cfg)
    if classes is None:
        raise UserError(f"config {config} has no class names (MODEL.SEAMLESS.CLASS_NAMES); give a model's own yaml")
    return classes, cfg


def convert_raw(
    raw_dir: str | Path,
    output: str | Path,
    classes: Classes,
    *,
    images: str | Path | None = None,
    score_thresh: float = 0.5,
    overlap_thresh: float = 0.5,
    stuff_area_thresh: int = 4096,
    image_ids: str | Path | None = None,
    overwrite: bool = False,
) -> Summary:
    """Fuse every ``*.pth.tar`` below a folder and write COCO's panoptic and instance json.

    Args:
        raw_dir: The folder of the raw predictions, searched recursively.
        output: The output folder, created if needed.
        classes: The classes of the model that made the files.
        images: The folder of the images, of the same structure, whose sizes the maps get; default the network's size.
        score_thresh, overlap_thresh, stuff_area_thresh: See ``fuse_panoptic``.
        image_ids: See ``predict_files``.
        overwrite: Whether to convert finished files again.

    Returns:
        The outcome of the run.

    Raises:
        UserError: A folder does not exist or holds no raw predictions.
    """
    raw_dir, output = Path(raw_dir), Path(output)
    if not raw_dir.is_dir():
        raise UserError(f"raw folder {raw_dir} does not exist; check the path")
    if images is not None and not Path(images).is_dir():
        raise UserError(f"folder {images} of --images does not exist; check the path")
    files = sorted(p for p in raw_dir.rglob(f"*{SUFFIX}") if not p.name.startswith("."))
    if not files:
        raise UserError(f"no raw predictions (*{SUFFIX}) in {raw_dir}; make them with tools/predict.py --format raw")
    if not (0 <= score_thresh <= 1 and 0 <= overlap_thresh <= 1):
        raise UserError("the score and overlap thresholds (--score-thresh, --overlap-thresh) must be between 0 and 1")
    names = [p.relative_to(raw_dir).as_posix().removesuffix(SUFFIX) for p in files]
    # What tools/predict.py has made of images; the original's program leaves no such record.
    images_of = {name: entry.image for name, entry in read_manifests(raw_dir).items()}
    entries = {
        name: describe_file(file, images_of.get(name, f"{name}.png")) for name, file in zip(names, files, strict=True)
    }
    if image_ids is not None:
        found = find_images(names, read_image_ids(image_ids))
        entries |= {name: replace(entries[name], image_id=i.id, image=i.file_name) for name, i in found.items()}
    settings = {
        "thresholds": [score_thresh, overlap_thresh, stuff_area_thresh],
        "classes": [[c["id"], c["name"], c["isthing"]] for c in classes.to_categories()],
        "images": None if images is None else os.path.abspath(images),
    }
    targets = {name: list_files(output, name, ("coco",))["coco"] for name in names}
    summary, manifest = Summary(), Manifest(output)
    with lock_output(output / ".lock", "a prediction") as is_alone:
        since = record_settings(output, settings, overwrite)
        record_inputs(manifest, read_manifests(output, entries.__contains__), entries, overwrite, targets, targets)
        if is_alone:
            remove_temporaries(output)
        for name, file in zip(tqdm(names, desc="fuse", unit="image"), files, strict=True):
            if not overwrite and is_fresh(targets[name], since, file):
                manifest.finish(name)
                summary.skipped += 1
                summary.written += targets[name]
                continue
            try:
                panoptic_seg, segments = fuse_raw(
                    load_raw(file),
                    file,
                    num_stuff=classes.num_stuff,
                    num_classes=len(classes.names),
                    score_thresh=score_thresh,
                    overlap_thresh=overlap_thresh,
                    stuff_area_thresh=stuff_area_thresh,
                )
                if images is not None:
                    panoptic_seg, segments = resize_panoptic(
                        panoptic_seg, segments, *_size(Path(images), name, images_of)
                    )
                blank = np.empty((*panoptic_seg.shape, 0), np.uint8)  # the COCO files do not need the image
                result = PanopticResult.from_fusion(blank, panoptic_seg.numpy(), segments, classes)
                summary.written += write_formats(result, output, name, ("coco",))
                manifest.finish(name)
            except UserError as error:
                manifest.finish(name, str(error))
                summary.fail(error)
        assemble_coco(output, list_coco_images(output, read_manifests(output)))
    return summary


def _size(images: Path, name: str, images_of: dict[str, str]) -> tuple[int, int]:
    """Return the (height, width) of the image that a raw prediction was made of, which a record may name."""
    if name in images_of and (images / images_of[name]).is_file():
        return read_image_size(images / images_of[name])
    for suffix in IMAGE_SUFFIXES:
        for path in (images / f"{name}{suffix}", images / f"{name}{suffix.upper()}"):
            if path.is_file():
                return read_image_size(path)
    raise UserError(f"there is no image {images / name} ({', '.join(IMAGE_SUFFIXES)}); give the folder they came from")
