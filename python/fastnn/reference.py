"""Every op of `fastnn.ops` in plain NumPy float64, under the same names: the truth the kernels are held to.

Inputs of any real dtype are computed in float64 and float64 comes back (an argmax is int32, or uint8 where a
convolution is pooled). Images are NHWC, filters HWIO. Nothing is fast here and nothing is clever: convolution
and pooling walk the taps of the window, and each tap touches just those outputs whose source pixel lies
inside the image, so that padding takes no part in any sum or maximum. In the formulas, `dL/dy` of a loss L is
written dy, and so on.

There is no `out=` and no `rates=`; `sgd_step` and `adam_step` update the arrays they are given. NaN and infinities run
through silently, as in the kernels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._typing import Array, Padding, Pair, Shape

# ---------------------------------------------------------------- geometry of convolution and pooling windows


class Axis(NamedTuple):
    """How a window of `taps` pixels walks along one image axis of `size` pixels."""

    size: int
    taps: int
    stride: int
    dilation: int
    before: int  # padding ahead of the first pixel
    after: int  # and behind the last
    out: int  # positions the window takes: the output's size

    def overlap(self, tap: int) -> tuple[slice, slice]:
        """Where tap `tap` falls inside the image: (outputs, their source pixels), slices of equal length.

        Output o reads pixel o * stride + offset, and that must be in [0, size).
        """
        offset = tap * self.dilation - self.before
        first = max(0, -(offset // self.stride))  # ceil(-offset / stride)
        last = min(self.out, (self.size - 1 - offset) // self.stride + 1)
        count = max(last - first, 0)
        start = first * self.stride + offset
        return slice(first, first + count), slice(start, start + count * self.stride, self.stride)


def pair(value: Pair | Shape) -> tuple[int, int]:
    """One number for both of (height, width), or one each."""
    both = (value, value) if isinstance(value, (int, np.integer)) else value
    return int(both[0]), int(both[1])


def axes(
    image: Shape, window: Pair | Shape, stride: Pair, dilation: Pair, padding: Padding
) -> tuple[Axis, Axis]:
    """The vertical and the horizontal Axis of a window over an image of (height, width) pixels.

    padding: "valid" (none), "same", an int, (vertical, horizontal), or ((top, bottom), (left, right)).
    out = (size + before + after - ((taps - 1) * dilation + 1)) // stride + 1, whatever the padding;
    "same" chooses the padding so that out = ceil(size / stride), the odd pixel at the bottom and right,
    as TensorFlow and Keras do (https://www.tensorflow.org/api_docs/python/tf/nn#notes_on_padding_2).
    """
    found = []
    for i in (0, 1):
        size, taps, step, spread = image[i], pair(window)[i], pair(stride)[i], pair(dilation)[i]
        if taps < 1 or step < 1 or spread < 1:
            raise ValueError(f"window {taps}, stride {step} and dilation {spread} must all be at least 1")
        reach = (taps - 1) * spread + 1  # pixels from the window's first tap to its last
        if padding == "same":
            total = max((-(-size // step) - 1) * step + reach - size, 0)
            before, after = total // 2, total - total // 2
        elif padding == "valid":
            before, after = 0, 0
        elif isinstance(padding, str):
            raise ValueError(f'padding must be "valid", "same" or numbers of pixels, not {padding!r}')
        else:
            sides: Any = (padding, padding) if isinstance(padding, (int, np.integer)) else padding
            before, after = pair(sides[i])
        if before < 0 or after < 0:
            raise ValueError(f"padding must not be negative: {padding}")
        if reach > size + before + after:
            raise ValueError(f"window of {reach} pixels exceeds padded input of {size + before + after}")
        out = (size + before + after - reach) // step + 1
        found.append(Axis(size, taps, step, spread, before, after, out))
    return found[0], found[1]


def taps(rows: Axis, cols: Axis) -> Iterator[tuple[int, int, Any, Any]]:
    """Each tap (kh, kw) of a window, in row-major order, with its index expressions (outputs, pixels)."""
    for kh in range(rows.taps):
        for kw in range(cols.taps):
            (oh, ih), (ow, iw) = rows.overlap(kh), cols.overlap(kw)
            yield kh, kw, np.s_[:, oh, ow], np.s_[:, ih, iw]


def _f64(*arrays: npt.ArrayLike) -> Any:
    """The arrays in float64: one array for one, a list for several."""
    converted = [np.asarray(array, dtype=np.float64) for array in arrays]
    return converted[0] if len(converted) == 1 else converted


# A factor in a lower precision: the bits of a float32 that are cut off, and whether a tie goes to the even neighbour
# (bfloat16, IEEE 754) or away from zero (tf32, as cvt.rna.tf32.f32 of the PTX ISA rounds).
_PRECISIONS = {"tf32": (13, False), "bfloat16": (16, True)}


def _factors(precision: str, *arrays: Array) -> Any:
    """The arrays in float64, after rounding them to a lower precision where one is asked for."""
    if precision in ("float32", "winograd"):
        return _f64(*arrays)
    _require(
        precision in _PRECISIONS, f"precision must be float32, tf32, bfloat16 or winograd, got {precision!r}"
    )
    cut, ties_to_even = _PRECISIONS[precision]
    rounded = []
    for array in arrays:
        bits = np.array(array, dtype=np.float32, order="C").view(np.uint32)
        half = np.uint32(1 << (cut - 1))
        carry = half - 1 + (bits >> cut & 1) if ties_to_even else half
        finite = np.isfinite(bits.view(np.float32))
        bits[...] = np.where(finite, (bits + carry) >> cut << cut, bits)
        rounded.append(bits.view(np.float32).astype(np.float64))
    return rounded


def _require(ok: bool, message: str) -> None:
    if not ok:
        raise ValueError(message)


# ------------------------------------------------------------------------------------------------------- gemm


@np.errstate(all="ignore")
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
) -> Array:
    """y = relu?(alpha * op(a) @ op(b) + beta * c + bias), (M, K) by (K, N) -> (M, N), op a transpose or not.

    bias is (N,). With beta = 0, c is never read (BLAS, https://www.netlib.org/blas/). precision "tf32" or "bfloat16" rounds a
    and b to 10 or 7 bits of mantissa first; here and below, products and sums stay in float64.
    """
    a, b = _factors(precision, a, b)
    a, b = a.T if transpose_a else a, b.T if transpose_b else b
    _require(a.ndim == b.ndim == 2 and a.shape[1] == b.shape[0], f"gemm: {a.shape} by {b.shape}")
    y = alpha * (a @ b)
    if beta != 0.0:
        if c is None or c.shape != y.shape:
            raise ValueError(f"gemm: beta is {beta}: c must have shape {y.shape}")
        y += beta * _f64(c)
    if bias is not None:
        _require(np.shape(bias) == y.shape[1:], f"gemm: bias {np.shape(bias)} for {y.shape[1]} columns")
        y += _f64(bias)
    return np.maximum(y, 0.0) if relu else y


@np.errstate(all="ignore")
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
    """Gradients (da, db) of alpha * op(a) @ op(b): d op(a) = alpha dy op(b)^T, d op(b) = alpha op(a)^T dy."""
    dy, a, b = _factors(precision, dy, a, b)
    op_a, op_b = a.T if transpose_a else a, b.T if transpose_b else b
    shape = (op_a.shape[0], op_b.shape[1])
    _require(dy.shape == shape, f"gemm_backward: dy must have shape {shape}, not {dy.shape}")
    da, db = alpha * (dy @ op_b.T), alpha * (op_a.T @ dy)
    return (da.T if transpose_a else da), (db.T if transpose_b else db)


@np.errstate(all="ignore")
def bias_backward(dy: Array) -> Array:
    """Gradient of a bias that was added along the last axis: the sum of dy over all other axes."""
    dy = _f64(dy)
    return np.asarray(dy.sum(axis=tuple(range(dy.ndim - 1))))


# ----------------------------------------------------------------------------------------------------- conv2d


@np.errstate(all="ignore")
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
) -> Array:
    """Cross-correlation, (N, H, W, Ci) with (KH, KW, Ci, Co) -> (N, Ho, Wo, Co), with bias and ReLU:

    y[n, i, j, o] = b[o] + sum of x[n, i*sh + kh*dh - top, j*sw + kw*dw - left, c] * w[kh, kw, c, o]
    over kh, kw, c, as far as the pixel lies inside the image (Dumoulin and Visin,
    https://arxiv.org/abs/1603.07285).
    """
    x, w = _factors(precision, x, w)
    _require(x.ndim == w.ndim == 4 and x.shape[3] == w.shape[2], f"conv2d: x {x.shape} with w {w.shape}")
    rows, cols = axes(x.shape[1:3], w.shape[:2], stride, dilation, padding)
    y = np.zeros((x.shape[0], rows.out, cols.out, w.shape[3]))
    for kh, kw, outputs, pixels in taps(rows, cols):
        y[outputs] += x[pixels] @ w[kh, kw]
    if b is not None:
        _require(np.shape(b) == y.shape[3:], f"conv2d: bias {np.shape(b)} for {y.shape[3]} filters")
        y += _f64(b)
    return np.maximum(y, 0.0) if relu else y


@np.errstate(all="ignore")
def conv2d_backward_x(
    dy: Array,
    w: Array,
    x_shape: Shape,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
) -> Array:
    """Gradient of conv2d's input: each tap sends dy @ w[kh, kw]^T back to the pixel it read."""
    dy, w = _factors(precision, dy, w)
    rows, cols = axes(x_shape[1:3], w.shape[:2], stride, dilation, padding)
    _check_dy("conv2d_backward_x", dy, (x_shape[0], rows.out, cols.out, w.shape[3]))
    _require(x_shape[3] == w.shape[2], f"conv2d_backward_x: x {x_shape} with w {w.shape}")
    dx = np.zeros(x_shape)
    for kh, kw, outputs, pixels in taps(rows, cols):
        dx[pixels] += dy[outputs] @ w[kh, kw].T
    return dx


@np.errstate(all="ignore")
def conv2d_backward_w(
    dy: Array,
    x: Array,
    w_shape: Shape,
    *,
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
) -> Array:
    """Gradient of conv2d's filter: for each tap, x^T dy summed over the batch and the outputs it reached."""
    dy, x = _factors(precision, dy, x)
    rows, cols = axes(x.shape[1:3], w_shape[:2], stride, dilation, padding)
    _check_dy("conv2d_backward_w", dy, (x.shape[0], rows.out, cols.out, w_shape[3]))
    _require(x.shape[3] == w_shape[2], f"conv2d_backward_w: x {x.shape} with w {w_shape}")
    dw = np.zeros(w_shape)
    for kh, kw, outputs, pixels in taps(rows, cols):
        dw[kh, kw] = np.tensordot(x[pixels], dy[outputs], axes=([0, 1, 2], [0, 1, 2]))
    return dw


def _check_dy(op: str, dy: Array, shape: Shape) -> None:
    _require(dy.shape == tuple(shape), f"{op}: dy must have shape {tuple(shape)}, not {dy.shape}")


# ---------------------------------------------------------------------------------------------------- pooling


def _pool(image: Shape, window: Pair, stride: Pair | None, padding: Padding) -> tuple[Axis, Axis]:
    """The axes of a pooling window, which must cover a pixel wherever it stands."""
    rows, cols = axes(image, window, window if stride is None else stride, 1, padding)
    for axis in (rows, cols):
        if max(axis.before, axis.after) > axis.taps // 2:
            raise ValueError(f"padding {padding} exceeds half of the window {window}")
    return rows, cols


def max_pool2d(
    x: Array, window: Pair, stride: Pair | None = None, padding: Padding = "valid"
) -> tuple[Array, Array]:
    """Maximum of each window, (N, H, W, C) -> y, argmax, both (N, Ho, Wo, C); stride defaults to window.

    argmax (int32) is kh * KW + kw of the first maximum in row-major order; the first NaN wins over numbers.
    """
    x = _f64(x)
    rows, cols = _pool(x.shape[1:3], window, stride, padding)
    y = np.full((x.shape[0], rows.out, cols.out, x.shape[3]), -np.inf)
    argmax = np.full(y.shape, -1, dtype=np.int32)
    for kh, kw, outputs, pixels in taps(rows, cols):
        new, best = x[pixels], y[outputs]
        wins = (argmax[outputs] < 0) | (~np.isnan(best) & ((new > best) | np.isnan(new)))
        argmax[outputs][wins] = kh * cols.taps + kw
        best[wins] = new[wins]  # best is a view into y
    return y, argmax


def max_pool2d_backward(
    dy: Array,
    argmax: Array,
    x_shape: Shape,
    window: Pair,
    stride: Pair | None = None,
    padding: Padding = "valid",
) -> Array:
    """Gradient of max_pool2d's input: dy goes to the pixel that won; overlapping windows add up."""
    dy = _f64(dy)
    rows, cols = _pool(x_shape[1:3], window, stride, padding)
    _check_dy("max_pool2d_backward", dy, (x_shape[0], rows.out, cols.out, x_shape[3]))
    dx = np.zeros(x_shape)
    for kh, kw, outputs, pixels in taps(rows, cols):
        dx[pixels] += np.where(argmax[outputs] == kh * cols.taps + kw, dy[outputs], 0.0)
    return dx


def _covered(rows: Axis, cols: Axis) -> Array:
    """How many real pixels each window position covers, (Ho, Wo, 1)."""
    count = np.zeros((1, rows.out, cols.out, 1))
    for _, _, outputs, _ in taps(rows, cols):
        count[outputs] += 1.0
    return np.asarray(count[0])


@np.errstate(all="ignore")
def avg_pool2d(x: Array, window: Pair, stride: Pair | None = None, padding: Padding = "valid") -> Array:
    """Mean of the real pixels (not the padding) under each window, (N, H, W, C) -> (N, Ho, Wo, C)."""
    x = _f64(x)
    rows, cols = _pool(x.shape[1:3], window, stride, padding)
    y = np.zeros((x.shape[0], rows.out, cols.out, x.shape[3]))
    for _, _, outputs, pixels in taps(rows, cols):
        y[outputs] += x[pixels]
    return np.asarray(y / _covered(rows, cols))


@np.errstate(all="ignore")
def avg_pool2d_backward(
    dy: Array, x_shape: Shape, window: Pair, stride: Pair | None = None, padding: Padding = "valid"
) -> Array:
    """Gradient of avg_pool2d's input: each pixel gets dy / (pixels covered) of every window over it."""
    dy = _f64(dy)
    rows, cols = _pool(x_shape[1:3], window, stride, padding)
    _check_dy("avg_pool2d_backward", dy, (x_shape[0], rows.out, cols.out, x_shape[3]))
    share = dy / _covered(rows, cols)
    dx = np.zeros(x_shape)
    for _, _, outputs, pixels in taps(rows, cols):
        dx[pixels] += share[outputs]
    return dx


# ---------------------------------------------------------------------------- convolution, ReLU and max pooling as one


NO_GRADIENT = 255  # in the place of a winner's position, where ReLU gave 0 or NaN


def conv2d_max_pool2d(
    x: Array,
    w: Array,
    b: Array | None = None,
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    relu: bool = False,
    **options: Any,
) -> tuple[Array, Array]:
    """max_pool2d of conv2d -> y, argmax (uint8); options are conv2d's."""
    y, argmax = max_pool2d(conv2d(x, w, b, relu=relu, **options), window, pool_stride, pool_padding)
    if relu:
        argmax = np.where(y > 0.0, argmax, NO_GRADIENT)
    return y, argmax.astype(np.uint8)


def _before_pool(
    dy: Array,
    argmax: Array,
    x_shape: Shape,
    w_shape: Shape,
    window: Pair,
    pool_stride: Pair | None,
    pool_padding: Padding,
    stride: Pair,
    dilation: Pair,
    padding: Padding,
) -> Array:
    """The gradient of the map between convolution and pool: dy at the winners, zero elsewhere."""
    rows, cols = axes(x_shape[1:3], w_shape[:2], stride, dilation, padding)
    shape = (x_shape[0], rows.out, cols.out, w_shape[3])
    return max_pool2d_backward(dy, argmax, shape, window, pool_stride, pool_padding)


def conv2d_max_pool2d_backward_x(
    dy: Array,
    argmax: Array,
    w: Array,
    x_shape: Shape,
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
) -> Array:
    """Gradient of the input: back through the pool, then through the convolution."""
    geometry: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding}
    inner = _before_pool(dy, argmax, x_shape, w.shape, window, pool_stride, pool_padding, **geometry)
    return conv2d_backward_x(inner, w, x_shape, **geometry, precision=precision)


def conv2d_max_pool2d_backward_w(
    dy: Array,
    argmax: Array,
    x: Array,
    w_shape: Shape,
    *,
    window: Pair,
    pool_stride: Pair | None = None,
    pool_padding: Padding = "valid",
    stride: Pair = 1,
    dilation: Pair = 1,
    padding: Padding = "valid",
    precision: str = "float32",
) -> tuple[Array, Array]:
    """Gradients of the filter and the bias, likewise."""
    geometry: dict[str, Any] = {"stride": stride, "dilation": dilation, "padding": padding}
    inner = _before_pool(dy, argmax, x.shape, w_shape, window, pool_stride, pool_padding, **geometry)
    dw = conv2d_backward_w(inner, x, w_shape, **geometry, precision=precision)
    return dw, inner.sum(axis=(0, 1, 2))


# ------------------------------------------------------------------------------------------------ activations


def relu(x: Array) -> Array:
    """max(x, 0), any shape; relu(NaN) = NaN."""
    return np.asarray(np.maximum(_f64(x), 0.0))


def relu_backward(dy: Array, y: Array) -> Array:
    """dy where y > 0, else 0."""
    return np.where(_f64(y) > 0.0, _f64(dy), 0.0)


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x)), written so that nothing overflows: exp of -|x| alone."""
    x = _f64(x)
    z = np.exp(-np.abs(x))
    return np.asarray(np.where(x < 0.0, z, 1.0) / (1.0 + z))


@np.errstate(all="ignore")
def sigmoid_backward(dy: Array, y: Array) -> Array:
    """dy * y * (1 - y)."""
    dy, y = _f64(dy, y)
    return np.asarray(dy * y * (1.0 - y))


def tanh(x: Array) -> Array:
    """Hyperbolic tangent, any shape."""
    return np.asarray(np.tanh(_f64(x)))


@np.errstate(all="ignore")
def tanh_backward(dy: Array, y: Array) -> Array:
    """dy * (1 - y^2)."""
    dy, y = _f64(dy, y)
    return np.asarray(dy * (1.0 - y * y))


@np.errstate(all="ignore")
def softmax(x: Array) -> Array:
    """exp(x) / sum of exp(x) over the last axis; the maximum is subtracted first: nothing overflows."""
    x = _f64(x)
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return np.asarray(e / e.sum(axis=-1, keepdims=True))


@np.errstate(all="ignore")
def softmax_backward(dy: Array, y: Array) -> Array:
    """y * (dy - sum of dy * y over the last axis)."""
    dy, y = _f64(dy, y)
    return np.asarray(y * (dy - (dy * y).sum(axis=-1, keepdims=True)))


# ---------------------------------------------------------------------------------------------------- dropout


def dropout(x: Array, keep: Array, rate: float) -> Array:
    """x / (1 - rate) where keep is true, else 0."""
    return np.where(keep, _f64(x) * (1.0 / (1.0 - rate)), 0.0)


def dropout_backward(dy: Array, keep: Array, rate: float) -> Array:
    """dy / (1 - rate) where keep is true, else 0."""
    return dropout(dy, keep, rate)


# ------------------------------------------------------------------------------------------- samples as floats


def rescale(
    x: Array, scale: float = 1.0, offset: float = 0.0, *, rows: Array | None = None, dtype: str | None = None
) -> Array:
    """x * scale + offset, or of the rows named; dtype is that of the kernels' result."""
    x = _f64(x)
    return np.asarray((x if rows is None else x[rows]) * scale + offset)


