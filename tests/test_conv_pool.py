from __future__ import annotations

import re

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
    floats,
    integers,
    mma_rounding,
    rounding,
)

POOL = ("window", "pool_stride", "pool_padding")
# x (N, H, W, C), w (KH, KW, K), then the options: window, and those that are not the default
CASES = {
    "tutorial-first": ((2, 32, 32, 3), (3, 3, 32), {"window": 2}),
    "tutorial-second": ((3, 15, 15, 32), (3, 3, 64), {"window": 2}),
    "one-pixel": ((1, 1, 1, 1), (1, 1, 1), {"window": 1}),
    "window-1": ((2, 6, 7, 5), (3, 3, 9), {"window": 1}),
    "same": ((2, 8, 9, 17), (3, 3, 33), {"window": 2, "padding": "same"}),
    "same-everywhere": ((2, 9, 7, 3), (3, 3, 5), {"window": 2, "padding": "same", "pool_padding": "same"}),
    "overlapping": ((2, 11, 10, 4), (3, 3, 7), {"window": 3, "pool_stride": 2, "padding": 1}),
    "overlapping-by-one": ((1, 9, 9, 3), (2, 2, 5), {"window": (3, 2), "pool_stride": 1}),
    "gaps": ((2, 16, 15, 3), (3, 3, 4), {"window": 2, "pool_stride": (3, 5)}),
    "stride": ((2, 15, 17, 3), (3, 3, 8), {"window": 2, "stride": 2, "padding": "same"}),
    "dilation": ((2, 13, 12, 3), (3, 2, 6), {"window": 2, "dilation": (2, 3), "padding": 2}),
    "pool-padding": (
        (1, 9, 8, 2),
        (2, 2, 31),
        {"window": (3, 4), "pool_stride": (2, 3), "pool_padding": ((1, 0), (2, 1))},
    ),
    "padding-beyond-the-kernel": (
        (1, 4, 4, 2),
        (2, 2, 3),
        {"window": 2, "padding": ((4, 5), (6, 0))},
    ),
    "whole-map": ((2, 10, 9, 3), (3, 3, 5), {"window": (8, 7)}),
    "largest-window": ((1, 18, 16, 1), (2, 2, 2), {"window": (17, 15)}),
    "long-rows": ((1, 2, 500, 2), (1, 3, 3), {"window": (1, 2)}),
    "many-channels": ((1, 6, 6, 130), (3, 3, 70), {"window": 2, "padding": "same"}),
    "bands-of-patches": (
        (1, 35, 9, 24),
        (3, 3, 17),
        {"window": 2, "pool_stride": 1, "padding": ((0, 2), (1, 3)), "pool_padding": ((1, 0), (0, 1))},
    ),
    "small-maps": ((41, 5, 6, 24), (3, 3, 40), {"window": 2, "padding": "same"}),
    "small-photos": ((37, 6, 5, 3), (3, 3, 20), {"window": 2, "padding": "same"}),
    "long-taps": ((1, 5, 9, 70), (2, 3, 20), {"window": 2}),
    "photo": ((2, 19, 20, 3), (3, 3, 33), {"window": 2}),
    "photo-wide": ((2, 12, 46, 3), (3, 3, 8), {"window": 2}),  # runs of windows begin amid a row
    "photo-stride": ((2, 21, 23, 3), (3, 3, 8), {"window": (3, 2), "stride": 2}),
    "photo-dilated": ((2, 17, 18, 2), (3, 2, 9), {"window": 2, "dilation": (1, 2)}),
    "photo-same": ((2, 21, 18, 3), (3, 3, 33), {"window": 2, "padding": "same"}),
    "photo-padded-pool": (
        (3, 13, 11, 3),
        (2, 3, 17),
        {"window": 3, "pool_stride": 2, "pool_padding": "same"},
    ),
    "four-channels": ((2, 9, 12, 4), (2, 2, 8), {"window": (2, 3)}),
    "empty-batch": ((0, 5, 5, 3), (3, 3, 4), {"window": 2}),
}
cases = pytest.mark.parametrize("case", CASES)


