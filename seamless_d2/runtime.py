"""Exported models without PyTorch and Detectron2: NumPy, Pillow, OpenCV and the engine are all that is needed.

from seamless_d2 import runtime

model = runtime.load("model.onnx")
result = model.predict("street.jpg")
result.save("results", "street", formats=("labelled", "ids"))
"""

from pathlib import Path

import numpy as np

from .errors import UserError
from .export.session import ExportedModel, Metadata
from .prediction.result import PanopticResult, image_array
from .structures.classes import Classes
from .structures.id_maps import resize_ids

__all__ = ["PanopticResult", "Runtime", "UserError", "load"]


class Runtime:
    """An exported model ready for images; the same results as ``Predictor``'s with the same file.

    Attributes:
        model: The file and the engine that runs it.
    """

    def __init__(self, model: ExportedModel) -> None:
        self.model = model

    @property
    def metadata(self) -> Metadata:
        """What the file says of itself: classes, sizes, thresholds, versions."""
        return self.model.metadata

    @property
    def classes(self) -> Classes:
        """The names and colors of the classes."""
        return self.model.metadata.classes

    def predict(self, image: np.ndarray | str | Path) -> PanopticResult:
        """Segment one image.

        Args:
            image: A (H, W, 3) uint8 RGB array, or a file.

        Raises:
            UserError: The file cannot be read, the array has another shape or type, or the file of the model does not
                accept images of the size to which this one is resized.
        """
        array = image_array(image)
        panoptic_seg, segments = self.model.run(self.metadata.resize(array))
        return PanopticResult.from_fusion(array, *resize_ids(panoptic_seg, segments, *array.shape[:2]), self.classes)


def load(path: str | Path, engine: str | None = None, *, amp: bool = False) -> Runtime:
    """Load a file that ``tools/export_model.py`` has written; arguments and errors are those of ``ExportedModel``."""
    return Runtime(ExportedModel(path, engine, amp=amp))