def resample(
    x: Array, axis: int, index: Array, weights: Array | None = None, offset: Array | None = None
) -> Array:
    """y[n, .., i, ..] = sum over t of weights[t, n, i] * x[n, .., index[t, n, i], ..] + offset[n, i]."""
    lines = np.moveaxis(_f64(x), axis, 1)
    over = (slice(None), slice(None), *[None] * (lines.ndim - 2))  # (N, L) over all other axes
    samples, y = np.arange(len(lines))[:, None], np.zeros(())
    for t, at in enumerate(index):
        y = y + lines[samples, at] * (1.0 if weights is None else _f64(weights[t])[over])
    return np.moveaxis(y if offset is None else y + _f64(offset)[over], 1, axis)


def resample_backward(
    dy: Array, axis: int, index: Array, x_shape: Shape, weights: Array | None = None
) -> Array:
    """dx: to each position of x what was read there, by its weight."""
    lines, dx = np.moveaxis(_f64(dy), axis, 1), np.zeros(x_shape)
    over = (slice(None), slice(None), *[None] * (lines.ndim - 2))
    samples, dx_lines = np.arange(len(lines))[:, None], np.moveaxis(dx, axis, 1)
    for t, at in enumerate(index):
        np.add.at(dx_lines, (samples, at), lines * (1.0 if weights is None else _f64(weights[t])[over]))
    return dx


