from __future__ import annotations

import numpy as np
import pytest
from fastnn import ops, reference
from support import DTYPES, assert_identical, assert_same_bits, assert_within, floats, integers, unaligned

SHAPES = [(0, 3), (1, 1), (5, 10), (33, 7), (700, 10), (3, 1000)]


def one_hot(labels, classes, dtype):
    return np.eye(classes, dtype=dtype)[labels]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["labels", "probabilities"])
def test_softmax_cross_entropy(backend, rng, shape, dtype, kind):
    rows, classes = shape
    x = (4 * floats(rng, shape, dtype)).astype(dtype)
    target = (
        rng.integers(0, classes, rows)
        if kind == "labels"
        else reference.softmax(floats(rng, shape)).astype(dtype)
    )
    loss, y = ops.softmax_cross_entropy(x, target)
    expected_loss, expected_y = reference.softmax_cross_entropy(x, target)
    # sums of `classes` terms, and differences of logits of up to `reach`
    reach = 2 * np.abs(x).max(initial=0) + np.log(classes) + 2
    bound = (classes + 10) * np.finfo(dtype).eps * reach
    assert_within(loss, expected_loss, bound)
    assert_within(y, expected_y, bound * expected_y + np.finfo(dtype).tiny)
    dloss = floats(rng, (rows,), dtype)
    dx = ops.softmax_cross_entropy_backward(dloss, y, target)
    bound = (classes + 10) * np.finfo(dtype).eps * 2 * np.abs(dloss)[:, None]
    assert_within(dx, reference.softmax_cross_entropy_backward(dloss, y, target), bound)


@pytest.mark.parametrize("dtype", DTYPES)
def test_huge_and_infinite_logits(backend, dtype):
    top = np.finfo(dtype).max / 4
    x = np.array([[top, 0, -top], [-np.inf, 1, 1], [0, -np.inf, -np.inf], [1, -np.inf, 0]], dtype)
    labels = np.array([0, 1, 0, 1])
    loss, y = ops.softmax_cross_entropy(x, labels)
    assert_within(loss[:3], [0, np.log(2), 0], np.finfo(dtype).eps)
    assert loss[3] == np.inf  # the label's probability is 0
    assert np.isfinite(y).all()
    target = one_hot([0, 1, 0, 0], 3, dtype)
    loss, _ = ops.softmax_cross_entropy(x, target)
    assert np.isfinite(loss).all()  # 0 * log 0 is 0


@pytest.mark.parametrize("dtype", [np.uint8, np.int8, np.int16, np.int32, np.int64, np.uint64, ">i4"])
def test_labels_of_any_integer_dtype(backend, rng, dtype):
    x = floats(rng, (6, 5))
    labels = np.array([0, 4, 2, 1, 3, 4])
    loss, y = ops.softmax_cross_entropy(x, labels)
    for laid_out in (labels.astype(dtype), unaligned(labels.astype(dtype))):
        assert_same_bits(ops.softmax_cross_entropy(x, laid_out)[0], loss)
    assert_same_bits(
        ops.softmax_cross_entropy_backward(loss, y, labels.astype(dtype)[::-1][::-1]),
        ops.softmax_cross_entropy_backward(loss, y, labels),
    )


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ([0, 1, 5], r"label 5 at position 2 is not in \[0, 5\)"),
        ([0, -1, 9], "label -1 at position 1"),
        ([0, 1, 2**31], r"labels from 0 to 2147483648 are not all in \[0, 5\)"),
        ([0, 1, -(2**40)], "labels from -1099511627776"),
    ],
)
def test_labels_out_of_range(backend, rng, labels, message):
    x = floats(rng, (3, 5))
    with pytest.raises(ValueError, match=message):
        ops.softmax_cross_entropy(x, np.array(labels))
    with pytest.raises(ValueError, match=message):
        ops.softmax_cross_entropy_backward(x[:, 0].copy(), x, np.array(labels))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(0, 4), (1, 1), (5, 7), (3, 4, 5, 2), (900, 3), (4,)], ids=str)