def make(case, make_array, rng, dtype=np.float32):
    x_shape, (kh, kw, k), options = CASES[case]
    w_shape = (kh, kw, x_shape[3], k)
    return *(make_array(rng, shape, dtype) for shape in (x_shape, w_shape, (k,))), options


def split(options):
    """Arguments of the pool, and of the convolution."""
    pool = [options.get(name, default) for name, default in zip(POOL, (None, None, "valid"), strict=True)]
    return pool, {key: value for key, value in options.items() if key not in POOL}


def check_exactly(rng, x, w, b, options, dtype=np.float32):
    for relu in (False, True):
        y, argmax = ops.conv2d_max_pool2d(x, w, b, relu=relu, **options)
        expected, where = reference.conv2d_max_pool2d(x, w, b, relu=relu, **options)
        assert_identical(y, expected)
        assert_identical(argmax, where)
        assert argmax.dtype == np.uint8
        dy = integers(rng, y.shape, dtype)
        assert_identical(
            ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **options),
            reference.conv2d_max_pool2d_backward_x(dy, where, w, x.shape, **options),
        )
        gradients = ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **options)
        truth = reference.conv2d_max_pool2d_backward_w(dy, where, x, w.shape, **options)
        for actual, wanted in zip(gradients, truth, strict=True):
            assert_identical(actual, wanted)


@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_exact_on_integers(backend, rng, case, dtype):
    x, w, b, options = make(case, integers, rng, dtype)
    check_exactly(rng, x, w, b, options, dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_forward_has_the_bits_of_the_separate_ops(backend, rng, case, dtype):
    x, w, b, options = make(case, floats, rng, dtype)
    pool, conv = split(options)
    for relu in (False, True):
        y, argmax = ops.conv2d_max_pool2d(x, w, b, relu=relu, **options)
        apart, where = ops.max_pool2d(ops.conv2d(x, w, b, relu=relu, **conv), *pool)
        assert_same_bits(y, apart)
        assert_identical(argmax, np.where(apart > 0, where, reference.NO_GRADIENT) if relu else where)


@cases
def test_backward_within_rounding(backend, rng, case):
    x, w, b, options = make(case, floats, rng)
    for precision in backend.precisions:
        here = {**options, "precision": precision}
        y, argmax = ops.conv2d_max_pool2d(x, w, b, relu=True, **here)
        dy = floats(rng, y.shape)
        terms = w[:, :, 0].size * (1 + argmax.size // max(y.shape[0] * y.shape[3], 1))
        truth = reference.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **here)
        magnitude = reference.conv2d_max_pool2d_backward_x(abs(dy), argmax, abs(w), x.shape, **here)
        dx = ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **here)
        assert_within(dx, truth, mma_rounding(terms, precision, magnitude))
        terms = max(argmax[..., 0].size, 1)
        truth = reference.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **here)
        magnitude = reference.conv2d_max_pool2d_backward_w(abs(dy), argmax, abs(x), w.shape, **here)
        dw, db = ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **here)
        assert_within(dw, truth[0], mma_rounding(terms, precision, magnitude[0]))
        assert_within(db, truth[1], rounding(terms, np.float32, magnitude[1]))


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=120)
@given(
    n=st.integers(0, 3),
    size=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    c=st.sampled_from([1, 2, 3, 5, 7, 16, 31, 33]),
    k=st.sampled_from([1, 2, 3, 5, 7, 16, 31, 33, 65]),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padding=st.sampled_from(["valid", "same"]) | st.tuples(sides, sides),
    window=pairs,
    pool_stride=st.none() | pairs,
    pool_padding=st.sampled_from(["valid", "same"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_any_geometry(backend, n, size, c, k, kernel, seed, **options):
    rng = np.random.default_rng(seed)
    x, w, b = integers(rng, (n, *size, c)), integers(rng, (*kernel, c, k)), integers(rng, k)
    pool, conv = split(options)
    try:
        ops.max_pool2d(ops.conv2d(x, w, b, **conv), *pool)
    except ValueError as refusal:
        with pytest.raises(ValueError, match=re.escape(str(refusal))):
            ops.conv2d_max_pool2d(x, w, b, **options)
        return
    check_exactly(rng, x, w, b, options)


@pytest.mark.parametrize("name", ["tutorial-second", "overlapping", "same", "many-channels", "small-maps"])
def test_same_bits_under_every_schedule(each_schedule, backend, rng, name):
    x, w, b, options = make(name, floats, rng)

    def run():
        y, argmax = ops.conv2d_max_pool2d(x, w, b, relu=True, **options)
        dy = np.cos(np.arange(y.size)).astype(np.float32).reshape(y.shape)
        dx = ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **options)
        return y, argmax, dx, *ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **options)

    first, *others = each_schedule(run)
    for other in others:
        for one, two in zip(first, other, strict=True):
            assert_same_bits(one, two)


@pytest.mark.parametrize("channels", [1, 3, 8, 16, 17, 33])
def test_nan_wins_and_stops_at_relu(backend, rng, channels):
    x, w = floats(rng, (1, 4, 4, 1)), np.ones((1, 1, 1, channels), np.float32)
    for at in range(4):
        x[0, at // 2, at % 2] = np.nan
        for relu in (False, True):
            y, argmax = ops.conv2d_max_pool2d(x, w, relu=relu, window=2)
            assert np.isnan(y[0, 0, 0]).all()
            assert (argmax[0, 0, 0] == (reference.NO_GRADIENT if relu else at)).all()
            assert not np.isnan(y[0, 1, 1]).any()
        x[0, at // 2, at % 2] = 0


def test_infinity_under_padding_makes_no_nan(backend):
    x, w = np.ones((1, 4, 4, 2), np.float32), np.ones((3, 3, 2, 3), np.float32)
    w[0, 0] = np.inf
    options = {"padding": "same", "window": 2}
    y, argmax = ops.conv2d_max_pool2d(x, w, **options)
    expected, where = reference.conv2d_max_pool2d(x, w, **options)
    assert_identical(y, expected)
    assert_identical(argmax, where)


def test_positions_that_are_none_are_left_out(backend, rng):
    """Whatever argmax holds, nothing is read or written outside: positions beyond the window or in padding count as none."""
    x, w, dy = floats(rng, (2, 5, 5, 3)), floats(rng, (3, 3, 3, 4)), floats(rng, (2, 2, 2, 4))
    options = {"window": 3, "pool_stride": 2, "pool_padding": 1}
    for value in (9, 100, 254, 255):
        argmax = np.full(dy.shape, value, np.uint8)
        assert not ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **options).any()
        dw, db = ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **options)
        assert not dw.any()
        assert not db.any()
    argmax = rng.integers(0, 256, dy.shape).astype(np.uint8)
    assert np.isfinite(ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **options)).all()


