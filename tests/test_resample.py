from __future__ import annotations

import itertools

import numpy as np
import pytest
from fastnn import ops, reference
from support import DTYPES, assert_same_bits, assert_within, floats, unaligned

# x, axis, taps, outputs: rows and pixels of images, of whole vectors and not; longer and shorter results; other ranks.
CASES = [
    ((2, 7, 5, 3), 1, 1, 7),
    ((2, 7, 5, 3), 2, 2, 5),
    ((3, 4, 6, 1), 2, 2, 9),
    ((3, 4, 6, 2), 2, 1, 3),
    ((2, 3, 4, 17), 2, 3, 4),
    ((2, 5, 3, 16), 1, 2, 1),
    ((4, 9), 1, 4, 33),
    ((2, 1, 3, 4, 5), 3, 2, 6),
    ((40, 33, 34, 3), 2, 2, 34),
]


def positions(rng, shape, axis, taps, outputs):
    return rng.integers(0, shape[axis], (taps, shape[0], outputs), dtype=np.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis", "taps", "outputs"), CASES)
def test_against_the_reference(backend, rng, shape, axis, taps, outputs, dtype):
    x, index = floats(rng, shape, dtype), positions(rng, shape, axis, taps, outputs)
    weights, offset = floats(rng, index.shape, dtype), floats(rng, index.shape[1:], dtype)
    for w, b in itertools.product((None, weights), (None, offset)):
        y = ops.resample(x, axis, index, w, b)
        sizes = [None if a is None else np.abs(a) for a in (w, b)]
        # A product and a sum for each tap, and the offset's.
        bound = (taps + 2) * np.finfo(dtype).eps * reference.resample(np.abs(x), axis, index, *sizes)
        assert y.dtype == dtype
        assert_within(y, reference.resample(x, axis, index, w, b), bound)
    dy = floats(rng, y.shape, dtype)
    for w in (None, weights):
        dx = ops.resample_backward(dy, axis, index, shape, w)
        ones = [None if w is None else np.abs(w)]
        # As many sums as come together there, and a product before each.
        together = reference.resample_backward(np.ones(y.shape), axis, index, shape)
        size = reference.resample_backward(np.abs(dy), axis, index, shape, *ones)
        assert_within(
            dx,
            reference.resample_backward(dy, axis, index, shape, w),
            (together + 2) * np.finfo(dtype).eps * size,
        )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("shape", "axis", "taps", "outputs"), CASES)
def test_numbers_are_rounded_one_by_one(backend, rng, shape, axis, taps, outputs, dtype):
    """Neither a sum nor its order depends on the instruction set."""
    x, index = floats(rng, shape, dtype), positions(rng, shape, axis, taps, outputs)
    weights, offset = floats(rng, index.shape, dtype), floats(rng, index.shape[1:], dtype)
    over = (slice(None), slice(None), *[None] * (len(shape) - 2))
    lines, samples = np.moveaxis(x, axis, 1), np.arange(len(x))[:, None]
    read = [lines[samples, at] for at in index]
    assert_same_bits(ops.resample(x, axis, index[:1]), np.ascontiguousarray(np.moveaxis(read[0], 1, axis)))
    if backend.name == "cuda":  # a GPU adds a product before it rounds
        return
    y = read[0] * weights[0][over]
    for part, w in zip(read[1:], weights[1:], strict=True):
        y = y + part * w[over]
    expected = np.ascontiguousarray(np.moveaxis(y + offset[over], 1, axis))
    assert_same_bits(ops.resample(x, axis, index, weights, offset), expected)


def test_a_flip_and_a_shift(backend):
    x = np.arange(24, dtype=np.float32).reshape(2, 3, 4, 1)
    back = np.arange(4)[::-1]
    index = np.stack([back, np.arange(4)])[None]
    assert_same_bits(ops.resample(x, 2, index), np.stack([x[0, :, ::-1], x[1]]))
    assert_same_bits(ops.resample_backward(x, 2, index, x.shape), np.stack([x[0, :, ::-1], x[1]]))
    halves = np.full((2, 2, 3), 0.5, np.float32)
    between = np.array([[[0, 1, 2]] * 2, [[1, 2, 3]] * 2])
    assert_same_bits(ops.resample(x, 2, between, halves), (x[:, :, :-1] + x[:, :, 1:]) / 2)


