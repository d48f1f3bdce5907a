"""seamless_d2: Seamless Scene Segmentation (Porzi et al., CVPR 2019) as a Detectron2 extension.

Importing the package registers every component in Detectron2's registries.
"""

__version__ = "0.1.0"

try:
    import detectron2  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "detectron2":
        raise
    raise ImportError(
        "seamless_d2 needs Detectron2, which is not installed; run `make install` in the repository, or "
        "`python -m pip install --no-build-isolation "
        "'git+https://github.com/facebookresearch/detectron2@02b5c4e2'`"
    ) from None

import warnings

with warnings.catch_warnings():
    # Detectron2 scripts functions as it is imported, which newer versions of PyTorch call out of date on every start.
    warnings.filterwarnings("ignore", ".*torch.jit.script.*", FutureWarning)
    warnings.filterwarnings("ignore", ".*torch.jit.script.*", DeprecationWarning)
    from . import modeling  # noqa: F401  (registers the components)
    from .config import add_seamless_config, get_config
    from .data import register_panoptic
    from .prediction import PanopticResult, Predictor
    from .seamseg import register_seamseg  # registers the formats of the original too

__all__ = [
    "PanopticResult",
    "Predictor",
    "__version__",
    "add_seamless_config",
    "get_config",
    "register_panoptic",
    "register_seamseg",
]
