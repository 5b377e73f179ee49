"""Arrays in, arrays out: every kernel as a function that allocates its result and makes one native call.

Arrays are NumPy's, computed on the CPU, or CuPy's, computed on their GPU on CuPy's current stream; those of one call are in
one place. What speaks DLPack or the CUDA Array Interface, such as tensors of PyTorch and JAX, is taken as input too.

Images are (N, H, W, C), filters (KH, KW, C, K), all float arrays of one call share a dtype, float32 or float64. Arrays of
any strides are taken and copied to C order where they are not in it. Results are new arrays, or `out` where one is given;
`out` must have the result's shape and dtype, be C-contiguous, writable and apart from every input. Wrong arguments raise
ValueError or TypeError with the numbers in it before anything is written.

`reference.py` has the same names and signatures in plain NumPy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from . import _arguments as arg
from . import _backend
from ._backend import Backend
from ._typing import Array, Padding, Pair, Shape

MAX_POSITIONS = 255  # of a window whose winner is named by a byte


# ---- GEMM


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: float = 1.0,
    beta: float = 0.0,
    bias: Array | None = None,
    relu: bool = False,
    precision: str = "float32",
    out: Array | None = None,
) -> Array:
    """relu?(alpha * op(a) @ op(b) + beta * c + bias): (M, K), (K, N) -> (M, N).

    op transposes where asked: a is then (K, M), b (N, K). c is (M, N) and never read where beta is 0; bias is (N,) and added
    to every row. K = 0 gives beta * c + bias. precision "float32" computes in the arrays' own dtype; "tf32" and "bfloat16", on
    a GPU of compute capability 8.0 or newer, round float32 a and b to 10 or 7 bits of mantissa and add in float32; "winograd", on
    the CPU, is the same as "float32" here.
    """
    backend = _backend.of(a, "gemm", "a")
    a, b = arg.array("gemm", "a", a), arg.array("gemm", "b", b)
    if c is None and beta != 0:
        raise ValueError(f"gemm: beta is {beta} but there is no c to multiply")
    c = None if c is None else arg.array("gemm", "c", c)
    bias = None if bias is None else arg.array("gemm", "bias", bias)
    shape = backend.native.GemmShape(a.shape, b.shape, bool(transpose_a), bool(transpose_b), str(precision))
    y = arg.result("gemm", backend, out, shape.y, a.dtype)
    workspace = backend.xp.empty(backend.native.gemm_workspace(shape, a.itemsize), a.dtype)
    backend.native.gemm(
        shape, a, b, c, bias, float(alpha), float(beta), bool(relu), y, workspace, backend.stream
    )
    return y


def gemm_backward(
    dy: Array,
    a: Array,
    b: Array,
    *,
    transpose_a: bool = False,
    transpose_b: bool = False,
    alpha: float = 1.0,
    precision: str = "float32",
) -> tuple[Array, Array]:
    """Gradients (da, db) of y = alpha * op(a) @ op(b) for an upstream dy (M, N), in the shapes of a and b.

    Of gemm's other terms: the gradient of c is beta * dy, that of bias is bias_backward(dy), and for relu give
    relu_backward(dy, y) as dy.
    """
    if transpose_a:
        da = gemm(b, dy, transpose_a=transpose_b, transpose_b=True, alpha=alpha, precision=precision)
    else:
        da = gemm(dy, b, transpose_b=not transpose_b, alpha=alpha, precision=precision)
    if transpose_b:
        db = gemm(dy, a, transpose_a=True, transpose_b=transpose_a, alpha=alpha, precision=precision)
    else:
        db = gemm(a, dy, transpose_a=not transpose_a, alpha=alpha, precision=precision)
    return da, db


def bias_backward(dy: Array) -> Array:
    """Gradient of a bias that was added to every row or pixel: the sum of dy (..., C) over all axes but the last -> (C,)."""
    op = "bias_backward"
    backend = _backend.of(dy, op, "dy")
    dy = arg.array(op, "dy", dy)
    db, workspace = backend.xp.empty(dy.shape[-1:], dy.dtype), _channel_workspace(op, backend, "dy", dy)
    backend.native.bias_backward(dy, db, workspace, backend.stream)
    return db  # type: ignore[no-any-return]


def _channel_workspace(op: str, backend: Backend, name: str, array: Array) -> Array:
    if array.ndim == 0 or array.shape[-1] == 0:
        raise ValueError(f"{op}: {name} has no channels: shape {array.shape}")
    cols = array.shape[-1]
    size = backend.native.channel_workspace(array.size // cols, cols, array.itemsize)
    return backend.xp.empty(size, array.dtype)  # type: ignore[no-any-return]


# ---- Convolution


def _conv2d_shape(
    op: str,
    backend: Backend,
    x_shape: Shape,
    w_shape: Shape,
    stride: Pair,
    dilation: Pair,
    padding: Padding,
    precision: str,
) -> Any:
    strides, dilations = arg.pair(op, "stride", stride), arg.pair(op, "dilation", dilation)
    sides = arg.padding(op, padding)
    return backend.native.Conv2dShape(x_shape, w_shape, strides, dilations, sides, str(precision))


def conv2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    relu: bool = False,
    precision: str = "float32",
    out: Array | None = None,
) -> Array:
    """relu?(cross-correlation of x (N, H, W, C) with w (KH, KW, C, K) + b (K,)) -> (N, Ho, Wo, K).

    Ho = (H + top + bottom - ((KH - 1) * dilation + 1)) // stride + 1. padding: "valid" (none), "same" (Ho = ceil(H / stride),
    an odd pixel goes to the bottom or right, as in Keras), a number of pixels, (height, width), or ((top, bottom), (left,
    right)). Padded positions take no part in the sum: an infinite weight over one makes no NaN. Raises ValueError where the
    dilated kernel exceeds the padded input.

    precision: as for gemm, but "winograd" computes 3x3 windows with stride and dilation 1 by Winograd's F(2x2, 3x3)
    (https://arxiv.org/abs/1509.09308), with 2.25 times fewer products, where that pays: from 16 channels and filters and some 256
    pixels of the whole batch on. The error of a finite result is at most (C + 12) * eps times what the same formula gives with
    the absolute values of all its numbers: smaller than that of "float32" on normally distributed data, while a number much
    larger than those around it costs the outputs next to it digits. Bits may depend on the size of the batch.
    """
    backend = _backend.of(x, "conv2d", "x")
    x, w = arg.array("conv2d", "x", x), arg.array("conv2d", "w", w)
    b = None if b is None else arg.array("conv2d", "b", b)
    shape = _conv2d_shape("conv2d", backend, x.shape, w.shape, stride, dilation, padding, precision)
    y = arg.result("conv2d", backend, out, shape.y, x.dtype)
    workspace = backend.xp.empty(backend.native.conv2d_forward_workspace(shape, x.itemsize), x.dtype)
    backend.native.conv2d_forward(shape, x, w, b, bool(relu), y, workspace, backend.stream)
    return y


def conv2d_backward_x(
    dy: Array,
    w: Array,
    x_shape: Sequence[int],
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
    out: Array | None = None,
) -> Array:
    """Gradient of conv2d's x: dy (N, Ho, Wo, K), w (KH, KW, C, K) -> dx of x_shape (N, H, W, C).

    Pixels that no window reads get 0.
    """
    op = "conv2d_backward_x"
    backend = _backend.of(dy, op, "dy")
    dy, w = arg.array(op, "dy", dy), arg.array(op, "w", w)
    x_shape = arg.shape(op, "x_shape", x_shape)
    shape = _conv2d_shape(op, backend, x_shape, w.shape, stride, dilation, padding, precision)
    _check_dy(op, dy, shape.y)
    dx = arg.result(op, backend, out, x_shape, dy.dtype)
    workspace = backend.xp.empty(backend.native.conv2d_backward_x_workspace(shape, dy.itemsize), dy.dtype)
    backend.native.conv2d_backward_x(shape, dy, w, dx, workspace, backend.stream)
    return dx


def conv2d_backward_w(
    dy: Array,
    x: Array,
    w_shape: Sequence[int],
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
    out: Array | None = None,
) -> Array:
    """Gradient of conv2d's w: dy (N, Ho, Wo, K), x (N, H, W, C) -> dw of w_shape (KH, KW, C, K).

    That of b is bias_backward(dy). precision "winograd" transposes conv2d's algorithm where conv2d would use it; the bound of its
    error is (T + 12) * eps times the formula with absolute values, T = N * ceil(Ho / 2) * ceil(Wo / 2) tiles, and the error is
    about that of "float32" on normally distributed data.
    """
    op = "conv2d_backward_w"
    backend = _backend.of(dy, op, "dy")
    dy, x = arg.array(op, "dy", dy), arg.array(op, "x", x)
    w_shape = arg.shape(op, "w_shape", w_shape)
    shape = _conv2d_shape(op, backend, x.shape, w_shape, stride, dilation, padding, precision)
    _check_dy(op, dy, shape.y)
    dw = arg.result(op, backend, out, w_shape, dy.dtype)
    workspace = backend.xp.empty(backend.native.conv2d_backward_w_workspace(shape, dy.itemsize), dy.dtype)
    backend.native.conv2d_backward_w(shape, dy, x, dw, workspace, backend.stream)
    return dw


def _check_dy(op: str, dy: Array, shape: Shape) -> None:
    """Before a result is allocated: a shape argument of a backward may ask for any amount of memory."""
    if dy.shape != shape:
        raise ValueError(f"{op}: dy must have shape {shape}, got {dy.shape}")


# ---- Pooling


def _windows(op: str, window: Pair, name: str, stride: Pair | None, padding: Padding) -> tuple[Any, ...]:
    """Window, stride (called `name`, by default the window) and padding as the native code takes them."""
    windows = arg.pair(op, "window", window)
    return windows, windows if stride is None else arg.pair(op, name, stride), arg.padding(op, padding)


def _pool2d_shape(
    op: str, backend: Backend, x_shape: Shape, window: Pair, stride: Pair | None, padding: Padding
) -> Any:
    return backend.native.Pool2dShape(x_shape, *_windows(op, window, "stride", stride, padding))


def max_pool2d(
    x: Array, window: Pair, stride: Pair | None = None, padding: Padding = "valid"
) -> tuple[Array, Array]:
    """Maximum of each window: (N, H, W, C) -> (N, Ho, Wo, C).

    Ho = (H - KH) // stride + 1 without padding; stride defaults to the window. Returns (y, argmax); keep argmax (int32, the
    position kh * KW + kw in the window) for max_pool2d_backward. The first maximum wins a tie, NaN wins over numbers, padding
    never wins. Raises ValueError where a window exceeds the padded input or padding exceeds half a window.
    """
    backend = _backend.of(x, "max_pool2d", "x")
    x = arg.array("max_pool2d", "x", x)
    shape = _pool2d_shape("max_pool2d", backend, x.shape, window, stride, padding)
    y, argmax = backend.xp.empty(shape.y, x.dtype), backend.xp.empty(shape.y, np.int32)
    backend.native.max_pool2d_forward(shape, x, y, argmax, backend.stream)
    return y, argmax


def max_pool2d_backward(
    dy: Array,
    argmax: Array,
    x_shape: Sequence[int],
    window: Pair,
    stride: Pair | None = None,
    padding: Padding = "valid",
) -> Array:
    """Gradient of max_pool2d's x: every dy (N, Ho, Wo, C) goes to the pixel that argmax names -> dx of x_shape (N, H, W, C).

    Where windows overlap, a pixel's gradients add up in the windows' row-major order.
    """
    op = "max_pool2d_backward"
    backend = _backend.of(dy, op, "dy")
    dy = arg.array(op, "dy", dy)
    argmax = arg.positions(op, argmax, np.int32)
    x_shape = arg.shape(op, "x_shape", x_shape)
    shape = _pool2d_shape(op, backend, x_shape, window, stride, padding)
    _check_dy(op, dy, shape.y)
    dx = backend.xp.empty(x_shape, dy.dtype)
    backend.native.max_pool2d_backward(shape, dy, argmax, dx, backend.stream)
    return dx  # type: ignore[no-any-return]


def avg_pool2d(x: Array, window: Pair, stride: Pair | None = None, padding: Padding = "valid") -> Array:
    """Mean of each window: (N, H, W, C) -> (N, Ho, Wo, C). Divides by the number of real pixels in the window, as Keras does."""
    backend = _backend.of(x, "avg_pool2d", "x")
    x = arg.array("avg_pool2d", "x", x)
    shape = _pool2d_shape("avg_pool2d", backend, x.shape, window, stride, padding)
    y = backend.xp.empty(shape.y, x.dtype)
    backend.native.avg_pool2d_forward(shape, x, y, backend.stream)
    return y  # type: ignore[no-any-return]


def avg_pool2d_backward(
    dy: Array,
    x_shape: Sequence[int],
    window: Pair,
    stride: Pair | None = None,
    padding: Padding = "valid",
) -> Array:
    """Gradient of avg_pool2d's x: every dy (N, Ho, Wo, C) in equal parts to its window's pixels -> dx of x_shape (N, H, W, C)."""
    op = "avg_pool2d_backward"
    backend = _backend.of(dy, op, "dy")
    dy = arg.array(op, "dy", dy)
    x_shape = arg.shape(op, "x_shape", x_shape)
    shape = _pool2d_shape(op, backend, x_shape, window, stride, padding)
    _check_dy(op, dy, shape.y)
    dx = backend.xp.empty(x_shape, dy.dtype)
    backend.native.avg_pool2d_backward(shape, dy, dx, backend.stream)
    return dx  # type: ignore[no-any-return]


# ---- Convolution, ReLU and max pooling as one


def _conv_pool_shape(
    op: str,
    backend: Backend,
    x_shape: Shape,
    w_shape: Shape,
    window: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    options: dict[str, Any],
) -> Any:
    conv = _conv2d_shape(op, backend, x_shape, w_shape, **options)
    return backend.native.ConvPoolShape(conv, *_windows(op, window, "pool_stride", pool_stride, pool_padding))


def conv2d_max_pool2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    relu: bool = False,
    precision: str = "float32",
) -> tuple[Array, Array]:
    """max_pool2d(conv2d(x, w, b, relu=relu), window) without the map in between: (N, H, W, C) -> (N, Ho, Wo, K).

    Arguments are those of conv2d and max_pool2d, y has the bits of the two (with precision "winograd" where both use it, within
    its bound elsewhere). Returns (y, argmax); keep argmax for the two
    backward functions: uint8, the winner's position KH * KW + kw in its window, 255 where ReLU lets no gradient through.
    Raises ValueError as the two do, and where a window has more than 255 positions.
    """
    op = "conv2d_max_pool2d"
    backend = _backend.of(x, op, "x")
    x, w = arg.array(op, "x", x), arg.array(op, "w", w)
    b = None if b is None else arg.array(op, "b", b)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "precision": precision}
    shape = _conv_pool_shape(op, backend, x.shape, w.shape, window, pool_stride, pool_padding, options)
    y, argmax = (
        arg.result(op, backend, None, shape.y, x.dtype),
        arg.result(op, backend, None, shape.y, np.uint8),
    )
    workspace = backend.xp.empty(
        backend.native.conv2d_max_pool2d_forward_workspace(shape, x.itemsize), x.dtype
    )
    backend.native.conv2d_max_pool2d_forward(shape, x, w, b, bool(relu), y, argmax, workspace, backend.stream)
    return y, argmax


def conv2d_max_pool2d_backward_x(
    dy: Array,
    argmax: Array,
    w: Array,
    x_shape: Sequence[int],
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
    out: Array | None = None,
) -> Array:
    """Gradient of conv2d_max_pool2d's x: dy, argmax (N, Ho, Wo, K), w (KH, KW, C, K) -> dx of x_shape (N, H, W, C).

    The sum runs over winners, in another order than that of the separate ops. What did not win may take part as a zero:
    whether 0 * inf makes a NaN is not defined.
    """
    op = "conv2d_max_pool2d_backward_x"
    backend = _backend.of(dy, op, "dy")
    dy, w = arg.array(op, "dy", dy), arg.array(op, "w", w)
    x_shape = arg.shape(op, "x_shape", x_shape)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "precision": precision}
    shape = _conv_pool_shape(op, backend, x_shape, w.shape, window, pool_stride, pool_padding, options)
    _check_dy(op, dy, shape.y)
    argmax = arg.positions(op, argmax, np.uint8)
    dx = arg.result(op, backend, out, x_shape, dy.dtype)
    workspace = backend.xp.empty(
        backend.native.conv2d_max_pool2d_backward_x_workspace(shape, dy.itemsize), dy.dtype
    )
    backend.native.conv2d_max_pool2d_backward_x(shape, dy, argmax, w, dx, workspace, backend.stream)
    return dx


def conv2d_max_pool2d_backward_w(
    dy: Array,
    argmax: Array,
    x: Array,
    w_shape: Sequence[int],
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
) -> tuple[Array, Array]:
    """Gradients of conv2d_max_pool2d's w and b: dy, argmax (N, Ho, Wo, K), x (N, H, W, C) -> (dw of w_shape, db (K,)).

    As conv2d_max_pool2d_backward_x says of its sum.
    """
    op = "conv2d_max_pool2d_backward_w"
    backend = _backend.of(dy, op, "dy")
    dy, x = arg.array(op, "dy", dy), arg.array(op, "x", x)
    w_shape = arg.shape(op, "w_shape", w_shape)
    options = {"stride": stride, "dilation": dilation, "padding": padding, "precision": precision}
    shape = _conv_pool_shape(op, backend, x.shape, w_shape, window, pool_stride, pool_padding, options)
    _check_dy(op, dy, shape.y)
    argmax = arg.positions(op, argmax, np.uint8)
    dw, db = arg.result(op, backend, None, w_shape, dy.dtype), backend.xp.empty(w_shape[-1:], dy.dtype)
    workspace = backend.xp.empty(
        backend.native.conv2d_max_pool2d_backward_w_workspace(shape, dy.itemsize), dy.dtype
    )
    backend.native.conv2d_max_pool2d_backward_w(shape, dy, argmax, x, dw, db, workspace, backend.stream)
    return dw, db


# ---- Activations


def _activation(op: str, x: Array, out: Array | None = None) -> Array:
    backend = _backend.of(x, op, "x")
    x = arg.array(op, "x", x)
    y = arg.result(op, backend, out, x.shape, x.dtype)
    getattr(backend.native, op + "_forward")(x, y, backend.stream)
    return y


def _activation_backward(op: str, dy: Array, y: Array) -> Array:
    name = op + "_backward"
    backend = _backend.of(y, name, "y")
    dy, y = arg.array(name, "dy", dy), arg.array(name, "y", y)
    dx = backend.xp.empty(y.shape, y.dtype)
    getattr(backend.native, name)(dy, y, dx, backend.stream)
    return dx  # type: ignore[no-any-return]


def relu(x: Array, out: Array | None = None) -> Array:
    """max(x, 0), any shape; relu(NaN) is NaN."""
    return _activation("relu", x, out)


def relu_backward(dy: Array, y: Array) -> Array:
    """dy where y = relu(x) is above 0, else 0: the gradient at 0 is 0."""
    return _activation_backward("relu", dy, y)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), any shape; computed so that exp never overflows."""
    return _activation("sigmoid", x)


