#!/usr/bin/env python
"""A page on this computer: drop an image, see its segments, download the COCO files.

    pip install -e ".[page]"
    python tools/demo_server.py --config-file output/config.yaml --weights output/model_final.pth

Open http://127.0.0.1:7860. Nothing leaves the computer: the page asks no other host for anything, and only this
computer can reach it unless --host says otherwise.
"""

import argparse

from seamless_d2.demo_page import serve
from seamless_d2.errors import run_tool
from seamless_d2.prediction import Predictor


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config-file", help="yaml file, or the name of a shipped config; exported files need none")
    parser.add_argument("--weights", help="checkpoint or exported file; default the config's MODEL.WEIGHTS")
    parser.add_argument("--device", help="cpu, cuda, ...; default the config's, or the CPU where there is no GPU")
    parser.add_argument("--engine", choices=("torch", "onnxruntime", "openvino"), help="what runs the model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 lets other computers in (%(default)s)")
    parser.add_argument("--port", type=int, default=7860, help="%(default)s")
    parser.add_argument("--max-megabytes", type=int, default=20, help="largest upload (%(default)s)")
    args = parser.parse_args()
    predictor = Predictor(args.config_file, args.weights, args.device, engine=args.engine)
    serve(predictor, args.host, args.port, args.max_megabytes)


if __name__ == "__main__":
    run_tool(main)
