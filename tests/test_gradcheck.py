"""gradcheck: right gradients pass, wrong ones are caught and located, whatever is wrong with them."""

from __future__ import annotations

import types

import numpy as np
import pytest
from fastnn import _gradcases, _gradlayers, gradcheck, layers, losses, models, ops, reference

W = np.random.default_rng(0).standard_normal((3, 4))
X = np.random.default_rng(1).standard_normal((2, 3))


def product(x, w):
    return x @ w


def product_backward(dy, x, w):
    return dy @ w.T, x.T @ dy


def with_wrong(position, change):
    """product_backward with one element of dw changed."""

    def backward(dy, x, w):
        dx, dw = product_backward(dy, x, w)
        dw[position] = change(dw[position])
        return dx, dw

    return backward


# -------------------------------------------------------------------------------------- right gradients pass


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("directions", [None, 3])
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_right_gradient_passes(linear, directions, dtype):
    args = [X.astype(dtype), W.astype(dtype)]
    report = gradcheck.check(
        product, product_backward, args, names="xw", linear=linear, directions=directions, name="product"
    )
    report.raise_if_failed()
    assert report
    assert [f.label for f in report.findings] == ["dx", "dw"]
    assert [f.elements for f in report.findings] == ([3, 3] if directions else [6, 12])
    assert {f.dtype for f in report.findings} == {dtype}
    assert str(report).startswith("product: ok\n  dx ")


@pytest.mark.parametrize("scale", [1e-12, 1.0, 1e12])
def test_tolerance_follows_the_functions_scale(scale):
    """A gradient of any size passes, and one that is off by a millionth fails."""

    def f(x):
        return scale * np.tanh(x)

    def backward(dy, x):
        return scale * dy * (1 - np.tanh(x) ** 2)

    assert gradcheck.check(f, backward, [X])
    assert not gradcheck.check(f, lambda dy, x: backward(dy, x) * (1 + 1e-6), [X])


def test_only_real_numbers_take_part():
    """An integer argument has no gradient, an integer result no dy."""

    def f(x, k):
        return x * k, np.argmax(x)

    report = gradcheck.check(f, lambda dy, x, k: dy * k, [X, np.array(3)])
    assert report
    assert [f.label for f in report.findings] == ["d[0]"]


def test_several_outputs_and_chosen_arguments():
    def f(x, w):
        return x**2, x @ w

    def backward(dys, x, w):
        return (2 * x * dys[0] + dys[1] @ w.T,)

    assert gradcheck.check(f, backward, [X, W], wrt=[0])
    assert not gradcheck.check(f, lambda dys, x, w: (dys[1] @ w.T,), [X, W], wrt=[0])


def test_results_that_are_views_of_the_argument():
    assert gradcheck.check(lambda x: x.reshape(-1), lambda dy, x: dy.reshape(x.shape), [X])


def test_empty_arguments_pass():
    assert gradcheck.check(product, product_backward, [np.empty((0, 3)), W])


def test_arguments_are_left_alone():
    x = X.copy()
    gradcheck.check(lambda x: x**2, lambda dy, x: 2 * x * dy, [x])
    np.testing.assert_array_equal(x, X)


# ------------------------------------------------------------------- one wrong element is caught and located


@pytest.mark.parametrize("how", ["elements", "directions"])
@pytest.mark.parametrize("position", [(0, 0), (1, 2), (2, 3)])
@pytest.mark.parametrize(
    "change", [lambda g: g + 1e-3, lambda g: 0.0, lambda g: -g, lambda g: np.nan, lambda g: np.inf]
)
def test_wrong_element_is_located(how, position, change):
    directions = 2 if how == "directions" else None
    report = gradcheck.check(product, with_wrong(position, change), [X, W], names="xw", directions=directions)
    dx, dw = report.findings
    assert dx.passed
    assert not report
    assert dw.index == position
    right = product_backward(report_dy(), X, W)[1][position]
    assert dw.numeric == pytest.approx(right, abs=1e-8)
    np.testing.assert_allclose(dw.analytic, change(right), atol=1e-12)
    assert dw.error == pytest.approx(abs(change(right) - right), abs=1e-8, nan_ok=True)
    assert f"dw[{position[0]}, {position[1]}] is" in str(report)
    with pytest.raises(gradcheck.GradientError, match="FAILED"):
        report.raise_if_failed()


def report_dy():
    """What check draws for dy with its default seed."""
    return np.random.default_rng(0).standard_normal((2, 4))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("position", [(0, 0), (37, 20), (63, 32)])
