#!/usr/bin/env python
"""Predict images, folders, lists, videos, streams or a webcam.

    python tools/predict.py --config-file output/config.yaml --weights output/model_final.pth \
        --input street.jpg images/ list.txt drive.mp4 --output predictions --format labelled,coco

Inputs: images (jpg, png, webp, tif, bmp), folders (searched recursively, their structure is kept), text files with
one path a line, videos, addresses of videos and streams (http, https, rtsp, rtsps), or the number of a webcam; Ctrl-C
ends a webcam or stream, and what came before is kept. Formats, several separated by commas:

    overlay    NAME_overlay.jpg    class colors, blended over the image, with white contours around instances
    labelled   NAME_labelled.jpg   a color per instance, with names and scores (the default)
    coco       panoptic.json and panoptic/NAME.png (COCO panoptic), instances.json (COCO results: the map's instances)
    raw        NAME.pth.tar        both heads' outputs in the original program's layout
    ids        NAME_ids.png (16 bits), NAME_ids.json

For a video, overlay and labelled are an mp4 (H.264) in which an instance keeps its color; the other formats are written
per frame. Videos need PyAV: pip install seamless_d2[video]. An interrupted one goes on after the last 30 s that were
finished. --start 00:01:00 --stop 00:02:30 --stride 5 takes every fifth frame of a minute and a half.

Finished inputs are skipped unless they have changed; --overwrite predicts them again. The output folder records
settings (settings.json) and inputs with what became of them (manifest.jsonl), so that results of other settings are
never mixed in. Files that cannot be read are reported and skipped, and the exit code is 1; --retry-failed tries them
again. --tile 2048x1024 is for images that do not fit into memory.

Many processes, on any number of machines that share a folder, divide the inputs with --shard 1/8 ... --shard 8/8, in
any order; tools/merge_predictions.py then joins the coco files. On a cluster, --ray [ADDRESS] reads folders, lists,
Parquet files and webdataset tar files, here or in an object store (s3://...), and writes --format parquet,
webdataset or coco.
"""

import argparse
import time
from dataclasses import asdict
from pathlib import Path

import torch
from detectron2.config import CfgNode

from seamless_d2.config import load_config
from seamless_d2.errors import UserError, run_tool
from seamless_d2.io import summarize_failures
from seamless_d2.prediction import Predictor
from seamless_d2.prediction.batch.run import predict_files, predict_files_on
from seamless_d2.prediction.engines import is_exported, read_exported_config
from seamless_d2.prediction.formats import Drawing
from seamless_d2.prediction.frames import parse_time
from seamless_d2.prediction.options import DEFAULT_SCALES, PredictionOptions
from seamless_d2.prediction.tiles import DEFAULT_OVERLAP
from seamless_d2.shard import Shard


def size(text: str) -> tuple[int, int]:
    """Parse a size WxH in pixels; return (width, height)."""
    width, x, height = text.lower().partition("x")
    if not (x and width.isdecimal() and height.isdecimal()):
        raise argparse.ArgumentTypeError(f"{text!r} is no size; write width x height, for instance 2048x1024")
    return int(width), int(height)


