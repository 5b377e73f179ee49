"""MaxPooling2D, AveragePooling2D, GlobalAveragePooling2D."""

from __future__ import annotations

from typing import Any

from .. import ops
from .._checks import check_pair
from .._typing import Array, Pair, Shape
from .base import Drawn, Grads, Layer, check_image, check_padding, window_output


class _Pooling2D(Layer):
    """A window of pool_size that moves by strides (by default its own size): (N, H, W, C) -> (N, Ho, Wo, C)."""

    def __init__(
        self, pool_size: Pair = (2, 2), strides: Pair | None = None, padding: str = "valid", **options: Any
    ) -> None:
        super().__init__(**options)
        self.pool_size = check_pair(pool_size, f"{self.name}: pool_size")
        self.strides = self.pool_size if strides is None else check_pair(strides, f"{self.name}: strides")
        self.padding = check_padding(padding, self.name)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        image = check_image(input_shape, self.name)
        height, width = window_output(self.name, image, self.pool_size, self.strides, self.padding)
        return height, width, image[2]


class MaxPooling2D(_Pooling2D):
    """The maximum of each window; NaN wins, and the first of equals gets the gradient."""

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        y, argmax = ops.max_pool2d(x, self.pool_size, self.strides, self.padding)
        return y, (argmax, x.shape)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        if not need_dx:
            return None, {}
        argmax, x_shape = saved
        return ops.max_pool2d_backward(dy, argmax, x_shape, self.pool_size, self.strides, self.padding), {}


class AveragePooling2D(_Pooling2D):
    """The mean over the real pixels of each window; padding is not counted."""

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        return ops.avg_pool2d(x, self.pool_size, self.strides, self.padding), x.shape

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        if not need_dx:
            return None, {}
        return ops.avg_pool2d_backward(dy, saved, self.pool_size, self.strides, self.padding), {}


class GlobalAveragePooling2D(Layer):
    """The mean over each channel's pixels: (N, H, W, C) -> (N, C), or (N, 1, 1, C) with keepdims."""

    def __init__(self, keepdims: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.keepdims = keepdims

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        channels = check_image(input_shape, self.name)[2]
        return (1, 1, channels) if self.keepdims else (channels,)

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        y = ops.avg_pool2d(x, x.shape[1:3])
        return (y if self.keepdims else y.reshape(len(x), x.shape[3])), x.shape

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        if not need_dx:
            return None, {}
        n, height, width, channels = saved
        return ops.avg_pool2d_backward(dy.reshape(n, 1, 1, channels), saved, (height, width)), {}
