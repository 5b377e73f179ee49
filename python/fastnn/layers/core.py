"""Dense, Flatten, Activation, ReLU, Dropout, Rescaling."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from .. import _random, initializers, ops
from .._checks import check_count, check_number
from .._typing import Array, Shape
from . import activations
from .base import Drawn, Grads, Layer, check_drawn


class Dense(Layer):
    """y = activation(x @ kernel + bias) over the last axis: (N, ..., in) -> (N, ..., units).

    params: kernel (in, units), bias (units,).
    """

    def __init__(
        self,
        units: int,
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: str = "glorot_uniform",
        bias_initializer: str = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.units = check_count(units, f"{self.name}: units")
        self.activation = activations.check(activation, self.name)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.check(kernel_initializer, self.name)
        self.bias_initializer = initializers.check(bias_initializer, self.name)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if not input_shape:
            raise ValueError(f"{self.name} takes samples of at least one dimension, got scalars")
        return (*input_shape[:-1], self.units)

    def param_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        specs: dict[str, tuple[Shape, str]] = {
            "kernel": ((input_shape[-1], self.units), self.kernel_initializer)
        }
        if self.use_bias:
            specs["bias"] = ((self.units,), self.bias_initializer)
        return specs

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        rows = x.reshape(-1, x.shape[-1])
        relu = self.activation == "relu"
        bias, precision = self.params.get("bias"), self.precision
        y = ops.gemm(rows, self.params["kernel"], bias=bias, relu=relu, precision=precision)
        if not relu:
            y = activations.apply(self.activation, y)
        return y.reshape(*x.shape[:-1], self.units), (x, y)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        x, y = saved
        dy = activations.apply_backward(self.activation, dy.reshape(y.shape), y)
        grads: Grads = {}
        if self.trainable:
            rows = x.reshape(-1, x.shape[-1])
            grads["kernel"] = ops.gemm(rows, dy, transpose_a=True, precision=self.precision)
            if self.use_bias:
                grads["bias"] = ops.bias_backward(dy)
        if not need_dx:
            return None, grads
        dx = ops.gemm(dy, self.params["kernel"], transpose_b=True, precision=self.precision)
        return dx.reshape(x.shape), grads


class Flatten(Layer):
    """(N, ...) -> (N, product of the rest), row-major."""

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return (math.prod(input_shape),)

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        return x.reshape(len(x), math.prod(x.shape[1:])), x.shape

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return dy.reshape(saved), {}


class Activation(Layer):
    """An activation on its own: "relu", "sigmoid", "softmax" (over the last axis), "tanh" or "linear"."""

    def __init__(self, activation: str | None, **options: Any) -> None:
        super().__init__(**options)
        self.activation = activations.check(activation, self.name)

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        y = activations.apply(self.activation, x)
        return y, y

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return activations.apply_backward(self.activation, dy, saved), {}


class ReLU(Layer):
    """max(x, 0); NaN stays NaN."""

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        y = ops.relu(x)
        return y, y

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return ops.relu_backward(dy, saved), {}


class Dropout(Layer):
    """In training each element becomes 0 with probability `rate`, to 2**-17, or else x / (1 - rate)."""

    random = True

    def __init__(self, rate: float, **options: Any) -> None:
        super().__init__(**options)
        self.rate = check_number(rate, f"{self.name}: rate")
        if not 0 <= self.rate < 1:
            raise ValueError(f"{self.name}: rate must lie in [0, 1), got {rate}")

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        return [_random.chances(rng, shape, 1 - self.rate)] if self.rate else ()

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        if not training or self.rate == 0:
            return x, None
        (keep,) = check_drawn(drawn, self.name)
        return ops.dropout(x, keep, self.rate), keep

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return dy if saved is None else ops.dropout_backward(dy, saved, self.rate), {}


class Rescaling(Layer):
    """y = x * scale + offset, for instance Rescaling(1 / 255) on uint8 images."""

    def __init__(self, scale: float, offset: float = 0.0, **options: Any) -> None:
        super().__init__(**options)
        self.scale = check_number(scale, f"{self.name}: scale")
        self.offset = check_number(offset, f"{self.name}: offset")

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        return ops.rescale(x, self.scale, self.offset), None

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return ops.rescale(dy, self.scale), {}
