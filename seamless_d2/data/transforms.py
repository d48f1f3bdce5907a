"""The augmentations of the mapper, and those that Detectron2 does not have."""

from dataclasses import dataclass

import numpy as np
import torch
from detectron2.config import CfgNode
from detectron2.data import transforms as T
from PIL import Image

from ..limits import check_pixels


def _check_size(transform: T.Transform) -> T.Transform:
    """Return the transform, or raise ``UserError`` if it makes a narrow image larger than any that is read."""
    if isinstance(transform, T.ResizeTransform):
        check_pixels(transform.new_w, transform.new_h, "the image, resized by INPUT.MIN_SIZE_* and MAX_SIZE_*,")
    return transform


class BoundedResizeShortestEdge(T.ResizeShortestEdge):
    """Detectron2's ``ResizeShortestEdge``, but it refuses to make more than ``MAX_PIXELS``."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        return _check_size(super().get_transform(image))


class TruncatingResizeShortestEdge(T.ResizeShortestEdge):
    """``BoundedResizeShortestEdge``, but it truncates the new sides as the original instead of rounding them."""

    def get_transform(self, image: np.ndarray) -> T.Transform:
        height, width = image.shape[:2]
        low, high = (self.short_edge_length[0], self.short_edge_length[-1])
        size = np.random.randint(low, high + 1) if self.is_range else np.random.choice(self.short_edge_length)
        if size == 0:
            return T.NoOpTransform()
        scale = size / min(height, width)
        if int(max(height, width) * scale) > self.max_size:
            scale = self.max_size / max(height, width)
        return _check_size(T.ResizeTransform(height, width, int(height * scale), int(width * scale), self.interp))


class ResizeCropTransform(T.Transform):
    """A resize and a crop that computes only the pixels inside the crop, which takes a fraction of the time."""

    def __init__(
        self,
        size: tuple[int, int],
        new_size: tuple[int, int],
        crop: tuple[int, int, int, int],
        interp: int = Image.Resampling.BILINEAR,
    ) -> None:
        """
        Args:
            size: The (height, width) of the source.
            new_size: The (height, width) of the whole resized image.
            crop: The crop in the resized image as (x0, y0, width, height) in pixels.
            interp: How images are resized.
        """
        super().__init__()
        self.size, self.new_size, self.crop, self.interp = size, new_size, crop, interp

    def apply_image(self, img: np.ndarray, interp: int | None = None) -> np.ndarray:
        """Resize and crop an (H, W, 3) or (H, W) uint8 image."""
        interp = self.interp if interp is None else interp
        x0, y0, width, height = self.crop
        scale_x, scale_y = self.size[1] / self.new_size[1], self.size[0] / self.new_size[0]
        box = (x0 * scale_x, y0 * scale_y, (x0 + width) * scale_x, (y0 + height) * scale_y)
        # Rounding must not push the box out of the image.
        box = (box[0], box[1], min(box[2], self.size[1]), min(box[3], self.size[0]))
        return np.asarray(Image.fromarray(img).resize((width, height), interp, box=box))

    def apply_segmentation(self, segmentation: np.ndarray) -> np.ndarray:
        return self.apply_image(segmentation, Image.Resampling.NEAREST)

    def apply_coords(self, coords: np.ndarray) -> np.ndarray:
        """Transform (N, 2) coordinates x, y."""
        coords = coords * np.array([self.new_size[1] / self.size[1], self.new_size[0] / self.size[0]])
        return coords - np.array(self.crop[:2])


class ResizeCrop(T.Augmentation):
    """A resize and a random crop of Detectron2 in one step."""

    def __init__(self, resize: T.ResizeShortestEdge, crop: T.RandomCrop) -> None:
        """
        Args:
            resize: The resize.
            crop: The crop of the resized image.
        """
        super().__init__()
        self.resize, self.crop = resize, crop

    def get_transform(self, image: np.ndarray) -> T.Transform:
        size, new_size = image.shape[:2], self._draw_size(image)
        height, width = self.crop.get_crop_size(new_size)
        x0 = np.random.randint(new_size[1] - width + 1)
        y0 = np.random.randint(new_size[0] - height + 1)
        return ResizeCropTransform(size, new_size, (x0, y0, width, height), self.resize.interp)

    def _draw_size(self, image: np.ndarray) -> tuple[int, int]:
        """Return a (height, width) to which the resize brings the image."""
        resized = self.resize.get_transform(image)
        return (resized.new_h, resized.new_w) if isinstance(resized, T.ResizeTransform) else image.shape[:2]


@dataclass(frozen=True)
class Focus:
    """The object that a crop is to show.

    Attributes:
        box: Its box x0, y0, x1, y1 in pixels of the source.
        has_size: Whether the scale is to follow the size of the box: that of an instance, not of a region of stuff.
    """

    box: tuple[float, float, float, float]
    has_size: bool


class ResizeCropAround(ResizeCrop):
    """Instance-scale-uniform sampling (Porzi et al., CVPR 2021, section 3.3): scale and crop follow an instance.

    The image is scaled so that the instance gets a size, the square root of the area of its box, that is drawn
    log-uniformly; of regions of stuff, and without a focus, the scale is the usual one. The crop holds the focus, or as
    much of it as fits, at a random place.
    """

    def __init__(
        self,
        resize: T.ResizeShortestEdge,
        crop: T.RandomCrop,
        sizes: tuple[float, float],
        scales: tuple[float, float],
    ) -> None:
        """
        Args:
            resize, crop: See ``ResizeCrop``.
            sizes: The smallest and the largest size of instances, in pixels of the resized image.
            scales: The smallest and the largest factor by which an image is scaled for an instance.
        """
        super().__init__(resize, crop)
        self.sizes, self.scales = sizes, scales

    def get_transform(self, image: np.ndarray, focus: Focus | None) -> T.Transform:
        if focus is None:
            return super().get_transform(image)
        height, width = image.shape[:2]
        x0, y0, x1, y1 = focus.box
        if focus.has_size:
            size = np.exp(np.random.uniform(*np.log(self.sizes)))
            scale = float(np.clip(size / np.sqrt((x1 - x0) * (y1 - y0)), *self.scales))
            new_size = max(round(height * scale), 1), max(round(width * scale), 1)
        else:
            new_size = self._draw_size(image)
        crop = self.crop.get_crop_size(new_size)
        offsets = []
        for low, high, old, new, length in (
            (y0, y1, height, new_size[0], crop[0]),
            (x0, x1, width, new_size[1], crop[1]),
        ):
            # Either the object lies in the crop, or the crop in the object.
            low, high = sorted((low * new / old, high * new / old - length))
            low, high = (int(np.clip(round(v), 0, new - length)) for v in (low, high))
            offsets.append(np.random.randint(low, high + 1))
        place = (offsets[1], offsets[0], crop[1], crop[0])
        return ResizeCropTransform((height, width), new_size, place, self.resize.interp)


def interpolation(cfg: CfgNode) -> Image.Resampling:
    """Return how images are resized: INPUT.INTERPOLATION, default bilinear."""
    return Image.Resampling[(cfg.INPUT.INTERPOLATION or "bilinear").upper()]


def build_resize(cfg: CfgNode, is_train: bool) -> T.ResizeShortestEdge:
    """Build the resize that Detectron2's INPUT keys describe; MIN_SIZE_TRAIN_SAMPLING "range" is scale jitter."""
    resize = TruncatingResizeShortestEdge if cfg.MODEL.SEAMLESS.ORIGINAL_CONVENTIONS else BoundedResizeShortestEdge
    if is_train:
        sizes = cfg.INPUT.MIN_SIZE_TRAIN
        sampling = "choice" if len(sizes) == 1 else cfg.INPUT.MIN_SIZE_TRAIN_SAMPLING
        return resize(sizes, cfg.INPUT.MAX_SIZE_TRAIN, sampling, interpolation(cfg))
    return resize(cfg.INPUT.MIN_SIZE_TEST, cfg.INPUT.MAX_SIZE_TEST, "choice", interpolation(cfg))