def test_wrong_element_of_a_large_argument_is_located(dtype, position):
    rng = np.random.default_rng(2)
    x, w = gradcheck.integers((5, 64), rng, dtype), gradcheck.integers((64, 33), rng, dtype)
    dy = gradcheck.integers((5, 33), rng, dtype)
    options = {"names": "xw", "linear": True, "tolerance": 0, "dy": dy}
    assert gradcheck.check(product, product_backward, [x, w], **options)
    report = gradcheck.check(product, with_wrong(position, lambda g: g + 1), [x, w], **options)
    assert report.findings[1].check == "directions"
    assert report.findings[1].index == position
    assert report.findings[1].analytic - report.findings[1].numeric == 1


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("tolerance", [None, 0.0])
@pytest.mark.parametrize("position", [(0, 0), (2, 1), (4, 6)])
def test_adjoint_identity_locates_a_wrong_element(dtype, tolerance, position):
    rng = np.random.default_rng(3)
    x, w = gradcheck.integers((5, 7), rng, dtype), gradcheck.integers((7, 3), rng, dtype)
    options = {"dy": gradcheck.integers((5, 3), rng, dtype), "tolerance": tolerance}
    assert gradcheck.check_adjoint(lambda v: v @ w + 1, lambda d: d @ w.T, x, **options)  # a bias is no harm

    def wrong(d):
        dx = d @ w.T
        dx[position] += 2
        return dx

    report = gradcheck.check_adjoint(lambda v: v @ w, wrong, x, **options)
    (found,) = report.findings
    assert found.index == position
    assert found.analytic - found.numeric == pytest.approx(2)


def test_many_wrong_elements_are_counted():
    """Wrong scale: every element is wrong, and the report names the worst."""
    report = gradcheck.check(product, lambda *a: [1.01 * g for g in product_backward(*a)], [X, W])
    assert [f.wrong for f in report.findings] == [f.elements for f in report.findings]
    worst = max(np.abs(product_backward(report_dy(), X, W)[1]).ravel())
    assert abs(report.findings[1].numeric) == pytest.approx(worst, abs=1e-8)
    assert "12 compared, 12 wrong" in str(report)


@pytest.mark.parametrize("directions", [None, 2])
def test_transposed_gradient(directions):
    square = W[:, :3]
    wrong = lambda dy, x, w: (dy @ w, x.T @ dy)  # noqa: E731
    report = gradcheck.check(product, wrong, [X, square], names="xw", directions=directions)
    assert [f.passed for f in report.findings] == [False, True]


def test_wrong_shape_and_number_of_gradients():
    report = gradcheck.check(product, lambda *a: [g.T for g in product_backward(*a)], [X, W], names="xw")
    assert not report
    assert "shape (3, 2), should be (2, 3)" in str(report)
    report = gradcheck.check_adjoint(lambda v: v @ W, lambda d: W @ d.T, X)
    assert "shape (3, 2), should be (2, 3)" in str(report)
    with pytest.raises(ValueError, match="1 gradients for 2 arguments"):
        gradcheck.check(product, lambda *a: product_backward(*a)[0], [X, W])


@pytest.mark.parametrize("directions", [None, 2])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_output_that_is_not_finite_fails(directions, bad):
    def f(x):
        y = 2 * x
        y[0, 0] = bad
        return y

    assert not gradcheck.check(f, lambda dy, x: 2 * dy, [X], directions=directions)


def test_a_function_that_draws_random_numbers_is_refused():
    rng = np.random.default_rng()
    with pytest.raises(ValueError, match="random"):
        gradcheck.check(lambda x: x * rng.random(), lambda dy, x: dy, [X])


def test_wrong_calls():
    with pytest.raises(TypeError, match="no array of real numbers"):
        gradcheck.check(np.argmax, lambda dy, x: dy, [X])
    with pytest.raises(ValueError, match=r"dy \[\(2,\)\], outputs \[\(2, 3\)\]"):
        gradcheck.check(np.tanh, lambda dy, x: dy, [X], dy=np.ones(2))
    with pytest.raises(ValueError, match="step must be positive"):
        gradcheck.check(np.tanh, lambda dy, x: dy, [X], step=0)


# ------------------------------------------------------------------------------------------------------ kinks


def relu(x):
    return np.maximum(x, 0)


def relu_backward(dy, x):
    return dy * (x > 0)


