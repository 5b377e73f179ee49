from __future__ import annotations

from itertools import chain

import numpy as np
import pytest
from fastnn import ops, reference
from support import DTYPES, assert_same_bits, assert_within, floats

SHAPES = [(3, 3, 2, 5), (7,), (1, 1), (0, 4), (40_000,)]


def lists(rng, dtype, count=4):
    """ws, dws and slots; the last kind never negative, as a second moment is."""
    made = [[floats(rng, shape, dtype) for shape in SHAPES] for _ in range(count)]
    made[-1] = [np.abs(a) for a in made[-1]]
    return made


def as_float64(arrays):
    return [[a.astype(np.float64) for a in list_] for list_ in arrays]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(("momentum", "nesterov"), [(0.0, False), (0.9, False), (0.9, True)])
def test_sgd_step(backend, rng, momentum, nesterov, weight_decay, dtype):
    ws, dws, velocities = lists(rng, dtype, 3)
    slots = velocities if momentum else None
    expected_ws, expected_dws, expected_slots = as_float64([ws, dws, velocities])
    options = {
        "learning_rate": 0.05,
        "momentum": momentum,
        "nesterov": nesterov,
        "weight_decay": weight_decay,
    }
    ops.sgd_step(ws, dws, slots, **options)
    reference.sgd_step(expected_ws, expected_dws, expected_slots if momentum else None, **options)
    eps = np.finfo(dtype).eps
    for w, expected, dw, v in zip(ws, expected_ws, dws, velocities, strict=True):
        assert_within(w, expected, 8 * eps * (np.abs(expected) + np.abs(dw) + np.abs(v)))
    if momentum:
        for v, expected, dw in zip(velocities, expected_slots, dws, strict=True):
            assert_within(v, expected, 4 * eps * (np.abs(expected) + np.abs(dw)))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("step", [1, 2, 1000, 10**9])
def test_adam_step(backend, rng, step, weight_decay, dtype):
    ws, dws, ms, vs = lists(rng, dtype)
    expected_ws, expected_dws, expected_ms, expected_vs = as_float64([ws, dws, ms, vs])
    options = {"step": step, "learning_rate": 0.01, "weight_decay": weight_decay}
    ops.adam_step(ws, dws, ms, vs, **options)
    reference.adam_step(expected_ws, expected_dws, expected_ms, expected_vs, **options)
    eps = np.finfo(dtype).eps
    rate = 0.01 * np.sqrt(1 - 0.999**step) / (1 - 0.9**step)
    for w, m, v, expected, expected_m, expected_v, dw in zip(
        ws, ms, vs, expected_ws, expected_ms, expected_vs, dws, strict=True
    ):
        reach = np.abs(expected_m) + np.abs(dw)
        assert_within(m, expected_m, 4 * eps * reach)
        assert_within(v, expected_v, 4 * eps * (expected_v + dw**2))
        update = rate * reach / (np.sqrt(expected_v) + 1e-7)
        assert_within(w, expected, 16 * eps * (np.abs(expected) + update))


@pytest.mark.parametrize("dtype", DTYPES)
def test_slots_without_a_gradient_do_not_stay_subnormal(dtype):
    """Arithmetic on subnormal numbers is many times slower on a CPU. They are 0 in these steps, in no other op of any thread."""
    tiny = np.finfo(dtype).tiny
    size = 100_003  # more than one item, and a rest of a vector
    w, dw = np.ones(size, dtype), np.zeros(size, dtype)
    m, v, velocity = (np.geomspace(tiny / 1000, tiny * 1000, size, dtype=dtype) for _ in range(3))
    for step in range(1, 100):
        ops.adam_step([w], [dw], [m], [v], step=step, learning_rate=1e-3)
        ops.sgd_step([w], [dw], [velocity], learning_rate=1e-3, momentum=0.9)
        for slot in (m, v, velocity):
            assert np.all((slot == 0) | (slot >= tiny))
    assert np.all(w == 1)
    x = np.full((64, 64), tiny / 2, dtype)
    assert_same_bits(ops.gemm(x, np.eye(64, dtype=dtype)), x)
    assert np.all(x * dtype(0.5) == tiny / 4)


def test_first_adam_step_by_hand(backend):
    """m = 0.1 g, v = 0.001 g g, rate = lr sqrt(0.001) / 0.1: the step is lr * sign(g), up to epsilon."""
    w, g = np.array([1.0, 2.0]), np.array([0.5, -4.0])
    m, v = np.zeros(2), np.zeros(2)
    ops.adam_step([w], [g], [m], [v], step=1, learning_rate=0.1)
    np.testing.assert_allclose(m, 0.1 * g, rtol=1e-12)
    np.testing.assert_allclose(v, 0.001 * g * g, rtol=1e-12)
    np.testing.assert_allclose(w, [1 - 0.1, 2 + 0.1], rtol=1e-6)


def test_same_bits_for_every_schedule(backend, rng, each_schedule):
    start = lists(rng, np.float32)

    def step():
        ws, dws, ms, vs = ([a.copy() for a in list_] for list_ in start)
        ops.adam_step(ws, dws, ms, vs, step=3, learning_rate=0.01)
        ops.sgd_step(ws, dws, ms, learning_rate=0.1, momentum=0.9)
        return ws + ms + vs

    first, *others = each_schedule(step)
    for other in others:
        for actual, expected in zip(other, first, strict=True):
            assert_same_bits(actual, expected)


