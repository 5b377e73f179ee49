from __future__ import annotations

import numpy as np
import pytest
from fastnn import ops, reference
from support import DTYPES, assert_identical, assert_same_bits, assert_within, floats

SHAPES = [(2, 1), (5, 3), (4, 3, 2, 17), (3, 20, 20, 33), (9, 45), (1, 4)]
# Of few channels, whose rows are taken together: with some left, with none, with fewer than go together.
SHAPES += [(3, 20, 21, 3), (700, 15), (515, 10), (512, 16), (31, 8), (530, 1), (2, 301, 24)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_batch_norm(backend, rng, shape, dtype):
    channels = shape[-1]
    x = floats(rng, shape, dtype) + 3
    gamma, beta, dy = (
        floats(rng, (channels,), dtype),
        floats(rng, (channels,), dtype),
        floats(rng, shape, dtype),
    )
    y, mean, var = ops.batch_norm(x, gamma, beta)
    expected, expected_mean, expected_var = reference.batch_norm(x, gamma, beta)
    # sums run in double over `rows` terms and are rounded once
    eps, axes, rows = np.finfo(dtype).eps, tuple(range(len(shape) - 1)), x.size // channels
    summing = rows * np.finfo(np.float64).eps
    assert_within(mean, expected_mean, eps * np.abs(expected_mean) + summing * np.abs(x).mean(axes))
    # the variance is taken around the rounded mean
    assert_within(
        var, expected_var, (2 * eps + 2 * summing) * (expected_var + np.abs(x).mean(axes) ** 2 * eps)
    )
    # |d y / d mean| and |d y / d var| are at most gamma / sqrt(epsilon) and gamma * |x| / sqrt(epsilon)
    reach = (np.abs(gamma) * (np.abs(x) + np.abs(mean))) / np.sqrt(var + 1e-3) + np.abs(beta)
    assert_within(y, expected, 16 * eps * reach)

    dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, gamma, mean, var)
    expected_dx, expected_dgamma, expected_dbeta = reference.batch_norm_backward(dy, x, gamma, mean, var)
    scale = 1 / np.sqrt(var + 1e-3)
    total, magnitude = np.abs(dy).sum(axes), (np.abs(dy) * np.abs(x - mean)).sum(axes) * scale
    assert_within(dbeta, expected_dbeta, eps * np.abs(expected_dbeta) + summing * total)
    # x - mean is off by eps * mean where the mean was rounded
    assert_within(dgamma, expected_dgamma, (8 * eps + summing) * (magnitude + total * np.abs(mean) * scale))
    terms = np.abs(dy) + total / rows + (np.abs(x) + np.abs(mean)) * scale * magnitude / rows
    assert_within(dx, expected_dx, (16 * eps + 2 * summing) * np.abs(gamma) * scale * terms)

    y = ops.batch_norm_inference(x, gamma, beta, mean, var)
    assert_within(y, reference.batch_norm_inference(x, gamma, beta, mean, var), 16 * eps * reach)


def test_the_variance_is_biased(backend):
    x = np.array([[1], [3]], np.float32)
    _, mean, var = ops.batch_norm(x, np.ones(1, np.float32), np.zeros(1, np.float32))
    assert_identical(mean, [2])
    assert_identical(var, [1])  # 2 / 2, not 2 / 1


def test_a_large_offset_does_not_swallow_the_variance(backend, rng):
    x = (1e4 + rng.integers(-1, 2, (3000, 2))).astype(np.float32)
    _, _, var = ops.batch_norm(x, np.ones(2, np.float32), np.zeros(2, np.float32))
    assert_within(var, x.astype(np.float64).var(0), 1e-6)


def test_same_bits_for_every_schedule(backend, rng, each_schedule):
    x, dy = floats(rng, (5000, 19)), floats(rng, (5000, 19))
    gamma, beta = floats(rng, (19,)), floats(rng, (19,))

    def passes():
        y, mean, var = ops.batch_norm(x, gamma, beta)
        return (
            y,
            mean,
            var,
            *ops.batch_norm_backward(dy, x, gamma, mean, var),
            ops.batch_norm_inference(x, gamma, beta, mean, var),
            ops.bias_backward(dy),
        )

    first, *others = each_schedule(passes)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


def test_wrong_arguments(backend):
    x, ones = np.ones((4, 3), np.float32), np.ones(3, np.float32)
    with pytest.raises(ValueError, match=r"gamma must have shape \(3,\), got \(4,\)"):
        ops.batch_norm(x, np.ones(4, np.float32), ones)
    with pytest.raises(ValueError, match="no rows"):
        ops.batch_norm(x[:0], ones, ones)
    with pytest.raises(ValueError, match="no channels"):
        ops.batch_norm(x[:, :0], ones, ones)
    with pytest.raises(ValueError, match="epsilon must be above 0, got -1"):
        ops.batch_norm(x, ones, ones, epsilon=-1)
    with pytest.raises(TypeError, match="beta is float64 but x is float32"):
        ops.batch_norm(x, ones, ones.astype(np.float64))
    with pytest.raises(ValueError, match="dy must have shape"):
        ops.batch_norm_backward(x[:2], x, ones, ones, ones)
