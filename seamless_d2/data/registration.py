"""Registration of COCO-panoptic data sets in Detectron2's catalogs."""

import os
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from typing import Any

from detectron2.config import CfgNode
from detectron2.data import DatasetCatalog, MetadataCatalog

from ..errors import UserError
from ..structures.classes import Classes
from ..structures.coco_json import PanopticJson, read_json_as
from .derived_files import instances_path, labels_path


def load_panoptic_json(image_dir: Path, panoptic_dir: Path, panoptic_json: Path) -> tuple[list[dict], Classes]:
    """Read a COCO-panoptic json.

    Args:
        image_dir: The folder of the images.
        panoptic_dir: The folder of the id PNGs.
        panoptic_json: The json.

    Returns:
        The records in Detectron2's format, and the classes. A record has file_name, image_id, height, width,
        pan_seg_file_name and segments_info with id, isthing, category_id (things 0..T-1, stuff 0..S-1) and iscrowd.

    Raises:
        UserError: The json is malformed, or an annotation belongs to an unknown image or category.
    """
    content = read_json_as(panoptic_json, "panoptic json", PanopticJson)
    classes = Classes.from_categories(content.categories, str(panoptic_json))
    semantic = {dataset_id: label for label, dataset_id in enumerate(classes.dataset_ids)}
    images = {image.id: image for image in content.images}
    records = []
    for annotation in content.annotations:
        image = images.get(annotation.image_id)
        if image is None:
            raise UserError(f"{panoptic_json}: annotation of image id {annotation.image_id}, which is not in images")
        segments = []
        for segment in annotation.segments_info:
            label = semantic.get(segment.category_id)
            if label is None:
                raise UserError(
                    f"{panoptic_json}: image {image.file_name} has a segment of category {segment.category_id}, "
                    "which is not in categories"
                )
            segments.append({"id": segment.id, **classes.from_label(label), "iscrowd": int(segment.iscrowd)})
        records.append(
            {
                "file_name": str(image_dir / _image_name(image.file_name)),
                "image_id": image.id,
                "height": image.height,
                "width": image.width,
                "pan_seg_file_name": str(panoptic_dir / annotation.file_name),
                "segments_info": segments,
            }
        )
    if not records:
        raise UserError(f"{panoptic_json} has no annotations; nothing can be trained or evaluated on it")
    return records, classes


def _image_name(name: str) -> str:
    """Return the path of an image below the folder of images.

    The official Cityscapes json names files CITY_..._gtFine_leftImg8bit.png, which do not exist.
    """
    if name.endswith("_gtFine_leftImg8bit.png") and "/" not in name:
        return f"{name.split('_')[0]}/{name.replace('_gtFine_leftImg8bit', '_leftImg8bit')}"
    return name


def register_records(name: str, records: list[dict], classes: Classes, **metadata: Any) -> None:
    """Register records and classes as ``load_panoptic_json`` returns them, and the files that are derived of them.

    Args:
        name: The name of the data set.
        records: The records; they get the key sem_seg_file_name.
        classes: The classes.
        metadata: Further entries of the metadata. Without "json_file", the instances of ``COCOEvaluator`` are derived.
    """
    for index, record in enumerate(records):
        record["sem_seg_file_name"] = labels_path(name, index)
    DatasetCatalog.register(name, lambda: records)
    registered = MetadataCatalog.get(name)
    if not hasattr(registered, "thing_classes"):
        registered.set(**classes.to_metadata())
    if not hasattr(registered, "json_file"):
        metadata.setdefault("json_file", instances_path(name))
    registered.set(**metadata)


def register_panoptic(
    name: str,
    image_dir: str | Path,
    panoptic_dir: str | Path,
    panoptic_json: str | Path,
    instance_json: str | Path | None = None,
) -> None:
    """Register a COCO-panoptic data set under ``name``, ready for training and all of Detectron2's evaluators.

    Args:
        name: The name for ``DATASETS.TRAIN`` and ``DATASETS.TEST``. Registering the same files again does nothing.
        image_dir: The folder of the images.
        panoptic_dir: The folder of the id PNGs (id = R + 256 G + 65536 B, 0 = void).
        panoptic_json: The json. Category ids may be any integers; colors are optional.
        instance_json: The things as a COCO json, with the same image and category ids. Default: they are derived from
            the PNGs when an evaluator first asks for them.

    Raises:
        UserError: Files are missing or malformed, or ``name`` belongs to another data set.
    """
    image_dir, panoptic_dir, panoptic_json = Path(image_dir), Path(panoptic_dir), Path(panoptic_json)
    for folder in (image_dir, panoptic_dir):
        if not folder.is_dir():
            raise UserError(f"folder {folder} of data set {name!r} does not exist; check the path")
    if instance_json is not None and not Path(instance_json).is_file():
        raise UserError(f"instance json {instance_json} of data set {name!r} does not exist; check the path")
    if name in DatasetCatalog.list():
        if MetadataCatalog.get(name).get("panoptic_json") == str(panoptic_json):
            return
        raise UserError(f"a data set called {name!r} is already registered; choose another name")
    records, classes = load_panoptic_json(image_dir, panoptic_dir, panoptic_json)
    given = {} if instance_json is None else {"json_file": str(instance_json)}
    register_records(
        name,
        records,
        classes,
        image_root=str(image_dir),
        panoptic_root=str(panoptic_dir),
        panoptic_json=str(panoptic_json),
        evaluator_type="coco_panoptic_seg",
        **given,
    )


