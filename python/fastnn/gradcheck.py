"""Gradient verification: is a backward pass really the derivative of its forward pass, and if not, where not?

    report = gradcheck.check(f, backward, [x, w])
    print(report)              # each argument: error, tolerance, the worst element and both its values
    report.raise_if_failed()

`f(*args)` gives an array or several, `backward(dy, *args)` the gradients of the arguments, where dy stands
for the gradient of what f gave. `check` compares them with differences of f itself, `check_layer` and
`check_loss` do so for a layer and a loss, `check_adjoint` tests a linear map by the identity
<dy, A x> = <A^T dy, x>, and `run` goes over every op, layer and loss of fastnn on this machine.

Where the tolerance comes from. L(x) = <dy, f(x)>, and a central difference (L(x + h) - L(x - h)) / 2h has two
errors: rounding, at most about eps |L| / h, and truncation, h^2 |L'''| / 6. So the tolerance is

    8 * (eps / h + h^2) * S,      S = sum over the outputs that moved of |dy| * (max |y| + |slope of y|),

which takes inputs of order 1 and functions whose third derivative is of the order of their values and
slopes. The step h = eps^(1/3) balances the two. A linear function has no truncation: the step is 1, the h^2
falls away, and the check is sharp in float32 too. With small integers as inputs (`integers`) its arithmetic
is exact, and `tolerance=0` may be asked for.

A kink (ReLU, max pooling) nearer than h makes the difference meaningless; `distinct` draws inputs that
keep clear of kinks, and a failure says so where the slopes on the two sides of a point differ.
"""

from __future__ import annotations

import copy
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._gradreport import Finding, GradientError, Report, compare, excess, table
from ._typing import Array, Shape

__all__ = [
    "Finding", "GradientError", "Report", "check", "check_adjoint", "check_layer", "check_loss", "collect",
    "compare", "distinct", "integers", "run", "table",
]  # fmt: skip

SAFETY = 8.0  # on the tolerance: sums of a few hundred terms, the worst of a few thousand elements
ELEMENTWISE = 1500  # arguments of more elements are checked along random directions, and so are those
WORK = 20_000_000  # of more elements times outputs than this


# ----------------------------------------------------------------------------------------------------- inputs


