"""Pictures to predict."""

import numpy as np


def photo(height: int = 50, width: int = 70, seed: int = 3) -> np.ndarray:
    """Noise."""
    return np.random.RandomState(seed).randint(0, 256, (height, width, 3)).astype(np.uint8)
