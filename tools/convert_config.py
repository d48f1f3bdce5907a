#!/usr/bin/env python
"""Convert an ini file of the original seamseg to a yaml file.

    python tools/convert_config.py vistas_r50.ini vistas_r50.yaml --metadata metadata.bin

Settings that have no counterpart are listed with the reason.
"""

import argparse

from seamless_d2.errors import run_tool
from seamless_d2.seamseg.weights import convert_config


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("input", help="the ini file; seamseg's own defaults apply where a key is absent")
    parser.add_argument("output", help="the yaml file to write")
    parser.add_argument("--metadata", help="metadata.bin, for class counts, names and colors")
    args = parser.parse_args()
    for note in convert_config(args.input, args.output, args.metadata):
        print(f"not converted: {note}")
    print(f"wrote {args.output}")


if __name__ == "__main__":
    run_tool(main)
