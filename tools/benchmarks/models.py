"""Our model and Detectron2's stock PanopticFPN with random weights, made to find the same number of things."""

from pathlib import Path

import detectron2
import torch
from detectron2.config import CfgNode, get_cfg
from detectron2.modeling import build_model
from detectron2.modeling.backbone.resnet import BottleneckBlock
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor, nn

from seamless_d2.config import get_config
from seamless_d2.data.toy_streets import CATEGORIES, generate_scene
from seamless_d2.errors import UserError
from seamless_d2.modeling.ops.fold import prepare_for_inference
from seamless_d2.structures.segment_masks import SegmentMasks

_STOCK_CONFIG = "COCO-PanopticSegmentation/panoptic_fpn_R_50_3x.yaml"
SCORE_THRESH = 0.5


def our_config(name: str, device: str, quick: bool = False) -> CfgNode:
    """A shipped config for random weights, returning the panoptic map alone; ``quick`` with a tenth of the regions."""
    cfg = get_config(name)
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = device, ""
    cfg.MODEL.SEAMLESS.OUTPUTS = ["panoptic_seg"]
    cfg.TEST.DETECTIONS_PER_IMAGE = 100
    if quick:
        cfg.MODEL.RPN.POST_NMS_TOPK_TEST, cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = 100, 50
    return cfg


def stock_config_file() -> Path:
    """Detectron2's own config of PanopticFPN R50.

    Raises:
        UserError: the installed Detectron2 has no configs.
    """
    path = Path(detectron2.__file__).parent / "model_zoo" / "configs" / _STOCK_CONFIG
    if not path.is_file():
        raise UserError(f"the installed detectron2 lacks {path}; install it with its model_zoo folder")
    return path


def stock_config(ours: CfgNode) -> CfgNode:
    """Detectron2's own config of PanopticFPN R50, with the classes of one of ours."""
    cfg = get_cfg()
    cfg.merge_from_file(str(stock_config_file()))
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS = ours.MODEL.DEVICE, ""
    things = ours.MODEL.ROI_HEADS.NUM_CLASSES
    cfg.MODEL.ROI_HEADS.NUM_CLASSES = things
    # Class 0 stands for all things.
    cfg.MODEL.SEM_SEG_HEAD.NUM_CLASSES = ours.MODEL.SEM_SEG_HEAD.NUM_CLASSES - things + 1
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    combine.INSTANCES_CONFIDENCE_THRESH, combine.OVERLAP_THRESH, combine.STUFF_AREA_LIMIT = SCORE_THRESH, 0.5, 4096
    cfg.TEST.DETECTIONS_PER_IMAGE = ours.TEST.DETECTIONS_PER_IMAGE
    cfg.MODEL.RPN.POST_NMS_TOPK_TEST = ours.MODEL.RPN.POST_NMS_TOPK_TEST
    cfg.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE = ours.MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE
    return cfg


def build(cfg: CfgNode, seed: int = 0) -> nn.Module:
    """The model with random weights whose features do not grow from block to block."""
    torch.manual_seed(seed)
    model = build_model(cfg)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, BottleneckBlock):
                # Each residual block doubles the variance otherwise, 2^16 in all, as no statistics are trained yet.
                module.conv3.norm.weight.fill_(0.2)
    return model


@torch.no_grad()
def force_detections(model: nn.Module) -> nn.Module:
    """Let every proposal be a sure detection of class 0 that fills its box; anchors compete by random scores.

    So the number of detections is the config's largest, and boxes have sides from 32 to 192 pixels on the finest level,
    twice that on the next one.
    """
    heads, rpn = model.roi_heads, model.proposal_generator
    predictors = [
        rpn.rpn_head.anchor_deltas,
        heads.box_predictor.cls_score,
        heads.box_predictor.bbox_pred,
        heads.mask_head.predictor,
    ]
    for layer in predictors:
        layer.weight.zero_()
        layer.bias.zero_()
    anchors = next(iter(rpn.anchor_generator.cell_anchors))
    sides = (anchors[:, 2:] - anchors[:, :2]).prod(dim=1).sqrt()
    wanted = 32 * 6 ** torch.linspace(0, 1, len(anchors), device=sides.device)
    rpn.rpn_head.anchor_deltas.bias.view(-1, 4)[:, 2:] = (wanted / sides).log()[:, None]
    # The anchors of a place compete alike, else the sizes of the boxes would be a matter of chance.
    rpn.rpn_head.objectness_logits.weight.copy_(
        rpn.rpn_head.objectness_logits.weight[:1].clone().expand_as(rpn.rpn_head.objectness_logits.weight)
    )
    heads.box_predictor.cls_score.bias[0] = 6
    heads.mask_head.predictor.bias.fill_(2)
    return model


def build_for_inference(cfg: CfgNode) -> nn.Module:
    """Either model, ready to detect; ours with its norms folded and its channels last."""
    model = force_detections(build(cfg)).eval()
    return prepare_for_inference(model) if cfg.MODEL.META_ARCHITECTURE == "SeamlessPanoptic" else model


def street_image(height: int, width: int, device: str = "cpu") -> Tensor:
    """(3, height, width) uint8 image of a drawn street."""
    image = generate_scene(0, height, width).image
    return torch.from_numpy(image).permute(2, 0, 1).contiguous().to(device)


def training_batch(height: int, width: int, count: int, num_stuff: int, stock: bool) -> list[dict]:
    """``count`` training dicts of about 20 instances each, as the mapper of the model gives them.

    Args:
        height, width: of the images; four drawn streets side by side.
        num_stuff: S of our semantic labels.
        stock: with bit masks, and semantic labels in which 0 stands for all things.
    """
    kinds = [0] * (len(CATEGORIES) + 1)
    for isthing in (False, True):
        for k, category in enumerate(c for c in CATEGORIES if c["isthing"] == isthing):
            kinds[category["id"]] = k
    is_thing = {c["id"]: bool(c["isthing"]) for c in CATEGORIES}
    batch = []
    for number in range(count):
        images, maps, segments = [], [], []
        for seed in range(4):
            scene = generate_scene(4 * number + seed, height, width // 4)
            ids = torch.from_numpy(scene.panoptic)
            maps.append(torch.where(ids > 0, ids + len(segments), 0))
            images.append(torch.from_numpy(scene.image))
            segments += scene.segments
        ids, image = torch.cat(maps, dim=1), torch.cat(images, dim=1).permute(2, 0, 1).contiguous()
        semantic = torch.full((len(segments) + 1,), 255)
        things = []
        for k, segment in enumerate(segments, 1):
            kind, thing = kinds[segment["category_id"]], is_thing[segment["category_id"]]
            semantic[k] = (0 if thing else kind + 1) if stock else kind + (num_stuff if thing else 0)
            if thing and not segment["iscrowd"]:
                things.append(k)
        thing_ids = torch.tensor(things, dtype=torch.int32)
        masks = SegmentMasks(ids, thing_ids)
        instances = Instances((height, width))
        bits = BitMasks(masks.bitmasks())
        instances.gt_boxes = Boxes(bits.get_bounding_boxes().tensor)
        instances.gt_classes = torch.tensor([kinds[segments[k - 1]["category_id"]] for k in things])
        instances.gt_masks = bits if stock else masks
        batch.append({"image": image, "instances": instances, "sem_seg": semantic[ids.long()], "seed": number})
    return batch
