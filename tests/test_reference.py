"""The reference itself: finite differences, values worked out by hand, and other ways to compute the same."""

from __future__ import annotations

import math

import numpy as np
import pytest
from fastnn import reference as R
from numpy.lib.stride_tricks import sliding_window_view

STEP = 1e-5  # central differences: error about STEP^2 + eps / STEP, far below TOLERANCE for values of order 1
TOLERANCE = 1e-8


def rng_of(seed):
    return np.random.default_rng(seed)


def differences(f, x, dy):
    """Gradient of sum(dy * f(x)) by central differences: written out here, so that nothing checks itself."""
    dx = np.empty(x.shape)
    for i in np.ndindex(x.shape):
        up, down = x.copy(), x.copy()
        up[i] += STEP
        down[i] -= STEP
        dx[i] = np.sum(dy * (f(up) - f(down))) / (2 * STEP)
    return dx


def assert_gradient(analytic, f, x, dy):
    assert analytic.dtype == np.float64
    assert analytic.shape == x.shape
    np.testing.assert_allclose(
        analytic, differences(f, x, dy), rtol=0, atol=TOLERANCE * max(1, np.abs(dy).sum())
    )


WINDOWS = [  # x, window, stride, dilation, padding
    ((2, 5, 4, 3), (3, 3), 1, 1, "valid"),
    ((1, 7, 5, 2), (3, 2), (2, 1), 1, "same"),
    ((2, 6, 5, 1), (2, 3), (1, 3), (2, 1), "valid"),
    ((1, 5, 6, 2), (3, 2), 2, (1, 2), 1),
    ((1, 4, 4, 2), (2, 3), 1, 1, ((1, 0), (0, 1))),
    ((1, 8, 7, 1), (2, 2), 3, 1, (1, 0)),
    ((1, 1, 1, 2), (3, 3), 1, 1, "same"),
    ((2, 3, 3, 1), (1, 1), 2, 1, "same"),
    ((0, 4, 4, 2), (3, 3), 1, 1, "valid"),
]


# --------------------------------------------------------------------------------------------------- geometry


def test_valid_geometry_by_hand():
    rows, cols = R.axes((7, 5), (3, 2), (2, 1), 1, "valid")
    assert (rows.out, cols.out) == (3, 4)
    assert (rows.before, cols.before) == (0, 0)


@pytest.mark.parametrize(
    ("size", "taps", "stride", "dilation", "out", "before"),
    [
        (4, 3, 1, 1, 4, 1),
        (4, 2, 1, 1, 4, 0),  # the odd pixel goes to the bottom
        (5, 3, 2, 1, 3, 1),
        (6, 3, 2, 1, 3, 0),  # one pixel of padding, all of it at the bottom
        (4, 1, 2, 1, 2, 0),
        (7, 3, 1, 2, 7, 2),
        (5, 2, 4, 1, 2, 0),
        (1, 5, 1, 1, 1, 2),
    ],
)
def test_same_is_kerass(size, taps, stride, dilation, out, before):
    rows, _ = R.axes((size, 9), (taps, 1), (stride, 1), (dilation, 1), "same")
    assert (rows.out, rows.before) == (out, before)
    assert rows.out == math.ceil(size / stride)


