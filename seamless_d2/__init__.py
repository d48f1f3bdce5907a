"""seamless_d2: Seamless Scene Segmentation (Porzi et al., CVPR 2019) as a Detectron2 extension.

Importing the package registers every component in Detectron2's registries.
"""

__version__ = "0.1.0"

import importlib.abc
import importlib.util
import sys
import warnings
from typing import Any


class _Detectron2IsMissing(importlib.abc.MetaPathFinder):
    """Without Detectron2 only ``seamless_d2.runtime`` and what it needs can be imported; all else is one sentence."""

    allowed = ("runtime", "errors", "limits", "io", "structures", "visualization", "export", "prediction")

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> None:
        """Raise ``ImportError`` for other modules of this package."""
        package, _, module = name.partition(".")
        if package == __name__ and module.split(".")[0] not in self.allowed:
            raise ImportError(_MISSING)


_MISSING = (
    "seamless_d2 needs Detectron2, which is not installed; run `make install` in the repository, or "
    "`python -m pip install --no-build-isolation 'git+https://github.com/facebookresearch/detectron2@02b5c4e2'` "
    "(seamless_d2.runtime, which runs exported models, does without)"
)

if importlib.util.find_spec("detectron2") is None:
    sys.meta_path.insert(0, _Detectron2IsMissing())

    def __getattr__(name: str) -> Any:
        if name in _Detectron2IsMissing.allowed or name.startswith("__"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")  # perhaps it is a module
        raise ImportError(_MISSING)

else:
    with warnings.catch_warnings():
        # Detectron2 scripts functions as it is imported, which newer versions of PyTorch call out of date each time.
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)
        warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
        from . import modeling  # noqa: F401  (registers the components)
        from .config import add_seamless_config, get_config
        from .data import register_panoptic
        from .prediction import PanopticResult, Predictor
        from .seamseg import register_seamseg  # registers the formats of the original too
    # Detectron2's anchors make PyTorch print this once in every program.
    warnings.filterwarnings("ignore", "torch.meshgrid: in an upcoming release", UserWarning)

__all__ = [
    "PanopticResult",
    "Predictor",
    "__version__",
    "add_seamless_config",
    "get_config",
    "register_panoptic",
    "register_seamseg",
]
