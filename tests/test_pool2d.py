from __future__ import annotations

import numpy as np
import pytest
from fastnn import ops, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from support import (
    DTYPES,
    assert_identical,
    assert_same_bits,
    assert_within,
    distinct,
    floats,
    integers,
    rounding,
    unaligned,
)

# x (N, H, W, C), window, stride, padding
CASES = {
    "tutorial": ((2, 30, 30, 32), 2, None, "valid"),
    "odd-leftover": ((2, 13, 13, 64), 2, None, "valid"),
    "one-pixel": ((1, 1, 1, 1), 1, 1, "valid"),
    "non-square": ((1, 7, 5, 1), (3, 2), (2, 1), "valid"),
    "overlapping": ((2, 9, 8, 3), 3, 1, "valid"),
    "overlapping-same": ((2, 9, 8, 17), 3, 2, "same"),
    "same-even": ((1, 7, 7, 5), 2, 2, "same"),
    "gaps": ((2, 11, 10, 7), 2, 4, "valid"),
    "gaps-and-padding": ((2, 11, 13, 37), (2, 3), (3, 4), ((1, 0), (1, 1))),
    "no-overlap-across-only": ((1, 7, 11, 53), (3, 2), (2, 3), "same"),
    "four-sides": ((1, 6, 7, 33), (3, 4), (2, 3), ((1, 0), (2, 1))),
    "whole-image": ((3, 4, 6, 31), (4, 6), None, "valid"),
    "empty-batch": ((0, 4, 4, 3), 2, None, "valid"),
}
cases = pytest.mark.parametrize("case", CASES)
dtypes = pytest.mark.parametrize("dtype", DTYPES)


@dtypes
@cases
def test_max_pool2d(backend, rng, case, dtype):
    shape, *options = CASES[case]
    x = distinct(rng, shape, dtype)
    y, argmax = ops.max_pool2d(x, *options)
    expected, where = reference.max_pool2d(x, *options)
    assert_identical(y, expected)  # a maximum is exact: no tolerance
    assert_identical(argmax, where)
    assert argmax.dtype == np.int32
    dy = integers(rng, y.shape, dtype)
    assert_identical(
        ops.max_pool2d_backward(dy, argmax, shape, *options),
        reference.max_pool2d_backward(dy, where, shape, *options),
    )


@dtypes
@cases
def test_avg_pool2d(backend, rng, case, dtype):
    shape, *options = CASES[case]
    x = floats(rng, shape, dtype)
    y = ops.avg_pool2d(x, *options)
    window = np.prod(options[0]) if isinstance(options[0], tuple) else options[0] ** 2
    assert_within(
        y, reference.avg_pool2d(x, *options), rounding(window, dtype, reference.avg_pool2d(abs(x), *options))
    )
    dy = floats(rng, y.shape, dtype)
    bound = rounding(window, dtype, reference.avg_pool2d_backward(abs(dy), shape, *options))
    assert_within(
        ops.avg_pool2d_backward(dy, shape, *options),
        reference.avg_pool2d_backward(dy, shape, *options),
        bound,
    )


