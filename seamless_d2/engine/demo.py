"""What ``make demo`` does: train, evaluate and predict on the embedded data set."""

import time
from pathlib import Path

from detectron2.engine import default_argument_parser

from ..data.images import read_photo
from ..data.register import datasets_root
from ..data.toy_streets import write_toy_streets
from ..errors import UserError
from ..prediction import Predictor
from ..prediction.files import predict_files
from ..prediction.formats import save_picture
from ..visualization import contact_sheet
from .run import run

CONFIG = "toy_streets/seamless_R_18_FPN.yaml"
NUM_PICTURES = 12


def run_demo(output: Path, opts: list[str]) -> None:
    """Draw toy streets, train on them, evaluate on unseen scenes, write overlays and a contact sheet.

    Args:
        output: folder for everything that is written.
        opts: KEY VALUE overrides of the config.
    """
    start = time.perf_counter()
    try:
        data = write_toy_streets(datasets_root() / "toy_streets")
    except FileExistsError as error:  # of another version or size
        raise UserError(str(error)) from None
    args = default_argument_parser().parse_args(["--config-file", CONFIG, "--resume", "OUTPUT_DIR", str(output), *opts])
    results = run(args)
    predictor = Predictor(output / "config.yaml", output / "model_final.pth")
    photos = sorted((data / "val").iterdir())[:NUM_PICTURES]
    pictures = predict_files(predictor, photos, output / "pictures", overwrite=True).written
    sheet = output / "pictures" / "contact_sheet.jpg"
    save_picture(contact_sheet([read_photo(p) for p in pictures], columns=3), sheet)
    quality = results.get("panoptic_seg", {})
    print()
    print("  ".join(f"{key} {quality[key]:.1f}" for key in ("PQ", "SQ", "RQ", "PQ_th", "PQ_st") if key in quality))
    print(f"{time.perf_counter() - start:.0f} s; pictures: {output / 'pictures'} (all in {sheet.name})")
