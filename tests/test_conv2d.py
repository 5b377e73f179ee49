from __future__ import annotations

import re

import numpy as np
import pytest
from fastnn import ops, reference
from hypothesis import assume, given, settings
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

# x (N, H, W, C), w (KH, KW, K), then the options that are not the default
CASES = {
    "tutorial-first": ((2, 32, 32, 3), (3, 3, 32), {}),
    "tutorial-second": ((2, 15, 15, 32), (3, 3, 64), {}),
    "one-pixel": ((1, 1, 1, 1), (1, 1, 1), {}),
    "pointwise": ((3, 5, 7, 17), (1, 1, 33), {}),
    "same": ((2, 9, 8, 5), (3, 3, 7), {"padding": "same"}),
    "same-stride-2-odd": ((2, 9, 7, 3), (3, 3, 5), {"padding": "same", "stride": 2}),
    "same-stride-2-even": ((2, 8, 6, 3), (3, 3, 5), {"padding": "same", "stride": 2}),
    "same-even-kernel": ((1, 8, 9, 2), (4, 2, 3), {"padding": "same", "stride": (1, 2)}),
    "dilation": ((2, 11, 10, 3), (3, 2, 4), {"dilation": (2, 3)}),
    "dilation-same": ((2, 11, 10, 3), (3, 3, 4), {"dilation": 2, "padding": "same"}),
    "stride-and-dilation": ((1, 13, 14, 2), (3, 3, 5), {"stride": (3, 2), "dilation": (2, 4), "padding": 3}),
    "stride-does-not-divide": ((2, 10, 9, 3), (3, 3, 31), {"stride": 4}),
    "kernel-smaller-than-stride": ((2, 10, 10, 3), (2, 2, 4), {"stride": 3}),
    "four-sides": ((2, 6, 5, 1), (3, 4, 2), {"padding": ((0, 2), (3, 1))}),
    "padding-beyond-the-kernel": ((1, 3, 3, 2), (2, 2, 3), {"padding": ((4, 5), (6, 0))}),
    "kernel-as-large-as-the-image": ((3, 5, 4, 7), (5, 4, 6), {}),
    "kernel-larger-than-the-image": ((2, 3, 2, 3), (5, 5, 4), {"padding": 2}),
    "wide": ((1, 2, 97, 2), (1, 9, 3), {}),
    "empty-batch": ((0, 5, 5, 3), (3, 3, 4), {"padding": "same"}),
    "many-channels": ((1, 4, 4, 130), (3, 3, 70), {"padding": 1}),
    "many-pixels": ((2, 91, 91, 4), (2, 2, 36), {"padding": "same"}),
    # CUDA kernels have a bit for each row and each column of a filter, 31 in all, and another way beyond
    "as-many-taps-as-bits": ((1, 18, 17, 3), (16, 15, 4), {"padding": 1}),
    "more-taps-than-bits": ((2, 18, 16, 4), (17, 15, 8), {"padding": (2, 3)}),
    "more-columns-than-bits": ((2, 5, 40, 2), (2, 33, 3), {"padding": "same", "stride": (2, 3)}),
    # on the CPU, input gradients of few channels add the taps of each output pixel to dx, a block of pixels at a time
    "few-channels": ((2, 14, 13, 3), (3, 3, 37), {"padding": "same"}),
    "few-channels-in-bands": ((1, 40, 9, 1), (5, 3, 16), {"padding": ((2, 0), (0, 1))}),
    "few-channels-in-blocks": ((1, 5, 131, 2), (2, 4, 19), {"padding": 1, "stride": (1, 2)}),
    "few-channels-dilated": ((2, 19, 20, 3), (3, 4, 24), {"dilation": (2, 3), "padding": (1, 4)}),
    "few-channels-and-gaps": ((2, 21, 23, 2), (2, 2, 33), {"stride": (5, 4), "dilation": (2, 1)}),
    "few-channels-many-taps": ((1, 24, 25, 4), (11, 11, 20), {"padding": 5, "stride": 2}),
    "enough-channels": ((2, 8, 9, 20), (3, 3, 32), {"padding": "same"}),
    "stride-2-in-vectors": ((2, 9, 10, 8), (3, 3, 16), {"padding": 1, "stride": 2}),
    "stride-3-in-vectors": ((2, 10, 9, 4), (4, 2, 8), {"padding": 1, "stride": 3, "dilation": (1, 2)}),
}
cases = pytest.mark.parametrize("case", CASES)