@settings(max_examples=150)
@given(
    n=st.integers(0, 3),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    c=st.sampled_from([1, 2, 3, 5, 7, 16, 31, 33]),
    window=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    stride=st.none() | st.tuples(st.integers(1, 6), st.integers(1, 6)),
    padding=st.sampled_from(["valid", "same"])
    | st.tuples(*[st.tuples(st.integers(0, 2), st.integers(0, 2))] * 2),
    ties=st.booleans(),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_geometry(backend, n, size, c, window, stride, padding, ties, seed):
    rng = np.random.default_rng(seed)
    shape = (n, *size, c)
    x = integers(rng, shape, low=0, high=3) if ties else distinct(rng, shape)
    try:
        y, argmax = ops.max_pool2d(x, window, stride, padding)
    except ValueError:
        with pytest.raises(ValueError, match="exceeds"):
            reference_or_refusal(shape, window, padding)
        return
    expected, where = reference.max_pool2d(x, window, stride, padding)
    assert_identical(y, expected)
    assert_identical(argmax, where)
    dy = integers(rng, y.shape)
    assert_identical(
        ops.max_pool2d_backward(dy, argmax, shape, window, stride, padding),
        reference.max_pool2d_backward(dy, where, shape, window, stride, padding),
    )
    count = window[0] * window[1]
    mean = reference.avg_pool2d(x, window, stride, padding)
    bound = rounding(count, np.float32, reference.avg_pool2d(abs(x), window, stride, padding))
    assert_within(ops.avg_pool2d(x, window, stride, padding), mean, bound)


def reference_or_refusal(shape, window, padding):
    """Why a geometry must be refused, said a second time."""
    sides = ((0, 0), (0, 0)) if isinstance(padding, str) else padding
    for size, extent, (before, after) in zip(shape[1:3], window, sides, strict=True):
        if max(before, after) > extent // 2:
            raise ValueError("padding exceeds half of the window")
        if padding != "same" and extent > size + before + after:
            raise ValueError("window exceeds the padded input")


@pytest.mark.parametrize("channels", [1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33])
def test_nan_wins_at_any_position_of_any_channel(backend, rng, channels):
    for position in range(6):
        for channel in {0, channels // 2, channels - 1}:
            x = integers(rng, (1, 2, 3, channels))
            x[0, position // 3, position % 3, channel] = np.nan
            y, argmax = ops.max_pool2d(x, (2, 3))
            assert np.isnan(y[0, 0, 0, channel])
            assert argmax[0, 0, 0, channel] == position
            assert np.isnan(y).sum() == 1


def test_first_of_several_nan_wins(backend):
    x = np.array([1, np.nan, np.nan, 5], np.float32).reshape(1, 2, 2, 1)
    y, argmax = ops.max_pool2d(x, 2)
    assert np.isnan(y).all()
    assert argmax.item() == 1


def test_all_minus_infinity(backend):
    x = np.full((1, 5, 5, 3), -np.inf, np.float32)
    y, argmax = ops.max_pool2d(x, 3, 2, padding=1)
    assert_identical(y, np.full((1, 3, 3, 3), -np.inf))
    # the first position of each window that is not padding
    first = [[4, 3, 3], [1, 0, 0], [1, 0, 0]]
    assert_identical(argmax[0, :, :, 0], first)
    dx = ops.max_pool2d_backward(np.ones_like(y), argmax, x.shape, 3, 2, padding=1)
    assert dx.sum() == y.size


def test_padding_never_wins(backend):
    y, _ = ops.max_pool2d(np.full((1, 2, 2, 1), -7, np.float32), 2, 1, padding=1)
    assert_identical(y, np.full((1, 3, 3, 1), -7))


def test_a_tie_goes_to_the_first_position_only(backend):
    x = np.zeros((1, 4, 4, 2), np.float32)
    y, argmax = ops.max_pool2d(x, 2)
    assert_identical(argmax, np.zeros((1, 2, 2, 2)))
    dx = ops.max_pool2d_backward(np.ones_like(y), argmax, x.shape, 2)
    expected = np.zeros((4, 4))
    expected[::2, ::2] = 1
    assert_identical(dx[0, :, :, 1], expected)


def test_overlapping_windows_accumulate(backend):
    x = np.zeros((1, 3, 3, 1), np.float32)
    x[0, 1, 1] = 9
    _, argmax = ops.max_pool2d(x, 2, 1)
    dy = np.array([1, 10, 100, 1000], np.float32).reshape(1, 2, 2, 1)
    dx = ops.max_pool2d_backward(dy, argmax, x.shape, 2, 1)
    assert dx[0, 1, 1, 0] == 1111
    assert dx.sum() == 1111


def test_average_divides_by_what_the_window_covers(backend):
    x = np.ones((1, 3, 3, 1), np.float32)
    assert_identical(ops.avg_pool2d(x, 3, 1, padding=1), np.ones((1, 3, 3, 1)))
    dx = ops.avg_pool2d_backward(np.ones((1, 2, 2, 1), np.float32), (1, 3, 3, 1), 2, padding="same")
    assert_identical(dx[0, :, :, 0], [[0.25, 0.25, 0.5], [0.25, 0.25, 0.5], [0.5, 0.5, 1]])


def test_infinity_and_nan_gradients_stay_with_their_pixel(backend):
    x = distinct(np.random.default_rng(0), (1, 4, 4, 1))
    y, argmax = ops.max_pool2d(x, 2)
    dy = np.array([np.inf, np.nan, 1, 2], np.float32).reshape(y.shape)
    dx = ops.max_pool2d_backward(dy, argmax, x.shape, 2)
    assert np.isinf(dx).sum() == 1
    assert np.isnan(dx).sum() == 1
    assert (dx == 0).sum() == 12


@cases
def test_same_bits_for_every_schedule(backend, rng, each_schedule, case):
    shape, *options = CASES[case]
    x = floats(rng, shape)
    y, argmax = ops.max_pool2d(x, *options)
    dy = floats(rng, y.shape)

    def passes():
        return (
            *ops.max_pool2d(x, *options),
            ops.max_pool2d_backward(dy, argmax, shape, *options),
            ops.avg_pool2d(x, *options),
            ops.avg_pool2d_backward(dy, shape, *options),
        )

    first, *others = each_schedule(passes)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


@pytest.mark.parametrize(
    "view",
    [lambda a: np.asfortranarray(a), lambda a: a[:, ::-1], lambda a: np.broadcast_to(a[:, :, :1], a.shape)],
)
def test_any_strides(backend, rng, view):
    x, dy = view(integers(rng, (2, 6, 8, 3))), view(integers(rng, (2, 3, 4, 3)))
    y, argmax = ops.max_pool2d(x, 2)
    assert_identical(y, reference.max_pool2d(x, 2)[0])
    for laid_out in (np.asfortranarray(argmax), unaligned(argmax)):
        assert_identical(
            ops.max_pool2d_backward(dy, laid_out, x.shape, 2),
            reference.max_pool2d_backward(dy, argmax, x.shape, 2),
        )
    assert_identical(ops.avg_pool2d(x, 2), reference.avg_pool2d(x, 2))


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize("pool", [ops.max_pool2d, ops.avg_pool2d])
@pytest.mark.parametrize(
    ("shape", "options", "message"),
    [
        ((1, 4, 4, 1), {"window": 5}, "kernel height 5 .* exceeds padded input height 4"),
        ((1, 4, 4, 1), {"window": 0}, r"window must be from 1 to 2147483647, got \(0, 0\)"),
        ((1, 4, 4, 1), {"window": 2, "stride": 0}, "stride must be from 1"),
        ((1, 4, 4, 1), {"window": 2, "stride": (1, -2)}, "stride"),
        ((1, 4, 4, 1), {"window": 2, "padding": 2}, r"padding .* exceeds half of the window \(2, 2\)"),
        ((1, 4, 4, 1), {"window": 2, "padding": -1}, "padding"),
        ((1, 4, 4, 1), {"window": (2, 2, 2)}, "window must be an integer or two"),
        ((1, 4, 4, 1), {"window": 2**40}, "beyond"),
        ((1, 0, 4, 1), {"window": 2}, "no pixels"),
        ((4, 4, 1), {"window": 2}, r"must have 4 dimensions \(N, H, W, C\)"),
    ],
)
def test_wrong_geometry(backend, pool, shape, options, message):
    with pytest.raises(ValueError, match=message):
        pool(ones(*shape), **options)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda: ops.max_pool2d(np.ones((1, 4, 4, 1), int), 2), TypeError, "int64"),
        (
            lambda: ops.max_pool2d_backward(ones(1, 2, 2, 1), ones(1, 2, 2, 1), (1, 4, 4, 1), 2),
            TypeError,
            "argmax must be the int32 array",
        ),
        (
            lambda: ops.max_pool2d_backward(ones(1, 2, 2, 1), [0], (1, 4, 4, 1), 2),
            TypeError,
            "argmax .* got list",
        ),
        (
            lambda: ops.max_pool2d_backward(
                ones(1, 3, 2, 1), np.zeros((1, 3, 2, 1), np.int32), (1, 4, 4, 1), 2
            ),
            ValueError,
            "dy must have shape",
        ),
        (
            lambda: ops.max_pool2d_backward(
                ones(1, 2, 2, 1), np.zeros((1, 2, 1, 1), np.int32), (1, 4, 4, 1), 2
            ),
            ValueError,
            "argmax must have shape",
        ),
        (lambda: ops.avg_pool2d_backward(ones(1, 2, 2, 1), (1, 4, 4), 2), ValueError, "4 dimensions"),
        (
            lambda: ops.avg_pool2d_backward(ones(1, 2, 2, 1), (1, 4, 4.0, 1), 2),
            TypeError,
            "x_shape must be an integer, got 4.0",
        ),
    ],
)
def test_wrong_arguments(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()
