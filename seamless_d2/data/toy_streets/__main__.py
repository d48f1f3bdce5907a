"""Writes the data set from the command line; see the package's docstring."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from . import __doc__ as manual
from . import write_toy_streets


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=manual, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("root", type=Path, help="the folder to write")
    parser.add_argument("--num-train", type=int, default=400)
    parser.add_argument("--num-val", type=int, default=50)
    parser.add_argument("--height", type=int, default=160)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--workers", type=int, help="processes; one per available CPU by default")
    try:
        print(write_toy_streets(**vars(parser.parse_args(arguments))))
    except (ValueError, FileExistsError) as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