def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dy * y * (1 - y), with y = sigmoid(x)."""
    return _activation_backward("sigmoid", dy, y)


def tanh(x: Array) -> Array:
    """Hyperbolic tangent, any shape."""
    return _activation("tanh", x)


def tanh_backward(dy: Array, y: Array) -> Array:
    """dy * (1 - y**2), with y = tanh(x)."""
    return _activation_backward("tanh", dy, y)


def softmax(x: Array) -> Array:
    """exp(x) / sum(exp(x)) over the last axis (..., C), after taking off the maximum."""
    return _activation("softmax", x)


def softmax_backward(dy: Array, y: Array) -> Array:
    """y * (dy - sum(dy * y)) over the last axis, with y = softmax(x)."""
    return _activation_backward("softmax", dy, y)


# ---- Dropout (Srivastava et al. 2014)


def _dropout(op: str, name: str, x: Array, keep: Array, rate: float) -> Array:
    if not 0 <= rate < 1:
        raise ValueError(f"{op}: rate must lie in [0, 1), got {rate!r}")
    backend = _backend.of(x, op, name)
    x = arg.array(op, name, x)
    keep = arg.mask(op, "keep", keep)
    y = backend.xp.empty(x.shape, x.dtype)
    getattr(backend.native, op)(x, keep, 1 / (1 - rate), y, backend.stream)
    return y  # type: ignore[no-any-return]


def dropout(x: Array, keep: Array, rate: float) -> Array:
    """x / (1 - rate) where keep is true, else 0, of NaN and infinities, too; any shape.

    keep: bool or uint8 in x's shape, drawn by the caller, true with probability 1 - rate.
    """
    return _dropout("dropout", "x", x, keep, rate)


def dropout_backward(dy: Array, keep: Array, rate: float) -> Array:
    """The gradient of x: dy / (1 - rate) where keep is true, else 0."""
    return _dropout("dropout_backward", "dy", dy, keep, rate)


# ---- Samples as floats


def rescale(
    x: Array,
    scale: float = 1.0,
    offset: float = 0.0,
    *,
    rows: Array | None = None,
    dtype: str | None = None,
) -> Array:
    """x * scale + offset, or of the rows alone that are named: (N, ...) -> (N, ...) or (B, ...), in one pass.

    So stored images become a batch: x is uint8, float32 or float64, and rounded to dtype first, "float32" or "float64", by
    default x's own where it is one of them, else float32. rows: integers (B,) in [0, N), N below 2^31; others raise ValueError.
    The gradient of x, without rows, is rescale(dy, scale).
    """
    op = "rescale"
    backend = _backend.of(x, op, "x")
    x = arg.array(op, "x", x, arg.NUMBERS)
    to = (x.dtype if x.dtype in arg.FLOATS else np.dtype(np.float32)) if dtype is None else np.dtype(dtype)
    if to not in arg.FLOATS:
        raise TypeError(f"{op}: dtype must be 'float32' or 'float64', got {dtype!r}")
    shape = x.shape
    if rows is not None:
        rows = _backend.adopt(rows)
        if not hasattr(rows, "dtype") or not arg.is_integer(rows):
            raise TypeError(f"{op}: rows must be an array of integers, got {arg.describe(rows)}")
        if rows.ndim != 1 or not shape:
            raise ValueError(f"{op}: rows must have shape (B,), x (N, ...), got {rows.shape} and {shape}")
        rows = arg.indices(op, "rows", backend, rows, len(x))
        shape = (len(rows), *shape[1:])
    y = backend.xp.empty(shape, to)
    backend.native.rescale(x, rows, float(scale), float(offset), y, backend.stream)
    return y  # type: ignore[no-any-return]


def resample(
    x: Array, axis: int, index: Array, weights: Array | None = None, offset: Array | None = None
) -> Array:
    """Each sample of x (N, ...) read at its own positions along an axis, 1 or a later one: a flip, a shift, a change of size.

    y[n, .., i, ..] = sum over t of weights[t, n, i] * x[n, .., index[t, n, i], ..] + offset[n, i]

    index: integers (T, N, L) in [0, x.shape[axis]), others raise ValueError; y has L in the place of x.shape[axis]. weights:
    (T, N, L) of x's dtype, by default 1 each. offset: (N, L) of x's dtype, by default nothing.
    """
    op = "resample"
    backend = _backend.of(x, op, "x")
    x = arg.array(op, "x", x)
    axis, index, weights = _positions(op, backend, axis, index, weights, x.shape)
    offset = None if offset is None else arg.array(op, "offset", offset)
    y = arg.result(op, backend, None, (*x.shape[:axis], index.shape[2], *x.shape[axis + 1 :]), x.dtype)
    backend.native.resample(x, axis, len(index), index, weights, offset, y, backend.stream)
    return y


def resample_backward(
    dy: Array, axis: int, index: Array, x_shape: Shape, weights: Array | None = None
) -> Array:
    """The gradient of x: dy (N, .., L, ..) -> dx of x_shape, to each position of x what was read there."""
    op = "resample_backward"
    backend = _backend.of(dy, op, "dy")
    dy, x_shape = arg.array(op, "dy", dy), arg.shape(op, "x_shape", x_shape)
    axis, index, weights = _positions(op, backend, axis, index, weights, x_shape)
    dx = arg.result(op, backend, None, x_shape, dy.dtype)
    backend.native.resample_backward(dy, axis, len(index), index, weights, dx, backend.stream)
    return dx


def _positions(
    op: str, backend: Backend, axis: int, index: Array, weights: Array | None, x_shape: Shape
) -> tuple[int, Array, Array | None]:
    axis, index = arg.bounded(op, "axis", axis), _backend.adopt(index)
    if not 1 <= axis < len(x_shape):
        raise ValueError(f"{op}: axis must be 1 or a later one of x {x_shape}, got {axis}")
    if not hasattr(index, "dtype") or not arg.is_integer(index):
        raise TypeError(f"{op}: index must be an array of integers, got {arg.describe(index)}")
    if index.ndim != 3 or not len(index) or index.shape[1] != x_shape[0]:
        raise ValueError(
            f"{op}: index must have shape (T, N, L), T at least 1, for x {x_shape}, got {index.shape}"
        )
    index = arg.indices(op, "index", backend, index, x_shape[axis])
    return axis, index, None if weights is None else arg.array(op, "weights", weights)


# ---- Losses


def _target(op: str, backend: Backend, target: Array, logits: Array) -> tuple[str, Array]:
    """Which of the two kernels a target is for, and the target as that kernel wants it."""
    if logits.ndim != 2:
        raise ValueError(f"{op}: logits must have shape (N, classes), got {logits.shape}")
    target = _backend.adopt(target)
    if hasattr(target, "dtype") and arg.is_integer(target):
        if target.shape != logits.shape[:1]:
            raise ValueError(f"{op}: labels must have shape {logits.shape[:1]}, got {target.shape}")
        return "sparse_cross_entropy", arg.indices(op, "labels", backend, target, logits.shape[1])
    if not hasattr(target, "dtype") or target.dtype not in arg.FLOATS:
        raise TypeError(
            f"{op}: target must be integer labels (N,) or probabilities (N, classes), got {arg.describe(target)}"
        )
    return "cross_entropy", arg.array(op, "target", target)


def softmax_cross_entropy(x: Array, target: Array) -> tuple[Array, Array]:
    """Cross-entropy of logits x (N, C), a loss for each row -> (loss (N,), softmax(x) (N, C)).

    target: integer labels (N,), loss = -log softmax(x)[label]; or probabilities t (N, C) of x's dtype, loss = -sum(t * log
    softmax(x)), with 0 * log 0 = 0. Taken through log-sum-exp: finite wherever the mathematics is, -inf logits included. An
    empty batch has an empty loss. Labels outside [0, C) raise ValueError before anything is written.
    """
    op = "softmax_cross_entropy"
    backend = _backend.of(x, op, "x")
    x = arg.array(op, "x", x)
    kernel, target = _target(op, backend, target, x)
    loss, y = backend.xp.empty(x.shape[:1], x.dtype), backend.xp.empty(x.shape, x.dtype)
    getattr(backend.native, kernel + "_forward")(x, target, loss, y, backend.stream)
    return loss, y


def softmax_cross_entropy_backward(dloss: Array, y: Array, target: Array) -> Array:
    """Gradient of the logits: (y * sum(t) - t) * dloss[:, None], with y = softmax(x) and t the target, one-hot for labels."""
    op = "softmax_cross_entropy_backward"
    backend = _backend.of(y, op, "y")
    dloss, y = arg.array(op, "dloss", dloss), arg.array(op, "y", y)
    kernel, target = _target(op, backend, target, y)
    dx = backend.xp.empty(y.shape, y.dtype)
    getattr(backend.native, kernel + "_backward")(dloss, y, target, dx, backend.stream)
    return dx  # type: ignore[no-any-return]


def mean_squared_error(x: Array, target: Array) -> Array:
    """mean((x - target)**2) over all axes but the first: (N, ...) -> (N,)."""
    op = "mean_squared_error"
    backend = _backend.of(x, op, "x")
    x, target = arg.array(op, "x", x), arg.array(op, "target", target)
    loss = backend.xp.empty(x.shape[:1], x.dtype)
    backend.native.mean_squared_error_forward(x, target, loss, backend.stream)
    return loss  # type: ignore[no-any-return]


def mean_squared_error_backward(dloss: Array, x: Array, target: Array) -> Array:
    """Gradient of x: 2 * (x - target) / D * dloss, D values a row."""
    op = "mean_squared_error_backward"
    backend = _backend.of(x, op, "x")
    dloss, x, target = arg.array(op, "dloss", dloss), arg.array(op, "x", x), arg.array(op, "target", target)
    dx = backend.xp.empty(x.shape, x.dtype)
    backend.native.mean_squared_error_backward(dloss, x, target, dx, backend.stream)
    return dx  # type: ignore[no-any-return]


# ---- Batch normalisation (Ioffe and Szegedy 2015)


def batch_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-3) -> tuple[Array, Array, Array]:
    """gamma * (x - mean) / sqrt(var + epsilon) + beta over the last axis -> (y, mean, var).

    mean and var (C,) are the batch's, over all axes of x (..., C) but the last; var is biased (divided by the count).
    """
    op = "batch_norm"
    backend = _backend.of(x, op, "x")
    x, gamma, beta = arg.array(op, "x", x), arg.array(op, "gamma", gamma), arg.array(op, "beta", beta)
    workspace = _channel_workspace(op, backend, "x", x)
    y, mean, var = (backend.xp.empty(shape, x.dtype) for shape in (x.shape, x.shape[-1:], x.shape[-1:]))
    backend.native.batch_norm_forward(
        x, gamma, beta, _epsilon(op, epsilon), y, mean, var, workspace, backend.stream
    )
    return y, mean, var


def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, var: Array, *, epsilon: float = 1e-3
) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of batch_norm, through its mean and variance too; dy and x (..., C), the others (C,)."""
    op = "batch_norm_backward"
    backend = _backend.of(x, op, "x")
    dy, x, gamma = arg.array(op, "dy", dy), arg.array(op, "x", x), arg.array(op, "gamma", gamma)
    mean, var = arg.array(op, "mean", mean), arg.array(op, "var", var)
    workspace = _channel_workspace(op, backend, "x", x)
    dx, dgamma, dbeta = (backend.xp.empty(shape, x.dtype) for shape in (x.shape, x.shape[-1:], x.shape[-1:]))
    backend.native.batch_norm_backward(
        dy, x, gamma, mean, var, _epsilon(op, epsilon), dx, dgamma, dbeta, workspace, backend.stream
    )
    return dx, dgamma, dbeta