def test_what_is_not_a_number_stays_where_it_is_read(backend):
    x = np.array([[0.0, -0.0, np.nan, np.inf]], np.float32)
    y = ops.resample(x, 1, np.array([[[1, 0, 3, 1]]]))
    assert_same_bits(y, np.array([[-0.0, 0.0, np.inf, -0.0]], np.float32))
    assert np.isnan(ops.resample(x, 1, np.array([[[2]], [[0]]]), np.zeros((2, 1, 1), np.float32))).all()


@pytest.mark.parametrize("shape", [(0, 3, 4, 2), (2, 3, 4, 0), (2, 0, 4, 1)])
def test_nothing_to_read(backend, shape):
    index = np.zeros((2, shape[0], 5), np.int32)
    assert ops.resample(np.zeros(shape, np.float32), 2, index).shape == (*shape[:2], 5, shape[3])
    none = np.zeros((1, 2, 0), np.int32)
    x = np.ones((2, 3, 4, 2), np.float32)
    assert ops.resample(x, 2, none).shape == (2, 3, 0, 2)
    assert not ops.resample_backward(np.zeros((2, 3, 0, 2), np.float32), 2, none, x.shape).any()
    assert ops.resample(np.zeros((2, 0), np.float32), 1, none).shape == (2, 0)


def test_arrays_of_any_order_and_address(backend, rng):
    shape = (3, 4, 6, 3)
    x, index = floats(rng, shape, np.float32), positions(rng, shape, 2, 2, 6)
    weights = floats(rng, index.shape, np.float32)
    expected = ops.resample(x, 2, index, weights)
    for change in (np.asfortranarray, unaligned, lambda a: np.repeat(a, 2, axis=0)[::2]):
        assert_same_bits(ops.resample(change(x), 2, change(index), change(weights)), expected)
    for integers in ("i8", "u1", ">i4"):
        assert_same_bits(ops.resample(x, 2, index.astype(integers), weights), expected)


def test_same_bits_for_every_schedule(backend, rng, each_schedule):
    shape = (5, 31, 33, 3)
    x, index = floats(rng, shape, np.float32), positions(rng, shape, 2, 2, 33)
    weights = floats(rng, index.shape, np.float32)

    def passes():
        y = ops.resample(x, 2, index, weights)
        return y, ops.resample_backward(y, 2, index, shape, weights)

    first, *others = each_schedule(passes)
    for other in others:
        for a, b in zip(first, other, strict=True):
            assert_same_bits(a, b)


def test_wrong_arguments(backend, rng):
    x, index = np.ones((2, 3, 4), np.float32), np.zeros((1, 2, 5), np.int32)
    for bad in (-1, 4):
        wrong = index.copy()
        wrong[0, 1, 2] = bad
        with pytest.raises(ValueError, match=rf"resample: index {bad} at position 7 is not in \[0, 4\)"):
            ops.resample(x, 2, wrong)
        with pytest.raises(ValueError, match=rf"resample_backward: index {bad} at position 7 is not in"):
            ops.resample_backward(np.ones((2, 3, 5), np.float32), 2, wrong, x.shape)
    with pytest.raises(ValueError, match=r"index from 0 to 4294967296 are not all in \[0, 4\)"):
        ops.resample(x, 2, np.array([[[0], [2**32]]]))
    for axis in (0, 3, -1):
        with pytest.raises(ValueError, match=rf"axis must be 1 or a later one of x \(2, 3, 4\), got {axis}"):
            ops.resample(x, axis, index)
    for shape in ((2, 5), (0, 2, 5), (1, 3, 5)):
        with pytest.raises(ValueError, match=r"index must have shape \(T, N, L\), T at least 1, for x"):
            ops.resample(x, 2, np.zeros(shape, np.int32))
    with pytest.raises(TypeError, match="index must be an array of integers, got dtype"):
        ops.resample(x, 2, index.astype(np.float32))
    with pytest.raises(ValueError, match=r"weights must have shape \(1, 2, 5\), got \(1, 2, 4\)"):
        ops.resample(x, 2, index, np.ones((1, 2, 4), np.float32))
    with pytest.raises(TypeError, match="weights is float64 but x is float32"):
        ops.resample(x, 2, index, np.ones((1, 2, 5)))
    with pytest.raises(ValueError, match=r"offset must have shape \(2, 5\), got \(5,\)"):
        ops.resample(x, 2, index, None, np.ones(5, np.float32))
    with pytest.raises(ValueError, match=r"dy must have shape \(2, 3, 5\), got \(2, 2, 5\)"):
        ops.resample_backward(np.ones((2, 2, 5), np.float32), 2, index, x.shape)
    with pytest.raises(TypeError, match="x must be a NumPy or CuPy array, got list"):
        ops.resample([1.0], 1, index)
