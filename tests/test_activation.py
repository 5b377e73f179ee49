from __future__ import annotations

import numpy as np
import pytest
from fastnn import ops, reference
from hypothesis import given
from hypothesis import strategies as st
from support import DTYPES, assert_identical, assert_same_bits, assert_within, floats, integers

SHAPES = [(), (0,), (1,), (17,), (3, 5), (2, 3, 4, 5), (1, 2, 1, 3, 1, 2), (50_001,)]
NAMES = ["relu", "sigmoid", "tanh", "softmax"]
ULP = 8  # libm's exp and tanh are good to one or two; the rest is the few operations around them


def scale(expected, dtype):
    return ULP * np.finfo(dtype).eps * (np.abs(expected) + np.finfo(dtype).tiny)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", ["relu", "sigmoid", "tanh"])
def test_elementwise(backend, rng, name, shape, dtype):
    x = np.asarray(3 * floats(rng, shape, dtype), dtype)
    y = getattr(ops, name)(x)
    expected = getattr(reference, name)(x)
    assert y.dtype == dtype
    assert_within(y, expected, scale(expected, dtype))
    dy = np.asarray(floats(rng, shape, dtype), dtype)
    dx = getattr(ops, name + "_backward")(dy, y)
    # 1 - y and 1 - y * y lose what y was rounded by
    assert_within(dx, getattr(reference, name + "_backward")(dy, y), ULP * np.finfo(dtype).eps * np.abs(dy))


@given(
    rows=st.integers(0, 40),
    cols=st.integers(1, 70),
    dtype=st.sampled_from(DTYPES),
    spread=st.sampled_from([0.1, 3.0, 100.0, 1e4]),
    seed=st.integers(0, 2**32 - 1),
)
def test_softmax(backend, rows, cols, dtype, spread, seed):
    rng = np.random.default_rng(seed)
    x = (spread * floats(rng, (rows, cols), dtype)).astype(dtype)
    y = ops.softmax(x)
    expected = reference.softmax(x)
    # exp(d) of an exact d = x - max is good to a few ulp, and d itself is rounded by eps * |d|; the sum adds cols terms
    d = x.astype(np.float64) - x.max(-1, keepdims=True) if x.size else x
    eps = np.finfo(dtype).eps
    assert_within(y, expected, (ULP + cols + np.abs(d)) * eps * expected + np.finfo(dtype).tiny)
    dy = floats(rng, (rows, cols), dtype)
    bound = (cols + ULP) * eps * (
        np.abs(y) * (np.abs(dy) + np.abs(dy * y).sum(-1, keepdims=True))
    ) + np.finfo(dtype).tiny
    assert_within(ops.softmax_backward(dy, y), reference.softmax_backward(dy, y), bound)


def test_softmax_over_the_last_of_many_axes(backend, rng):
    x = integers(rng, (2, 3, 4, 5))
    assert_same_bits(ops.softmax(x), ops.softmax(x.reshape(24, 5)).reshape(x.shape))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("length", range(18))
def test_relu_of_nan_for_every_length_and_alignment(backend, dtype, length):
    for offset in range(8):
        x = np.full(length + offset, np.nan, dtype)[offset:]
        assert np.isnan(ops.relu(x)).all()
        x = np.full(length, -1, dtype)
        for i in range(length):
            x[i] = np.nan
            assert_identical(np.isnan(ops.relu(x)), np.arange(length) == i)
            x[i] = -1


def test_relu_special_values(backend):
    x = np.array([-np.inf, -1, -0.0, 0.0, 1e-45, 1, np.inf], np.float32)
    assert_same_bits(ops.relu(x), np.array([0, 0, 0, 0, 1e-45, 1, np.inf], np.float32))
    dy = np.full(7, 3, np.float32)
    assert_identical(ops.relu_backward(dy, ops.relu(x)), [0, 0, 0, 0, 3, 3, 3])


def test_extreme_inputs_saturate(backend):
    x = np.array([-np.inf, -1e4, 1e4, np.inf, np.nan], np.float32)
    assert_identical(ops.sigmoid(x), [0, 0, 1, 1, np.nan])
    assert_identical(ops.tanh(x), [-1, -1, 1, 1, np.nan])
    assert_identical(
        ops.softmax(np.array([[1e30, 0, -np.inf], [-np.inf, 5, 5]], np.float32)), [[1, 0, 0], [0, 0.5, 0.5]]
    )
    assert np.isnan(ops.softmax(np.array([[1, np.nan, 2]], np.float32))).all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_value_of_a_softmax_may_be_anything_anywhere(backend, dtype):
    for cols in (1, 3, 16, 37):
        here = np.eye(cols, dtype=bool)  # in each row elsewhere
        assert np.isnan(ops.softmax(np.where(here, np.nan, np.arange(cols)).astype(dtype))).all()
        for one, others in ((1e30, np.arange(cols)), (0, -np.inf)):
            assert_identical(ops.softmax(np.where(here, one, others).astype(dtype)), here)