# ----------------------------------------------------------------------------------------------------- losses


def _probabilities(target: Array, shape: Shape) -> Array:
    """Targets (N, C) in float64: labels (N,) as one-hot rows, probabilities as they are."""
    target = np.asarray(target)
    if not np.issubdtype(target.dtype, np.integer):
        _require(target.shape == shape, f"probabilities must have shape {shape}, not {target.shape}")
        return target.astype(np.float64)
    _require(target.shape == shape[:1], f"labels must have shape {shape[:1]}, not {target.shape}")
    wrong = target[(target < 0) | (target >= shape[1])]
    _require(wrong.size == 0, f"label {wrong[:1]} is not in [0, {shape[1]})")
    t = np.zeros(shape)
    t[np.arange(shape[0]), target] = 1.0
    return t


@np.errstate(all="ignore")
def softmax_cross_entropy(x: Array, target: Array) -> tuple[Array, Array]:
    """Cross-entropy of logits x (N, C), with labels (N,) or probabilities (N, C): (loss (N,), softmax(x)).

    loss = sum over c of t_c * (log sum exp(x) - x_c), both taken relative to the row's maximum. A class
    with t_c = 0 adds nothing, even where its logit is -inf; a target class with logit -inf costs +inf.
    """
    x = _f64(x)
    t = _probabilities(target, x.shape)
    shifted = x - x.max(axis=1, keepdims=True, initial=-np.inf)
    log_sum = np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    loss = np.where(t == 0.0, 0.0, t * (log_sum - shifted)).sum(axis=1)
    return loss, softmax(x)


