"""Models of the original seamseg: snapshot -> checkpoint + yaml, and back."""

import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import META_ARCH_REGISTRY
from torch import Tensor

from ..checkpoint.checkpointer import write_checkpoint
from ..config import add_seamless_config, config_file, load_config
from ..errors import UserError
from ..io import atomic_write, check_output_file, read_bytes, read_text
from ..limits import check_expansion
from ..structures.classes import Classes
from ..tensor_files import load_file
from .dataset import read_metadata
from .ini import Ini, convert_ini
from .names import NormMode, original_names, to_original, to_ours

MODULES = ("body", "rpn_head", "roi_head", "sem_head")
REQUIRED = MODULES[:3]


@dataclass
class Snapshot:
    """A model of the original program.

    Attributes:
        state: The tensors by name, with the prefix of their module (one of ``MODULES``).
        config: The text of its ini.
        classes: The classes of its metadata.bin, or None if they are not known.
        source: The file, for error messages.
    """

    state: dict[str, Tensor]
    config: str
    classes: Classes | None
    source: str

    @property
    def kind(self) -> str:
        """Which of ``ini.KINDS`` the model is."""
        if "sem_head.conv_sem.weight" in self.state:
            return "panoptic"
        return "instance_seg" if "roi_head.roi_msk.weight" in self.state else "detection"

    @property
    def num_things(self) -> int:
        """The number T of thing classes."""
        return self.state["roi_head.roi_cls.weight"].shape[0] - 1

    @property
    def num_classes(self) -> int:
        """The number C of all classes; without a semantic head the metadata knows, or there are only things."""
        if self.kind == "panoptic":
            return self.state["sem_head.conv_sem.weight"].shape[0]
        return self.num_things if self.classes is None else len(self.classes.names)


def _read_release(path: Path) -> tuple[bytes, str | None, bytes | None] | None:
    """Return the weights, the ini text and the metadata of a released zip, or None if the file is something else."""
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            names = {Path(n).name: n for n in archive.namelist() if not n.endswith("/")}
            if "data.pkl" in names:  # torch's own container
                return None
            check_expansion(path, sum(entry.file_size for entry in archive.infolist()))
            weights = [n for n in names if n.endswith((".tar", ".pth", ".pt"))]
            if len(weights) != 1:
                raise UserError(f"{path} holds {len(weights)} weight files (.tar, .pth); a released model holds one")
            ini = [n for n in names if n.endswith(".ini")]
            text = archive.read(names[ini[0]]).decode() if ini else None
            meta = archive.read(names["metadata.bin"]) if "metadata.bin" in names else None
            return archive.read(names[weights[0]]), text, meta
    except (OSError, ValueError, RuntimeError, EOFError, zlib.error, zipfile.BadZipFile) as error:
        raise UserError(f"archive {path} cannot be read ({error}); it is damaged or encrypted, get it again") from None


