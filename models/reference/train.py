"""Training, in closed form and the same on every machine.

Both models are ridge regressions onto one-hot labels; the better one sees 384 random rectified features of the
64 pixels (an extreme learning machine, Huang et al. 2006). Pixels and random features are multiples of small powers
of two, so the normal equations are summed without any rounding, in whatever order; their solution differs between
linear algebra libraries in the last bits alone, which rounding to a fixed grid removes.
"""

from dataclasses import dataclass
from typing import Final

import numpy as np

from models.reference.digits import SEED, Split
from models.tensor import Array

CLASSES: Final = 10
WHITE: Final = 16.0  # the largest pixel value
_HIDDEN: Final = 384
_BASELINE_RIDGE: Final = 0.125
_BETTER_RIDGE: Final = 0.25
_SHARPNESS: Final = 8.0  # of the softmax: regression onto 0 and 1 alone would answer 0.2 at best
_GRID: Final = 2.0**-16


@dataclass(frozen=True, slots=True, kw_only=True)
class Linear:
    """A layer ``x @ weights + bias``, FP32: weights ``[inputs, outputs]``, bias ``[outputs]``."""

    weights: Array
    bias: Array

    def __call__(self, x: Array) -> Array:
        """The layer's answer to ``x`` (``[n, inputs]``), in FP64."""
        return x @ self.weights.astype(np.float64) + self.bias.astype(np.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """``baseline`` reads 4 × 4 averages of 2 × 2 pixels; ``better`` reads what ``features`` makes of 64 pixels."""

    baseline: Linear
    features: Linear
    better: Linear


def train(split: Split) -> Weights:
    """Train both models; milliseconds."""
    features = _random_features()
    return Weights(
        baseline=_ridge(_pooled(split.train_images), split.train_labels, _BASELINE_RIDGE),
        features=features,
        better=_ridge(_rectified(features, split.train_images / WHITE), split.train_labels, _BETTER_RIDGE),
    )


def baseline_accuracy(weights: Weights, images: Array, labels: Array) -> float:
    """Share of ``images`` (``[n, 1, 8, 8]``, pixels 0…16) that the baseline names right."""
    return _accuracy(weights.baseline(_pooled(images)), labels)


def better_accuracy(weights: Weights, images: Array, labels: Array, *, white: float = WHITE) -> float:
    """Share of ``images`` that the better model names right; ``white`` 1 leaves the normalisation out."""
    return _accuracy(weights.better(_rectified(weights.features, images / white)), labels)


def pixel_weights(weights: Weights) -> Array:
    """The baseline as one layer on 64 raw pixels, ``[64, 10]``: pooling and normalisation folded into the weights."""
    shaped = weights.baseline.weights.reshape(4, 4, CLASSES) / np.float32(4 * WHITE)
    return np.repeat(np.repeat(shaped, 2, axis=0), 2, axis=1).reshape(64, CLASSES)


def _random_features() -> Linear:
    random = np.random.default_rng(SEED)
    weights = random.integers(-16, 17, (64, _HIDDEN)) / 64
    bias = random.integers(-48, 49, _HIDDEN) / 64
    return Linear(weights=weights.astype(np.float32), bias=bias.astype(np.float32))


def _pooled(images: Array) -> Array:
    blocks = images.astype(np.float64).reshape(-1, 4, 2, 4, 2) / WHITE
    pooled: Array = blocks.mean((2, 4)).reshape(-1, 16)
    return pooled


def _rectified(features: Linear, normalised: Array) -> Array:
    return np.maximum(features(normalised.astype(np.float64).reshape(-1, 64)), 0)


def _ridge(inputs: Array, labels: Array, ridge: float) -> Linear:
    with_bias = np.hstack([inputs, np.ones((len(inputs), 1))])
    gram = with_bias.T @ with_bias + ridge * np.eye(with_bias.shape[1])
    solution = np.linalg.solve(gram, with_bias.T @ np.eye(CLASSES)[labels])
    rounded = (np.round(solution * _SHARPNESS / _GRID) * _GRID).astype(np.float32)
    return Linear(weights=rounded[:-1], bias=rounded[-1])


def _accuracy(scores: Array, labels: Array) -> float:
    return float((scores.argmax(axis=1) == labels).mean())