def seconds(text: str) -> float:
    """Parse a time."""
    try:
        return parse_time(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", help="yaml file, or the name of a shipped config; exported files need none")
    parser.add_argument("--weights", help="checkpoint or exported file; default the config's MODEL.WEIGHTS")
    parser.add_argument("--input", nargs="+", required=True, help="images, folders, .txt lists, videos, URLs, webcams")
    parser.add_argument("--output", required=True, help="folder for the results; with --ray also s3://bucket/folder")
    parser.add_argument("--format", help="overlay, labelled, coco, raw, ids; several with commas (labelled)")
    parser.add_argument("--device", help="cpu, cuda, ...; default the config's, or the CPU where there is no GPU")
    parser.add_argument(
        "--engine",
        choices=("torch", "onnxruntime", "openvino"),
        help="what runs the model; default torch, for an exported file the first one that is installed",
    )
    parser.add_argument("--num-gpus", type=int, default=1, help="one process per GPU shares the inputs")
    parser.add_argument(
        "--batch-size", type=int, default=1, help="images of equal size that the network takes together"
    )
    parser.add_argument("--compile", action="store_true", help="torch.compile: pays for many images of one size")
    parser.add_argument("--amp", action="store_true", help="compute in bfloat16")
    parser.add_argument(
        "--short-side", type=int, help="pixels of the shorter side in the network; default the config's"
    )
    parser.add_argument("--tile", type=size, metavar="WxH", help="cut larger images into tiles of this size")
    parser.add_argument("--overlap", type=int, default=DEFAULT_OVERLAP, help="pixels that tiles share (%(default)s)")
    parser.add_argument(
        "--tta",
        type=float,
        nargs="*",
        metavar="SCALE",
        help=f"average over these scales ({' '.join(map(str, DEFAULT_SCALES))}), each also mirrored",
    )
    parser.add_argument("--score-thresh", type=float, help="least score of an instance, 0..1")
    parser.add_argument("--overlap-thresh", type=float, help="largest hidden share of an instance, 0..1")
    parser.add_argument("--stuff-area-thresh", type=int, help="least pixels of a stuff segment at network resolution")
    parser.add_argument("--alpha", type=float, default=0.5, help="share of the color in drawings, 0..1 (%(default)s)")
    parser.add_argument("--legend", action="store_true", help="list the classes below drawings of images")
    parser.add_argument("--image-format", default="jpg", help="format of drawings of images, jpg or png (%(default)s)")
    parser.add_argument("--image-ids", type=Path, metavar="JSON", help="COCO json whose image ids the coco files use")
    parser.add_argument("--start", type=seconds, default=0.0, metavar="TIME", help="seconds or HH:MM:SS, of each video")
    parser.add_argument("--stop", type=seconds, metavar="TIME", help="seconds or HH:MM:SS; default the end of each")
    parser.add_argument("--stride", type=int, default=1, metavar="N", help="take every N-th frame of each video")
    parser.add_argument("--max-frames", type=int, help="frames of each video, stream or webcam; default all")
    parser.add_argument("--shard", metavar="I/N", help="part of the inputs, 1/8 ... 8/8, or slurm in a SLURM array")
    parser.add_argument(
        "--ray", nargs="?", const="", metavar="ADDRESS", help="predict on a Ray cluster; default one here"
    )
    parser.add_argument("--actors", type=int, default=1, help="with --ray: processes that hold the model")
    parser.add_argument("--gpus-per-actor", type=float, default=0, help="with --ray: GPUs of each process")
    parser.add_argument("--block-size", type=int, default=64, help="with --ray: images per file (%(default)s)")
    parser.add_argument("--retry-failed", action="store_true", help="try inputs again that failed before")
    parser.add_argument("--overwrite", action="store_true", help="do finished inputs again")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="overrides of the config")
    args = parser.parse_args()
    if args.config_file is None:
        if not args.weights or not is_exported(args.weights):
            raise UserError("--config-file is missing; only exported files (--weights model.onnx) need none")
        cfg = read_exported_config(args.weights, args.engine, amp=args.amp)
        cfg.merge_from_list(args.opts)
    else:
        cfg = load_config(args.config_file, args.opts)
    combine = cfg.MODEL.PANOPTIC_FPN.COMBINE
    for key, value in (
        ("INSTANCES_CONFIDENCE_THRESH", args.score_thresh),
        ("OVERLAP_THRESH", args.overlap_thresh),
        ("STUFF_AREA_LIMIT", args.stuff_area_thresh),
    ):
        if value is not None:
            combine[key] = value
    if args.weights:
        cfg.MODEL.WEIGHTS = args.weights
    formats = (args.format or ("labelled" if args.ray is None else "parquet")).split(",")
    options = PredictionOptions(
        batch_size=args.batch_size,
        amp=args.amp,
        compile=args.compile,
        short_side=args.short_side,
        tile=args.tile,
        overlap=args.overlap,
        tta=tuple(args.tta or DEFAULT_SCALES) if args.tta is not None else (),
        raw="raw" in formats,
        engine=args.engine,
        alpha=args.alpha,
        legend=args.legend,
        image_format=args.image_format,
    )
    if args.ray is not None:
        predict_by_ray(args, cfg, options, formats)
        return
    where = {
        "overwrite": args.overwrite,
        "image_ids": args.image_ids,
        "shard": Shard.parse(args.shard) if args.shard else None,
        "retry_failed": args.retry_failed,
        "start": args.start,
        "stop": args.stop,
        "stride": args.stride,
        "max_frames": args.max_frames,
    }
    if args.num_gpus < 1:
        raise UserError(f"--num-gpus must be at least 1, not {args.num_gpus}; the CPU is --device cpu")
    if args.num_gpus > 1:
        if args.device:
            raise UserError("--device and --num-gpus cannot be used together; leave out one of them")
        if torch.cuda.device_count() < args.num_gpus:
            raise UserError(f"--num-gpus is {args.num_gpus}, but PyTorch sees {torch.cuda.device_count()}; lower it")
        devices = [f"cuda:{i}" for i in range(args.num_gpus)]
        summary = predict_files_on(devices, cfg, options, args.input, args.output, formats, **where)
    else:
        predictor = Predictor(cfg, device=args.device, **asdict(options))
        summary = predict_files(predictor, args.input, args.output, formats, **where)
    summary.report(Path(args.output), where["shard"])


def predict_by_ray(args: argparse.Namespace, cfg: CfgNode, options: PredictionOptions, formats: list[str]) -> None:
    """Predict on Ray, and print the outcome."""
    from seamless_d2.prediction.batch.merge_parts import PARTS, merge_parts
    from seamless_d2.prediction.batch.ray_job import RayOptions, predict_on_ray

    unused = {"--shard": args.shard, "--num-gpus": args.num_gpus > 1, "--overwrite": args.overwrite}
    unused |= {"--image-ids": args.image_ids, "--device": args.device, "--max-frames": args.max_frames}
    unused |= {"--start": args.start, "--stop": args.stop, "--stride": args.stride > 1}
    unused |= {"--alpha, --legend or --image-format": options.drawing != Drawing()}
    if wrong := [name for name, value in unused.items() if value]:
        raise UserError(f"{wrong[0]} cannot be used with --ray; leave it out")
    if len(formats) > 1:
        raise UserError("--ray writes one format; give --format parquet, webdataset or coco")
    how = RayOptions(args.ray, args.actors, args.gpus_per_actor, args.block_size)
    to_coco = formats == ["coco"]
    if to_coco and "://" in args.output:
        raise UserError("--ray writes COCO files to folders only; give --format parquet and merge it to a folder")
    parts = f"{args.output}/{PARTS}" if to_coco else args.output
    start = time.monotonic()
    summary = predict_on_ray(
        cfg, options, args.input, parts, "parquet" if to_coco else formats[0], how, args.retry_failed
    )
    rate = summary.predicted / (time.monotonic() - start)
    print(f"{summary.predicted} images in {args.output} ({rate:.1f} images/s), {summary.before} were finished before")
    if to_coco:
        print(f"written: {', '.join(map(str, merge_parts(parts, Path(args.output), partial=True)))}")
    if summary.failures:
        raise UserError(f"{len(summary.failures)} images failed:\n  {summarize_failures(summary.failures)}")


if __name__ == "__main__":
    run_tool(main)