def make(case, make_array, rng, dtype=np.float32):
    x_shape, (kh, kw, k), options = CASES[case]
    x, w, b = (
        make_array(rng, x_shape, dtype),
        make_array(rng, (kh, kw, x_shape[3], k), dtype),
        make_array(rng, k, dtype),
    )
    return x, w, b, options


@pytest.mark.parametrize("dtype", DTYPES)
@cases
def test_exact_on_integers(backend, rng, case, dtype):
    x, w, b, options = make(case, integers, rng, dtype)
    for relu in (False, True):
        assert_identical(
            ops.conv2d(x, w, b, relu=relu, **options), reference.conv2d(x, w, b, relu=relu, **options)
        )
    y = ops.conv2d(x, w, **options)
    assert_identical(y, reference.conv2d(x, w, **options))
    dy = integers(rng, y.shape, dtype)
    assert_identical(
        ops.conv2d_backward_x(dy, w, x.shape, **options),
        reference.conv2d_backward_x(dy, w, x.shape, **options),
    )
    assert_identical(
        ops.conv2d_backward_w(dy, x, w.shape, **options),
        reference.conv2d_backward_w(dy, x, w.shape, **options),
    )


# A CPU's weight gradients sum over blocks of pixels, packed where several panels of filters or tiles of taps read them
BLOCKS = {
    "filters": ((1, 21, 19, 11), (3, 3, 150), {"padding": "same"}),
    "filters-dilated": ((2, 23, 40, 29), (2, 3, 70), {"stride": (1, 2), "dilation": (1, 2)}),
    "two-panels": ((2, 17, 18, 12), (3, 3, 64), {"padding": 1}),
    "rows-of-taps": ((3, 13, 12, 11), (3, 3, 150), {"padding": 2, "dilation": 2}),
    "rows-of-taps-apart": ((2, 23, 17, 12), (4, 3, 150), {"padding": 1, "stride": 2}),
    "long-rows": ((1, 4, 600, 12), (3, 3, 70), {"padding": 1}),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("case", BLOCKS)
def test_weight_gradients_in_blocks(on_host, rng, case, dtype):
    x_shape, (kh, kw, k), options = BLOCKS[case]
    x, w_shape = integers(rng, x_shape, dtype), (kh, kw, x_shape[3], k)
    dy = integers(rng, reference.conv2d(x, np.ones(w_shape, dtype), **options).shape, dtype)
    with on_host("cpu"):
        assert_identical(
            ops.conv2d_backward_w(dy, x, w_shape, **options),
            reference.conv2d_backward_w(dy, x, w_shape, **options),
        )


@pytest.mark.parametrize("case", BLOCKS)
def test_weight_gradients_in_blocks_have_the_same_bits_for_every_schedule(
    backend, host_only, rng, each_schedule, case
):
    x_shape, (kh, kw, k), options = BLOCKS[case]
    x, w_shape = floats(rng, x_shape), (kh, kw, x_shape[3], k)
    dy = floats(rng, reference.conv2d(x, np.ones(w_shape, x.dtype), **options).shape)
    first, *others = each_schedule(lambda: ops.conv2d_backward_w(dy, x, w_shape, **options))
    for other in others:
        assert_same_bits(other, first)


@cases
def test_precisions(backend, rng, case):
    """Integers are exact in every precision; floats come within rounding of the reference that rounds the factors."""
    x, w, b, options = make(case, integers, rng)
    fx, fw, fb, _ = make(case, floats, rng)
    for precision in backend.precisions:
        assert_identical(
            ops.conv2d(x, w, b, precision=precision, **options), reference.conv2d(x, w, b, **options)
        )
        y = ops.conv2d(fx, fw, fb, precision=precision, **options)
        f_dy = floats(rng, y.shape)
        dy = integers(rng, y.shape)
        backward = [
            (ops.conv2d_backward_x, reference.conv2d_backward_x, (dy, w), (f_dy, fw), x.shape),
            (ops.conv2d_backward_w, reference.conv2d_backward_w, (dy, x), (f_dy, fx), w.shape),
        ]
        options_here = {"precision": precision, **options}
        magnitude = reference.conv2d(abs(fx), abs(fw), abs(fb), **options_here)
        terms = w[..., 0].size + 1
        assert_within(
            y, reference.conv2d(fx, fw, fb, **options_here), mma_rounding(terms, precision, magnitude)
        )
        for op, truth, exact, rough, shape in backward:
            assert_identical(op(*exact, shape, **options_here), truth(*exact, shape, **options))
            magnitude = truth(*map(abs, rough), shape, **options_here)
            terms = w[:, :, 0].size if op is ops.conv2d_backward_x else dy[..., 0].size
            assert_within(
                op(*rough, shape, **options_here),
                truth(*rough, shape, **options_here),
                mma_rounding(terms, precision, magnitude),
            )


pairs = st.tuples(st.integers(1, 4), st.integers(1, 4))
sides = st.tuples(st.integers(0, 3), st.integers(0, 3))


@settings(max_examples=120)
@given(
    n=st.integers(0, 3),
    size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    c=st.sampled_from([1, 2, 3, 5, 7, 16, 31, 33]),
    k=st.sampled_from([1, 2, 3, 5, 7, 16, 31, 33]),
    kernel=pairs,
    stride=pairs,
    dilation=pairs,
    padding=st.sampled_from(["valid", "same"]) | st.tuples(sides, sides),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
)
def test_within_rounding(backend, n, size, c, k, kernel, stride, dilation, padding, dtype, seed):
    rng = np.random.default_rng(seed)
    options = {"stride": stride, "dilation": dilation, "padding": padding}
    x, w, b = floats(rng, (n, *size, c), dtype), floats(rng, (*kernel, c, k), dtype), floats(rng, k, dtype)
    if padding != "same":
        before = ((0, 0), (0, 0)) if padding == "valid" else padding
        extents = [(kernel[i] - 1) * dilation[i] + 1 - size[i] - sum(before[i]) for i in (0, 1)]
        assume(max(extents) <= 0)
    y = ops.conv2d(x, w, b, **options)
    terms = kernel[0] * kernel[1] * c + 1
    expected = reference.conv2d(x, w, b, **options)
    assert_within(y, expected, rounding(terms, dtype, reference.conv2d(abs(x), abs(w), abs(b), **options)))
    dy = floats(rng, y.shape, dtype)
    dx = reference.conv2d_backward_x(dy, w, x.shape, **options)
    bound = rounding(
        kernel[0] * kernel[1] * k, dtype, reference.conv2d_backward_x(abs(dy), abs(w), x.shape, **options)
    )
    assert_within(ops.conv2d_backward_x(dy, w, x.shape, **options), dx, bound)
    dw = reference.conv2d_backward_w(dy, x, w.shape, **options)
    bound = rounding(
        n * y.shape[1] * y.shape[2], dtype, reference.conv2d_backward_w(abs(dy), abs(x), w.shape, **options)
    )
    assert_within(ops.conv2d_backward_w(dy, x, w.shape, **options), dw, bound)


@cases
def test_same_bits_twice_and_for_every_schedule(backend, rng, each_schedule, case):
    x, w, b, options = make(case, floats, rng)
    dy = floats(rng, ops.conv2d(x, w, **options).shape)

    def passes():
        return (
            ops.conv2d(x, w, b, relu=True, **options),
            ops.conv2d_backward_x(dy, w, x.shape, **options),
            ops.conv2d_backward_w(dy, x, w.shape, **options),
        )

    first, *others = [*each_schedule(passes), passes()]
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


def test_images_do_not_depend_on_the_batch(backend, rng):
    x, w = floats(rng, (9, 8, 8, 5)), floats(rng, (3, 3, 5, 20))
    whole = ops.conv2d(x, w, padding="same")
    for i in range(9):
        assert_same_bits(ops.conv2d(x[i : i + 1], w, padding="same")[0], whole[i])


def test_fused_relu_has_the_bits_of_relu(backend, rng):
    x, w, b = floats(rng, (3, 9, 9, 5)), floats(rng, (3, 3, 5, 21)), floats(rng, 21)
    assert_same_bits(ops.conv2d(x, w, b, relu=True), ops.relu(ops.conv2d(x, w, b)))


def test_empty_batch_has_zero_weight_gradient(backend):
    dy, x = np.empty((0, 3, 3, 4), np.float32), np.empty((0, 5, 5, 2), np.float32)
    assert_identical(ops.conv2d_backward_w(dy, x, (3, 3, 2, 4)), np.zeros((3, 3, 2, 4)))
    assert_identical(ops.bias_backward(dy), np.zeros(4))
    assert ops.conv2d_backward_x(dy, np.ones((3, 3, 2, 4), np.float32), x.shape).shape == x.shape


def test_pixels_that_no_window_reads_get_zero(backend, rng):
    dx = ops.conv2d_backward_x(
        np.ones((1, 3, 3, 2), np.float32), np.ones((2, 2, 1, 2), np.float32), (1, 10, 10, 1), stride=3
    )
    read = np.zeros(10, bool)
    read[[0, 1, 3, 4, 6, 7]] = True
    assert_identical(dx[0, :, :, 0], np.where(np.outer(read, read), 2, 0))


@pytest.mark.parametrize("bad", [np.inf, np.nan])
def test_padding_takes_no_part(backend, bad):
    """A bad weight that only ever lies over padding leaves no trace, forward or backward."""
    x, w = np.ones((1, 1, 1, 1), np.float32), np.full((3, 3, 1, 17), bad, np.float32)
    w[1, 1] = 2
    ones = np.ones((1, 1, 1, 17), np.float32)
    for precision in backend.precisions:
        options = {"padding": "same", "precision": precision}
        assert_identical(ops.conv2d(x, w, **options), 2 * ones)
        assert_identical(ops.conv2d_backward_x(ones, w, x.shape, **options), np.full((1, 1, 1, 1), 34))
        dw = ops.conv2d_backward_w(bad * ones, x, w.shape, **options)
        assert_identical(dw[1, 1], np.full((1, 17), bad))
        dw[1, 1] = 0
        assert_identical(dw, np.zeros((3, 3, 1, 17)))


@pytest.mark.parametrize("channels", [1, 3, 16, 17, 33])
def test_nan_reaches_exactly_what_reads_it(backend, rng, channels):
    x, w = integers(rng, (1, 8, 8, 2)), integers(rng, (3, 3, 2, channels))
    x[0, 4, 5, 1] = np.nan
    y = ops.conv2d(x, w)
    reads = np.zeros((6, 6), bool)
    reads[2:5, 3:6] = True
    assert (np.isnan(y[0]).all(-1) == reads).all()
    assert (np.isnan(y[0]).any(-1) == reads).all()
    w[2, 0, 1, channels - 1] = np.nan
    y = ops.conv2d(np.ones((1, 8, 8, 2), np.float32), w)
    assert np.isnan(y[..., channels - 1]).all()
    assert np.isfinite(y[..., : channels - 1]).all()


@pytest.mark.parametrize("channels", [1, 3, 16, 33])
def test_nan_in_a_gradient_reaches_exactly_what_it_comes_from(backend, rng, channels):
    dy, w = integers(rng, (1, 8, 8, 20)), integers(rng, (3, 3, channels, 20))
    dy[0, 4, 5, 1] = np.nan
    dx = ops.conv2d_backward_x(dy, w, (1, 10, 10, channels))
    read = np.zeros((10, 10), bool)
    read[4:7, 5:8] = True
    assert (np.isnan(dx[0]) == read[..., None]).all()


VIEWS = {
    "transposed": lambda a: np.asfortranarray(a),
    "sliced": lambda a: np.repeat(a, 3, axis=2)[:, :, 1::3],
    "reversed": lambda a: a[:, ::-1].copy()[:, ::-1],
    "broadcast": lambda a: np.broadcast_to(a[:, :1], a.shape),
}


@pytest.mark.parametrize("view", VIEWS)
def test_any_strides(backend, rng, view):
    x, w, dy = (VIEWS[view](integers(rng, shape)) for shape in [(2, 6, 7, 3), (3, 3, 3, 5), (2, 4, 5, 5)])
    assert not x.flags.c_contiguous
    assert not dy.flags.c_contiguous
    assert_identical(ops.conv2d(x, w), reference.conv2d(x, w))
    assert_identical(ops.conv2d_backward_x(dy, w, x.shape), reference.conv2d_backward_x(dy, w, x.shape))
    assert_identical(ops.conv2d_backward_w(dy, x, w.shape), reference.conv2d_backward_w(dy, x, w.shape))


def test_misaligned_arrays(backend, rng):
    def misaligned(a):
        raw = np.ndarray(a.shape, a.dtype, bytearray(a.nbytes + 1), offset=1)
        raw[...] = a
        return raw

    x, w = integers(rng, (1, 6, 6, 3)), integers(rng, (3, 3, 3, 17))
    assert misaligned(x).ctypes.data % 4
    assert_identical(ops.conv2d(misaligned(x), misaligned(w)), reference.conv2d(x, w))


def test_out(backend, rng):
    x, w, b = integers(rng, (2, 6, 6, 3)), integers(rng, (3, 3, 3, 5)), integers(rng, 5)
    out = np.full((2, 4, 4, 5), np.nan, np.float32)
    assert ops.conv2d(x, w, b, out=out) is out
    assert_identical(out, reference.conv2d(x, w, b))
    dx, dw = np.full(x.shape, np.nan, np.float32), np.full(w.shape, np.nan, np.float32)
    assert ops.conv2d_backward_x(out, w, x.shape, out=dx) is dx
    assert ops.conv2d_backward_w(out, x, w.shape, out=dw) is dw
    assert_identical(dx, reference.conv2d_backward_x(out, w, x.shape))
    assert_identical(dw, reference.conv2d_backward_w(out, x, w.shape))


def read_only(a):
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("out", "error", "message"),
    [
        (
            lambda x: np.zeros((2, 4, 4, 6), np.float32),
            ValueError,
            r"out must have shape \(2, 4, 4, 5\), got \(2, 4, 4, 6\)",
        ),
        (
            lambda x: np.zeros((2, 4, 4, 5), np.float64),
            TypeError,
            "out must be dtype\\('float32'\\), got dtype\\('float64'\\)",
        ),
        (lambda x: np.zeros((2, 4, 5, 4), np.float32).swapaxes(2, 3), ValueError, "out is not C-contiguous"),
        (lambda x: read_only(np.zeros((2, 4, 4, 5), np.float32)), ValueError, "out is read-only"),
        (
            lambda x: np.ndarray((2, 4, 4, 5), np.float32, bytearray(641), offset=1),
            ValueError,
            "out is not aligned",
        ),
        (lambda x: x.reshape(-1)[:160].reshape(2, 4, 4, 5), ValueError, "out shares memory with x"),
        (lambda x: [[0.0]], TypeError, "out must be an array, got list"),
    ],
    ids=["shape", "dtype", "layout", "read-only", "misaligned", "overlap", "list"],
)
def test_unfit_out_is_refused_untouched(backend, host_only, rng, out, error, message):
    x, w = floats(rng, (2, 6, 6, 3)), floats(rng, (3, 3, 3, 5))
    target = out(x)
    before = np.array(target, copy=True)
    with pytest.raises(error, match=message):
        ops.conv2d(x, w, out=target)
    np.testing.assert_array_equal(target, before)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(5, 5, 3, 2)),
            ValueError,
            "kernel height 5 .* exceeds padded input height 4",
        ),
        (
            lambda: ops.conv2d(ones(1, 9, 4, 3), ones(3, 3, 3, 2), dilation=2),
            ValueError,
            r"kernel width 3 \(dilated: 5\) exceeds padded input width 4",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 2, 2)),
            ValueError,
            "x has 3 channels but w takes 2",
        ),
        (
            lambda: ops.conv2d(ones(4, 4, 3), ones(3, 3, 3, 2)),
            ValueError,
            r"x must have 4 dimensions \(N, H, W, C\), got shape \(4, 4, 3\)",
        ),
        (lambda: ops.conv2d(ones(1, 4, 4, 0), ones(3, 3, 0, 2)), ValueError, "no pixels or no channels"),
        (lambda: ops.conv2d(ones(1, 4, 4, 1), ones(3, 3, 1, 0)), ValueError, "w has an empty dimension"),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=0),
            ValueError,
            r"stride must be from 1 to 2147483647, got \(0, 0\)",
        ),
        (lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=(1, -1)), ValueError, "stride"),
        (lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), dilation=(0, 1)), ValueError, "dilation"),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=2**31),
            ValueError,
            "stride 2147483648 is beyond 2147483647",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), dilation=2**31 - 1),
            ValueError,
            "dilated: 4294967295",
        ),
        (lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=10**30), ValueError, "stride"),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=1.5),
            TypeError,
            "stride must be an integer, got 1.5",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), stride=(1, 1, 1)),
            ValueError,
            "stride must be an integer or two",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), padding=-1),
            ValueError,
            "padding must be from 0",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), padding="full"),
            ValueError,
            "padding .* got 'full'",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), padding=2**31 - 1),
            ValueError,
            "y of shape .* too large to address",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2), ones(3)),
            ValueError,
            r"b must have shape \(2,\), got \(3,\)",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3), ones(3, 3, 3, 2).astype(np.float64)),
            TypeError,
            "w is float64 but x is float32",
        ),
        (
            lambda: ops.conv2d(ones(1, 4, 4, 3).astype(np.int32), ones(3, 3, 3, 2)),
            TypeError,
            "x must be float32 or float64 .* got dtype\\('int32'\\)",
        ),
        (lambda: ops.conv2d(ones(1, 4, 4, 3).astype(complex), ones(3, 3, 3, 2)), TypeError, "complex128"),
        (lambda: ops.conv2d(ones(1, 4, 4, 3).astype(np.float16), ones(3, 3, 3, 2)), TypeError, "float16"),
        (
            lambda: ops.conv2d_backward_x(ones(1, 3, 2, 2), ones(3, 3, 3, 2), (1, 4, 4, 3)),
            ValueError,
            r"dy must have shape \(1, 2, 2, 2\), got \(1, 3, 2, 2\)",
        ),
        (
            lambda: ops.conv2d_backward_x(ones(1, 2, 2, 2), ones(3, 3, 3, 2), (2**40, 2**20, 2**20, 3)),
            ValueError,
            "too large to address",
        ),
        (
            lambda: ops.conv2d_backward_x(ones(1, 2, 2, 2), ones(3, 3, 3, 2), (-1, 4, 4, 3)),
            ValueError,
            "negative dimension",
        ),
        (
            lambda: ops.conv2d_backward_x(ones(1, 2, 2, 2), ones(3, 3, 3, 2), 4),
            TypeError,
            "x_shape must be a tuple",
        ),
        (
            lambda: ops.conv2d_backward_w(ones(1, 2, 2, 2), ones(1, 4, 4, 3), (3, 3, 3, 1)),
            ValueError,
            r"dy must have shape \(1, 2, 2, 1\)",
        ),
        (
            lambda: ops.conv2d_backward_w(ones(1, 2, 2, 2), ones(1, 4, 4, 3), (3, 3, 3)),
            ValueError,
            "w must have 4 dimensions",
        ),
    ],
)
def test_wrong_arguments(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()


@pytest.mark.parametrize("dtype", [">f4", "O"])
def test_types_that_a_gpu_cannot_have(host_only, dtype):
    with pytest.raises(TypeError, match=re.escape(f"got dtype('{dtype}')")):
        ops.conv2d(ones(1, 4, 4, 3).astype(dtype), ones(3, 3, 3, 2))
