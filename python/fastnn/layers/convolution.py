"""Conv2D."""

from __future__ import annotations

from typing import Any

from .. import initializers, ops
from .._checks import check_count, check_pair
from .._typing import Array, Pair, Shape
from . import activations
from .base import Drawn, Grads, Layer, check_image, check_padding, window_output


class Conv2D(Layer):
    """y = activation(cross-correlation of x with kernel + bias): (N, H, W, C) -> (N, Ho, Wo, filters).

    params: kernel (kh, kw, C, filters), bias (filters,). padding: "valid", Ho = (H - kh) // stride + 1, or
    "same", Ho = ceil(H / stride), zeros around the image, the odd one at the bottom and right.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: Pair,
        strides: Pair = (1, 1),
        padding: str = "valid",
        *,
        dilation_rate: Pair = (1, 1),
        activation: str | None = None,
        use_bias: bool = True,
        kernel_initializer: str = "glorot_uniform",
        bias_initializer: str = "zeros",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.filters = check_count(filters, f"{self.name}: filters")
        self.kernel_size = check_pair(kernel_size, f"{self.name}: kernel_size")
        self.strides = check_pair(strides, f"{self.name}: strides")
        self.padding = check_padding(padding, self.name)
        self.dilation_rate = check_pair(dilation_rate, f"{self.name}: dilation_rate")
        self.activation = activations.check(activation, self.name)
        self.use_bias = use_bias
        self.kernel_initializer = initializers.check(kernel_initializer, self.name)
        self.bias_initializer = initializers.check(bias_initializer, self.name)

    @property
    def options(self) -> dict[str, Any]:
        """What the ops take besides arrays."""
        return {
            "stride": self.strides,
            "dilation": self.dilation_rate,
            "padding": self.padding,
            "precision": self.precision,
        }

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        height, width = window_output(
            self.name,
            check_image(input_shape, self.name),
            self.kernel_size,
            self.strides,
            self.padding,
            self.dilation_rate,
        )
        return height, width, self.filters

    def param_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        shape = (*self.kernel_size, input_shape[-1], self.filters)
        specs: dict[str, tuple[Shape, str]] = {"kernel": (shape, self.kernel_initializer)}
        if self.use_bias:
            specs["bias"] = ((self.filters,), self.bias_initializer)
        return specs

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        relu = self.activation == "relu"
        y = ops.conv2d(x, self.params["kernel"], self.params.get("bias"), relu=relu, **self.options)
        if not relu:
            y = activations.apply(self.activation, y)
        return y, (x, y)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        x, y = saved
        w = self.params["kernel"]
        dy = activations.apply_backward(self.activation, dy, y)
        grads: Grads = {}
        if self.trainable:
            grads["kernel"] = ops.conv2d_backward_w(dy, x, w.shape, **self.options)
            if self.use_bias:
                grads["bias"] = ops.bias_backward(dy)
        dx = ops.conv2d_backward_x(dy, w, x.shape, **self.options) if need_dx else None
        return dx, grads
