"""Reads plots back as pixels."""

from pathlib import Path

import matplotlib.image
import numpy as np


def size_and_ink(png: Path) -> tuple[int, int, int]:
    """Returns the width, height and the number of coloured (neither white nor grey) pixels."""
    pixels = matplotlib.image.imread(png)[..., :3]
    return pixels.shape[1], pixels.shape[0], int((np.ptp(pixels, axis=2) > 0.1).sum())