def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float = 1e-3
) -> Array:
    """gamma * (x - mean) / sqrt(var + epsilon) + beta with a given mean and var (C,): x (..., C) -> y of the same shape."""
    op = "batch_norm_inference"
    backend = _backend.of(x, op, "x")
    x, gamma, beta = arg.array(op, "x", x), arg.array(op, "gamma", gamma), arg.array(op, "beta", beta)
    mean, var = arg.array(op, "mean", mean), arg.array(op, "var", var)
    y = backend.xp.empty(x.shape, x.dtype)
    backend.native.batch_norm_inference(x, gamma, beta, mean, var, _epsilon(op, epsilon), y, backend.stream)
    return y  # type: ignore[no-any-return]


def _epsilon(op: str, epsilon: float) -> float:
    if not epsilon > 0:
        raise ValueError(f"{op}: epsilon must be above 0, got {epsilon}")
    return float(epsilon)


# ---- Optimizer steps, in place


class Rates(NamedTuple):
    """What of an optimizer's step changes from one step to the next: w becomes keep * w - rate * (the step's direction).

    As an array (3,) of float64, (rate, keep, loss), it is the `rates` of sgd_step and adam_step, which a captured graph reads
    anew at each launch. Where the loss is NaN or infinite, the step changes nothing.
    """

    rate: float
    keep: float

    @classmethod
    def sgd(cls, learning_rate: float, weight_decay: float = 0.0) -> Rates:
        return cls(float(learning_rate), 1 - float(learning_rate) * weight_decay)

    @classmethod
    def adam(
        cls, step: int, learning_rate: float, beta_1: float, beta_2: float, weight_decay: float = 0.0
    ) -> Rates:
        """For step number `step`, from 1: the rate has the correction of both moments' bias."""
        correction = math.sqrt(1 - float(beta_2) ** step) / (1 - float(beta_1) ** step)
        return cls(float(learning_rate) * correction, 1 - float(learning_rate) * weight_decay)