RULES = {
    "sgd": ("sgd_step", 1, ops.Rates.sgd(0.05, 0.1), {"learning_rate": 0.05, "weight_decay": 0.1}),
    "adam": (
        "adam_step",
        2,
        ops.Rates.adam(3, 0.05, 0.9, 0.999, 0.1),
        {"step": 3, "learning_rate": 0.05, "weight_decay": 0.1},
    ),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rule", RULES)
def test_rates_in_memory_are_the_numbers(backend, rng, rule, dtype):
    name, slots, rates, numbers = RULES[rule]
    start = lists(rng, dtype, 2 + slots)
    momentum = {"momentum": 0.9} if rule == "sgd" else {}
    by_numbers, by_rates = ([[a.copy() for a in arrays] for arrays in start] for _ in range(2))
    getattr(ops, name)(*by_numbers, **numbers, **momentum)
    getattr(ops, name)(*by_rates, rates=np.array([*rates, 1.25]), **momentum)
    for actual, expected in zip(chain(*by_rates), chain(*by_numbers), strict=True):
        assert_same_bits(actual, expected)
    assert any((a != b).any() for a, b in zip(by_rates[0], start[0], strict=True))


@pytest.mark.parametrize("loss", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("rule", RULES)
def test_a_loss_that_is_not_finite_changes_nothing(backend, rng, rule, loss):
    name, slots, rates, _ = RULES[rule]
    arrays = lists(rng, np.float32, 2 + slots)
    before = [[a.copy() for a in list_] for list_ in arrays]
    getattr(ops, name)(*arrays, rates=np.array([*rates, loss]))
    for a, b in zip(chain(*arrays), chain(*before), strict=True):
        assert_same_bits(a, b)


def test_gradients_of_any_strides(backend, rng):
    w, dw = floats(rng, (4, 6)), floats(rng, (6, 4)).T
    expected = w - np.float32(0.5) * dw
    ops.sgd_step([w], [dw], learning_rate=0.5)
    np.testing.assert_array_equal(w, expected)


def test_nothing_to_do(backend):
    ops.sgd_step([], [], learning_rate=0.1)
    ops.adam_step([], [], [], [], step=1, learning_rate=0.1)


def ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("call", "error", "message"),
    [
        (lambda w: ops.sgd_step([w], [], learning_rate=0.1), ValueError, "1 parameters but 0 gradients"),
        (
            lambda w: ops.sgd_step([w], [ones(3)], learning_rate=0.1),
            ValueError,
            r"dw must have shape \(2, 3\), got \(3,\)",
        ),
        (lambda w: ops.sgd_step([w], [w], learning_rate=0.1), ValueError, "w shares memory with dw"),
        (
            lambda w: ops.sgd_step([w], [ones(2, 3)], learning_rate=0.1, momentum=0.9),
            ValueError,
            "needs velocities",
        ),
        (
            lambda w: ops.sgd_step([w], [ones(2, 3)], rates=np.ones(2)),
            ValueError,
            r"rates must have shape \(3,\), got \(2,\)",
        ),
        (
            lambda w: ops.sgd_step([w], [ones(2, 3)], rates=ones(3)),
            TypeError,
            "rates must be float64, got float32",
        ),
        (lambda w: ops.sgd_step([w], [ones(2, 3)]), TypeError, "give learning_rate, or rates"),
        (
            lambda w: ops.sgd_step([w.T], [ones(3, 2)], learning_rate=0.1),
            ValueError,
            "ws is not C-contiguous",
        ),
        (
            lambda w: ops.sgd_step(w, [ones(2, 3)], learning_rate=0.1),
            TypeError,
            "ws must be a list of arrays, got ndarray",
        ),
        (
            lambda w: ops.sgd_step([w], [np.ones((2, 3))], learning_rate=0.1),
            TypeError,
            "dw is float64 but w is float32",
        ),
        (
            lambda w: ops.adam_step([w], [ones(2, 3)], [ones(2, 3)], [], step=1, learning_rate=0.1),
            ValueError,
            "0 second moments",
        ),
        (
            lambda w: ops.adam_step([w], [ones(2, 3)], [ones(2, 3)], [ones(2, 3)], step=0, learning_rate=0.1),
            ValueError,
            "step counts from 1, got 0",
        ),
        (
            lambda w: ops.adam_step(
                [w], [ones(2, 3)], [ones(2, 3)], [ones(2, 3)], step=1, learning_rate=0.1, beta_1=1
            ),
            ValueError,
            "beta_1",
        ),
    ],
)
def test_wrong_arguments_leave_everything_untouched(backend, host_only, call, error, message):
    w = ones(2, 3)
    with pytest.raises(error, match=message):
        call(w)
    np.testing.assert_array_equal(w, ones(2, 3))


def test_a_bad_tensor_late_in_the_list_leaves_the_first_untouched(backend, host_only):
    w = ones(3)
    with pytest.raises(ValueError, match="dw must have shape"):
        ops.sgd_step([w, ones(2)], [ones(3), ones(1)], learning_rate=0.1)
    np.testing.assert_array_equal(w, ones(3))
    w.flags.writeable = False
    with pytest.raises(ValueError, match="read-only"):
        ops.sgd_step([w], [ones(3)], learning_rate=0.1)
