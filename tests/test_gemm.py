from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from fastnn import ops, reference
from hypothesis import assume, given
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

# 0, 1, around the register tile's 6 or 12 rows and 8 to 32 columns, primes, and beyond one item of rows
SIZES = [
    (0, 3, 2),
    (3, 0, 2),
    (3, 4, 0),
    (1, 1, 1),
    (5, 7, 3),
    (6, 16, 5),
    (7, 17, 6),
    (12, 32, 8),
    (13, 33, 9),
    (31, 10, 64),
    (97, 65, 31),
    (131, 40, 70),
]

# What a GPU cuts into several blocks or slices of k: few columns, small results of long sums, and more than 128 large tiles
BLOCKED = [(300, 10, 40), (130, 31, 1030), (129, 65, 260), (10, 10, 4099), (5, 33, 300), (1409, 1301, 17)]


def operands(make, rng, m, n, k, dtype, transpose_a=False, transpose_b=False):
    return (
        make(rng, (k, m) if transpose_a else (m, k), dtype),
        make(rng, (n, k) if transpose_b else (k, n), dtype),
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_gemm_is_exact_on_integers(backend, rng, m, n, k, transpose_a, transpose_b, dtype):
    a, b = operands(integers, rng, m, n, k, dtype, transpose_a, transpose_b)
    c, bias = integers(rng, (m, n), dtype), integers(rng, n, dtype)
    options = {
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        "alpha": 2.0,
        "beta": -3.0,
        "bias": bias,
    }
    for relu in (False, True):
        assert_identical(
            ops.gemm(a, b, c, relu=relu, **options), reference.gemm(a, b, c, relu=relu, **options)
        )
    dy = integers(rng, (m, n), dtype)
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b, "alpha": 0.5}
    for actual, expected in zip(
        ops.gemm_backward(dy, a, b, **options), reference.gemm_backward(dy, a, b, **options), strict=True
    ):
        assert_identical(actual, expected)


@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), BLOCKED)
def test_gemm_in_blocks(backend, rng, m, n, k, transposes):
    """Small integers are exact in every precision."""
    transpose_a, transpose_b = transposes
    a, b = operands(integers, rng, m, n, k, np.float32, transpose_a, transpose_b)
    c, bias = integers(rng, (m, n)), integers(rng, n)
    options = {
        "transpose_a": transpose_a,
        "transpose_b": transpose_b,
        "alpha": 2.0,
        "beta": -1.0,
        "bias": bias,
        "relu": True,
    }
    for precision in backend.precisions:
        assert_identical(
            ops.gemm(a, b, c, precision=precision, **options), reference.gemm(a, b, c, **options)
        )


# What a CPU adds up in blocks of k, and rows that it packs side by side, for many columns and wherever a is transposed; rows
# 4 KiB apart, 1024 floats or 512 doubles, would share a set of the cache
DEEP = [
    (5, 3, 2047),
    (5, 3, 2048),
    (13, 17, 2049),
    (100, 40, 3073),
    (12, 256, 1024),
    (97, 257, 512),
    (1024, 257, 13),
    (45, 290, 1100),
]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), DEEP)
def test_gemm_of_long_sums_and_page_long_rows(on_host, rng, m, n, k, transposes, dtype):
    transpose_a, transpose_b = transposes
    a, b = operands(integers, rng, m, n, k, dtype, transpose_a, transpose_b)
    c, bias = integers(rng, (m, n), dtype), integers(rng, n, dtype)
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b, "alpha": 2.0, "bias": bias}
    with on_host("cpu"):
        for beta, relu in [(0.0, False), (-3.0, True)]:
            assert_identical(
                ops.gemm(a, b, c, beta=beta, relu=relu, **options),
                reference.gemm(a, b, c, beta=beta, relu=relu, **options),
            )


def test_chunks_are_largest_where_b_fills_the_caches(on_host, rng):
    """A chunk of rows has 16 tiles at the most: 448 rows are two such chunks of AVX-512's or NEON's 14 rows."""
    a, b = operands(integers, rng, 448, 1000, 1100, np.float32)
    with on_host("cpu"):
        assert_identical(ops.gemm(a, b), reference.gemm(a, b))


@pytest.mark.parametrize("transpose_a", [False, True])
@pytest.mark.parametrize(("m", "k"), [(30, 1024), (1024, 30), (30, 3000)])
def test_blocks_and_packing_change_no_bits(on_host, rng, m, k, transpose_a):
    """A sum is one chain in the order of k: the same bits where a few columns are asked for, or a few rows."""
    a, b = floats(rng, (m, k)), floats(rng, (k, 300))
    with on_host("cpu"):
        whole = ops.gemm(a.T if transpose_a else a, b, transpose_a=transpose_a)
        part = ops.gemm(a[:7].T if transpose_a else a[:7], b[:, :9], transpose_a=transpose_a)
    assert_same_bits(whole[:7, :9].copy(), part)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 6, 7, 8])
