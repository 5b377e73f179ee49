from __future__ import annotations

import itertools

import numpy as np
import pytest
from fastnn import ops, reference
from support import DTYPES, assert_same_bits, assert_within, floats, unaligned

STORED = [np.uint8, *DTYPES]


def stored(rng, shape, dtype):
    if dtype == np.uint8:
        return rng.integers(0, 256, shape, np.uint8)
    return np.asarray(100 * floats(rng, shape, dtype), dtype)


@pytest.mark.parametrize(("of", "to"), list(itertools.product(STORED, DTYPES)))
@pytest.mark.parametrize(
    "shape", [(), (0,), (1,), (17,), (3, 5), (0, 3), (3, 0), (7, 4, 4), (2, 3, 4, 5), (9, 8192)], ids=str
)
def test_rescale(backend, rng, shape, of, to):
    x, scale, offset = stored(rng, shape, of), 1 / 255, -0.3
    y = ops.rescale(x, scale, offset, dtype=np.dtype(to).name)
    assert y.dtype == to
    eps = np.finfo(to).eps
    bound = 3 * eps * (np.abs(x.astype(np.float64)) * scale + abs(offset))
    assert_within(y, reference.rescale(x, scale, offset), bound)
    if backend.name != "cuda":  # a GPU adds the offset before it rounds
        assert_same_bits(y, np.asarray(x.astype(to) * to(scale) + to(offset), to))
    assert_same_bits(ops.rescale(x, scale, dtype=to), np.asarray(x.astype(to) * to(scale), to))
    if shape and shape[0]:
        rows = rng.integers(0, shape[0], 2 * shape[0] + 1, dtype=np.int32)
        chosen = ops.rescale(x, scale, offset, rows=rows, dtype=to)
        assert_same_bits(chosen, y[rows])


@pytest.mark.parametrize("of", STORED)
def test_the_dtype_is_by_default_that_of_floats(backend, rng, of):
    x = stored(rng, (3, 4), of)
    assert_same_bits(ops.rescale(x), x.astype(np.float64 if of == np.float64 else np.float32))


@pytest.mark.parametrize("dtype", DTYPES)
def test_numbers_stay_as_they_are(backend, dtype):
    info = np.finfo(dtype)
    x = np.array(
        [0.0, -0.0, 1, -1, np.inf, -np.inf, np.nan, info.max, info.tiny, -info.smallest_subnormal], dtype
    )
    y = ops.rescale(x, rows=np.arange(len(x)))
    if backend.name == "cuda":  # arithmetic with a NaN gives one of other bits there
        y[np.isnan(y)] = np.nan
    assert_same_bits(y, x)


def test_a_batch_of_none(backend, rng):
    assert ops.rescale(stored(rng, (5, 3), np.uint8), rows=np.zeros(0, int)).shape == (0, 3)
    with pytest.raises(ValueError, match=r"rescale: row 0 at position 0 is not in \[0, 0\)"):
        ops.rescale(np.zeros((0, 3), np.float32), rows=np.zeros(1, int))


def test_arrays_of_any_order_and_address(backend, rng):
    x, rows = stored(rng, (6, 5, 4), np.float64), np.array([5, 0, 0, 3, 2])
    expected = x[rows].astype(np.float32)
    for array in (x, np.asfortranarray(x), np.repeat(x, 2, axis=1)[:, ::2], unaligned(x)):
        for chosen in (
            rows,
            rows.astype(np.uint8),
            rows.astype(">i8"),
            unaligned(rows),
            np.repeat(rows, 2)[::2],
        ):
            assert_same_bits(ops.rescale(array, rows=chosen, dtype="float32"), expected)


def test_positions_beyond_31_bits(backend):
    x = np.zeros((70_000, 32_768), np.uint8)  # pages that nobody writes to take no memory
    x[-1] = 7
    assert_same_bits(ops.rescale(x, 2, rows=np.array([69_999])), np.full((1, 32_768), 14, np.float32))


def test_wrong_arguments(backend):
    x, rows = np.ones((3, 2), np.float32), np.array([0, 2, 1])
    for bad, wrong in ((3, rows + 1), (-1, rows - 1)):
        at = wrong.tolist().index(bad)
        with pytest.raises(ValueError, match=rf"rescale: row {bad} at position {at} is not in \[0, 3\)"):
            ops.rescale(x, rows=wrong)
    with pytest.raises(ValueError, match=r"rows from 0 to 4294967296 are not all in \[0, 3\)"):
        ops.rescale(x, rows=rows * 2**31)
    with pytest.raises(
        TypeError, match=r"rescale: rows must be an array of integers, got dtype\('float32'\)"
    ):
        ops.rescale(x, rows=x)
    with pytest.raises(TypeError, match="rescale: rows must be an array of integers, got list"):
        ops.rescale(x, rows=[0])
    with pytest.raises(
        ValueError, match=r"rows must have shape \(B,\), x \(N, \.\.\.\), got \(1, 3\) and \(3, 2\)"
    ):
        ops.rescale(x, rows=rows[None])
    with pytest.raises(ValueError, match=r"rows must have shape .* got \(3,\) and \(\)"):
        ops.rescale(np.ones((), np.float32), rows=rows)
    for other in (np.int64, bool, np.float16, ">f4"):
        with pytest.raises(
            TypeError, match="rescale: x must be uint8, float32 or float64 in native byte order, got"
        ):
            ops.rescale(x.astype(other))
    with pytest.raises(TypeError, match="rescale: dtype must be 'float32' or 'float64', got 'int32'"):
        ops.rescale(x, dtype="int32")
    with pytest.raises(TypeError, match="x must be a NumPy or CuPy array, got list"):
        ops.rescale([1.0])