def test_distinct_keeps_clear_of_kinks():
    for shape in ((1,), (2,), (7,), (3, 4, 5)):
        x = gradcheck.distinct(shape, np.random.default_rng(4))
        values = np.sort(x.ravel())
        assert x.shape == shape
        assert (np.diff(values) >= 0.25).all()
        assert (np.abs(values) >= 0.125).all()
        assert (x.astype(np.float32) == x).all()


def test_integers_are_whole_and_never_zero():
    x = gradcheck.integers((1000,), np.random.default_rng(5), largest=2)
    assert set(x) == {-2.0, -1.0, 1.0, 2.0}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_kinked_functions_pass_away_from_their_kinks(dtype):
    x = gradcheck.distinct((4, 5), np.random.default_rng(6), dtype)
    gradcheck.check(relu, relu_backward, [x], linear=True, step=1 / 16).raise_if_failed()
    gradcheck.check(relu, relu_backward, [x]).raise_if_failed()
    assert not gradcheck.check(relu, lambda dy, x: dy * (x > 1), [x], linear=True, step=1 / 16)


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("directions", [None, 1])
def test_a_kink_within_a_step_fails_and_is_called_one(linear, directions):
    x = gradcheck.distinct((3, 3), np.random.default_rng(7))
    x[1, 2] = 1e-9
    report = gradcheck.check(relu, relu_backward, [x], linear=linear, step=1e-5, directions=directions)
    assert report.findings[0].index == (1, 2)
    assert "kink" in report.findings[0].note


def test_a_wrong_gradient_is_not_called_a_kink():
    report = gradcheck.check(np.tanh, lambda dy, x: dy, [X])
    assert not report
    assert report.findings[0].note == ""


# ------------------------------------------------------------------------------------------ layers and losses


class Scale(layers.Layer):
    """y = x * gain, with a gradient as wrong as asked for."""

    def __init__(self, wrong="nothing", **options):
        super().__init__(**options)
        self.wrong = wrong

    def param_specs(self, input_shape):
        return {"gain": (input_shape, "ones"), "idle": ((2,), "zeros")}

    def forward(self, x, training=False, drawn=()):
        return x * self.params["gain"], x

    def backward(self, dy, saved, need_dx=True):
        dx, gain = dy * self.params["gain"], (dy * saved).sum(axis=0)
        if self.wrong == "dx":
            dx[1, 2] += 0.5
        if self.wrong == "initial":  # right as long as the gain is one
            dx = dy
        gradients = {"gain": gain * (1.5 if self.wrong == "gain" else 1), "idle": np.zeros(2, dy.dtype)}
        if self.wrong == "key":
            gradients["gian"] = gradients.pop("gain")
        return dx, gradients


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_check_layer(dtype):
    report = gradcheck.check_layer(Scale(), (4,), dtype=dtype, linear=True)
    report.raise_if_failed()
    assert [f.label for f in report.findings] == ["dx", "dgain", "didle"]
    assert {f.dtype for f in report.findings} == {dtype}


def test_check_layer_locates():
    report = gradcheck.check_layer(Scale("dx"), (4,), name="scale")
    assert [f.passed for f in report.findings] == [False, True, True]
    assert report.findings[0].index == (1, 2)
    assert report.findings[0].error == pytest.approx(0.5, abs=1e-6)
    report = gradcheck.check_layer(Scale("gain"), (4,))
    assert [f.passed for f in report.findings] == [True, False, True]
    assert not gradcheck.check_layer(Scale("initial"), (4,))
    with pytest.raises(ValueError, match="gian"):
        gradcheck.check_layer(Scale("key"), (4,))


def test_check_layer_leaves_the_layer_alone():
    layer = layers.Dense(3)
    with pytest.raises(ValueError, match="not built"):
        gradcheck.check_layer(layer)
    assert gradcheck.check_layer(layer, (4,))
    assert not layer.built
    layer.build((4,), "float32", np.random.default_rng(8))
    before = {key: value.copy() for key, value in layer.params.items()}
    assert gradcheck.check_layer(layer)
    for key, value in layer.params.items():
        np.testing.assert_array_equal(value, before[key])
        assert value.dtype == np.float32


def test_check_loss():
    loss, rng = losses.MeanSquaredError(), np.random.default_rng(9)
    y_true, y_pred = rng.standard_normal((3, 4)), rng.standard_normal((3, 4))
    assert gradcheck.check_loss(loss, y_true, y_pred)
    assert gradcheck.check_loss(loss, y_true, y_pred, sample_weight=[1, 0, 2])

    class Wrong(losses.MeanSquaredError):
        def backward(self, saved):
            return super().backward(saved) / 2  # the forgotten factor

    report = gradcheck.check_loss(Wrong(), y_true, y_pred)
    assert report.findings[0].wrong == 12