@pytest.mark.parametrize("k", [15, 16, 129, 3000])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_few_columns(backend, rng, each_schedule, n, k, dtype):
    """They are dot products, summed in another order: the same bits for any rows beside a row, and any number of threads."""
    a, b = operands(integers, rng, 67, n, k, dtype)
    c, bias = integers(rng, (67, n), dtype), integers(rng, (n,), dtype)
    options = {"alpha": 0.5, "beta": -2.0, "bias": bias, "relu": True}
    for transpose_b in (False, True):
        there = b.T.copy() if transpose_b else b
        assert_identical(ops.gemm(a, there, transpose_b=transpose_b), reference.gemm(a, b))
        y = ops.gemm(a, there, c, transpose_b=transpose_b, **options)
        assert_identical(y, reference.gemm(a, b, c, **options))
    a, b = floats(rng, (67, k), dtype), floats(rng, (k, n), dtype)
    whole = ops.gemm(a, b)
    assert_within(
        whole, reference.gemm(a, b), rounding(k, dtype, np.abs(a).astype(float) @ np.abs(b).astype(float))
    )
    for rows in (slice(0, 1), slice(3, 40), slice(60, 67)):
        assert_same_bits(ops.gemm(a[rows], b), whole[rows].copy())
    for y in each_schedule(partial(ops.gemm, a, b)):
        assert_same_bits(y, whole)


def test_few_columns_of_what_is_no_number(on_host):
    a = np.ones((5, 100), np.float32)
    a[0, 99], a[1, 3], a[2, 0] = np.nan, np.inf, -np.inf
    b = np.ones((100, 1), np.float32)
    with on_host("cpu"):
        assert_identical(
            ops.gemm(a, b, relu=True).ravel(), np.array([np.nan, np.inf, 0, 100, 100], np.float32)
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), [(600, 256, 90), (565, 270, 33), (601, 130, 600)])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_threads_that_pack_for_themselves(backend, rng, each_schedule, m, n, k, transposes, dtype):
    """Where b is small and rows are many; b that begins at a line of the cache may be read in place instead."""
    a, b = operands(integers, rng, m, n, k, dtype, *transposes)
    options = {"transpose_a": transposes[0], "transpose_b": transposes[1]}
    expected = reference.gemm(a, b, **options)
    memory = np.empty(b.nbytes + 128, np.uint8)
    for start in (0, 16):
        start += -memory.ctypes.data % 64
        there = memory[start : start + b.nbytes].view(dtype).reshape(b.shape)
        there[...] = b
        for y in each_schedule(partial(ops.gemm, a, there, **options)):
            assert_identical(y, expected)