def distinct(
    shape: Shape, rng: np.random.Generator, dtype: npt.DTypeLike = "float64", gap: float = 0.25
) -> Array:
    """Values in random order, any two at least `gap` apart and none nearer to zero than gap / 2.

    For ReLU and max pooling: a step below gap / 2 crosses no kink, so these are linear there
    (`check(..., linear=True, step=gap / 4)`). They are odd multiples of gap / 2, exact in every dtype.
    """
    size = int(np.prod(shape))
    values = (rng.permutation(size) - size // 2 + 0.5) * gap
    return np.asarray(values.reshape(shape), dtype=dtype)


def integers(
    shape: Shape, rng: np.random.Generator, dtype: npt.DTypeLike = "float64", largest: int = 3
) -> Array:
    """Whole numbers from -largest to largest, none zero: sums of their products are exact, in any order."""
    values = rng.integers(1, largest + 1, shape) * rng.choice([-1, 1], shape)
    return np.asarray(values, dtype=dtype)


# ------------------------------------------------------------------------------------------------- comparison


def host(array: Any) -> Array:
    """A CuPy array, whose copy to the host is get(), or anything NumPy takes, in NumPy's."""
    return np.asarray(array.get() if hasattr(array, "get") else array)


def _several(result: Any) -> list[Any]:
    return list(result) if isinstance(result, (tuple, list)) else [result]


def _floats(result: Any) -> list[Array]:
    """Those of a function's results that are real numbers, copied (a view would move with its argument)."""
    return [np.array(part) for part in map(host, _several(result)) if part.dtype.kind == "f"]


class _Probe:
    """L(args) = <dy, f(args)> and its differences when one argument moves."""

    def __init__(self, f: Callable[..., Any], args: Sequence[Any], dy: Any, seed: int) -> None:
        self.f, self.args = f, [np.array(host(arg)) for arg in args]
        modules = [sys.modules[type(arg).__module__.split(".")[0]] for arg in args]
        self.place = [getattr(module, "asarray", np.asarray) for module in modules]
        y, again = self.values(), self.values()
        if not y:
            raise TypeError("gradcheck: the function gave no array of real numbers")
        if any(a.tobytes() != b.tobytes() for a, b in zip(y, again, strict=True)):
            raise ValueError("gradcheck: equal arguments gave different values: fix the random numbers drawn")
        rng = np.random.default_rng(seed)
        drawn = [rng.standard_normal(a.shape) for a in y] if dy is None else _several(dy)
        self.dy = [host(d).astype(a.dtype) for d, a in zip(drawn, y, strict=False)]
        if [d.shape for d in self.dy] != [a.shape for a in y]:
            raise ValueError(f"gradcheck: dy {[d.shape for d in self.dy]}, outputs {[a.shape for a in y]}")
        self.outputs = sum(a.size for a in y)
        self.largest = [float(np.max(np.abs(a), initial=0.0)) for a in y]
        self.eps = max(float(np.finfo(a.dtype).eps) for a in [*y, *self.args] if a.dtype.kind == "f")

    def placed(self, k: int = -1, value: Array | None = None) -> list[Any]:
        """The arguments where the caller had them, argument k replaced by value."""
        args = [value if i == k else arg for i, arg in enumerate(self.args)]
        return [place(np.array(arg)) for place, arg in zip(self.place, args, strict=True)]

    def values(self, k: int = -1, value: Array | None = None) -> list[Array]:
        return _floats(self.f(*self.placed(k, value)))

    def gradients(self, backward: Callable[..., Any], wrt: Sequence[int]) -> list[Array]:
        dy = [self.place[0](d) for d in self.dy]
        result = backward(dy[0] if len(dy) == 1 else tuple(dy), *self.placed())
        found = [host(gradient) for gradient in _several(result)]
        if len(found) != len(wrt):
            raise ValueError(f"gradcheck: backward gave {len(found)} gradients for {len(wrt)} arguments")
        return found

    @np.errstate(all="ignore")
    def difference(self, k: int, move: Array, width: float) -> tuple[Array, float, float]:
        """Argument k moved by move to either side: (its displacement, change of L, S), over `width`."""
        x = self.args[k]
        up, down = x + move, x - move
        change = S = 0.0
        for dy, top, high, low in zip(
            self.dy, self.largest, self.values(k, up), self.values(k, down), strict=True
        ):
            d, moved = np.abs(dy.astype(np.float64)), (high.astype(np.float64) - low) / width
            change += float(np.sum(dy * moved))
            S += float(np.sum(d * (top + np.abs(moved)), where=moved != 0.0) + np.max(d, initial=0.0) * top)
        return (up.astype(np.float64) - down) / width, change, S

    @np.errstate(all="ignore")
    def has_kink(self, k: int, move: Array, h: float, linear: bool) -> bool:
        """Do the slopes to the two sides of x differ by more than rounding and curvature, O(h), explain?"""
        high, low = self.values(k, self.args[k] + move), self.values(k, self.args[k] - move)
        bend = 0.0
        for dy, up, down, middle in zip(self.dy, high, low, self.values(), strict=True):
            bend += float(np.sum(dy * (up.astype(np.float64) + down - 2.0 * middle)))
        _, _, S = self.difference(k, move, 2.0 * h)
        return bool(abs(bend) / h > SAFETY * (self.eps / h + (0.0 if linear else h)) * S)


def check(
    f: Callable[..., Any],
    backward: Callable[..., Any],
    args: Sequence[Any],
    *,
    names: Sequence[str] | None = None,
    wrt: Sequence[int] | None = None,
    linear: bool = False,
    step: float | None = None,
    tolerance: float | None = None,
    directions: int | None = None,
    dy: Any = None,
    seed: int = 0,
    name: str = "function",
) -> Report:
    """Compare backward(dy, *args) with central differences of f(*args), an entry for each argument.

    wrt       the arguments that have a gradient, in backward's order; by default all of real numbers
    linear    f is linear in each argument (or piecewise so, and `step` stays within a piece)
    step      h; eps^(1/3), or 1 where linear
    tolerance absolute, instead of the derived one; 0 asks for the exact number
    directions how many random directions of -1 and 1 to try instead of each element; by default each element
              where that is quick (up to 1500 of them), else 4 directions. A direction that fails is halved
              until the wrong element is found.
    dy        gradient of the outputs; by default drawn from a normal distribution with `seed`

    Only floating-point results of f take part (an argmax does not). f is called twice for each element.
    """
    probe = _Probe(f, args, dy, seed)
    wrt = [i for i, arg in enumerate(probe.args) if arg.dtype.kind == "f"] if wrt is None else list(wrt)
    names = [f"[{i}]" for i in range(len(args))] if names is None else names
    gradients = probe.gradients(backward, wrt)
    h = float(step if step is not None else 1.0 if linear else probe.eps ** (1 / 3))
    if h <= 0.0:
        raise ValueError(f"gradcheck: step must be positive, not {h}")
    rules = _Rules(h, linear, SAFETY * (probe.eps / h + (0.0 if linear else h * h)), tolerance)
    findings = []
    for k, gradient in zip(wrt, gradients, strict=True):
        label, x = f"d{names[k]}", probe.args[k]
        if gradient.shape != x.shape:
            findings.append(compare(label, gradient, x, 0.0, "central differences"))
        elif directions or x.size > ELEMENTWISE or x.size * probe.outputs > WORK:
            rng = np.random.default_rng([seed, k])
            moves = [rng.choice([-h, h], x.shape).astype(x.dtype) for _ in range(directions or 4)]
            findings.append(_along(moves, probe, k, gradient, rules, label, "directions"))
        else:
            findings.append(_by_element(probe, k, gradient, rules, label))
    return Report(name, tuple(findings))


def check_adjoint(
    forward: Callable[[Any], Any],
    backward: Callable[[Any], Any],
    x: Any,
    *,
    dy: Any = None,
    tolerance: float | None = None,
    label: str = "x",
    seed: int = 0,
    name: str = "function",
) -> Report:
    """The adjoint identity <dy, A x> = <A^T dy, x> of a linear map: forward(x) = A x, backward(dy) = A^T dy.

    One evaluation tests every element at once, so it suits large inputs; where it fails, x is halved until
    the wrong element is found. A constant in forward (a bias) does no harm. With `integers` for x and dy the
    two sides are equal to the last bit, and tolerance=0 may be asked for.
    """
    probe = _Probe(forward, [x], dy, seed)
    x = probe.args[0]
    probe.args = [np.zeros_like(x)]  # (A(0 + x) - A(0 - x)) / 2 is A x, whatever the constant
    (gradient,) = probe.gradients(lambda d, _: backward(d), [0])
    if gradient.shape != x.shape:
        return Report(name, (compare(f"d{label}", gradient, x, 0.0, "adjoint identity"),))
    rules = _Rules(1.0, True, SAFETY * probe.eps, tolerance)
    return Report(name, (_along([x], probe, 0, gradient, rules, f"d{label}", "adjoint identity"),))


class _Rules(NamedTuple):
    h: float
    linear: bool
    rate: float  # tolerance = rate * S
    fixed: float | None  # the caller's tolerance

    def allowed(self, S: float) -> float:
        return self.rate * S if self.fixed is None else self.fixed


def _unit(x: Array, index: tuple[int, ...], h: float) -> Array:
    move = np.zeros_like(x)
    move[index] = h
    return move


def _by_element(probe: _Probe, k: int, gradient: Array, rules: _Rules, label: str) -> Finding:
    """Central difference of every element of argument k."""
    x = probe.args[k]
    numeric, allowed = np.empty(x.shape), np.empty(x.shape)
    for index in np.ndindex(x.shape):
        displacement, change, S = probe.difference(k, _unit(x, index, rules.h), 2.0 * rules.h)
        numeric[index] = change / displacement[index]  # x + h is rounded: divide by what it moved
        allowed[index] = rules.allowed(S)
    finding = compare(label, gradient, numeric, allowed, "central differences")
    return replace(finding, note=_explain(probe, k, finding, rules))


def _along(
    moves: list[Array], probe: _Probe, k: int, gradient: Array, rules: _Rules, label: str, check: str
) -> Finding:
    """Differences of argument k along each move; the first that fails is halved down to one element."""
    dtype, worst, g = str(gradient.dtype), None, gradient.astype(np.float64)

    @np.errstate(all="ignore")
    def finding(move: Array) -> Finding:
        displacement, change, S = probe.difference(k, move, 2.0 * rules.h)
        analytic = np.asarray(np.sum(np.where(move != 0.0, g * displacement, 0.0)))
        found = compare(label, analytic, np.asarray(change), rules.allowed(S), check)
        return replace(found, dtype=dtype, index=None)

    for move in moves:
        found = finding(move)
        worst = found if worst is None or found.error > worst.error else worst
        if found.passed:
            continue
        low, high = 0, move.size
        while high - low > 1:
            middle = (low + high) // 2
            halves = []
            for a, b in ((low, middle), (middle, high)):
                part = np.zeros_like(move)
                part.flat[a:b] = move.flat[a:b]
                halves.append((excess(finding(part)), a, b))
            _, low, high = max(halves)
        index = tuple(int(i) for i in np.unravel_index(low, move.shape))
        single, scale = finding(_unit(move, index, float(move[index]))), rules.h / float(move[index])
        single = replace(
            single,
            index=index,
            error=single.error * abs(scale),
            tolerance=single.tolerance * abs(scale),
            analytic=float(g[index]),
            numeric=single.numeric * scale,
        )
        found = single if not single.passed else found
        return replace(found, note=_explain(probe, k, found, rules))
    assert worst is not None
    return replace(worst, elements=len(moves))


def _explain(probe: _Probe, k: int, finding: Finding, rules: _Rules) -> str:
    if finding.passed or finding.index is None or not np.isfinite(finding.analytic):
        return ""
    if not probe.has_kink(k, _unit(probe.args[k], finding.index, rules.h), rules.h, rules.linear):
        return ""
    return "the slopes on its two sides differ: a kink within one step, where no difference can tell"


# ------------------------------------------------------------------------------------------ layers and losses


def check_layer(
    layer: Any,
    input_shape: Shape | None = None,
    *,
    batch: int = 3,
    dtype: npt.DTypeLike = "float64",
    training: bool = True,
    x: Array | None = None,
    seed: int = 0,
    name: str | None = None,
    **options: Any,
) -> Report:
    """`check` for a layer of fastnn.layers: the gradients of its input and of each of its parameters.

    input_shape is that of one sample, as for build; a built layer knows it. The check works on a copy of the
    layer, in dtype, whose parameters get a little noise so that initial zeros and ones hide nothing. Random
    layers draw the same numbers in every call. x (batch, *input_shape) is normally distributed unless given;
    `options` go to `check`.
    """
    rng, dtype = np.random.default_rng(seed), np.dtype(dtype)
    layer = copy.deepcopy(layer)
    if not layer.built:
        if input_shape is None:
            raise ValueError(f"gradcheck: {layer.name} is not built: give input_shape, of one sample")
        layer.build(tuple(input_shape), str(dtype), rng)
    inputs = rng.standard_normal((batch, *layer.input_shape)) if x is None else x
    for arrays in (layer.params, layer.state):
        arrays.update({key: value.astype(dtype) for key, value in arrays.items()})
    keys, asarray = list(layer.params), layer.xp.asarray
    noise = [rng.choice([-0.25, 0.25], value.shape) for value in layer.params.values()]
    params = [asarray(host(p) + d, dtype) for p, d in zip(layer.params.values(), noise, strict=True)]

    def forward(x: Array, *params: Array) -> tuple[Any, Any]:
        layer.params.update(zip(keys, params, strict=True))
        drawn = [asarray(array) for array in layer.draw(np.random.default_rng(seed), x.shape)]
        y, saved = layer.forward(x, training, drawn)
        return y, saved

    def backward(dy: Array, x: Array, *params: Array) -> tuple[Any, ...]:
        dx, gradients = layer.backward(dy, forward(x, *params)[1])
        if set(gradients) != set(keys):
            raise ValueError(f"gradcheck: {layer.name} has gradients of {list(gradients)}, params {keys}")
        return (dx, *(gradients[key] for key in keys))

    args, names = [asarray(inputs, dtype), *params], ["x", *keys]
    title = name or f"{layer.name} {inputs.shape}"
    return check(lambda *a: forward(*a)[0], backward, args, names=names, name=title, seed=seed, **options)


def check_loss(
    loss: Any,
    y_true: Any,
    y_pred: Array,
    *,
    sample_weight: Any = None,
    name: str | None = None,
    **options: Any,
) -> Report:
    """`check` for a loss of fastnn.losses: the gradient of the batch's mean loss for its predictions."""
    target = np.asarray(loss.targets(y_true, y_pred.shape[1:]), like=y_pred)
    weights = None if sample_weight is None else np.asarray(sample_weight, y_pred.dtype, like=y_pred)

    def forward(y_pred: Array) -> Any:
        return loss.forward(y_pred, target, weights)[0].sum() / len(y_pred)

    def backward(dy: Array, y_pred: Array) -> Any:
        return loss.backward(loss.forward(y_pred, target, weights)[1])

    options = {"names": ["y_pred"], "dy": np.ones((), y_pred.dtype), **options}
    return check(forward, backward, [y_pred], name=name or f"{loss.name} {y_pred.shape}", **options)


# -------------------------------------------------------------------------------------------------- self-test


def run(
    backend: str = "cpu", progress: Callable[[str, Report], None] | None = None
) -> list[tuple[str, Report]]:
    """Check every op, layer and loss of fastnn on this machine: a list of (name, report).

    backend is the device to run on. progress, where given, is called with each name and report as it is
    made. A report that fails does not stop the run, nor does an op that raises: its report says what.
    """
    from . import _backend, _gradcases, _gradlayers, ops

    _backend.check_device(backend)

    device = _gradcases.Device(ops, backend)
    results = []
    for family in (*_gradcases.OPS, *_gradlayers.LAYERS):
        results += collect(family(device), progress)
    return results


def collect(
    cases: Iterable[tuple[str, Callable[[], Report]]], progress: Callable[[str, Report], None] | None = None
) -> list[tuple[str, Report]]:
    """The reports of (name, function that gives a report); an exception becomes a report that fails."""
    results = []
    for name, make in cases:
        try:
            report = make()
        except Exception as error:
            failure = Finding.failure("", "call", f"{type(error).__name__}: {error}")
            report = Report(name, (failure,))
        results.append((name, report))
        if progress is not None:
            progress(name, report)
    return results
