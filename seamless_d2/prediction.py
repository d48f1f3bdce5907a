"""Prediction from Python and from the command line."""

import logging
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from PIL import Image
from tqdm import tqdm

from .checkpoint import load_weights
from .config import load_config
from .data.images import read_photo
from .data.metadata import Classes
from .data.transforms import build_resize
from .errors import UserError
from .files import atomic_write
from .modeling.fusion import SegmentInfo
from .visualization import draw_overlay

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp")
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class PanopticResult:
    """The panoptic map of one picture.

    Attributes:
        image: (H, W, 3) uint8 RGB, the picture.
        panoptic_seg: (H, W) int32, 0 = void, otherwise a segment's id.
        segments: one dict per segment, see ``fuse_panoptic``.
        classes: names and colours.
    """

    image: np.ndarray
    panoptic_seg: np.ndarray
    segments: list[SegmentInfo]
    classes: Classes

    def overlay(self, alpha: float = 0.5, labels: bool = True) -> np.ndarray:
        """(H, W, 3) uint8 RGB picture, see ``draw_overlay``; small pictures are enlarged."""
        return draw_overlay(self.image, self.panoptic_seg, self.segments, self.classes, alpha=alpha, labels=labels)


class Predictor:
    """A model ready for pictures.

    >>> predictor = Predictor("output/config.yaml", "output/model_final.pth")
    >>> result = predictor.predict("street.jpg")
    """

    def __init__(
        self, config: str | Path | CfgNode, weights: str | Path | None = None, device: str | None = None
    ) -> None:
        """
        Args:
            config: yaml file, name of a shipped config, or a configuration.
            weights: checkpoint; default the config's MODEL.WEIGHTS.
            device: "cpu", "cuda", ...; default the config's, or the CPU where there is no GPU.

        Raises:
            UserError: config or weights missing, unreadable or not made for each other.
        """
        cfg = config.clone() if isinstance(config, CfgNode) else load_config(config)
        cfg.defrost()
        cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
        if device or (cfg.MODEL.DEVICE.startswith("cuda") and not torch.cuda.is_available()):
            cfg.MODEL.DEVICE = device or "cpu"
        self.cfg = cfg
        self.model = build_model(cfg).eval()
        load_weights(self.model, weights or cfg.MODEL.WEIGHTS)
        self.classes = Classes.from_config(cfg) or _numbered_classes(cfg)
        self.resize = build_resize(cfg, is_train=False)

    def predict(
        self, image: np.ndarray | str | Path | Sequence[np.ndarray | str | Path]
    ) -> PanopticResult | list[PanopticResult]:
        """Segment one picture, or a list of them.

        Args:
            image: (H, W, 3) uint8 RGB array, or a file; a list gives a list of results.

        Raises:
            UserError: an unreadable file, or an array of another form.
        """
        if not isinstance(image, (np.ndarray, str, Path)):
            return [self.predict(i) for i in image]
        array = image if isinstance(image, np.ndarray) else read_photo(image)
        if array.ndim != 3 or array.shape[2] != 3 or array.dtype != np.uint8 or not array.size:
            raise UserError(
                f"an image must be a (height, width, 3) uint8 RGB array, not {array.shape} {array.dtype}; convert it"
            )
        resized = self.resize.get_transform(array).apply_image(array)
        if self.cfg.INPUT.FORMAT == "BGR":
            resized = resized[:, :, ::-1]
        tensor = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
        output = self.model([{"image": tensor, "height": array.shape[0], "width": array.shape[1]}])[0]
        panoptic_seg, segments = output["panoptic_seg"]
        return PanopticResult(array, panoptic_seg.cpu().numpy(), segments, self.classes)


def _numbered_classes(cfg: CfgNode) -> Classes:
    """Stand-in names for a config that carries none."""
    logger.warning("the config has no class names (MODEL.SEAMLESS.STUFF_CLASSES); classes are shown by number")
    total = cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES
    things = cfg.MODEL.ROI_HEADS.NUM_CLASSES
    return Classes.from_categories(
        [{"id": i + 1, "name": f"class {i}", "isthing": i >= total - things} for i in range(total)], "config"
    )


def find_images(inputs: Iterable[str | Path]) -> list[tuple[Path, Path]]:
    """Pictures among ``inputs`` (files, or folders searched recursively).

    Returns:
        (file, its path relative to the given folder) each, in order.

    Raises:
        UserError: a path that does not exist, or nothing found.
    """
    found: list[tuple[Path, Path]] = []
    for given in map(Path, inputs):
        if given.is_dir():
            files = sorted(p for p in given.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and p.is_file())
            found += [(p, p.relative_to(given)) for p in files]
        elif given.is_file():
            found.append((given, Path(given.name)))
        else:
            raise UserError(f"input {given} does not exist; check the path")
    if not found:
        raise UserError(f"no pictures ({', '.join(IMAGE_SUFFIXES)}) in {', '.join(map(str, inputs))}")
    return found


def save_picture(picture: np.ndarray, path: Path) -> None:
    """Write an (H, W, 3) uint8 RGB picture in the format of the file's suffix, atomically."""
    format = {".jpg": "JPEG", ".jpeg": "JPEG"}.get(path.suffix.lower(), path.suffix[1:].upper())
    with atomic_write(path) as file:
        Image.fromarray(picture).save(file, format=format, quality=92)


def predict_files(
    predictor: Predictor, inputs: Sequence[str | Path], output: str | Path, overwrite: bool = False
) -> tuple[list[Path], list[str]]:
    """Write NAME_overlay.jpg for every picture, in the folder structure of the inputs; finished ones are skipped.

    Args:
        predictor: the model.
        inputs: files and folders.
        output: folder, created where needed.
        overwrite: whether to do finished ones again.

    Returns:
        The pictures, and one sentence per file that failed.
    """
    written, failures = [], []
    for file, relative in tqdm(find_images(inputs), desc="predict", unit="image"):
        target = Path(output) / relative.with_name(f"{relative.stem}_overlay.jpg")
        if target in written:  # a.jpg and a.png in one folder
            target = target.with_name(f"{relative.name.replace('.', '_')}_overlay.jpg")
        if overwrite or not target.is_file():
            try:
                save_picture(predictor.predict(file).overlay(), target)
            except UserError as error:
                failures.append(str(error))
                tqdm.write(f"error: {error}")
                continue
            except OSError as error:
                raise UserError(
                    f"{target} cannot be written ({os.strerror(error.errno or 0)}); choose another folder"
                ) from None
        written.append(target)
    return written, failures
