"""Samples, targets and weights, checked against a model; batches of them as the model computes with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _arguments as arg
from . import _backend, ops
from ._checks import check_number
from ._typing import Array
from .losses import check_labels, check_weights

if TYPE_CHECKING:
    from .models import Sequential


class Data(NamedTuple):
    """Samples, their targets and their weights, checked against a model."""

    x: Array  # of any real dtype
    y: Array
    weights: Array | None
    classes: int
    dtype: str  # the model's

    @classmethod
    def of(cls, model: Sequential, x: Any, y: Any, sample_weight: Any = None) -> Data:
        x = check_inputs(model, x)
        if y is None:
            raise ValueError("targets are missing: give y")
        sample = model._sample_output_shape()
        y = model.loss.targets(y, sample)
        if len(x) != len(y):
            raise ValueError(f"x and y must have the same length, got {len(x)} samples and {len(y)} targets")
        weights = check_weights(sample_weight, len(x))
        there = model.xp.asarray  # for the whole run, on a GPU as on the CPU
        weights = None if weights is None else there(weights)
        return cls(there(x), there(y), weights, sample[-1], model.dtype)

    @property
    def row_type(self) -> type:
        """Of numbers of rows; kernels read int32."""
        return np.int32 if len(self.x) < arg.INDEX_LIMIT else np.int64

    def batch(self, rows: Array) -> tuple[Array, Array, Array | None]:
        """Of these rows: samples in the model's dtype, targets, weights."""
        return floats(self.x, self.dtype, rows), *self.targets(rows)

    def targets(self, rows: slice | Array) -> tuple[Array, Array | None]:
        """Of these rows: targets, weights."""
        return self.y[rows], None if self.weights is None else self.weights[rows]

    def split(self, fraction: float) -> tuple[Data, Data]:
        """(the first part, the last `fraction` of the samples), as views."""
        if not 0 <= check_number(fraction, "validation_split") < 1:
            raise ValueError(f"validation_split must lie in [0, 1), got {fraction}")
        n = len(self.x)
        at = math.floor(n * (1 - fraction))
        if not 0 < at < n:
            raise ValueError(f"validation_split={fraction} of {n} samples leaves {at} and {n - at} of them")
        first, second = (
            Data(self.x[rows], *self.targets(rows), self.classes, self.dtype)
            for rows in (slice(at), slice(at, None))
        )
        return first, second

    def weighted(self, class_weight: Mapping[int, float] | None) -> Data:
        """With each sample's weight multiplied by that of its class; classes that are not named have 1."""
        if not class_weight:
            return self
        table = np.ones(self.classes)
        for label, weight in zip(
            check_labels(list(class_weight), self.classes), class_weight.values(), strict=True
        ):
            table[label] = check_number(weight, f"class_weight of class {label}")
        y = _backend.to_host(self.y)
        factors = table[y if y.ndim == 1 else y.argmax(axis=-1)]
        weights = factors if self.weights is None else factors * _backend.to_host(self.weights)
        return self._replace(weights=np.asarray(check_weights(weights, len(self.x)), like=self.x))


def check_inputs(model: Sequential, samples: Any) -> Array:
    """Samples (N, ...) of real numbers that fit the model, which is built for them if it has no shape yet."""
    x: Array = samples if isinstance(samples, model.xp.ndarray) else _backend.to_host(samples)
    if x.dtype.kind not in "fiub":
        raise TypeError(f"x must hold real numbers, got dtype {x.dtype}")
    shape = x.shape
    if not shape or not shape[0]:
        raise ValueError(f"x must hold at least one sample, got shape {shape}")
    if not model.built:
        model.build((None, *shape[1:]))
    if shape[1:] != (sample := model._input_shape or ()):
        raise ValueError(f"the model takes x of shape ({', '.join(('N', *map(str, sample)))}), got {shape}")
    return x


def readable(x: Array, rows: Array | None = None) -> bool:
    """Whether a kernel reads samples, or rows of them, as they lie."""
    return arg.is_number(x) and arg.is_in_order(x) and (rows is None or rows.dtype == np.int32)


def floats(x: Array, dtype: str, rows: Array | None = None) -> Array:
    """x, or rows of it, in dtype: in one pass of a kernel's where one reads it as it lies."""
    if rows is None and x.dtype == dtype:
        return x
    if readable(x, rows):
        return ops.rescale(x, rows=rows, dtype=dtype)
    return np.asarray(x if rows is None else x[rows], dtype, like=x)
