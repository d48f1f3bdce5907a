"""Arguments that a component may offer beyond Detectron2's interface."""

import inspect
from typing import Any

from torch import nn


def optional_arguments(module: nn.Module, **arguments: Any) -> dict[str, Any]:
    """Return those of ``arguments`` that the ``forward`` of ``module`` declares by name.

    This is how fast paths and extras are offered by a component and never required of it: any semantic head, RPN or
    ROI heads of Detectron2's registries is called with Detectron2's own arguments, plus those it asks for.
    """
    declared = inspect.signature(module.forward).parameters
    return {name: value for name, value in arguments.items() if name in declared}
