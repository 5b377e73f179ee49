"""What `fastnn gradcheck` goes over beyond the ops: every layer and every loss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from . import layers, losses
from ._gradcases import Case, Cases, Device
from ._typing import Shape
from .gradcheck import check_layer, check_loss, distinct

BATCH = 3
SMOOTH: dict[str, Any] = {}
STRAIGHT: dict[str, Any] = {"linear": True}  # in the input and in each parameter
KINKED: dict[str, Any] = {
    "linear": True,
    "step": 1 / 16,
}  # straight between kinks, of which `distinct` keeps clear


def _layers(device: Device) -> Cases:
    image = (7, 5, 3)
    conv, pool, average = layers.Conv2D, layers.MaxPooling2D, layers.AveragePooling2D
    yield from _layer(device, conv(5, (3, 2)), image, STRAIGHT)
    yield from _layer(device, conv(3, 3, padding="same", strides=(2, 1), use_bias=False), image, STRAIGHT)
    yield from _layer(device, conv(3, 2, dilation_rate=2, activation="tanh"), image, SMOOTH)
    yield from _layer(device, conv(17, 3, activation="relu"), (4, 5, 3), SMOOTH)
    yield from _layer(device, pool(), (6, 4, 17), KINKED)
    yield from _layer(device, pool((3, 2), strides=(2, 1), padding="same"), image, KINKED)
    yield from _layer(device, average(), (6, 4, 17), STRAIGHT)
    yield from _layer(device, average((2, 3), strides=2, padding="same"), image, STRAIGHT)
    yield from _layer(device, layers.GlobalAveragePooling2D(), image, STRAIGHT)
    yield from _layer(device, layers.GlobalAveragePooling2D(keepdims=True), image, STRAIGHT)
    yield from _layer(device, layers.Flatten(), image, STRAIGHT)
    yield from _layer(device, layers.Dense(17), (33,), STRAIGHT)
    yield from _layer(device, layers.Dense(5, use_bias=False), (3, 7), STRAIGHT)
    for activation in ("relu", "sigmoid", "softmax", "tanh", "linear"):
        how = {"relu": KINKED, "linear": STRAIGHT}.get(activation, SMOOTH)
        yield from _layer(device, layers.Dense(3, activation=activation), (5,), SMOOTH)
        yield from _layer(device, layers.Activation(activation), image, how)
    yield from _layer(device, layers.ReLU(), image, KINKED)
    yield from _layer(device, layers.Dropout(0.4), image, STRAIGHT)
    yield from _layer(device, layers.Dropout(0.4), image, STRAIGHT, training=False)
    yield from _layer(device, layers.BatchNormalization(), (3, 2, 5), SMOOTH)
    yield from _layer(device, layers.BatchNormalization(center=False, scale=False), (4, 3), SMOOTH)
    yield from _layer(device, layers.BatchNormalization(), image, STRAIGHT, training=False)
    yield from _layer(device, layers.Rescaling(1 / 255, -0.5), image, STRAIGHT)
    for mode in ("horizontal", "vertical", "horizontal_and_vertical"):
        yield from _layer(device, layers.RandomFlip(mode), image, STRAIGHT)
    for fill in ("reflect", "wrap", "constant", "nearest"):
        yield from _layer(device, layers.RandomTranslation(0.3, 0.4, fill_mode=fill), image, STRAIGHT)
    yield from _layer(device, layers.RandomTranslation(0.3, interpolation="nearest"), image, STRAIGHT)


def _layer(
    device: Device, layer: layers.Layer, shape: Shape, how: dict[str, Any], *, training: bool = True
) -> Cases:
    """In float64; in float32, too, where a large step makes the check sharp enough."""
    kind, rng = type(layer).__name__, np.random.default_rng(14)
    draw = distinct if how is KINKED else (lambda shape, rng: rng.standard_normal(shape))
    layer.device = device.name
    x = device.put(draw((BATCH, *shape), rng))
    config = ", ".join(
        f"{key}={value!r}" for key, value in layer.get_config().items() if _telling(key, value)
    )
    name = f"{kind}({config}) on {(BATCH, *shape)}" + ("" if training else " at inference")
    for dtype in ("float64",) if how is SMOOTH else ("float64", "float32"):
        options = {"dtype": dtype, "training": training, "x": x, "name": name, **how}
        yield Case(kind, partial(check_layer, layer, shape, **options))


def _telling(key: str, value: Any) -> bool:
    return value is not None and key not in ("name", "trainable") and not key.endswith("_initializer")


def _losses(device: Device) -> Cases:
    rng = np.random.default_rng(15)
    weights = (0.5, 0.0, 2.0, 1.0)
    for shape in ((1, 2), (4, 3), (4, 17)):
        logits = rng.standard_normal(shape)
        chances = rng.random(shape) + 0.5  # all far from the clipping at 1e-7
        labels, soft = rng.integers(0, shape[1], (shape[0], 1)), rng.dirichlet(np.ones(shape[1]), shape[0])
        for weight in (None, weights[: shape[0]]):
            for y, from_logits in ((logits, True), (chances, False)):
                sparse = losses.SparseCategoricalCrossentropy(from_logits=from_logits)
                dense = losses.CategoricalCrossentropy(from_logits=from_logits)
                smoothed = losses.CategoricalCrossentropy(from_logits=from_logits, label_smoothing=0.1)
                yield from _loss(device, sparse, labels, y, weight)
                yield from _loss(device, dense, soft, y, weight)
                yield from _loss(device, smoothed, soft, y, weight)
            yield from _loss(device, losses.MeanSquaredError(), soft, logits, weight)
    images = rng.standard_normal((2, 4, 5, 3))
    yield from _loss(device, losses.MeanSquaredError(), rng.standard_normal(images.shape), images, None)


def _loss(device: Device, loss: losses.Loss, y_true: Any, y_pred: Any, weight: Any) -> Cases:
    config = ", ".join(f"{key}={value!r}" for key, value in loss.get_config().items() if key != "name")
    name = f"{type(loss).__name__}({config}) on {y_pred.shape}{'' if weight is None else ', weighted'}"
    options = {"sample_weight": weight, "name": name, "step": 1e-6}  # -log(p) is steep: a shorter step
    yield Case(type(loss).__name__, partial(check_loss, loss, y_true, device.put(y_pred), **options))


LAYERS: tuple[Callable[[Device], Cases], ...] = (_layers, _losses)