@pytest.mark.parametrize("size", range(1, 8))
@pytest.mark.parametrize("taps", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2, 3])
@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("padding", [0, 1, 3])
def test_overlap_is_where_the_source_lies_inside(size, taps, stride, dilation, padding):
    if (taps - 1) * dilation + 1 > size + 2 * padding:
        with pytest.raises(ValueError, match="exceeds"):
            R.axes((size, size), taps, stride, dilation, padding)
        return
    axis, _ = R.axes((size, size), taps, stride, dilation, padding)
    for tap in range(taps):
        sources = {o: o * stride + tap * dilation - padding for o in range(axis.out)}
        inside = {o: source for o, source in sources.items() if 0 <= source < size}
        outputs, pixels = axis.overlap(tap)
        assert list(range(axis.out)[outputs]) == list(inside)
        assert list(range(size)[pixels]) == list(inside.values())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((4, 4), 5, 1, 1, "valid"), "window of 5 pixels exceeds padded input of 4"),
        (((4, 4), 3, 1, 2, "valid"), "window of 5 pixels"),
        (((4, 4), 0, 1, 1, "valid"), "at least 1"),
        (((4, 4), 2, 0, 1, "valid"), "at least 1"),
        (((4, 4), 2, 1, 0, "same"), "at least 1"),
        (((4, 4), 2, 1, 1, -1), "negative"),
        (((4, 4), 2, 1, 1, "full"), "full"),
    ],
)
def test_wrong_geometry(arguments, message):
    with pytest.raises(ValueError, match=message):
        R.axes(*arguments)


# ------------------------------------------------------------------------------------------------------- gemm


def test_gemm_by_hand():
    a, b = np.array([[1, 2], [3, 4], [5, 6]]), np.array([[1, 0], [0, -1]])
    np.testing.assert_array_equal(R.gemm(a, b), [[1, -2], [3, -4], [5, -6]])
    y = R.gemm(a, b, np.ones((3, 2)), alpha=2, beta=10, bias=np.array([0.5, -3]), relu=True)
    np.testing.assert_array_equal(y, [[12.5, 3], [16.5, 0], [20.5, 0]])
    assert y.dtype == np.float64


@pytest.mark.parametrize("ta", [False, True])
@pytest.mark.parametrize("tb", [False, True])
def test_gemm_and_its_gradients(ta, tb):
    rng, how = rng_of(1), {"transpose_a": ta, "transpose_b": tb, "alpha": -1.5}
    a, b = rng.standard_normal((4, 3) if ta else (3, 4)), rng.standard_normal((5, 4) if tb else (4, 5))
    y = np.einsum(f"{'km' if ta else 'mk'},{'nk' if tb else 'kn'}->mn", a, b)
    np.testing.assert_allclose(R.gemm(a, b, **how), -1.5 * y, atol=1e-14)
    dy = rng.standard_normal(y.shape)
    da, db = R.gemm_backward(dy, a, b, **how)
    assert_gradient(da, lambda v: R.gemm(v, b, **how), a, dy)
    assert_gradient(db, lambda v: R.gemm(a, v, **how), b, dy)


def test_gemm_reads_c_only_with_beta():
    nan = np.full((2, 2), np.nan)
    np.testing.assert_array_equal(R.gemm(np.eye(2), np.eye(2), nan, beta=0), np.eye(2))
    assert np.isnan(R.gemm(np.eye(2), np.eye(2), nan, beta=1)).all()
    with pytest.raises(ValueError, match=r"\(2, 2\)"):
        R.gemm(np.eye(2), np.eye(2), beta=1)


def test_gemm_without_inner_dimension():
    np.testing.assert_array_equal(
        R.gemm(np.ones((2, 0)), np.ones((0, 3)), np.ones((2, 3)), beta=4), np.full((2, 3), 4)
    )


def test_bias_backward():
    dy = rng_of(2).standard_normal((2, 3, 4, 5))
    assert_gradient(R.bias_backward(dy), lambda b: np.zeros(dy.shape) + b, np.zeros(5), dy)
    np.testing.assert_array_equal(R.bias_backward(np.empty((0, 3))), [0, 0, 0])


# ----------------------------------------------------------------------------------------------------- conv2d


