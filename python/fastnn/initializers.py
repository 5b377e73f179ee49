"""Initial values of weights, by Keras's names.

The *_uniform and *_normal initializers scale by the fans: for a kernel of shape (..., in, out),
fan_in = receptive field * in and fan_out = receptive field * out, the receptive field being the product of
the leading dimensions (Glorot & Bengio 2010, He et al. 2015).
"""

from __future__ import annotations

import math

import numpy as np

from ._typing import Array, Shape

# name -> (numerator of the variance, which fan divides it)
_SCALES = {
    "glorot": (1.0, "average"),
    "he": (2.0, "in"),
    "lecun": (1.0, "in"),
}
NAMES = ("zeros", "ones", *(f"{scale}_{law}" for scale in _SCALES for law in ("uniform", "normal")))

# The standard deviation of a standard normal cut off at +-2: sqrt(1 - 2 * 2 * phi(2) / (Phi(2) - Phi(-2))).
_TRUNCATED_STD = 0.87962566103423978


def check(name: str, layer: str) -> str:
    """`name` itself, where it is known; `layer` is named in the error."""
    if name not in NAMES:
        raise ValueError(f"{layer}: unknown initializer {name!r}; known are {', '.join(NAMES)}")
    return name


def create(name: str, shape: Shape, dtype: str, rng: np.random.Generator) -> Array:
    """A new array of the named initializer's values, drawn in float64 and rounded once to dtype."""
    if name == "zeros":
        return np.zeros(shape, dtype)
    if name == "ones":
        return np.ones(shape, dtype)
    scale, law = name.split("_")
    numerator, fan = _SCALES[scale]
    field = math.prod(shape[:-2])
    fan_in, fan_out = field * shape[-2], field * shape[-1]
    variance = numerator / max(1.0, fan_in if fan == "in" else (fan_in + fan_out) / 2)
    if law == "uniform":
        limit = math.sqrt(3.0 * variance)
        return rng.uniform(-limit, limit, shape).astype(dtype)
    values = rng.standard_normal(shape)
    while (far := np.abs(values) > 2.0).any():  # Keras's normal is cut off at two standard deviations
        values[far] = rng.standard_normal(np.count_nonzero(far))
    return (values * (math.sqrt(variance) / _TRUNCATED_STD)).astype(dtype)