@np.errstate(all="ignore")
def softmax_cross_entropy_backward(dloss: Array, y: Array, target: Array) -> Array:
    """Gradient of the logits: (y * sum(t) - t) * dloss, which is (y - onehot) * dloss for labels."""
    dloss, y = _f64(dloss, y)
    t = _probabilities(target, y.shape)
    return np.asarray((y * t.sum(axis=1, keepdims=True) - t) * dloss[:, None])


@np.errstate(all="ignore")
def mean_squared_error(x: Array, target: Array) -> Array:
    """(x - target)^2, averaged over all axes but the first: (N, ...) -> (N,)."""
    x, target = _f64(x, target)
    _require(x.shape == target.shape, f"mean_squared_error: x {x.shape}, target {target.shape}")
    each = x[0].size if len(x) else 1
    return np.asarray(((x - target) ** 2).sum(axis=tuple(range(1, x.ndim))) / each)


@np.errstate(all="ignore")
def mean_squared_error_backward(dloss: Array, x: Array, target: Array) -> Array:
    """Gradient of x: 2 (x - target) * dloss / (elements of one sample)."""
    dloss, x, target = _f64(dloss, x, target)
    each = x[0].size if len(x) else 1
    return np.asarray(2.0 * (x - target) * dloss.reshape(-1, *[1] * (x.ndim - 1)) / each)


