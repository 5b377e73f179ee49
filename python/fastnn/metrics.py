"""Metrics: means over samples, accumulated in float64; and scikit-learn's report of precision, recall and F1.

metric = metrics.SparseTopKCategoricalAccuracy(k=3)
metric.update_state(y_true, y_pred)
metric.result()
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _backend
from ._checks import check_count
from ._config import Configurable, deserialize, snake_case
from ._typing import Array
from .losses import Loss, SparseCategoricalCrossentropy, check_labels, check_weights


class Metric(Configurable):
    """Base of all metrics: the mean over samples of `values`, which a subclass gives; supports_jit as for layers."""

    supports_jit = True

    def __init__(self, name: str | None = None) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.reset_state()

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One number for each sample: targets and predictions (N, ...) -> (N,)."""
        raise NotImplementedError

    def reset_state(self) -> None:
        self._total = self._weight = 0.0

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        values = self.values(_backend.to_host(y_true), _backend.to_host(y_pred)).astype(np.float64)
        weights = check_weights(sample_weight, len(values))
        self._total += float(values.sum() if weights is None else (values * weights).sum())
        self._weight += float(len(values) if weights is None else weights.sum())

    def result(self) -> float:
        """The mean so far, 0 where nothing was seen."""
        return self._total / self._weight if self._weight else 0.0

    def __call__(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> float:
        self.update_state(y_true, y_pred, sample_weight)
        return self.result()


class SparseCategoricalAccuracy(Metric):
    """Share of samples whose largest prediction, the first of equals, is at their label."""

    def values(self, y_true: Array, y_pred: Array) -> Array:
        hits: Array = _scores(y_pred, self.name).argmax(axis=1) == y_true.reshape(-1)
        return hits


class CategoricalAccuracy(Metric):
    """Share of samples whose largest prediction is where the largest entry of their target is."""

    def values(self, y_true: Array, y_pred: Array) -> Array:
        hits: Array = _scores(y_pred, self.name).argmax(axis=1) == y_true.argmax(axis=1)
        return hits


class SparseTopKCategoricalAccuracy(Metric):
    """Share of samples with fewer than k predictions above that of their label."""

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(name or "sparse_top_k_categorical_accuracy")
        self.k = check_count(k, f"{self.name}: k")

    def values(self, y_true: Array, y_pred: Array) -> Array:
        scores = _scores(y_pred, self.name)
        true = np.take_along_axis(scores, y_true.reshape(-1, 1), axis=1)
        # A row with NaN has no order, so it is no hit.
        hits: Array = ((scores > true).sum(axis=1) < self.k) & ~np.isnan(scores).any(axis=1)
        return hits


class TopKCategoricalAccuracy(SparseTopKCategoricalAccuracy):
    """The same for targets (N, C), whose largest entry is the label."""

    def __init__(self, k: int = 5, name: str | None = None) -> None:
        super().__init__(k, name or "top_k_categorical_accuracy")

    def values(self, y_true: Array, y_pred: Array) -> Array:
        return super().values(y_true.argmax(axis=1), y_pred)


class MeanMetric(Metric):
    """A function of (y_true, y_pred) that gives one number for each sample."""

    def __init__(self, function: Callable[[Array, Array], Array], name: str | None = None) -> None:
        super().__init__(name or function.__name__)
        self.function = function

    def values(self, y_true: Array, y_pred: Array) -> Array:
        values = self.function(y_true, y_pred)
        values = values if hasattr(values, "shape") else np.asarray(values)
        if values.shape != (len(y_pred),):
            raise ValueError(f"metric {self.name}: expected {len(y_pred)} values, got shape {values.shape}")
        return values


METRICS: dict[str, type[Metric]] = {
    cls.__name__: cls
    for cls in (
        SparseCategoricalAccuracy,
        CategoricalAccuracy,
        SparseTopKCategoricalAccuracy,
        TopKCategoricalAccuracy,
    )
}
_NAMES: dict[str, type[Metric]] = {cls().name: cls for cls in METRICS.values()}


def get(metric: Any, loss: Loss, custom_objects: Mapping[str, type[Metric]] | None = None) -> Metric:
    """A metric from its name, a function, its serialized form, or itself.

    "accuracy" is that of the loss's kind of targets: labels or rows of probabilities.
    """
    if isinstance(metric, Metric):
        return metric
    if isinstance(metric, Mapping):
        return deserialize(metric, {**METRICS, **(custom_objects or {})}, "metric")
    if callable(metric):
        return MeanMetric(metric)
    if not isinstance(metric, str):
        raise TypeError(f"a metric must be a name, a metrics.Metric or a function, got {metric!r}")
    if metric in ("accuracy", "acc"):
        sparse = isinstance(loss, SparseCategoricalCrossentropy)
        return (SparseCategoricalAccuracy if sparse else CategoricalAccuracy)(name=metric)
    known = {**_NAMES, **METRICS}
    if metric not in known:
        raise ValueError(f"unknown metric {metric!r}; known are accuracy, {', '.join(_NAMES)}")
    return known[metric]()


def classification_report(
    y_true: Any, y_pred: Any, class_names: Sequence[str] | None = None, output_dict: bool = False
) -> Any:
    """Precision, recall and F1 of each class, and their means, by scikit-learn: text, or a dict.

    y_true: labels (N,) or (N, 1). y_pred: labels likewise, or scores (N, C). A class that is never predicted
    has precision 0.
    """
    try:
        from sklearn.metrics import classification_report as report
    except ImportError as error:
        raise ImportError('this report needs scikit-learn: pip install "fastnn-kernels[train]"') from error
    true, predicted, classes = _label_pair(y_true, y_pred, class_names)
    names = [str(i) for i in range(classes)] if class_names is None else list(class_names)
    return report(
        true,
        predicted,
        labels=range(classes),
        target_names=names,
        digits=4,
        output_dict=output_dict,
        zero_division=0,
    )


def confusion_matrix(y_true: Any, y_pred: Any, class_names: Sequence[str] | None = None) -> Array:
    """Counts (C, C): entry [i, j] is how many samples of class i were taken for class j."""
    true, predicted, classes = _label_pair(y_true, y_pred, class_names)
    return np.bincount(true * classes + predicted, minlength=classes * classes).reshape(classes, classes)


def _label_pair(y_true: Any, y_pred: Any, class_names: Sequence[str] | None) -> tuple[Array, Array, int]:
    y_true, y_pred = _backend.to_host(y_true), _backend.to_host(y_pred)
    if y_pred.ndim == 2 and y_pred.shape[1] > 1:
        classes = y_pred.shape[1]
        y_pred = y_pred.argmax(axis=1)
    elif class_names is not None:
        classes = len(class_names)
    else:
        classes = int(max(y_true.max(initial=0), y_pred.max(initial=0))) + 1
    if class_names is not None and len(class_names) != classes:
        raise ValueError(f"{len(class_names)} class names for {classes} classes")
    true, predicted = check_labels(y_true, classes), check_labels(y_pred, classes)
    if len(true) != len(predicted) or not len(true):
        raise ValueError(f"{len(true)} labels for {len(predicted)} predictions")
    return true, predicted, classes


def _scores(y_pred: Array, name: str) -> Array:
    if y_pred.ndim != 2 or y_pred.shape[1] < 2:
        raise ValueError(f"{name} takes predictions (N, classes) of two classes or more, got {y_pred.shape}")
    return y_pred
