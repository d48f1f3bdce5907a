"""What timm says of a pretrained network: the statistics of the images that it was trained on, and their resizing."""

from typing import Any

from detectron2.config import CfgNode

from .errors import UserError, suggest

#: The builder of backbones that these settings belong to.
TIMM_BACKBONE = "build_timm_fpn_backbone"
# What a config that says nothing about the statistics has: Detectron2's defaults (BGR), and those of our base config.
_UNSAID = {
    "PIXEL_MEAN": ([103.53, 116.28, 123.675], [123.675, 116.28, 103.53]),
    "PIXEL_STD": ([1.0, 1.0, 1.0], [58.395, 57.12, 57.375]),
}


def import_timm() -> Any:
    """Return the package timm.

    Raises:
        UserError: It is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise UserError(f"{TIMM_BACKBONE} needs timm, which cannot be imported ({error}); pip install timm") from None
    return timm


def check_name(name: str) -> None:
    """Raise ``UserError``, with names that are alike, if timm has no model called ``name`` (with or without a tag)."""
    timm = import_timm()
    if not name:
        raise UserError(f'{TIMM_BACKBONE} needs MODEL.TIMM.NAME, a model of timm such as "convnext_tiny.fb_in22k"')
    model, _, tag = name.partition(".")
    if not timm.is_model(model):
        hint = suggest(model, timm.list_models()) or "; timm.list_models() lists them"
        raise UserError(f"MODEL.TIMM.NAME: timm {timm.__version__} has no model {model!r}{hint}")
    tags = [full.partition(".")[2] for full in timm.list_pretrained(f"{model}.*")] if tag else []
    if tag and tag not in tags:
        raise UserError(
            f"MODEL.TIMM.NAME: {model} has no weights called {tag!r}; they are: {', '.join(tags) or 'none'}"
        )


def has_weights(name: str) -> bool:
    """Return whether there are weights of the model ``name`` to download."""
    description = import_timm().models.get_pretrained_cfg(name)
    return description is not None and bool(description.has_weights)


def adopt_description(cfg: CfgNode) -> None:
    """Set what ``cfg`` leaves open by timm's description of MODEL.TIMM.NAME: MODEL.PIXEL_MEAN with PIXEL_STD, unless
    one of them is not that of ImageNet, and INPUT.INTERPOLATION. Other backbones get bilinear resizing.

    Raises:
        UserError: timm is missing, or has no such model.
    """
    if cfg.MODEL.BACKBONE.NAME != TIMM_BACKBONE:
        cfg.INPUT.INTERPOLATION = cfg.INPUT.INTERPOLATION or "bilinear"
        return
    check_name(cfg.MODEL.TIMM.NAME)
    description = import_timm().models.get_pretrained_cfg(cfg.MODEL.TIMM.NAME)
    if description is not None and all(list(cfg.MODEL[key]) in values for key, values in _UNSAID.items()):
        for key, value in (("PIXEL_MEAN", description.mean), ("PIXEL_STD", description.std)):
            values = [round(255 * float(v), 6) for v in value]
            cfg.MODEL[key] = values[::-1] if cfg.INPUT.FORMAT == "BGR" else values
    if not cfg.INPUT.INTERPOLATION:
        cfg.INPUT.INTERPOLATION = (
            "bicubic" if description is not None and description.interpolation == "bicubic" else "bilinear"
        )
