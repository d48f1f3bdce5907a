"""A model ready for images."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.modeling import build_model
from torch import Tensor

from ..checkpoint import load_weights
from ..config import load_config
from ..data.transforms import build_resize, interpolation, to_tensor
from ..errors import UserError
from ..modeling.ops.fold import compile_network, prepare_for_inference
from ..modeling.panoptic import NetworkOutput, SeamlessPanoptic, mask_logits
from ..structures.classes import Classes
from ..structures.id_maps import SegmentInfo
from .engines import ExportedPanoptic, build_exported, is_eager, is_exported, read_exported_config
from .frames import Frames, Selection, to_source
from .options import PredictionOptions
from .result import HeadOutputs, ImageLike, PanopticResult, image_array
from .tiles import Stitcher, plan_tiles
from .tracking import Tracker
from .tta import average_views

logger = logging.getLogger(__name__)


@dataclass
class PreparedImage:
    """An image on its way into the network.

    Attributes:
        image: (H, W, 3) uint8 RGB, the whole image.
        tensor: (3, h, w) uint8 as the network takes it; None if it is made view by view or tile by tile.
    """

    image: np.ndarray
    tensor: Tensor | None


@dataclass
class PanopticMap:
    """A fused map, for images whose network stage already includes the fusion (tiles).

    Attributes:
        panoptic_seg: (H, W) int32 ids, 0 is void.
        segments: The segments in the order of their ids.
    """

    panoptic_seg: np.ndarray
    segments: list[SegmentInfo]


class Predictor:
    """A model ready for images.

    Examples:
        >>> predictor = Predictor("output/config.yaml", "output/model_final.pth")
        >>> result = predictor.predict("street.jpg")
    """

    def __init__(
        self,
        config: str | Path | CfgNode | None,
        weights: str | Path | None = None,
        device: str | None = None,
        **options: Any,
    ) -> None:
        """
        Args:
            config: A yaml file, the name of a shipped config, or a configuration. None for an exported file, which has
                its own.
            weights: The checkpoint, or a file that ``tools/export_model.py`` has written; default the config's
                MODEL.WEIGHTS.
            device: "cpu", "cuda", ...; default the config's, or the CPU if there is no GPU.
            options: The fields of ``PredictionOptions``: batch_size, amp, short_side, tile, overlap, tta, raw, compile,
                engine, alpha, legend, image_format.

        Raises:
            UserError: Config or weights are missing, unreadable or not made for each other, or an option is out of
                range.
        """
        self.options = PredictionOptions(**options)
        if config is None:
            if weights is None or not is_exported(weights):
                raise UserError("without a config, the weights must be an exported file; give a config")
            config = read_exported_config(weights, self.options.engine, amp=self.options.amp)
        cfg = config if isinstance(config, CfgNode) else load_config(config)
        eager = is_eager(self.options.engine, weights or cfg.MODEL.WEIGHTS)
        device = device if eager else device or "cpu"
        self.cfg = cfg = self.options.apply(cfg, None if weights is None else str(weights), device)
        self.classes = Classes.from_config(cfg) or _number_classes(cfg)
        self.resize = build_resize(cfg, is_train=False)
        self.model = self._build_eager(cfg) if eager else self._build_exported(cfg)

    def _build_exported(self, cfg: CfgNode) -> ExportedPanoptic:
        options = self.options
        if options.tta or options.raw or options.compile:
            raise UserError(
                "tta (--tta), raw outputs (--format raw) and compile (--compile) need the engine torch and a "
                "checkpoint; leave them out"
            )
        if cfg.MODEL.DEVICE != "cpu":
            raise UserError(f"exported models run on the CPU, not on {cfg.MODEL.DEVICE}; set the device to cpu")
        return build_exported(cfg, options.engine, amp=options.amp, tiles=options.tile is not None)

    def _build_eager(self, cfg: CfgNode) -> SeamlessPanoptic:
        model = build_model(cfg).eval()
        if not isinstance(model, SeamlessPanoptic):
            raise UserError(
                f"Predictor takes models of MODEL.META_ARCHITECTURE SeamlessPanoptic, not {type(model).__name__}; "
                "set it, or use Detectron2's DefaultPredictor"
            )
        if self.options.compile and self.options.tta and cfg.MODEL.DEVICE != "cpu":
            # CUDA graphs write the features of every view to the same memory.
            raise UserError("compile (--compile) and tta (--tta) exclude each other on a GPU; leave out one of them")
        load_weights(model, cfg.MODEL.WEIGHTS)
        prepare_for_inference(model)
        return compile_network(model) if self.options.compile else model

    def predict(
        self, image: ImageLike | Iterable[ImageLike]
    ) -> PanopticResult | list[PanopticResult] | Iterator[PanopticResult]:
        """Segment one image, or several.

        Args:
            image: A (H, W, 3) uint8 RGB array, a (3, H, W) uint8 tensor, an image of Pillow, or a file. A list of such
                gives a list of results, a generator one that predicts as results are asked for.

        Raises:
            UserError: A file cannot be read, or an image is something else.
        """
        if isinstance(image, list | tuple):
            return list(self._predict_all(image))
        if isinstance(image, Iterator):
            return self._predict_all(image)
        return next(self._predict_prepared([self.prepare(image)]))

    def track(self, video: str | Path | int | Iterable[ImageLike], **selection: Any) -> Iterator[PanopticResult]:
        """Segment a video frame by frame; an object has one ``track_id`` in all frames.

        Args:
            video: A file, a URL (http, https, rtsp, rtsps), the number of a camera, or images as for ``predict``.
            selection: The fields of ``Selection``, which frames are predicted: start, stop (seconds), stride,
                max_frames. Not for images, which can be sliced.

        Returns:
            An iterator over the results, which reads the video as it goes on.

        Raises:
            UserError: The video cannot be opened, or, at the end of the iteration, it is damaged or the connection was
                lost.

        Examples:
            >>> for result in predictor.track("drive.mp4", stop=10.0):
            ...     print([(s.class_name, s.track_id) for s in result.segments if s.isthing])
        """
        if isinstance(video, (str, Path, int)):
            frames = Frames(to_source(video), Selection(**selection))
            return self._track(frames, frames.check_complete)
        if selection:
            raise UserError(f"{', '.join(selection)} can be given for files, URLs and cameras; slice the images")
        return self._track(video, lambda: None)

    def _track(self, frames: Iterable[ImageLike], check: Callable[[], None]) -> Iterator[PanopticResult]:
        yield from map(Tracker().update, self._predict_all(frames))
        check()

    def _predict_all(self, images: Iterable[ImageLike]) -> Iterator[PanopticResult]:
        images = iter(images)
        while batch := [self.prepare(image) for image in islice(images, self.options.batch_size)]:
            yield from self._predict_prepared(batch)

    def _predict_prepared(self, prepared: list[PreparedImage]) -> Iterator[PanopticResult]:
        for _, group in groupby(prepared, key=get_batch_shape):
            batch = list(group)
            for item, output in zip(batch, self.run_network(batch), strict=True):
                yield self.postprocess(item, output)

    # Prediction has three stages, which prediction of many files runs at the same time.

    def prepare(self, image: ImageLike) -> PreparedImage:
        """Run the first stage: read and resize an image; arguments and errors are those of ``predict``."""
        array = image_array(image)
        is_cut = self._is_cut(array)
        if not is_cut and min(self._get_network_size(array)) < 1:
            raise UserError(
                f"an image of {array.shape[1]} x {array.shape[0]} pixels is too narrow: nothing would be left of its "
                "shorter side in the network (INPUT.MAX_SIZE_TEST); use tiles (--tile) or cut it"
            )
        return PreparedImage(array, None if self.options.tta or is_cut else self._make_tensor(array))

    def run_network(self, prepared: list[PreparedImage]) -> list[NetworkOutput | PanopticMap]:
        """Run the second stage: the network, on images of equal ``get_batch_shape``."""
        if self.options.tta:
            return [self._average_views(p.image) for p in prepared]
        if prepared[0].tensor is None:
            return [self._predict_tiles(p.image) for p in prepared]
        with self._autocast():
            return self.model.run_network([{"image": p.tensor} for p in prepared], all_outputs=self.options.raw)

    def postprocess(self, prepared: PreparedImage, output: NetworkOutput | PanopticMap) -> PanopticResult:
        """Run the third stage: the fusion, and the map at the image's size."""
        if isinstance(output, PanopticMap):
            found = output.panoptic_seg, output.segments
            return PanopticResult.from_fusion(prepared.image, *found, self.classes, drawing=self.options.drawing)
        panoptic_seg, segments = self.model.postprocess(output, prepared.image.shape[:2])["panoptic_seg"]
        raw = None
        if self.options.raw:
            found = output.detections
            raw = HeadOutputs(
                output.scores()[0].argmax(dim=0),
                found.pred_boxes.tensor,
                found.pred_classes,
                found.scores,
                mask_logits(found),
            )
        panoptic_seg = panoptic_seg.cpu().numpy()
        return PanopticResult.from_fusion(
            prepared.image, panoptic_seg, segments, self.classes, raw, self.options.drawing
        )

    def _is_cut(self, image: np.ndarray) -> bool:
        tile = self.options.tile
        return tile is not None and (image.shape[1] > tile[0] or image.shape[0] > tile[1])

    def _get_network_size(self, image: np.ndarray) -> tuple[int, int]:
        """Return the (height, width) at which the network sees an image."""
        transform = self.resize.get_transform(image)
        return getattr(transform, "new_h", image.shape[0]), getattr(transform, "new_w", image.shape[1])

    def _make_tensor(self, image: np.ndarray) -> Tensor:
        resized = self.resize.get_transform(image).apply_image(image)
        return to_tensor(resized, self.cfg.INPUT.FORMAT)

    def _autocast(self) -> torch.autocast | nullcontext:
        device = self.model.device.type
        return torch.autocast(device, dtype=torch.bfloat16) if self.options.amp else nullcontext()

    def _average_views(self, image: np.ndarray) -> NetworkOutput:
        """Run the network with test-time augmentation."""
        with self._autocast():
            return average_views(
                self.model,
                image,
                self._get_network_size(image),
                self.options.tta,
                self.cfg.INPUT.FORMAT,
                interpolation(self.cfg),
            )

    def _predict_tiles(self, image: np.ndarray) -> PanopticMap:
        """Predict the image tile by tile; instances that several tiles show become one."""
        stitcher = Stitcher(image.shape[:2], self.classes.num_stuff)
        for tile in plan_tiles(image.shape[:2], self.options.tile, self.options.overlap):
            piece = image[tile.y0 : tile.y1, tile.x0 : tile.x1]
            with self._autocast():
                output = self.model.run_network([{"image": self._make_tensor(piece)}])[0]
            # A tile may hold little of a large segment: the threshold applies to the whole.
            fused = self.model.postprocess(output, piece.shape[:2], stuff_area_thresh=0)
            panoptic_seg, segments = fused["panoptic_seg"]
            stitcher.add(tile, panoptic_seg.cpu().numpy(), segments)
        return PanopticMap(*stitcher.finish(self.model.combine_stuff_area_thresh))


def get_batch_shape(prepared: PreparedImage) -> tuple[int, ...]:
    """Return what images must share to go through the network together."""
    return () if prepared.tensor is None else tuple(prepared.tensor.shape)


def _number_classes(cfg: CfgNode) -> Classes:
    """Return stand-in names for a config that carries none."""
    logger.warning("the config has no class names (MODEL.SEAMLESS.CLASS_NAMES); classes are shown by number")
    return Classes.numbered(cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES, cfg.MODEL.ROI_HEADS.NUM_CLASSES)