def conv2d_otherwise(x, w, stride, dilation, padding):
    """Pad with zeros, look at every window, contract."""
    rows, cols = R.axes(x.shape[1:3], w.shape[:2], stride, dilation, padding)
    after = [
        max((a.out - 1) * a.stride + (a.taps - 1) * a.dilation + 1 - a.size - a.before, 0)
        for a in (rows, cols)
    ]
    padded = np.pad(x, ((0, 0), (rows.before, after[0]), (cols.before, after[1]), (0, 0)))
    reach = [(a.taps - 1) * a.dilation + 1 for a in (rows, cols)]
    windows = sliding_window_view(padded, reach, axis=(1, 2))
    windows = windows[:, :: rows.stride, :: cols.stride, :, :: rows.dilation, :: cols.dilation]
    return np.einsum("nijckl,klco->nijo", windows[:, : rows.out, : cols.out], w)


@pytest.mark.parametrize(("shape", "window", "stride", "dilation", "padding"), WINDOWS)
def test_conv2d_and_its_gradients(shape, window, stride, dilation, padding):
    rng, how = rng_of(3), {"stride": stride, "dilation": dilation, "padding": padding}
    x, w, b = rng.standard_normal(shape), rng.standard_normal((*window, shape[3], 2)), rng.standard_normal(2)
    y = R.conv2d(x, w, **how)
    np.testing.assert_allclose(y, conv2d_otherwise(x, w, **how), atol=1e-13)
    np.testing.assert_array_equal(R.conv2d(x, w, b, relu=True, **how), np.maximum(y + b, 0))
    dy = rng.standard_normal(y.shape)
    assert_gradient(R.conv2d_backward_x(dy, w, shape, **how), lambda v: R.conv2d(v, w, **how), x, dy)
    assert_gradient(R.conv2d_backward_w(dy, x, w.shape, **how), lambda v: R.conv2d(x, v, **how), w, dy)


def test_conv2d_by_hand():
    x = np.arange(9.0).reshape(1, 3, 3, 1)
    w = np.array([[1.0, 10.0], [100.0, 1000.0]]).reshape(2, 2, 1, 1)  # correlation: w is not flipped
    np.testing.assert_array_equal(R.conv2d(x, w)[0, :, :, 0], [[4310, 5421], [7643, 8754]])
    same = R.conv2d(x, w, padding="same")[0, :, :, 0]  # the padding is at the bottom and right
    np.testing.assert_array_equal(same, [[4310, 5421, 502], [7643, 8754, 805], [76, 87, 8]])


def test_padding_takes_no_part_in_convolution():
    w = np.ones((3, 3, 1, 1))
    w[0] = np.inf  # over padding in the first row of outputs
    y = R.conv2d(np.ones((1, 3, 3, 1)), w, padding="same")
    assert np.isfinite(y[0, 0]).all()
    assert np.isposinf(y[0, 1:]).all()
    dx = R.conv2d_backward_x(np.ones((1, 3, 3, 1)), w, (1, 3, 3, 1), padding="same")
    assert np.isfinite(dx[0, 2]).all()
    x = np.zeros((1, 3, 3, 1))
    dw = R.conv2d_backward_w(np.full((1, 3, 3, 1), np.inf)[:, :1], x[:, :1], w.shape, padding="same")
    assert not np.isnan(dw[[0, 2]]).any()  # rows of the filter that saw padding alone


def test_conv2d_lets_nan_through():
    x = np.zeros((1, 3, 3, 1))
    x[0, 1, 1] = np.nan
    assert np.isnan(R.conv2d(x, np.zeros((3, 3, 1, 1)))).all()
    assert np.isnan(R.conv2d(np.ones((1, 3, 3, 1)), np.full((3, 3, 1, 1), np.nan), relu=True)).all()