def test_mean_squared_error(backend, rng, shape, dtype):
    x, target = integers(rng, shape, dtype), integers(rng, shape, dtype)
    eps = np.finfo(dtype).eps
    expected = reference.mean_squared_error(x, target)
    assert_within(
        ops.mean_squared_error(x, target), expected, eps * expected
    )  # the sum is exact, the division is not
    dloss = floats(rng, shape[:1], dtype)
    expected = reference.mean_squared_error_backward(dloss, x, target)
    assert_within(ops.mean_squared_error_backward(dloss, x, target), expected, 4 * eps * np.abs(expected))


def test_same_bits_for_every_schedule(backend, rng, each_schedule):
    x, target, dloss = floats(rng, (1500, 11)), floats(rng, (1500, 11)), floats(rng, (1500,))
    labels = rng.integers(0, 11, 1500)

    def passes():
        loss, y = ops.softmax_cross_entropy(x, labels)
        other, _ = ops.softmax_cross_entropy(x, target)
        return (
            loss,
            other,
            ops.softmax_cross_entropy_backward(dloss, y, labels),
            ops.softmax_cross_entropy_backward(dloss, y, target),
            ops.mean_squared_error(x, target),
            ops.mean_squared_error_backward(dloss, x, target),
        )

    first, *others = each_schedule(passes)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


def test_empty_batch_has_an_empty_loss(backend):
    loss, y = ops.softmax_cross_entropy(np.empty((0, 4), np.float32), np.empty(0, int))
    assert loss.shape == (0,)
    assert y.shape == (0, 4)
    assert_identical(
        ops.mean_squared_error(np.empty((0, 4), np.float32), np.empty((0, 4), np.float32)), np.empty(0)
    )


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (
            lambda: ops.softmax_cross_entropy(ones(3), np.zeros(3, int)),
            ValueError,
            r"logits must have shape \(N, classes\), got \(3,\)",
        ),
        (lambda: ops.softmax_cross_entropy(ones(3, 0), np.zeros(3, int)), ValueError, "empty"),
        (
            lambda: ops.softmax_cross_entropy(ones(3, 2), np.zeros((3, 1), int)),
            ValueError,
            r"labels must have shape \(3,\), got \(3, 1\)",
        ),
        (
            lambda: ops.softmax_cross_entropy(ones(3, 2), ones(3, 3)),
            ValueError,
            r"target must have shape \(3, 2\), got \(3, 3\)",
        ),
        (
            lambda: ops.softmax_cross_entropy(ones(3, 2), np.ones((3, 2))),
            TypeError,
            "target is float64 but x is float32",
        ),
        (
            lambda: ops.softmax_cross_entropy(ones(3, 2), np.zeros(3, bool)),
            TypeError,
            "target must be integer labels .* got dtype\\('bool'\\)",
        ),
        (lambda: ops.softmax_cross_entropy(ones(3, 2), [0, 1, 0]), TypeError, "got list"),
        (
            lambda: ops.softmax_cross_entropy_backward(ones(2), ones(3, 2), np.zeros(3, int)),
            ValueError,
            r"dloss must have shape \(3,\), got \(2,\)",
        ),
        (
            lambda: ops.mean_squared_error(ones(3, 2), ones(2, 3)),
            ValueError,
            r"target must have shape \(3, 2\), got \(2, 3\)",
        ),
        (lambda: ops.mean_squared_error(ones(3, 0), ones(3, 0)), ValueError, "nothing to average"),
        (lambda: ops.mean_squared_error_backward(ones(2), ones(3, 2), ones(3, 2)), ValueError, "dloss"),
    ],
)
def test_wrong_arguments(backend, call, error, message):
    with pytest.raises(error, match=message):
        call()