@pytest.mark.parametrize("name", NAMES)
def test_same_bits_for_every_schedule(backend, rng, each_schedule, name):
    x, dy = floats(rng, (977, 61)), floats(rng, (977, 61))

    def passes():
        y = getattr(ops, name)(x)
        return y, getattr(ops, name + "_backward")(dy, y)

    first, *others = each_schedule(passes)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    "view", [lambda a: a.T, lambda a: a[::-1, ::2], lambda a: np.broadcast_to(a[:, :1], a.shape)]
)
def test_any_strides(backend, rng, name, view):
    x = view(floats(rng, (8, 8)))
    y = getattr(ops, name)(x)
    assert_same_bits(y, getattr(ops, name)(x.copy()))
    assert_same_bits(
        getattr(ops, name + "_backward")(x, y.T.copy().T), getattr(ops, name + "_backward")(x.copy(), y)
    )


def test_out_of_relu(backend, rng):
    x, out = floats(rng, (3, 4)), np.full((3, 4), np.nan, np.float32)
    assert ops.relu(x, out=out) is out
    assert_identical(out, np.maximum(x, 0))
    with pytest.raises(ValueError, match="out shares memory with x"):
        ops.relu(x, out=x)


@pytest.mark.parametrize("name", NAMES)
def test_wrong_arguments(backend, name):
    op, backward = getattr(ops, name), getattr(ops, name + "_backward")
    x = np.ones((2, 3), np.float32)
    with pytest.raises(TypeError, match=r"x must be float32 or float64 .* got dtype\('int64'\)"):
        op(np.ones((2, 3), np.int64))
    with pytest.raises(TypeError, match="must be a NumPy or CuPy array, got list"):
        op([1.0])
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3\), got \(3, 2\)"):
        backward(x.T, x)
    with pytest.raises(TypeError, match=r"float64 but .* float32"):
        backward(x.astype(np.float64), x)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_dropout(backend, rng, shape, dtype):
    x, keep = np.asarray(floats(rng, shape, dtype), dtype), np.asarray(rng.random(shape) < 0.7)
    for op, mask in ((ops.dropout, keep), (ops.dropout_backward, np.asarray(3 * keep, np.uint8))):
        y = op(x, mask, 0.3)
        assert y.dtype == dtype
        assert_same_bits(y, np.where(keep, x * dtype(1 / 0.7), dtype(0)))
        assert_within(y, reference.dropout(x, keep, 0.3), 2 * np.finfo(dtype).eps * np.abs(x))


def test_dropped_is_zero_whatever_it_was(backend):
    x = np.array([np.nan, np.inf, -np.inf, -1, -0.0, 2] * 2, np.float32)
    keep = np.arange(12) >= 6
    y, backwards = ops.dropout(x, keep, 0.5), ops.dropout(x[::-1], keep[::-1], 0.0)
    if backend.name == "cuda":  # arithmetic with a NaN gives one of other bits there
        for result in (y, backwards):
            result[np.isnan(result)] = np.nan
    assert_same_bits(y, np.concatenate([np.zeros(6, np.float32), x[6:] * 2]))
    assert_same_bits(backwards, np.where(keep, x, np.float32(0))[::-1])


@pytest.mark.parametrize("name", ["dropout", "dropout_backward"])
def test_wrong_arguments_of_dropout(backend, name):
    op, first = getattr(ops, name), "x" if name == "dropout" else "dy"
    x, keep = np.ones((2, 3), np.float32), np.ones((2, 3), bool)
    with pytest.raises(ValueError, match=rf"{name}: keep must have shape \(2, 3\), got \(3, 2\)"):
        op(x, keep.T, 0.5)
    with pytest.raises(TypeError, match=rf"{name}: keep must be an array of bool or uint8, got .*float32"):
        op(x, x, 0.5)
    with pytest.raises(TypeError, match=rf"{name}: keep must be an array of bool or uint8, got list"):
        op(x, [True], 0.5)
    with pytest.raises(TypeError, match=rf"{name}: {first} must be float32 or float64"):
        op(keep, keep, 0.5)
    for rate in (1, -0.1, np.nan):
        with pytest.raises(ValueError, match=rf"{name}: rate must lie in \[0, 1\), got"):
            op(x, keep, rate)


def test_softmax_needs_classes(backend):
    for shape in [(), (3, 0)]:
        with pytest.raises(ValueError, match="last axis"):
            ops.softmax(np.ones(shape, np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["sigmoid", "tanh", "softmax"])
def test_exponentials_to_the_last_digits(backend, name, dtype):
    """Relative error, from numbers that are lost beside 1 to those whose exponential is below all normal numbers."""
    x = np.concatenate(
        [np.linspace(-120, 120, 50_001), np.linspace(-2, 2, 50_001), 10.0 ** np.linspace(-30, 0, 999)]
    )
    x = np.stack([x, 0 * x], axis=1).astype(dtype)
    y, expected = getattr(ops, name)(x), getattr(reference, name)(x)
    assert_within(y, expected, 4 * np.finfo(dtype).eps * abs(expected) + np.finfo(dtype).tiny)
