"""Real handwritten digits that come with scikit-learn, in the shape of CIFAR-10: data for the first run.

1,797 images of 8x8 pixels by 13 people, from the UCI repository (Alpaydin and Kaynak 1998).
"""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

from .._typing import Array
from ._files import require

Split: TypeAlias = tuple[Array, Array]  # images (N, 32, 32, 3) and labels (N, 1), both uint8

CLASS_NAMES = ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")


def load_data() -> tuple[Split, Split]:
    """(x_train, y_train), (x_test, y_test): 1,437 and 360 images uint8 (N, 32, 32, 3), labels uint8 (N, 1).

    Ink is bright, paper black; the three channels are equal. The split is fixed and needs no random numbers:
    every fifth image of each class is for testing, so classes and writers have equal shares in both parts.
    Raises ImportError where scikit-learn is missing.
    """
    digits = require("sklearn.datasets", "scikit-learn").load_digits()
    x = np.repeat(enlarge(digits.images.astype(np.int64))[..., None], 3, axis=-1)
    y = digits.target.astype(np.uint8)[:, None]
    test = np.zeros(len(y), bool)
    test[np.argsort(y[:, 0], kind="stable")[::5]] = True
    return (x[~test], y[~test]), (x[test], y[test])


def enlarge(images: Array) -> Array:
    """Images (N, 8, 8) of integers 0 to 16 as uint8 (N, 32, 32), 0 to 255: four times larger, bilinearly.

    Pixel i of 32 lies at (i + 0.5) / 4 - 0.5 = (2 i - 3) / 8 between the centres of the 8, so all weights are
    eighths and the result is exact but for one rounding to nearest.
    """
    eighths = np.zeros((32, 8), np.int64)
    for i in range(32):
        low, part = divmod(2 * i - 3, 8)  # the position in eighths
        eighths[i, max(low, 0)] += 8 - part
        eighths[i, min(low + 1, 7)] += part
    enlarged: Array = eighths @ images @ eighths.T  # in units of 1/64
    return ((enlarged * 255 + 512) // 1024).astype(np.uint8)