# -------------------------------------------------------------------------------------------------- self-test


def standing_in(**broken):
    """fastnn.ops with some ops replaced, each by a function of (right op, its arguments)."""
    own = {name: getattr(ops, name) for name in dir(ops)}
    for name, replacement in broken.items():
        own[name] = lambda *a, right=own[name], replacement=replacement, **k: replacement(right, *a, **k)
    return _gradcases.Device(types.SimpleNamespace(**own))


def failures(family, device):
    """Each check that fails, one after the other."""
    for case in family(device):
        for name, report in gradcheck.collect([case]):
            if not report:
                yield name, report


def with_last_wrong(right, *args, **options):
    """The last element of the (first) result is off by a thousandth: an off by one in a tail."""
    result = right(*args, **options)
    y = result[0] if isinstance(result, tuple) else result
    if y.size:
        y.flat[-1] += 1e-3 * max(1, abs(y.flat[-1]))
    return result


def family_of(op):
    """The function of _gradcases that is to cover an op."""
    stem = op.removesuffix("_backward").removesuffix("_backward_x").removesuffix("_backward_w")
    shared = {
        "relu": "activations",
        "sigmoid": "activations",
        "tanh": "activations",
        "softmax_cross_entropy": "cross_entropy",
        "batch_norm_inference": "batch_norm",
    }
    return getattr(_gradcases, f"_{shared.get(stem, stem)}")


OPS = sorted(
    name
    for name, value in vars(reference).items()
    if isinstance(value, types.FunctionType)
    and value.__module__ == reference.__name__
    and hasattr(ops, name)
    and not name.startswith("_")
)


def test_every_op_is_in_the_list():
    public = {name for name, value in vars(ops).items() if getattr(value, "__module__", "") == ops.__name__}
    assert set(OPS) == {name for name in public if name.islower() and not name.startswith("_")}
    assert len(OPS) == 35


@pytest.mark.parametrize("op", [op for op in OPS if not op.endswith("_step")])
def test_an_error_in_the_tail_of_any_op_is_caught(op):
    failed = failures(family_of(op), standing_in(**{op: with_last_wrong}))
    findings = (f for name, report in failed if name == op for f in report.findings if not f.passed)
    assert any(f.check == "reference" and f.index is not None for f in findings), (
        f"nothing located against the reference under the name {op}"
    )


@pytest.mark.parametrize("op", ["sgd_step", "adam_step"])
@pytest.mark.parametrize("slot", [0, 2])
def test_an_error_in_an_optimizer_is_caught(op, slot):
    def wrong(right, *arrays, **options):
        right(*arrays, **options)
        if arrays[slot] is not None:
            arrays[slot][4][-1] += 1e-3  # the last of 33

    failed = list(failures(_gradcases._optimizers, standing_in(**{op: wrong})))
    assert {name for name, _ in failed} == {op}
    labels = {(f.label, f.index) for _, report in failed for f in report.findings if not f.passed}
    first_slot = "m[4]" if op == "adam_step" else "v[4]"
    assert ("w[4]" if slot == 0 else first_slot, (32,)) in labels


