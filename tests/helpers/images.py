"""Images to predict."""

import numpy as np


def make_image(height: int = 50, width: int = 70, seed: int = 3) -> np.ndarray:
    """Noise."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