def test_wrong_arguments(backend, rng):
    x, w = floats(rng, (2, 20, 20, 3)), floats(rng, (3, 3, 3, 4))
    with pytest.raises(ValueError, match=r"a window of 16 x 16 has more than the 255 positions"):
        ops.conv2d_max_pool2d(x, w, window=16)
    with pytest.raises(ValueError, match=r"pool2d: kernel height 19 .* exceeds padded input height 18"):
        ops.conv2d_max_pool2d(x, w, window=19)
    with pytest.raises(ValueError, match=r"x has 3 channels but w takes 4"):
        ops.conv2d_max_pool2d(x, floats(rng, (3, 3, 4, 4)), window=2)
    y, argmax = ops.conv2d_max_pool2d(x, w, window=2)
    with pytest.raises(
        TypeError, match=r"argmax must be the uint8 array that the forward returned, got dtype\('int32'\)"
    ):
        ops.conv2d_max_pool2d_backward_x(y, argmax.astype(np.int32), w, x.shape, window=2)
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 9, 9, 4\), got \(2, 9, 8, 4\)"):
        ops.conv2d_max_pool2d_backward_w(y[:, :, 1:], argmax, x, w.shape, window=2)
    with pytest.raises(ValueError, match=r"argmax must have shape"):
        ops.conv2d_max_pool2d_backward_w(y, argmax[:, 1:], x, w.shape, window=2)