def datasets_root() -> Path:
    """Return the folder of the data sets: ``$DETECTRON2_DATASETS``, default ``datasets``, as in Detectron2."""
    return Path(os.getenv("DETECTRON2_DATASETS", "datasets")).expanduser()


def _register_panoptic_entry(name: str, image_dir: str, panoptic_dir: str, panoptic_json: str) -> None:
    root = datasets_root()
    register_panoptic(name, root / image_dir, root / panoptic_dir, root / panoptic_json)


#: The formats of data sets in DATASETS.PANOPTIC: from the number of values after the name in an entry to the function
#: that registers the data set. It is called with the values of the entry; relative paths are below ``datasets_root``.
DATASET_FORMATS: dict[int, Callable[..., None]] = {3: _register_panoptic_entry}


def find_entry(cfg: CfgNode, name: str) -> list[str]:
    """Return the entry of the data set ``name`` in ``cfg.DATASETS.PANOPTIC``.

    Raises:
        UserError: An entry has none of the forms that ``DATASET_FORMATS`` knows, or no entry has that name.
    """
    for entry in cfg.DATASETS.PANOPTIC:
        if not isinstance(entry, (list, tuple)) or len(entry) - 1 not in DATASET_FORMATS:
            forms = [f"[{', '.join(signature(register).parameters)}]" for register in DATASET_FORMATS.values()]
            raise UserError(f"DATASETS.PANOPTIC: {entry!r} is not of the form {' or '.join(forms)}")
        if entry[0] == name:
            return [str(value) for value in entry]
    raise UserError(
        f"data set {name!r} is not registered; list it in DATASETS.PANOPTIC as [name, image_dir, panoptic_dir, "
        "panoptic_json] or call seamless_d2.register_panoptic"
    )


def adopt_builtin(name: str) -> None:
    """Register one of Detectron2's builtin panoptic data sets again, with the class numbers of this package.

    Detectron2 numbers the classes of ``cityscapes_fine_panoptic_*`` and ``coco_2017_*_panoptic`` in another way, which
    the mapper would misread. Files and name stay the same. Other data sets are not changed.

    Raises:
        UserError: Files of the data set are missing.
    """
    metadata = MetadataCatalog.get(name)
    keys = ("panoptic_json", "panoptic_root", "image_root", "thing_dataset_id_to_contiguous_id", "stuff_classes")
    if not all(hasattr(metadata, key) for key in keys):
        return
    things, stuff = metadata.thing_dataset_id_to_contiguous_id, metadata.stuff_dataset_id_to_contiguous_id
    ours = sorted(things.values()) == list(range(len(things))) and set(things) <= set(stuff)
    ours = ours and all(stuff[i] == label + len(stuff) - len(things) for i, label in things.items())
    if ours:
        return
    image_root, panoptic_root, panoptic_json = metadata.image_root, metadata.panoptic_root, metadata.panoptic_json
    instances = metadata.get("json_file", None)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)
    exists = instances is not None and Path(instances).is_file()
    register_panoptic(name, image_root, panoptic_root, panoptic_json, instances if exists else None)


def register_from_config(cfg: CfgNode, names: list[str] | tuple[str, ...]) -> None:
    """Register the data sets ``names``: entries of ``cfg.DATASETS.PANOPTIC``, or Detectron2's builtin data sets.

    Raises:
        UserError: An entry is malformed, or a name is neither listed nor registered.
    """
    listed = [entry[0] for entry in cfg.DATASETS.PANOPTIC if entry]
    for name in names:
        # A name that the program registered itself need not be listed.
        if name in listed or name not in DatasetCatalog.list():
            entry = find_entry(cfg, name)
            DATASET_FORMATS[len(entry) - 1](*entry)
        else:
            adopt_builtin(name)
