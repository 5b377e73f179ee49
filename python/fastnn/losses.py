"""Losses: of each sample, and the gradient of their mean over the batch. Names and defaults are Keras's.

    loss = losses.SparseCategoricalCrossentropy(from_logits=True)
    loss(y_true, y_pred)                                  # the mean over samples, a float

Training calls the pure pair below it: `forward(y_pred, y_true, sample_weight) -> (losses (N,), saved)` and
`backward(saved) -> dy`, the gradient of sum(losses) / N. A sample weight multiplies its sample's loss; the
sum is divided by N all the same, as in Keras.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from . import _backend, ops
from ._checks import check_number
from ._config import Configurable, deserialize, snake_case
from ._typing import Array, Shape

EPSILON = 1e-7  # probabilities are clipped to [EPSILON, 1 - EPSILON] before the logarithm


class Loss(Configurable):
    """Base of all losses. A subclass gives `targets`, `forward` and `backward`; supports_jit as for layers."""

    supports_jit = True

    def __init__(self, name: str | None = None) -> None:
        self.name = name or snake_case(type(self).__name__)

    def targets(self, y_true: Any, output_shape: Shape) -> Array:
        """y_true of a whole data set, checked against the shape of an output, as forward takes it."""
        raise NotImplementedError

    def forward(self, y_pred: Array, y_true: Array, sample_weight: Array | None = None) -> tuple[Array, Any]:
        """Predictions (N, ...), targets and weights (N,) -> (losses (N,), saved)."""
        raise NotImplementedError

    def backward(self, saved: Any) -> Array:
        """The gradient of sum(losses) / N with respect to y_pred, of its shape and dtype."""
        raise NotImplementedError

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        """The mean of the samples' losses; ValueError where there are none."""
        y_pred = _backend.to_host(y_pred)
        y_pred = y_pred if y_pred.dtype in (np.float32, np.float64) else y_pred.astype(np.float32)
        y_true = self.targets(y_true, y_pred.shape[1:])
        if len(y_true) != len(y_pred) or not len(y_pred):
            raise ValueError(f"{self.name}: {len(y_true)} targets for {len(y_pred)} predictions")
        weights = check_weights(sample_weight, len(y_pred))
        losses, _ = self.forward(y_pred, y_true, weights)
        return float(losses.sum(dtype=np.float64)) / len(losses)


class SparseCategoricalCrossentropy(Loss):
    """-log(probability of the true class), the class being an integer label 0 ... C - 1.

    y_true (N,) or (N, 1) of any integer dtype. y_pred (N, C): logits with from_logits=True, the accurate way,
    else probabilities, which are divided by their sum and clipped to [1e-7, 1 - 1e-7].
    """

    def __init__(self, from_logits: bool = False, name: str | None = None) -> None:
        super().__init__(name)
        self.from_logits = from_logits

    def targets(self, y_true: Any, output_shape: Shape) -> Array:
        return check_labels(y_true, _classes(output_shape, self.name))

    def forward(self, y_pred: Array, y_true: Array, sample_weight: Array | None = None) -> tuple[Array, Any]:
        if not self.from_logits:
            one_hot = y_true[:, None] == np.arange(y_pred.shape[1], like=y_pred)
            return _forward(y_pred, one_hot.astype(y_pred.dtype), sample_weight, False)
        return _forward(y_pred, y_true, sample_weight, True)

    def backward(self, saved: Any) -> Array:
        return _backward(saved, self.from_logits)


class CategoricalCrossentropy(Loss):
    """-sum(y_true * log(probabilities)) for y_true (N, C), one-hot or any probabilities.

    y_pred as for SparseCategoricalCrossentropy. label_smoothing s makes of y_true (1 - s) * y_true + s / C.
    """

    def __init__(
        self, from_logits: bool = False, label_smoothing: float = 0.0, name: str | None = None
    ) -> None:
        super().__init__(name)
        self.from_logits = from_logits
        self.label_smoothing = check_number(label_smoothing, "label_smoothing")
        if not 0 <= self.label_smoothing <= 1:
            raise ValueError(f"label_smoothing must lie in [0, 1], got {label_smoothing}")

    def targets(self, y_true: Any, output_shape: Shape) -> Array:
        _classes(output_shape, self.name)
        return _dense_targets(y_true, output_shape, self.name)

    def forward(self, y_pred: Array, y_true: Array, sample_weight: Array | None = None) -> tuple[Array, Any]:
        target = y_true.astype(y_pred.dtype, copy=False)
        if self.label_smoothing:
            target = target * (1 - self.label_smoothing) + self.label_smoothing / target.shape[1]
        return _forward(y_pred, target, sample_weight, self.from_logits)

    def backward(self, saved: Any) -> Array:
        return _backward(saved, self.from_logits)


class MeanSquaredError(Loss):
    """The mean of (y_true - y_pred)^2 over all but the batch axis; y_true has y_pred's shape (N, ...)."""

    def targets(self, y_true: Any, output_shape: Shape) -> Array:
        return _dense_targets(y_true, output_shape, self.name)

    def forward(self, y_pred: Array, y_true: Array, sample_weight: Array | None = None) -> tuple[Array, Any]:
        target = y_true.astype(y_pred.dtype, copy=False)
        losses = ops.mean_squared_error(y_pred, target)
        return _weighted(losses, sample_weight), (y_pred, target, sample_weight)

    def backward(self, saved: Any) -> Array:
        y_pred, target, sample_weight = saved
        return ops.mean_squared_error_backward(_dloss(y_pred, sample_weight), y_pred, target)