# ---------------------------------------------------------------------------------------- batch normalisation


@np.errstate(all="ignore")
def batch_norm(x: Array, gamma: Array, beta: Array, *, epsilon: float = 1e-3) -> tuple[Array, Array, Array]:
    """Normalise each channel (last axis) by its batch: y = gamma (x - mean) / sqrt(var + epsilon) + beta.

    Returns (y, mean, var) with the biased variance, mean of (x - mean)^2 (Ioffe and Szegedy,
    https://arxiv.org/abs/1502.03167).
    """
    x, gamma, beta = _f64(x, gamma, beta)
    over, count = tuple(range(x.ndim - 1)), x[..., :1].size
    _require(count > 0, f"batch_norm: x {x.shape} has no rows to take statistics of")
    mean = x.sum(axis=over) / count
    var = ((x - mean) ** 2).sum(axis=over) / count
    return batch_norm_inference(x, gamma, beta, mean, var, epsilon=epsilon), mean, var


@np.errstate(all="ignore")
def batch_norm_backward(
    dy: Array, x: Array, gamma: Array, mean: Array, var: Array, *, epsilon: float = 1e-3
) -> tuple[Array, Array, Array]:
    """Gradients (dx, dgamma, dbeta) of batch_norm, mean and var being functions of x.

    With u = (x - mean) / sqrt(var + epsilon) and M elements a channel: dbeta = sum dy, dgamma = sum dy u,
    dx = gamma / sqrt(var + epsilon) * (dy - dbeta / M - u dgamma / M).
    """
    dy, x, gamma, mean, var = _f64(dy, x, gamma, mean, var)
    over, count = tuple(range(x.ndim - 1)), max(x[..., :1].size, 1)
    u = (x - mean) / np.sqrt(var + epsilon)
    dbeta, dgamma = dy.sum(axis=over), (dy * u).sum(axis=over)
    dx = gamma / np.sqrt(var + epsilon) * (dy - dbeta / count - u * dgamma / count)
    return dx, dgamma, dbeta


