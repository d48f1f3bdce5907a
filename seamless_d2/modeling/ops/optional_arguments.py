"""Arguments that a component may offer beyond Detectron2's interface."""

import inspect
from collections.abc import Callable
from typing import Any

from torch import nn


def optional_arguments(function: Callable[..., Any], **arguments: Any) -> dict[str, Any]:
    """Return those of ``arguments`` that ``function`` (of a module: its ``forward``) declares by name.

    This is how fast paths and extras are offered by a component and never required of it: any semantic head, RPN or
    ROI heads of Detectron2's registries is called with Detectron2's own arguments, plus those it asks for.
    """
    declared = inspect.signature(function.forward if isinstance(function, nn.Module) else function).parameters
    return {name: value for name, value in arguments.items() if name in declared}