def _rates(op: str, rates: Array | None, own: Rates | None, like: Array) -> Array:
    if rates is None:
        if own is None:
            raise TypeError(f"{op}: give learning_rate, or rates")
        return np.array([*own, 0.0], like=like)
    return _backend.adopt(rates)  # type: ignore[no-any-return]


def _slots(op: str, name: str, arrays: Sequence[Array]) -> list[Array]:
    """Arrays that are written in place must be C-contiguous and aligned as they are; a copy would swallow the step."""
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{op}: {name} must be a list of arrays, got {type(arrays).__name__}")
    for array in arrays:
        if arg.array(op, name, array) is not array:
            raise ValueError(
                f"{op}: an array of {name} is not C-contiguous and aligned: shape {array.shape}, strides {array.strides}"
            )
    return list(arrays)


def _gradients(op: str, arrays: Sequence[Array]) -> list[Array]:
    if not isinstance(arrays, (list, tuple)):
        raise TypeError(f"{op}: dws must be a list of arrays, got {type(arrays).__name__}")
    return [arg.array(op, "dws", array) for array in arrays]


def sgd_step(
    ws: Sequence[Array],
    dws: Sequence[Array],
    velocities: Sequence[Array] | None = None,
    *,
    learning_rate: float | None = None,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
    rates: Array | None = None,
) -> None:
    """One step of Keras's SGD over lists of parameters ws and gradients dws, in place.

    w -= lr * weight_decay * w; v = momentum * v - lr * dw; w += v, or with Nesterov w += momentum * v - lr * dw. velocities
    may be None where momentum is 0. rates: in place of learning_rate and weight_decay an array that lies where the others
    do, (*Rates.sgd(learning_rate, weight_decay), loss). On the CPU subnormal numbers count as 0 here.
    """
    op = "sgd_step"
    weights, gradients = _slots(op, "ws", ws), _gradients(op, dws)
    if velocities is None and momentum != 0:
        raise ValueError(f"{op}: momentum {momentum} needs velocities")
    slots = None if velocities is None else _slots(op, "velocities", velocities)
    if not weights:
        return
    backend = _backend.of(weights[0], op, "ws")
    own = None if learning_rate is None else Rates.sgd(learning_rate, weight_decay)
    rates = _rates(op, rates, own, weights[0])
    backend.native.sgd_step(weights, gradients, slots, rates, float(momentum), bool(nesterov), backend.stream)