LOSSES: dict[str, type[Loss]] = {
    "SparseCategoricalCrossentropy": SparseCategoricalCrossentropy,
    "CategoricalCrossentropy": CategoricalCrossentropy,
    "MeanSquaredError": MeanSquaredError,
}
_NAMES = {snake_case(name): cls for name, cls in LOSSES.items()} | {
    "mse": MeanSquaredError,
    "MSE": MeanSquaredError,
}


def get(loss: Any, custom_objects: Mapping[str, type[Loss]] | None = None) -> Loss:
    """A loss from its name, its serialized form, or itself."""
    if isinstance(loss, Loss):
        return loss
    if isinstance(loss, Mapping):
        return deserialize(loss, {**LOSSES, **(custom_objects or {})}, "loss")
    known = {**_NAMES, **LOSSES}
    if not isinstance(loss, str):
        raise TypeError(f"loss must be a name or a losses.Loss, got {loss!r}")
    if loss not in known:
        raise ValueError(f"unknown loss {loss!r}; known are {', '.join(_NAMES)}")
    return known[loss]()


# ---------------------------------------------------------------------- cross-entropy, both kinds of targets


def _forward(y_pred: Array, target: Array, weights: Array | None, from_logits: bool) -> tuple[Array, Any]:
    if from_logits:
        losses, y = ops.softmax_cross_entropy(y_pred, target)
        return _weighted(losses, weights), (y, target, weights)
    total = y_pred.sum(axis=1, keepdims=True)
    q = y_pred / total
    clipped = q.clip(EPSILON, 1 - EPSILON)
    losses = -(target * np.log(clipped)).sum(axis=1)
    return _weighted(losses, weights), (q, total, target, weights)


def _backward(saved: Any, from_logits: bool) -> Array:
    if from_logits:
        y, target, weights = saved
        return ops.softmax_cross_entropy_backward(_dloss(y, weights), y, target)
    q, total, target, weights = saved
    inside = (q >= EPSILON) & (q <= 1 - EPSILON)  # where clipped, the loss does not depend on q
    dq = np.where(inside, -target / np.where(inside, q, 1), 0) * _dloss(q, weights)[:, None]
    dy: Array = (dq - (dq * q).sum(axis=1, keepdims=True)) / total  # through q = y_pred / total
    return dy


def _weighted(losses: Array, weights: Array | None) -> Array:
    return losses if weights is None else losses * weights.astype(losses.dtype, copy=False)


def _dloss(y_pred: Array, weights: Array | None) -> Array:
    """The gradient of sum(weights * losses) / N with respect to the unweighted losses."""
    n = len(y_pred)
    if weights is None:
        xp = _backend.of(y_pred, "loss", "y_pred").xp
        dloss: Array = xp.empty((n,), y_pred.dtype)  # and filled: a Tape may keep it
        dloss[...] = 1 / n
        return dloss
    return (weights / n).astype(y_pred.dtype)


# ---------------------------------------------------------------------- checks


def check_labels(labels: Any, classes: int) -> Array:
    """Integer labels (N,) or (N, 1) -> int32 (N,), each in [0, classes)."""
    labels = _asarray(labels)
    if labels.dtype.kind not in "iu":
        raise TypeError(
            f"labels must be integers, got dtype {labels.dtype}; for one-hot rows use CategoricalCrossentropy"
        )
    if labels.ndim != 1 and not (labels.ndim == 2 and labels.shape[1] == 1):
        raise ValueError(f"labels must have shape (N,) or (N, 1), got {labels.shape}")
    if labels.ndim == 2:
        labels = labels.reshape(-1)
    values = labels.tolist()  # a batch's are looked through before a reduction of NumPy's has begun
    if values and (min(values) < 0 or max(values) >= classes):
        wrong = int(np.flatnonzero((labels < 0) | (labels >= classes))[0])
        raise ValueError(f"labels must lie in 0 ... {classes - 1}, but label {wrong} is {labels[wrong]}")
    checked: Array = labels.astype(np.int32, copy=False)
    return checked


def check_weights(weights: Any, n: int) -> Array | None:
    """Sample weights as float64 (n,)."""
    if weights is None:
        return None
    weights = _asarray(weights)
    if weights.dtype.kind not in "fiu":
        raise TypeError(f"sample_weight must be numbers, got dtype {weights.dtype}")
    if weights.shape != (n,):
        raise ValueError(f"sample_weight must have shape ({n},), got {weights.shape}")
    checked: Array = weights.astype(np.float64)
    if not np.isfinite(checked).all() or (checked < 0).any():
        raise ValueError("sample_weight must be finite and not negative")
    return checked


def _classes(output_shape: Shape, name: str) -> int:
    if len(output_shape) != 1:
        raise ValueError(f"{name} takes predictions (N, classes), got samples of shape {output_shape}")
    return output_shape[0]


def _dense_targets(y_true: Any, output_shape: Shape, name: str) -> Array:
    y_true = _asarray(y_true)
    if y_true.dtype.kind not in "fiub":
        raise TypeError(f"{name}: targets must be real numbers, got dtype {y_true.dtype}")
    if y_true.ndim == 1 and output_shape == (1,):
        y_true = y_true[:, None]
    if y_true.shape[1:] != output_shape or not y_true.ndim:
        shape = ", ".join(("N", *map(str, output_shape)))
        raise ValueError(f"{name}: targets must have the predictions' shape ({shape}), got {y_true.shape}")
    targets: Array = y_true
    return targets


def _asarray(values: Any) -> Array:
    array: Array = _backend.to_host(values)
    return array