def read_snapshot(path: str | Path, config: str | Path | None = None, metadata: str | Path | None = None) -> Snapshot:
    """Read an original model: a snapshot in either of torch's containers, or a released zip.

    Args:
        path: The snapshot or zip.
        config: An ini file that replaces the settings inside.
        metadata: A metadata.bin, for names and colors.

    Raises:
        UserError: The file cannot be read, or is no complete model.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"snapshot {path} does not exist; check the path")
    data, text, meta_bytes = _read_release(path) or (None, None, None)
    content = load_file(path, "snapshot", data)
    state_dict = content.get("state_dict")
    if not isinstance(state_dict, dict):
        raise UserError(f"{path} has no state_dict; it is not a seamseg snapshot")
    missing = [m for m in REQUIRED if not state_dict.get(m)]
    if missing:
        raise UserError(f"{path} has no {', '.join(missing)}; only complete models of seamseg can be converted")
    state = {f"{m}.{k}": v for m in MODULES for k, v in (state_dict.get(m) or {}).items()}
    names = ["roi_head.roi_cls.weight", *(["sem_head.conv_sem.weight"] if state_dict.get("sem_head") else [])]
    for name in names:
        if name not in state:
            raise UserError(f"{path} has no tensor {name}; only complete models of seamseg can be converted")
    if config is not None:
        text = read_text(config, "config")
    text = text or content.get("config")
    if not text:
        raise UserError(f"{path} has no settings inside; give its ini file with --config")
    if metadata is not None:
        meta_bytes = read_bytes(metadata, "metadata")
    if "[sem]" in text and not state_dict.get("sem_head"):
        raise UserError(f"{path} has no sem_head, but its settings describe a panoptic model; get the file again")
    classes = read_metadata(meta_bytes, str(metadata or path))[0] if meta_bytes else None
    return Snapshot(state, text, classes, str(path))


def settings_to_config(settings: dict[str, Any], classes: Classes | None = None) -> CfgNode:
    """Return a complete configuration from converted settings."""
    cfg = load_config(config_file("Base-Seamless.yaml"))
    for key, value in settings.items():
        node = cfg
        *parents, leaf = key.split(".")
        for parent in parents:
            node = node[parent]
        node[leaf] = value
    if classes is not None:
        classes.to_config(cfg)
    return cfg


def dump_difference(cfg: CfgNode) -> str:
    """Return the yaml of all keys in which ``cfg`` differs from ``get_cfg`` + ``add_seamless_config``."""
    default = get_cfg()
    add_seamless_config(default)

    def difference(node: CfgNode, base: CfgNode) -> CfgNode:
        result = CfgNode()
        for key, value in node.items():
            if isinstance(value, CfgNode):
                inner = difference(value, base[key])
                if len(inner):
                    result[key] = inner
            elif key not in base or value != base[key]:
                result[key] = value
        return result

    return difference(cfg, default).dump()


def _check_complete(state: dict[str, Tensor], cfg: CfgNode, source: str) -> None:
    """Raise ``UserError`` unless ``state`` has exactly the tensors and shapes of the model of ``cfg``."""
    cfg = cfg.clone()
    cfg.MODEL.DEVICE = "cpu"
    cfg.DATASETS.TRAIN = cfg.DATASETS.TEST = ()
    try:
        with torch.device("meta"):
            expected = build_model_state(cfg)
    except UserError as error:
        raise UserError(f"{source}: its settings do not describe a model: {error}") from None
    missing = sorted(set(expected) - set(state))
    extra = sorted(set(state) - set(expected))
    shapes = sorted(k for k in set(state) & set(expected) if state[k].shape != expected[k])
    if missing or extra or shapes:
        parts = [
            f"{title} {len(names)} ({', '.join(names[:6])}{', ...' if len(names) > 6 else ''})"
            for title, names in (("missing", missing), ("left over", extra), ("of another shape", shapes))
            if names
        ]
        raise UserError(f"{source}: its tensors do not fit its settings: {'; '.join(parts)}; check --config")


def build_model_state(cfg: CfgNode) -> dict[str, torch.Size]:
    """Return names and shapes of the tensors of the model of ``cfg``, without bookkeeping counters."""
    model = META_ARCH_REGISTRY.get(cfg.MODEL.META_ARCHITECTURE)(cfg)
    return {k: v.shape for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}


def convert_snapshot(snapshot: Snapshot) -> tuple[dict[str, Tensor], CfgNode, list[str]]:
    """Convert a snapshot to our state dict, the configuration, and notes on settings without counterpart.

    Raises:
        UserError: Tensors are missing, left over, or contradict the settings or the metadata.
    """
    ini = Ini(snapshot.config, f"config of {snapshot.source}", snapshot.kind)
    converted = convert_ini(snapshot.config, f"config of {snapshot.source}", snapshot.kind)
    settings = converted.settings
    settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = snapshot.num_classes
    settings["MODEL.ROI_HEADS.NUM_CLASSES"] = snapshot.num_things
    classes = snapshot.classes
    if classes and (len(classes.names), classes.num_things) != (snapshot.num_classes, snapshot.num_things):
        raise UserError(
            f"{snapshot.source} has {snapshot.num_classes} classes, {snapshot.num_things} of them things, but its "
            f"metadata has {len(classes.names)} and {classes.num_things}; give the model's own metadata.bin"
        )
    mode = NormMode.parse(ini.text("body", "normalization_mode"))
    state, unknown = to_ours(snapshot.state, mode)
    if unknown:
        raise UserError(
            f"{snapshot.source} has tensors that no part of the model takes: {', '.join(unknown[:6])}"
            f"{', ...' if len(unknown) > 6 else ''}"
        )
    cfg = settings_to_config(settings, classes)
    _check_complete(state, cfg, snapshot.source)
    return state, cfg, converted.notes


def convert(
    path: str | Path, output: str | Path, config: str | Path | None = None, metadata: str | Path | None = None
) -> list[str]:
    """Convert an original model to ``output`` (.pth) and the yaml beside it; returns the notes.

    Raises:
        UserError: ``read_snapshot``, ``convert_snapshot`` or ``check_output_file`` raises it; nothing is written then.
    """
    output = Path(output)
    if output.suffix != ".pth":
        raise UserError(f"output {output} must end in .pth")
    for file in (output, output.with_suffix(".yaml")):
        check_output_file(file, path, config, metadata)
    state, cfg, notes = convert_snapshot(read_snapshot(path, config, metadata))
    cfg.MODEL.WEIGHTS = str(output)
    text = f"# Converted from {Path(path).name} of seamseg.\n" + dump_difference(cfg)
    with atomic_write(output.with_suffix(".yaml"), "w") as file:
        file.write(text)
    write_checkpoint(state, output, "seamseg")
    return notes


def convert_config(path: str | Path, output: str | Path, metadata: str | Path | None = None) -> list[str]:
    """Convert an ini file to a complete yaml; returns the notes on settings without counterpart.

    Raises:
        UserError: A file cannot be read, the settings are not those of seamseg, or ``output`` exists.
    """
    check_output_file(output, path, metadata)
    converted = convert_ini(read_text(path, "config"), str(path))
    classes = None
    if metadata is not None:
        classes, _ = read_metadata(read_bytes(metadata, "metadata"), str(metadata))
        converted.settings["MODEL.SEM_SEG_HEAD.NUM_CLASSES"] = len(classes.names)
        converted.settings["MODEL.ROI_HEADS.NUM_CLASSES"] = classes.num_things
    else:
        converted.notes.append("class counts are not in an ini: give --metadata, or set MODEL.*.NUM_CLASSES yourself")
    cfg = settings_to_config(converted.settings, classes)
    with atomic_write(output, "w") as file:
        file.write(f"# Converted from {Path(path).name} of seamseg.\n" + dump_difference(cfg))
    return converted.notes


def export(checkpoint: str | Path, output: str | Path, config: str | Path | None, ini: str | Path | None) -> None:
    """Write one of our checkpoints as a snapshot that the original loads.

    Args:
        checkpoint: The file of our weights.
        output: The snapshot to write (.pth.tar).
        config: Our yaml; default the one beside ``checkpoint``.
        ini: The settings of seamseg to store inside; they must describe the same model.

    Raises:
        UserError: A file cannot be read, no mode of the original has these norms, or the ini is of another model.
    """
    config = Path(config) if config else Path(checkpoint).with_suffix(".yaml")
    if not config.is_file():
        raise UserError(f"config {config} of the model does not exist; give it with --yaml")
    check_output_file(output, checkpoint, config, ini)
    cfg = load_config(config)
    state = load_file(checkpoint)
    state = state.get("model", state)
    _check_complete({k: v for k, v in state.items() if not k.endswith("num_batches_tracked")}, cfg, str(checkpoint))
    mode = norm_mode(cfg)
    if ini is None:
        raise UserError("the original reads its architecture from an ini; give one with --config")
    text = read_text(ini, "config")
    settings = convert_ini(text, str(ini)).settings
    for key in ("MODEL.RESNETS.DEPTH", "MODEL.RESNETS.NORM", "MODEL.RPN.NORM", "MODEL.FPN.EXTRA_LEVELS"):
        node = cfg
        for part in key.split("."):
            node = node[part]
        if node != settings[key]:
            raise UserError(f"{ini} describes another model than {config}: {key} would be {settings[key]}, not {node}")
    original = to_original(state, original_names(state, cfg.MODEL.RESNETS.DEPTH), mode)
    content: dict[str, Any] = {"config": text, "state_dict": {}, "training_meta": {}}
    for module in {name.split(".")[0]: None for name in original}:
        prefix = f"{module}."
        content["state_dict"][module] = {k.removeprefix(prefix): v for k, v in original.items() if k.startswith(prefix)}
    with atomic_write(output) as file:
        # The original's PyTorch 1.1 reads only the older container.
        torch.save(content, file, _use_new_zipfile_serialization=False)


def norm_mode(cfg: CfgNode) -> NormMode:
    """Return the original's mode for the norms of ``cfg``.

    Raises:
        UserError: The original has no such mixture of norms.
    """
    m = cfg.MODEL
    static = {m.RESNETS.NORM, m.FPN.NORM, m.SEM_SEG_HEAD.NORM}
    dynamic = {m.RPN.NORM, m.ROI_BOX_HEAD.NORM, m.ROI_MASK_HEAD.NORM}
    if len(static) == len(dynamic) == 1:
        mode = NormMode(static.pop(), dynamic.pop())
        if (mode.static, mode.dynamic) in (
            ("BN", "BN"),
            ("SyncBN", "SyncBN"),
            ("SyncBN", "BN"),
            ("GN", "GN"),
            ("SyncBN", "GN"),
            ("Affine", "Affine"),
        ):
            return mode
    raise UserError("the norms of this model (MODEL.*.NORM) are a mixture that seamseg does not have")