@pytest.mark.parametrize(
    ("op", "wrong"),
    [
        # filters are turned as in true convolution; taps or channels are mixed up; a term is missing
        ("conv2d_backward_x", lambda right, dy, w, s, **k: right(dy, w[::-1, ::-1].copy(), s, **k)),
        ("conv2d_backward_w", lambda right, dy, x, s, **k: right(dy, x, s, **k)[:, ::-1]),
        ("conv2d_backward_w", lambda right, dy, x, s, **k: right(dy[..., ::-1].copy(), x, s, **k)),
        ("conv2d", lambda right, x, w, b=None, **k: right(x, w, None, **k)),
        ("gemm_backward", lambda right, dy, a, b, **k: right(dy, a, b, **k | {"alpha": 1.0})),
        ("gemm", lambda right, a, b, c=None, **k: right(a, b, c, **k | {"alpha": 2.0})),
        ("max_pool2d_backward", lambda right, dy, argmax, *s, **k: right(dy, np.zeros_like(argmax), *s, **k)),
        ("avg_pool2d_backward", lambda right, dy, *s, **k: right(dy, *s, **k) * dy.dtype.type(0.75)),
        ("softmax_backward", lambda right, dy, y: dy * y),
        ("tanh_backward", lambda right, dy, y: dy * (1 - y)),
        ("relu_backward", lambda right, dy, y: right(np.abs(dy), y)),
        ("dropout_backward", lambda right, dy, keep, rate: right(dy, keep, 0.0)),
        ("rescale", lambda right, x, scale, offset=0.0, **k: right(x, scale if offset else -scale, offset, **k)),
        ("resample", lambda right, x, axis, index, weights=None, offset=None: right(x, axis, index[::-1], weights, offset)),
        ("resample_backward", lambda right, dy, axis, index, x_shape, weights=None: right(dy, axis, index, x_shape)),
        ("bias_backward", lambda right, dy: right(dy[1:] if len(dy) > 1 else dy)),
        ("batch_norm_backward", lambda right, dy, x, gamma, mean, var, **k: (
            gamma * dy / np.sqrt(var + dy.dtype.type(1e-3)), *right(dy, x, gamma, mean, var, **k)[1:])),
        ("softmax_cross_entropy_backward", lambda right, d, y, t: right(np.ones_like(d), y, t)),
    ],
)  # fmt: skip
def test_broken_kernels_are_caught_by_their_differences(op, wrong):
    """Without the reference, too: the function itself contradicts a wrong gradient."""
    family = _gradcases._gemm if op == "bias_backward" else family_of(op)  # a bias is gemm's argument
    failed = failures(family, standing_in(**{op: wrong}))
    checks = (f.check for _, report in failed for f in report.findings if not f.passed)
    differences = {"central differences", "directions", "adjoint identity"}
    assert not differences.isdisjoint(checks), f"none of {differences} fails"


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda right, *a: right(*a).astype(np.float64), "is float64, should be float32"),
        (lambda right, *a: right(*(x.astype(np.float32) for x in a)).astype(a[0].dtype), "reference float64"),
        (lambda right, *a: right(*a)[..., :-1], "shape"),
        (lambda right, *a: np.full_like(right(*a), np.nan), "nan"),
        (lambda right, *a: 1 // 0, "ZeroDivisionError"),
    ],
)
def test_wrong_dtype_precision_shape_nan_and_exceptions(wrong, said):
    failed = failures(_gradcases._activations, standing_in(tanh_backward=wrong))
    assert said in "\n".join(str(report) for _, report in failed)


def test_different_bits_from_a_second_call():
    calls = iter(range(10**6))

    def wrong(right, x):
        y = right(x)
        y.flat[0] += 1e-16 * (next(calls) % 2)
        return y

    failed = failures(_gradcases._activations, standing_in(relu=wrong))
    assert any("different bits" in f.note for _, report in failed for f in report.findings)


def test_layer_and_loss_cases_pass_and_catch(monkeypatch):
    device = _gradcases.Device(ops)
    covered = {name for family in _gradlayers.LAYERS for name, _ in family(device)}
    wanted = {name for name in layers.__all__ if name not in ("Input", "Layer")} | set(losses.LOSSES)
    assert wanted <= covered
    right = layers.Flatten.backward
    monkeypatch.setattr(layers.Flatten, "backward", lambda self, *a, **k: (2 * right(self, *a, **k)[0], {}))
    failed = {name for family in _gradlayers.LAYERS for name, _ in failures(family, device)}
    assert failed == {"Flatten"}


def test_run_and_table():
    seen = []
    results = gradcheck.run(progress=lambda name, report: seen.append((name, report)))
    assert seen == results
    text = gradcheck.table(results)
    assert f"all {len(results)} checks pass" in text
    assert set(OPS) | set(models._LAYERS) - {"Activation"} <= {name.split()[0] for name, _ in results}
    for line in text.splitlines()[2:]:
        assert not line or line.endswith("ok") or line.startswith("all")


def test_table_says_what_failed():
    bad = gradcheck.check(
        product, with_wrong((1, 2), lambda g: g + 1), [X, W], names="xw", name="product 2x3"
    )
    good = gradcheck.check(product, product_backward, [X, W])
    text = gradcheck.table([("good", good), *[("product", bad)] * 5])
    assert "FAILED dw" in text
    assert text.count("dw[1, 2] is") == 3
    assert "... and 2 more of product" in text
    assert text.endswith("5 of 6 checks FAILED")


def test_run_on_a_device_that_is_not_there():
    with pytest.raises(ValueError, match="abacus"):
        gradcheck.run("abacus")