@pytest.mark.parametrize(
    ("call", "numbers"),
    [
        (lambda: R.conv2d(np.ones((1, 4, 4, 3)), np.ones((3, 3, 2, 1))), r"\(1, 4, 4, 3\).*\(3, 3, 2, 1\)"),
        (lambda: R.conv2d(np.ones((1, 4, 4, 1)), np.ones((3, 3, 1, 2)), np.ones(3)), r"\(3,\).*2 filters"),
        (
            lambda: R.conv2d_backward_x(np.ones((1, 3, 3, 2)), np.ones((3, 3, 1, 2)), (1, 4, 4, 1)),
            r"\(1, 2, 2, 2\)",
        ),
        (
            lambda: R.conv2d_backward_w(np.ones((1, 2, 2, 1)), np.ones((1, 4, 4, 1)), (3, 3, 1, 2)),
            r"\(1, 2, 2, 2\)",
        ),
        (
            lambda: R.max_pool2d_backward(np.ones((1, 2, 2, 1)), np.ones(1), (1, 5, 2, 1), 2),
            r"\(1, 2, 1, 1\)",
        ),
        (lambda: R.gemm(np.ones((2, 3)), np.ones((2, 3))), r"\(2, 3\) by \(2, 3\)"),
        (lambda: R.mean_squared_error(np.ones((2, 3)), np.ones((2, 1))), r"\(2, 3\).*\(2, 1\)"),
        (lambda: R.softmax_cross_entropy(np.ones((2, 3)), np.array([0, 3])), r"3.*\[0, 3\)"),
        (lambda: R.softmax_cross_entropy(np.ones((2, 3)), np.array([0, -1])), r"-1"),
        (lambda: R.softmax_cross_entropy(np.ones((2, 3)), np.array([0])), r"\(2,\).*\(1,\)"),
        (lambda: R.softmax_cross_entropy(np.ones((2, 3)), np.ones((2, 2))), r"\(2, 3\).*\(2, 2\)"),
    ],
)
def test_wrong_shapes_are_named(call, numbers):
    with pytest.raises(ValueError, match=numbers):
        call()


# ---------------------------------------------------------------------------------------------------- pooling

POOLS = [(x, window, stride, padding) for x, window, stride, dilation, padding in WINDOWS if dilation == 1]


@pytest.mark.parametrize(("shape", "window", "stride", "padding"), POOLS)
def test_pooling_and_its_gradients(shape, window, stride, padding):
    rng = rng_of(4)
    x = rng.permutation(math.prod(shape)).reshape(shape) - 20.5  # distinct
    how = (window, stride, padding)
    rows, cols = R.axes(shape[1:3], window, stride, 1, padding)
    y, argmax = R.max_pool2d(x, *how)
    mean = R.avg_pool2d(x, *how)
    for n, i, j, c in np.ndindex(y.shape):
        top, left = i * rows.stride - rows.before, j * cols.stride - cols.before
        tile = x[n, max(top, 0) : top + rows.taps, max(left, 0) : left + cols.taps, c]
        assert y[n, i, j, c] == tile.max()
        kh, kw = divmod(argmax[n, i, j, c], cols.taps)
        assert x[n, top + kh, left + kw, c] == y[n, i, j, c]
        assert mean[n, i, j, c] == pytest.approx(tile.mean(), abs=1e-13)
    assert argmax.dtype == np.int32
    dy = rng.standard_normal(y.shape)
    assert_gradient(R.max_pool2d_backward(dy, argmax, shape, *how), lambda v: R.max_pool2d(v, *how)[0], x, dy)
    assert_gradient(R.avg_pool2d_backward(dy, shape, *how), lambda v: R.avg_pool2d(v, *how), x, dy)


def test_stride_defaults_to_the_window():
    x = rng_of(5).standard_normal((1, 6, 6, 1))
    np.testing.assert_array_equal(R.max_pool2d(x, (3, 2))[0], R.max_pool2d(x, (3, 2), (3, 2))[0])
    np.testing.assert_array_equal(R.avg_pool2d(x, (3, 2)), R.avg_pool2d(x, (3, 2), (3, 2)))


def test_first_maximum_wins_a_tie():
    assert R.max_pool2d(np.zeros((1, 2, 2, 1)), 2)[1].item() == 0
    assert R.max_pool2d(np.zeros((1, 2, 2, 1)), 2, padding=1)[1].ravel().tolist() == [3, 2, 1, 0]


