#!/usr/bin/env python
"""Convert weights of other programs to this package, and back.

    # a model of the original seamseg (snapshot or released zip) -> OUTPUT.pth and OUTPUT.yaml
    python tools/convert_weights.py seamseg model_best.pth.tar vistas.pth --metadata metadata.bin
    # ImageNet weights of torchvision (by name, or a file) -> initial weights of the backbone
    python tools/convert_weights.py torchvision resnet50 weights/resnet50.pth
    # a model of this package -> a snapshot that the original loads
    python tools/convert_weights.py seamseg-export model_final.pth snapshot.pth.tar --config model.ini

Files are written only if the whole conversion succeeds.
"""

import argparse

from seamless_d2.checkpoint import torchvision_resnet
from seamless_d2.errors import run_tool
from seamless_d2.seamseg import weights as seamseg


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("seamseg", "torchvision", "seamseg-export"))
    parser.add_argument("input", help="file to convert, or a torchvision name such as resnet50")
    parser.add_argument("output", help="file to write")
    parser.add_argument("--config", help="seamseg: ini that replaces the one inside; seamseg-export: ini to store")
    parser.add_argument("--metadata", help="seamseg: metadata.bin, for class names and colors")
    parser.add_argument("--yaml", help="seamseg-export: the config; default the yaml beside the input")
    parser.add_argument("--depth", type=int, help="torchvision: the depth that the file must have")
    args = parser.parse_args()
    if args.kind == "seamseg":
        for note in seamseg.convert(args.input, args.output, args.config, args.metadata):
            print(f"not converted: {note}")
    elif args.kind == "torchvision":
        depth = torchvision_resnet.convert_torchvision(args.input, args.output, args.depth)
        print(f"ResNet-{depth}: set MODEL.RESNETS.DEPTH {depth}")
    else:
        seamseg.export(args.input, args.output, args.yaml, args.config)
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
