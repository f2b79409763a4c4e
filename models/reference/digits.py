"""The data: 1,797 handwritten digits of 8 × 8 pixels, split without leakage.

Source: scikit-learn's ``load_digits``, a part of UCI "Optical Recognition of Handwritten Digits"
(E. Alpaydin, C. Kaynak, 1998), 8 × 8 counts of ink from 0 to 16.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from models.errors import ModelError
from models.tensor import Array

SEED: Final = 11
TRAIN_SIZE: Final = 797


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Images are FP32 ``[n, 1, 8, 8]``, pixels 0…16; labels are INT64 ``[n]``, 0…9."""

    train_images: Array
    train_labels: Array
    test_images: Array
    test_labels: Array


def load_split() -> Split:
    """797 images to train on and the 1,000 others to test with; no image is on both sides, nor twice on one.

    Raises:
        ModelError: scikit-learn, which brings the images, is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ModelError("the digits need scikit-learn; install understudy[cpu]") from error
    images, labels = load_digits(return_X_y=True)
    pixels = images.astype(np.uint8)
    _, first = np.unique(pixels, axis=0, return_index=True)
    order = np.random.default_rng(SEED).permutation(np.sort(first))
    train, test = order[:TRAIN_SIZE], order[TRAIN_SIZE:]
    shaped = pixels.astype(np.float32).reshape(-1, 1, 8, 8)
    numbers = labels.astype(np.int64)
    return Split(
        train_images=shaped[train],
        train_labels=numbers[train],
        test_images=shaped[test],
        test_labels=numbers[test],
    )