@np.errstate(all="ignore")
def batch_norm_inference(
    x: Array, gamma: Array, beta: Array, mean: Array, var: Array, *, epsilon: float = 1e-3
) -> Array:
    """y = gamma (x - mean) / sqrt(var + epsilon) + beta with given statistics."""
    x, gamma, beta, mean, var = _f64(x, gamma, beta, mean, var)
    return np.asarray(gamma * (x - mean) / np.sqrt(var + epsilon) + beta)


# ------------------------------------------------------------------------------------------------- optimizers


@np.errstate(all="ignore")
def sgd_step(
    ws: Sequence[Array],
    dws: Sequence[Array],
    velocities: Sequence[Array] | None,
    *,
    learning_rate: float,
    momentum: float = 0.0,
    nesterov: bool = False,
    weight_decay: float = 0.0,
) -> None:
    """One step of gradient descent, in place (Keras's SGD with decoupled weight decay):

    w -= lr wd w;  v = momentum v - lr g;  w += v, or w += momentum v - lr g (Nesterov).
    velocities is None without momentum.
    """
    for i, (w, g) in enumerate(zip(ws, map(_f64, dws), strict=True)):
        w -= learning_rate * weight_decay * w
        if velocities is None or momentum == 0.0:
            w -= learning_rate * g
            continue
        v = velocities[i]
        v[...] = momentum * v - learning_rate * g
        w += momentum * v - learning_rate * g if nesterov else v


@np.errstate(all="ignore")
def adam_step(
    ws: Sequence[Array],
    dws: Sequence[Array],
    ms: Sequence[Array],
    vs: Sequence[Array],
    *,
    step: int,
    learning_rate: float,
    beta_1: float = 0.9,
    beta_2: float = 0.999,
    epsilon: float = 1e-7,
    weight_decay: float = 0.0,
) -> None:
    """Step number `step`, from 1, of Adam, in place (Kingma and Ba, https://arxiv.org/abs/1412.6980).

    The form is Keras's, epsilon outside the bias correction, weight decay decoupled (AdamW):
    w -= lr wd w;  m += (g - m)(1 - b1);  v += (g^2 - v)(1 - b2);
    w -= lr sqrt(1 - b2^t) / (1 - b1^t) * m / (sqrt(v) + epsilon).
    """
    scale = learning_rate * np.sqrt(1.0 - beta_2**step) / (1.0 - beta_1**step)
    for w, g, m, v in zip(ws, map(_f64, dws), ms, vs, strict=True):
        w -= learning_rate * weight_decay * w
        m += (g - m) * (1.0 - beta_1)
        v += (g * g - v) * (1.0 - beta_2)
        w -= scale * m / (np.sqrt(v) + epsilon)