@pytest.mark.parametrize("position", range(4))
def test_first_nan_wins(position):
    x = np.array([1.0, np.inf, -np.inf, 2.0])
    x[position:] = np.nan
    y, argmax = R.max_pool2d(x.reshape(1, 2, 2, 1), 2)
    assert np.isnan(y).all()
    assert argmax.item() == position


def test_window_of_minus_infinities():
    y, argmax = R.max_pool2d(np.full((1, 3, 3, 1), -np.inf), 2, 1, "same")
    assert np.isneginf(y).all()
    assert (argmax == 0).all()


@pytest.mark.parametrize("padding", [2, (0, 2), ((0, 2), (0, 0)), ((0, 0), (2, 0))])
def test_pooling_windows_never_lie_in_padding_alone(padding):
    for call in (R.max_pool2d, R.avg_pool2d):
        with pytest.raises(ValueError, match="exceeds half of the window 3"):
            call(np.ones((1, 5, 5, 1)), 3, 1, padding)


def test_average_divides_by_what_it_covers():
    np.testing.assert_array_equal(R.avg_pool2d(np.ones((1, 3, 3, 2)), 3, 1, 1), np.ones((1, 3, 3, 2)))
    dx = R.avg_pool2d_backward(np.ones((1, 2, 2, 1)), (1, 3, 3, 1), 2, 2, "same")
    np.testing.assert_array_equal(dx[0, :, :, 0], [[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [0.5, 0.5, 1]])


def test_overlapping_windows_add_up():
    x = np.array([0.0, 9.0, 0.0]).reshape(1, 1, 3, 1)
    dx = R.max_pool2d_backward(
        np.array([2.0, 5.0]).reshape(1, 1, 2, 1), R.max_pool2d(x, (1, 2), 1)[1], x.shape, (1, 2), 1
    )
    np.testing.assert_array_equal(dx.ravel(), [0, 7, 0])


# ------------------------------------------------------------------------------------- activations and losses


@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh", "softmax"])
@pytest.mark.parametrize("shape", [(5,), (3, 4), (2, 3, 4)])
def test_activation_gradients(name, shape):
    rng = rng_of(6)
    x = rng.standard_normal(shape)
    x[np.abs(x) < 0.01] = 0.5  # away from relu's kink
    dy, forward = rng.standard_normal(shape), getattr(R, name)
    assert_gradient(getattr(R, f"{name}_backward")(dy, forward(x)), forward, x, dy)


def test_activations_by_hand():
    x = np.array([-np.inf, -2.0, 0.0, math.log(3.0), np.inf, np.nan])
    np.testing.assert_array_equal(R.relu(x), [0, 0, 0, math.log(3.0), np.inf, np.nan])
    np.testing.assert_allclose(R.sigmoid(x), [0, 1 / (1 + math.exp(2)), 0.5, 0.75, 1, np.nan], rtol=1e-15)
    np.testing.assert_allclose(R.tanh(x), [-1, math.tanh(-2), 0, 0.8, 1, np.nan], rtol=1e-15)
    np.testing.assert_array_equal(R.relu_backward(np.full(3, 7.0), np.array([0.0, 2.0, -0.0])), [0, 7, 0])
    np.testing.assert_allclose(R.softmax(np.log([1.0, 2.0, 5.0])), [0.125, 0.25, 0.625], rtol=1e-15)
    np.testing.assert_allclose(R.softmax(np.array([1e308, 1e308])), [0.5, 0.5])


def test_sigmoid_keeps_its_digits_far_out():
    np.testing.assert_allclose(R.sigmoid(np.array([-700.0, -40.0])), np.exp([-700.0, -40.0]), rtol=1e-14)


@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_softmax_cross_entropy(kind):
    rng = rng_of(7)
    x, dloss = rng.standard_normal((4, 5)), rng.standard_normal(4)
    target = np.array([0, 4, 2, 2], np.uint8) if kind == "labels" else rng.random((4, 5))  # of any sum
    t = np.eye(5)[target] if kind == "labels" else target
    loss, y = R.softmax_cross_entropy(x, target)
    np.testing.assert_allclose(loss, -(t * np.log(R.softmax(x))).sum(axis=1), rtol=1e-13)
    np.testing.assert_array_equal(y, R.softmax(x))
    dx = R.softmax_cross_entropy_backward(dloss, y, target)
    assert_gradient(dx, lambda v: R.softmax_cross_entropy(v, target)[0], x, dloss)


def test_cross_entropy_of_huge_and_infinite_logits():
    x = np.array([[1e300, 0.0, -1e300], [-np.inf, 0.0, 0.0], [0.0, -np.inf, -np.inf]])
    loss, y = R.softmax_cross_entropy(x, np.array([0, 1, 0]))
    np.testing.assert_allclose(loss, [0, math.log(2), 0], rtol=1e-15)
    np.testing.assert_array_equal(y, [[1, 0, 0], [0, 0.5, 0.5], [1, 0, 0]])
    assert R.softmax_cross_entropy(x, np.array([1, 0, 1]))[0].tolist() == [1e300, np.inf, np.inf]
    soft = np.array([[1.0, 0, 0], [0, 0.5, 0.5], [1, 0, 0]])  # 0 * inf is 0
    np.testing.assert_allclose(R.softmax_cross_entropy(x, soft)[0], [0, math.log(2), 0], rtol=1e-15)


def test_losses_of_an_empty_batch():
    assert R.softmax_cross_entropy(np.empty((0, 3)), np.empty(0, int))[0].shape == (0,)
    assert R.mean_squared_error(np.empty((0, 3)), np.empty((0, 3))).shape == (0,)
    assert R.mean_squared_error_backward(np.empty(0), np.empty((0, 3)), np.empty((0, 3))).shape == (0, 3)


@pytest.mark.parametrize("shape", [(3,), (2, 4), (2, 3, 2)])
def test_mean_squared_error(shape):
    rng = rng_of(8)
    x, target, dloss = rng.standard_normal(shape), rng.standard_normal(shape), rng.standard_normal(shape[0])
    loss = R.mean_squared_error(x, target)
    np.testing.assert_allclose(
        loss, [((a - b) ** 2).mean() for a, b in zip(x, target, strict=True)], rtol=1e-14
    )
    dx = R.mean_squared_error_backward(dloss, x, target)
    assert_gradient(dx, lambda v: R.mean_squared_error(v, target), x, dloss)


# ---------------------------------------------------------------------------------------- batch normalisation


@pytest.mark.parametrize("shape", [(5, 3), (2, 3, 2, 4), (1, 2)])
def test_batch_norm(shape):
    rng = rng_of(9)
    x, gamma, beta = (rng.standard_normal(s) for s in (shape, shape[-1:], shape[-1:]))
    y, mean, var = R.batch_norm(x, gamma, beta, epsilon=0.1)
    rows = x.reshape(-1, shape[-1])
    np.testing.assert_allclose(mean, rows.mean(axis=0), atol=1e-15)
    np.testing.assert_allclose(var, rows.var(axis=0), atol=1e-15)  # biased
    np.testing.assert_allclose(y, gamma * (x - mean) / np.sqrt(var + 0.1) + beta, atol=1e-14)
    np.testing.assert_array_equal(y, R.batch_norm_inference(x, gamma, beta, mean, var, epsilon=0.1))
    dy = rng.standard_normal(shape)
    dx, dgamma, dbeta = R.batch_norm_backward(dy, x, gamma, mean, var, epsilon=0.1)
    assert_gradient(dx, lambda v: R.batch_norm(v, gamma, beta, epsilon=0.1)[0], x, dy)
    assert_gradient(dgamma, lambda v: R.batch_norm(x, v, beta, epsilon=0.1)[0], gamma, dy)
    assert_gradient(dbeta, lambda v: R.batch_norm(x, gamma, v, epsilon=0.1)[0], beta, dy)


def test_batch_norm_of_an_empty_batch():
    with pytest.raises(ValueError, match=r"\(0, 3\)"):
        R.batch_norm(np.empty((0, 3)), np.ones(3), np.ones(3))
    dx, dgamma, dbeta = R.batch_norm_backward(np.empty((0, 3)), np.empty((0, 3)), *np.ones((3, 3)))
    assert dx.shape == (0, 3)
    np.testing.assert_array_equal([dgamma, dbeta], np.zeros((2, 3)))


# ------------------------------------------------------------------------------------------------- optimizers


def test_sgd_by_hand():
    w, g = np.array([1.0]), np.array([2.0])
    R.sgd_step([w], [g], None, learning_rate=0.1)
    assert w.item() == pytest.approx(0.8)
    v = np.array([-1.0])
    R.sgd_step([w], [g], [v], learning_rate=0.1, momentum=0.5)  # v = -0.5 - 0.2
    assert (w.item(), v.item()) == pytest.approx((0.1, -0.7))
    R.sgd_step([w], [g], [v], learning_rate=0.1, momentum=0.5, nesterov=True)  # v = -0.55, w += -0.275 - 0.2
    assert (w.item(), v.item()) == pytest.approx((-0.375, -0.55))
    R.sgd_step([w], [g], None, learning_rate=0.1, weight_decay=0.5)  # w = -0.375 * 0.95 - 0.2
    assert w.item() == pytest.approx(-0.55625)


def test_adam_by_hand():
    w, m, v = np.array([1.0]), np.zeros(1), np.zeros(1)
    how = {"learning_rate": 0.1, "beta_1": 0.9, "beta_2": 0.99, "epsilon": 0.5}
    R.adam_step([w], [np.array([3.0])], [m], [v], step=1, **how)
    # m = 0.3, v = 0.09, rate = 0.1 * sqrt(0.01) / 0.1 = 0.1
    assert (m.item(), v.item()) == pytest.approx((0.3, 0.09))
    assert w.item() == pytest.approx(1 - 0.1 * 0.3 / (0.3 + 0.5))
    before = w.item()
    R.adam_step([w], [np.array([-1.0])], [m], [v], step=2, weight_decay=0.2, **how)
    assert (m.item(), v.item()) == pytest.approx((0.17, 0.0991))
    rate = 0.1 * math.sqrt(1 - 0.99**2) / (1 - 0.9**2)
    assert w.item() == pytest.approx(before * 0.98 - rate * 0.17 / (math.sqrt(0.0991) + 0.5))


def test_optimizers_update_every_array_in_place():
    rng = rng_of(10)
    ws, gs = (
        [rng.standard_normal(s) for s in ((2, 3), (3,))],
        [rng.standard_normal(s) for s in ((2, 3), (3,))],
    )
    slots = [[np.zeros_like(w) for w in ws] for _ in range(2)]
    kept, before = list(ws), [w.copy() for w in ws]
    R.adam_step(ws, gs, *slots, step=1, learning_rate=0.01)
    assert all(a is b for a, b in zip(ws, kept, strict=True))
    for w, old, g in zip(ws, before, gs, strict=True):  # the first step of Adam is the gradient's sign
        np.testing.assert_allclose(old - w, 0.01 * np.sign(g), rtol=1e-3)


def test_float32_and_integers_come_back_as_float64():
    x = np.arange(4, dtype=np.float32).reshape(1, 2, 2, 1)
    for y in (
        R.relu(x),
        R.conv2d(x, np.ones((1, 1, 1, 1), np.int8)),
        R.avg_pool2d(x, 2),
        R.max_pool2d(x, 2)[0],
    ):
        assert y.dtype == np.float64
