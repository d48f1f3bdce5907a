"""The settings of the original program: every key of its ini files with its default, and those without counterpart."""

# Section -> key -> the original's default (its file panoptic.ini).
DEFAULTS: dict[str, dict[str, str]] = {
    "general": {
        "val_interval": "1",
        "log_interval": "10",
        "score_threshold": "0.5",
        "overlap_threshold": "0.5",
        "min_stuff_area": "4096",
        "eval_mode": "panoptic",
        "eval_coco": "no",
        "cudnn_benchmark": "no",
    },
    "body": {
        "body": "resnet50",
        "weights": "",
        "normalization_mode": "syncbn",
        "activation": "leaky_relu",
        "activation_slope": "0.01",
        "gn_groups": "16",
        "body_params": "{}",
        "num_frozen": "2",
        "bn_frozen": "yes",
        "out_channels": '{"mod1": 64, "mod2": 256, "mod3": 512, "mod4": 1024, "mod5": 2048}',
        "out_strides": '{"mod1": 4, "mod2": 4, "mod3": 8, "mod4": 16, "mod5": 32}',
    },
    "fpn": {
        "out_channels": "256",
        "extra_scales": "0",
        "interpolation": "nearest",
        "inputs": '["mod2", "mod3", "mod4", "mod5"]',
        "out_strides": "(4, 8, 16, 32)",
    },
    "rpn": {
        "hidden_channels": "256",
        "stride": "1",
        "anchor_ratios": "(1., 0.5, 2.)",
        "anchor_scale": "8",
        "nms_threshold": "0.7",
        "num_pre_nms_train": "12000",
        "num_post_nms_train": "2000",
        "num_pre_nms_val": "6000",
        "num_post_nms_val": "300",
        "min_size": "16",
        "num_samples": "256",
        "pos_ratio": ".5",
        "pos_threshold": ".7",
        "neg_threshold": ".3",
        "void_threshold": "0.7",
        "fpn_min_level": "0",
        "fpn_levels": "4",
        "sigma": "3.",
    },
    "roi": {
        "roi_size": "(14, 14)",
        "num_samples": "128",
        "pos_ratio": ".25",
        "pos_threshold": ".5",
        "neg_threshold_hi": ".5",
        "neg_threshold_lo": "0.",
        "void_threshold": "0.7",
        "void_is_background": "no",
        "nms_threshold": "0.3",
        "score_threshold": "0.05",
        "max_predictions": "100",
        "fpn_min_level": "0",
        "fpn_levels": "4",
        "fpn_canonical_scale": "224",
        "fpn_canonical_level": "2",
        "sigma": "1.",
        "bbx_reg_weights": "(10., 10., 5., 5.)",
    },
    "sem": {"fpn_min_level": "0", "fpn_levels": "4", "pooling_size": "(64, 64)", "ohem": ".25"},
    "optimizer": {
        "lr": "0.01",
        "weight_decay": "0.0001",
        "weight_decay_norm": "yes",
        "momentum": "0.9",
        "nesterov": "yes",
        "loss_weights": "(1., 1., 1., 1., 1., 1.)",
    },
    "scheduler": {
        "epochs": "90",
        "type": "poly",
        "update_mode": "batch",
        "params": '{"gamma": 0.9}',
        "burn_in_steps": "500",
        "burn_in_start": "0.333",
    },
    "dataloader": {
        "shortest_size": "1024",
        "longest_max_size": "2048",
        "train_batch_size": "",
        "val_batch_size": "",
        "rgb_mean": "(0.485, 0.456, 0.406)",
        "rgb_std": "(0.229, 0.224, 0.225)",
        "random_flip": "yes",
        "random_scale": "(0.8, 1)",
        "num_workers": "8",
        "train_set": "",
        "val_set": "",
        "coco_gt": "",
    },
}


# The kinds of models that the original trains, each with the number of its losses.
KINDS = {"panoptic": 6, "instance_seg": 5, "detection": 4}


def get_defaults(kind: str) -> dict[tuple[str, str], str]:
    """Return the original's defaults by (section, key) for one of ``KINDS`` (its files panoptic.ini and so on)."""
    values = {(section, key): value for section, keys in DEFAULTS.items() for key, value in keys.items()}
    if kind != "panoptic":
        dropped = {("general", k) for k in ("score_threshold", "overlap_threshold", "min_stuff_area", "eval_mode")}
        dropped |= {("general", "eval_coco"), ("rpn", "anchor_scale"), *(("sem", key) for key in DEFAULTS["sem"])}
        if kind == "detection":
            dropped.add(("roi", "void_is_background"))
        values = {place: value for place, value in values.items() if place not in dropped}
        # The original reads this as a whole number, which its own default is not: every ini sets it.
        values["rpn", "anchor_scales"] = "(8., 16., 32.)"
        values["optimizer", "loss_weights"] = str((1.0,) * KINDS[kind])
    return values


NOT_APPLICABLE = {
    ("general", "val_interval"): "counts epochs; set TEST.EVAL_PERIOD in iterations",
    ("general", "log_interval"): "Detectron2 logs every 20 iterations",
    ("general", "eval_coco"): "AP is evaluated whenever MODEL.SEAMLESS.OUTPUTS lists instances",
    ("body", "weights"): "initial weights; convert them with `convert_weights.py torchvision` and set MODEL.WEIGHTS",
    ("body", "out_channels"): "follows from the body",
    ("body", "out_strides"): "follows from the body",
    ("fpn", "out_strides"): "follows from the levels",
    ("dataloader", "val_batch_size"): "evaluation takes one image at a time",
    ("dataloader", "train_set"): "data sets are named by DATASETS.TRAIN",
    ("dataloader", "val_set"): "data sets are named by DATASETS.TEST",
    ("dataloader", "coco_gt"): "derived from the panoptic ground truth",
}