# Rows of b of half a page and more: few rows of a sweep over it, some have it packed block by block where it is large. The
# terms are those of float32; of float64 half as many take as many bytes.
LONG_ROWS = [(7, 530, 260), (16, 1030, 133), (1, 1030, 520), (17, 1030, 520), (96, 1030, 520)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("transposes", [(False, False), (True, False), (False, True), (True, True)])
@pytest.mark.parametrize(("m", "n", "k"), LONG_ROWS)
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_long_rows_of_b(backend, rng, each_schedule, m, n, k, transposes, dtype):
    k = k * 4 // np.dtype(dtype).itemsize
    a, b = operands(integers, rng, m, n, k, dtype, *transposes)
    c, bias = integers(rng, (m, n), dtype), integers(rng, n, dtype)
    options = {"transpose_a": transposes[0], "transpose_b": transposes[1]}
    more = {**options, "alpha": 2.0, "beta": -3.0, "bias": bias, "relu": True}
    plain, whole = reference.gemm(a, b, **options), reference.gemm(a, b, c, **more)
    for y in each_schedule(partial(ops.gemm, a, b, **options)):
        assert_identical(y, plain)
    for y in each_schedule(partial(ops.gemm, a, b, c, **more)):
        assert_identical(y, whole)


@pytest.mark.parametrize("transpose_b", [False, True])
@pytest.mark.parametrize("backend", ["cpu"], indirect=True)
def test_any_number_of_rows_gives_the_same_bits(backend, rng, transpose_b):
    a, b = floats(rng, (120, 520)), floats(rng, (1030, 520) if transpose_b else (520, 1030))
    whole = ops.gemm(a, b, transpose_b=transpose_b)
    for m in (1, 2, 3, 4, 5, 8, 16, 17, 40, 96):
        assert_same_bits(ops.gemm(a[:m], b, transpose_b=transpose_b), whole[:m])


@given(
    m=st.integers(0, 140),
    n=st.integers(0, 70),
    k=st.integers(0, 300),
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    precision=st.sampled_from(["float32", "tf32", "bfloat16"]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gemm_precisions_within_rounding(backend, m, n, k, transpose_a, transpose_b, precision, seed):
    """Against the reference that rounds the factors and nothing else."""
    assume(precision in backend.precisions)
    rng = np.random.default_rng(seed)
    a, b = operands(floats, rng, m, n, k, np.float32, transpose_a, transpose_b)
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b, "precision": precision}
    expected, magnitude = reference.gemm(a, b, **options), reference.gemm(abs(a), abs(b), **options)
    assert_within(ops.gemm(a, b, **options), expected, mma_rounding(k, precision, magnitude))
    dy = floats(rng, (m, n))
    for actual, expected, magnitude in zip(
        ops.gemm_backward(dy, a, b, **options),
        reference.gemm_backward(dy, a, b, **options),
        reference.gemm_backward(abs(dy), abs(a), abs(b), **options),
        strict=True,
    ):
        assert_within(actual, expected, mma_rounding(max(m, n), precision, magnitude))


def test_precisions_differ(backend, rng):
    """No precision is another one in disguise: each is off by about its own epsilon."""
    a, b = floats(rng, (64, 64)), floats(rng, (64, 64))
    exact = reference.gemm(a, b)
    errors = [np.abs(ops.gemm(a, b, precision=precision) - exact).max() for precision in backend.precisions]
    assert errors[0] < 1e-4
    if len(errors) > 1:
        assert 1e-3 < errors[1] < 2e-2 < errors[2] < 2e-1


def test_precisions_that_cannot_be_had(backend, rng):
    a = floats(rng, (4, 4))
    for precision in ("float16", ""):
        with pytest.raises(ValueError, match="'float32', 'tf32', 'bfloat16' or 'winograd', got"):
            ops.gemm(a, a, precision=precision)
    for precision in ("tf32", "bfloat16"):
        with pytest.raises(TypeError, match="of float32 arrays, got float64"):
            ops.gemm(a.astype(np.float64), a.astype(np.float64), precision=precision)
        if precision not in backend.precisions:
            with pytest.raises(ValueError, match=r"the CPU computes .* need arrays on a GPU"):
                ops.gemm(a, a, precision=precision)


@given(
    m=st.integers(0, 70),
    n=st.integers(0, 70),
    k=st.integers(0, 90),
    transpose_a=st.booleans(),
    transpose_b=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    alpha=st.sampled_from([1.0, 0.0, -0.7]),
    beta=st.sampled_from([0.0, 1.0, 0.3]),
    seed=st.integers(0, 2**32 - 1),
)
def test_gemm_within_rounding(backend, m, n, k, transpose_a, transpose_b, dtype, alpha, beta, seed):
    rng = np.random.default_rng(seed)
    a, b = operands(floats, rng, m, n, k, dtype, transpose_a, transpose_b)
    c, bias = floats(rng, (m, n), dtype), floats(rng, n, dtype)
    options = {"transpose_a": transpose_a, "transpose_b": transpose_b}
    y = ops.gemm(a, b, c, alpha=alpha, beta=beta, bias=bias, **options)
    magnitude = reference.gemm(abs(a), abs(b), abs(c), alpha=abs(alpha), beta=beta, bias=abs(bias), **options)
    expected = reference.gemm(a, b, c, alpha=alpha, beta=beta, bias=bias, **options)
    assert_within(y, expected, rounding(k + 3, dtype, magnitude))


@pytest.mark.parametrize(("m", "n", "k"), SIZES)
def test_beta_zero_never_reads_c(backend, rng, m, n, k):
    a, b = operands(integers, rng, m, n, k, np.float32)
    c = np.full((m, n), np.nan, np.float32)
    assert_identical(ops.gemm(a, b, c, beta=0.0), reference.gemm(a, b))


def test_empty_inner_dimension_gives_beta_c(backend, rng):
    c = floats(rng, (4, 5))
    y = ops.gemm(np.empty((4, 0), np.float32), np.empty((0, 5), np.float32), c, beta=2.0)
    assert_identical(y, 2 * c)


@pytest.mark.parametrize("n", [1, 15, 16, 17, 31, 32, 33])
def test_nan_and_inf_stay_in_their_column(backend, rng, n):
    """Padding lanes of a packed panel are multiplied too; nothing of them may show."""
    a, b = operands(integers, rng, 13, n, 9, np.float32)
    a[3, 4] = np.inf
    b[4][b[4] == 0] = 1
    expected = ops.gemm(np.where(np.isinf(a), 0, a), b)
    expected[3] = np.copysign(np.inf, b[4])
    assert_identical(ops.gemm(a, b), expected)
    b[2, n - 1] = np.nan
    y = ops.gemm(np.ones_like(a), b)
    assert np.isnan(y[:, n - 1]).all()
    assert np.isfinite(y[:, : n - 1]).all()


@pytest.mark.parametrize("transpose_a", [False, True])
def test_rows_do_not_depend_on_the_batch(backend, rng, transpose_a):
    """A row's bits are the same alone and in any batch."""
    a, b = floats(rng, (29, 50)), floats(rng, (50, 21))
    whole = ops.gemm(a.T if transpose_a else a, b, transpose_a=transpose_a)
    for i in (0, 11, 28):
        row = a[i : i + 1]
        assert_same_bits(ops.gemm(row.T if transpose_a else row, b, transpose_a=transpose_a)[0], whole[i])


def test_same_bits_for_every_schedule(backend, rng, each_schedule):
    for m, n, k in [(300, 130, 70), (20, 30, 1000)]:
        a, b, bias = floats(rng, (m, k)), floats(rng, (k, n)), floats(rng, n)
        for precision in backend.precisions:
            first, *others = each_schedule(partial(ops.gemm, a, b, bias=bias, precision=precision))
            for other in others:
                assert_same_bits(other, first)


@pytest.mark.parametrize(
    "view",
    [
        lambda a: np.asfortranarray(a),
        lambda a: np.repeat(a, 2, axis=1)[:, ::2],
        lambda a: a[::-1].copy()[::-1],
        lambda a: np.broadcast_to(a[:1], a.shape),
        lambda a: np.lib.stride_tricks.as_strided(a[:1], (1, a.shape[1]), (12345 * 4, a.strides[1])),
    ],
    ids=["fortran", "sliced", "reversed", "broadcast", "size-one-odd-stride"],
)
def test_any_strides(backend, rng, view):
    a, b = view(integers(rng, (9, 11))), integers(rng, (11, 5))
    assert_identical(ops.gemm(a, b), reference.gemm(a, b))
    assert_identical(
        ops.gemm(b, a, transpose_a=True, transpose_b=True),
        reference.gemm(b, a, transpose_a=True, transpose_b=True),
    )


def test_bias_backward(backend, rng):
    for shape in [(0, 3), (1, 1), (5, 33), (2, 7, 5, 3), (40, 9, 9, 10)]:
        dy = integers(rng, shape)
        assert_identical(ops.bias_backward(dy), reference.bias_backward(dy))


def test_bias_backward_of_many_ones(backend):
    assert_identical(ops.bias_backward(np.ones((1600, 2), np.float32)), np.full(2, 1600))
    assert_identical(
        ops.bias_backward(np.ones((2**25 + 1, 1), np.float32)), np.full(1, 2**25)
    )  # the nearest float32


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda f: ops.gemm(f((2, 3)), f((4, 5))),
            ValueError,
            "inner dimensions differ: a \\(2, 3\\) has 3 columns, b \\(4, 5\\) has 4 rows",
        ),
        (lambda f: ops.gemm(f((2, 3, 1)), f((3, 5))), ValueError, "a must have 2 dimensions"),
        (lambda f: ops.gemm(f((2, 3)), f((3, 5)), beta=1.0), ValueError, "no c"),
        (
            lambda f: ops.gemm(f((2, 3)), f((3, 5)), f((2, 4)), beta=1.0),
            ValueError,
            "c must have shape \\(2, 5\\), got \\(2, 4\\)",
        ),
        (
            lambda f: ops.gemm(f((2, 3)), f((3, 5)), bias=f(4)),
            ValueError,
            "bias must have shape \\(5,\\), got \\(4,\\)",
        ),
        (
            lambda f: ops.gemm(f((2, 3)), f((3, 5)).astype(np.float64)),
            TypeError,
            "b is float64 but a is float32",
        ),
        (
            lambda f: ops.gemm(f((2, 3)), f((3, 5)), out=f((2, 4))),
            ValueError,
            "out must have shape \\(2, 5\\), got \\(2, 4\\)",
        ),
        (lambda f: ops.gemm([[1.0]], f((1, 1))), TypeError, "a must be a NumPy or CuPy array, got list"),
        (lambda f: ops.gemm(f((1, 1)), [[1.0]]), TypeError, "b must be an array, got list"),
        (lambda f: ops.bias_backward(np.array(1, np.float32)), ValueError, "no channels"),
    ],
)
def test_wrong_arguments(backend, call, error, message):
    with pytest.raises(error, match=message):
        call(lambda shape: np.ones(shape, np.float32))