def build_augmentations(cfg: CfgNode, is_train: bool) -> list[T.Augmentation]:
    """Build the resize and, for training, the crop, the flip and the color jitter that the INPUT keys describe.

    They take RGB images, and "focus" of their input (a ``Focus`` or None) for instance-scale-uniform sampling.
    """
    resize, keys = build_resize(cfg, is_train), cfg.INPUT
    if not is_train:
        return [resize]
    augmentations: list[T.Augmentation] = [resize]
    if keys.LARGE_SCALE_JITTER:
        size = tuple(int(side) for side in keys.CROP.SIZE)
        # The bytes of an id are padded with 0, which is void.
        augmentations = [
            T.ResizeScale(*keys.LARGE_SCALE_JITTER, *size, interpolation(cfg)),
            T.FixedSizeCrop(size, seg_pad_value=0),
        ]
    elif keys.CROP.ENABLED:
        crop = T.RandomCrop(keys.CROP.TYPE, keys.CROP.SIZE)
        if cfg.DATALOADER.SAMPLER_TRAIN == "InstanceScaleUniformSampler":
            augmentations = [ResizeCropAround(resize, crop, keys.INSTANCE_SIZES, keys.INSTANCE_SCALES)]
        else:
            augmentations = [ResizeCrop(resize, crop)]
    if keys.RANDOM_FLIP != "none":
        vertical = keys.RANDOM_FLIP == "vertical"
        augmentations.append(T.RandomFlip(horizontal=not vertical, vertical=vertical))
    if keys.COLOR_JITTER > 0:
        low, high = 1 - keys.COLOR_JITTER, 1 + keys.COLOR_JITTER
        augmentations += [jitter(low, high) for jitter in (T.RandomBrightness, T.RandomContrast, T.RandomSaturation)]
    return augmentations


def to_tensor(image: np.ndarray, channel_order: str) -> torch.Tensor:
    """Convert an (H, W, 3) uint8 RGB image to a (3, H, W) uint8 tensor in the order of INPUT.FORMAT."""
    if channel_order == "BGR":
        image = image[:, :, ::-1]
    return torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
