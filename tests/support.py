"""What op tests share: inputs of two kinds, and comparisons that a NaN cannot pass.

Small integers make every product and sum exact, so that any difference is an indexing bug: compare with assert_identical.
Floats show rounding: compare with assert_within, under a bound derived from the length of the sums.
"""

from __future__ import annotations

import numpy as np

DTYPES = [np.float32, np.float64]


def integers(rng, shape, dtype=np.float32, low=-4, high=5):
    return rng.integers(low, high, shape).astype(dtype)


def floats(rng, shape, dtype=np.float32):
    return rng.standard_normal(shape).astype(dtype)


def distinct(rng, shape, dtype=np.float32):
    """No ties, none near zero, neighbours in size half a unit apart: an argmax is unique and a kink is far."""
    size = int(np.prod(shape))
    return (rng.permutation(size).reshape(shape).astype(dtype) - size // 2) * 0.5 + 0.25


def unaligned(array):
    """The same values, a byte beside where elements may lie."""
    memory = np.empty(array.nbytes + 1, np.uint8)
    view = memory[1:].view(array.dtype).reshape(array.shape)
    view[...] = array
    return view


def assert_identical(actual, expected):
    """Same shape and the same numbers; NaN equals NaN, -0.0 equals 0.0."""
    actual, expected = np.asarray(actual), np.asarray(expected)
    assert actual.shape == expected.shape
    np.testing.assert_array_equal(actual, expected)


def assert_same_bits(actual, expected):
    assert actual.shape == expected.shape
    assert actual.dtype == expected.dtype
    assert actual.tobytes() == expected.tobytes()


def assert_within(actual, expected, bound):
    """|actual - expected| <= bound element by element; a NaN in any of the three fails."""
    actual, expected, bound = np.broadcast_arrays(np.asarray(actual, np.float64), expected, bound)
    error = np.abs(actual - expected)
    bad = ~(error <= bound)
    if bad.any():
        at = np.unravel_index(np.argmax(np.where(bad, error - bound, -np.inf)), error.shape)
        raise AssertionError(
            f"{bad.sum()} of {bad.size} elements off, worst at {at}: {actual[at]} for {expected[at]}, "
            f"error {error[at]:.3g}, bound {bound[at]:.3g}"
        )


def rounding(terms, dtype, magnitude):
    """Bound on a sum's rounding error (Higham 2002, section 3.1): `terms` additions, whose absolute values sum to magnitude."""
    eps = float(np.finfo(dtype).eps)
    return (terms + 4) * eps * np.asarray(magnitude, np.float64) + np.finfo(dtype).tiny


def mma_rounding(terms, precision, magnitude):
    """The same for products in a lower precision: exact products of rounded factors, summed in float32.

    A tensor core may cut off where an addition rounds, which is twice the error.
    """
    return (1 if precision == "float32" else 2) * rounding(terms, np.float32, magnitude)