def adam_step(
    ws: Sequence[Array],
    dws: Sequence[Array],
    ms: Sequence[Array],
    vs: Sequence[Array],
    *,
    step: int = 1,
    learning_rate: float | None = None,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.0,
    rates: Array | None = None,
) -> None:
    """One step of Adam (Kingma and Ba 2015) as Keras has it, over lists of parameters, gradients and moments, in place.

    step t counts from 1. w -= lr * weight_decay * w; m += (dw - m) * (1 - beta_1); v += (dw**2 - v) * (1 - beta_2);
    w -= lr * sqrt(1 - beta_2**t) / (1 - beta_1**t) * m / (sqrt(v) + epsilon). rates: in place of step, learning_rate and
    weight_decay an array that lies where the others do, (*Rates.adam(step, learning_rate, ...), loss). On the CPU subnormal
    numbers count as 0 here.
    """
    op = "adam_step"
    weights, gradients = _slots(op, "ws", ws), _gradients(op, dws)
    first, second = _slots(op, "ms", ms), _slots(op, "vs", vs)
    count = arg.bounded(op, "step", step, arg.SIZE_LIMIT)
    if count < 1:
        raise ValueError(f"{op}: step counts from 1, got {count}")
    for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
        if not 0 <= beta < 1:
            raise ValueError(f"{op}: {name} must be in [0, 1), got {beta}")
    if not weights:
        return
    backend = _backend.of(weights[0], op, "ws")
    own = None if learning_rate is None else Rates.adam(count, learning_rate, beta_1, beta_2, weight_decay)
    rates = _rates(op, rates, own, weights[0])
    backend.native.adam_step(
        weights, gradients, first, second, rates, float(beta_1), float(beta_2), float(epsilon), backend.stream
    )
