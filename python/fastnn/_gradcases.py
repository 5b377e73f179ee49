"""What `fastnn gradcheck` goes over: every op in shapes that have tails. (Layers and losses: _gradlayers.)

Channel counts 1 3 5 17 33 leave remainders in every vector width, images are not square, strides do not
divide, and each family has a case large enough to be split over threads. Three kinds of check:

- float64, central differences of every element of every argument (directions for the large), random numbers;
- float32, small integers: linear ops are exact there, so that differences, the adjoint identity and the
  comparison with `fastnn.reference` allow no error at all;
- both dtypes against `fastnn.reference`, forward and backward, which covers what has no gradient, too.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np

from . import _backend, reference
from ._typing import Array, Padding, Pair, Shape
from .gradcheck import Finding, Report, check, check_adjoint, compare, distinct, host, integers

DTYPES = ("float32", "float64")
ULPS = 64.0  # against the reference: rounding errors allowed, in units of the largest result's
LENGTHS = (1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 70_001)  # of what works element by element


class Device(NamedTuple):
    ops: Any  # fastnn.ops, or what stands in for it
    name: str = "cpu"

    def put(self, array: Array) -> Any:
        return _backend.module(self.name).asarray(array)


class Case(NamedTuple):
    name: str  # the op's, layer's or loss's
    run: Callable[[], Report]


Cases = Iterator[Case]


def normal(shape: Shape, rng: np.random.Generator, dtype: str) -> Array:
    return rng.standard_normal(shape).astype(dtype)


# ----------------------------------------------------------------------------------- the three kinds of check


def linear(
    device: Device,
    name: str,
    detail: str,
    f: Callable[..., Any],
    backward: Callable[..., Any],
    shapes: dict[str, Shape],
    exact: bool = True,
) -> Cases:
    """An op that is linear in each argument; exact: integers stay exact in it (there is no division by 3)."""
    arguments = (device, f"{name} {detail}", f, backward, shapes)
    yield Case(name, partial(_differences, *arguments))
    yield Case(name, partial(_adjoint, *arguments, exact))


def _differences(
    device: Device, name: str, f: Callable[..., Any], backward: Callable[..., Any], shapes: dict[str, Shape]
) -> Report:
    rng = np.random.default_rng(12)
    args = [device.put(normal(shape, rng, "float64")) for shape in shapes.values()]
    return check(f, backward, args, names=list(shapes), linear=True, name=name)


def _adjoint(
    device: Device,
    name: str,
    f: Callable[..., Any],
    backward: Callable[..., Any],
    shapes: dict[str, Shape],
    exact: bool,
) -> Report:
    """float32 on integers: differences, and the adjoint identity for one argument at a time."""
    rng, names, tolerance = np.random.default_rng(13), list(shapes), 0.0 if exact else None
    args = [device.put(integers(shape, rng, "float32")) for shape in shapes.values()]
    dy = integers(host(f(*args)).shape, rng, "float32")
    found = check(f, backward, args, names=names, linear=True, tolerance=tolerance, dy=dy).findings
    for k, label in enumerate(names):

        def forward(v: Any, k: int = k) -> Any:
            return f(*args[:k], v, *args[k + 1 :])

        def adjoint(d: Any, k: int = k) -> Any:
            return backward(d, *args)[k]

        found += check_adjoint(forward, adjoint, args[k], dy=dy, tolerance=tolerance, label=label).findings
    return Report(name, found)


def smooth(
    device: Device,
    name: str,
    detail: str,
    f: Callable[..., Any],
    backward: Callable[..., Any],
    args: dict[str, Array],
    **options: Any,
) -> Cases:
    """Differences of a function of the given arguments."""
    placed = [device.put(arg) for arg in args.values()]
    options = {"names": list(args), "name": f"{name} {detail}", **options}
    yield Case(name, partial(check, f, backward, placed, **options))


def agrees(
    device: Device, op: str, outputs: str, args: Sequence[Any], *, exact: bool = False, **options: Any
) -> Cases:
    """The op against its reference: values, dtype, and the same bits from a second call.

    outputs names the results, as in "y argmax". exact asks for the very numbers.
    """
    detail = ", ".join(str(a.shape) if isinstance(a, np.ndarray) else str(a) for a in args)
    detail += "".join(f", {k}={v.shape if isinstance(v, np.ndarray) else v}" for k, v in options.items())
    yield Case(op, partial(_agrees, device, op, outputs.split(), args, exact, options, f"{op} {detail}"))


def _agrees(
    device: Device,
    op: str,
    labels: list[str],
    args: Sequence[Any],
    exact: bool,
    options: dict[str, Any],
    name: str,
) -> Report:
    expected = _parts(getattr(reference, op)(*args, **options))
    floats = (a.dtype for a in args if isinstance(a, np.ndarray) and a.dtype.kind == "f")
    dtype = np.dtype(options.get("dtype") or next(floats))

    def call() -> list[Array]:
        for e in expected:  # freed at once, and handed out again: what the op does not write is a NaN
            np.full(e.shape, np.nan, dtype)
        put = [device.put(a) if isinstance(a, np.ndarray) else a for a in args]
        also = {k: device.put(v) if isinstance(v, np.ndarray) else v for k, v in options.items()}
        return _parts(getattr(device.ops, op)(*put, **also))

    findings = []
    for label, e, y, again in zip(labels, expected, call(), call(), strict=True):
        wanted = dtype if e.dtype.kind == "f" else e.dtype
        allowed = 0.0 if exact else ULPS * float(np.finfo(dtype).eps) * float(np.max(np.abs(e), initial=0.0))
        findings.append(_agreement(label, y, again, e, wanted, allowed))
    return Report(name, tuple(findings))


def _agreement(label: str, y: Array, again: Array, expected: Array, dtype: Any, allowed: float) -> Finding:
    note = ""
    if y.dtype != dtype:
        note = f"is {y.dtype}, should be {dtype}"
    elif y.tobytes() != again.tobytes():
        note = "two calls gave different bits"
    return compare(label, y, expected, allowed, "reference", note)


def _parts(result: Any) -> list[Array]:
    return [host(part) for part in (result if isinstance(result, tuple) else (result,))]


# -------------------------------------------------------------------------------------------------------- ops


def _gemm(device: Device) -> Cases:
    for m, n, k in ((1, 1, 1), (3, 17, 5), (17, 5, 33), (7, 33, 9), (67, 131, 515)):
        for ta, tb in ((False, False), (True, False), (False, True), (True, True)):
            yield from _gemm_case(device, (k, m) if ta else (m, k), (n, k) if tb else (k, n), ta, tb)


def _gemm_case(device: Device, a_shape: Shape, b_shape: Shape, ta: bool, tb: bool) -> Cases:
    ops, how = device.ops, dict[str, Any]({"transpose_a": ta, "transpose_b": tb, "alpha": -2.0})
    shapes = {"a": a_shape, "b": b_shape, "bias": (b_shape[0 if tb else 1],)}

    def f(a: Any, b: Any, bias: Any) -> Any:
        return ops.gemm(a, b, bias=bias, **how)

    def backward(dy: Any, a: Any, b: Any, bias: Any) -> Any:
        return (*ops.gemm_backward(dy, a, b, **how), ops.bias_backward(dy))

    yield from linear(device, "gemm", f"{a_shape} by {b_shape}, {how}", f, backward, shapes)
    rng = np.random.default_rng(1)
    for dtype in DTYPES:
        a, b, bias = (integers(shape, rng, dtype) for shape in shapes.values())
        dy = integers((a_shape[1 if ta else 0], bias.size), rng, dtype)
        yield from agrees(device, "gemm", "y", [a, b], exact=True, **how)
        yield from agrees(device, "gemm", "y", [a, b, dy], exact=True, beta=0.5, bias=bias, relu=True, **how)
        yield from agrees(device, "gemm_backward", "da db", [dy, a, b], exact=True, **how)


def _bias(device: Device) -> Cases:
    rng = np.random.default_rng(2)
    for shape in ((4, 1), (5, 17), (2, 3, 5, 33), (0, 3), (3001, 7)):
        for dtype in DTYPES:
            yield from agrees(device, "bias_backward", "db", [integers(shape, rng, dtype)], exact=True)


def _conv2d(device: Device) -> Cases:
    both, four = (1, 2), ((1, 2), (0, 3))
    yield from _conv2d_case(device, (2, 5, 4, 1), (3, 3, 1, 3), 1, 1, "valid")
    yield from _conv2d_case(device, (1, 7, 5, 3), (3, 2, 3, 5), (2, 1), 1, "same")
    yield from _conv2d_case(device, (2, 6, 5, 5), (2, 3, 5, 3), 1, (2, 1), four)
    yield from _conv2d_case(device, (1, 8, 9, 3), (3, 2, 3, 1), (2, 3), 2, both)
    yield from _conv2d_case(device, (3, 3, 5, 17), (1, 1, 17, 33), 1, 1, "valid")
    yield from _conv2d_case(device, (1, 4, 5, 3), (5, 5, 3, 2), 1, 1, 2)
    yield from _conv2d_case(device, (1, 9, 8, 2), (2, 2, 2, 3), 3, 1, "valid")  # pixels that no tap reads
    yield from _conv2d_case(device, (2, 15, 14, 33), (3, 3, 33, 17), 2, 1, "same")
    yield from _conv2d_case(device, (5, 32, 33, 3), (3, 3, 3, 32), 1, 1, "valid")
    yield from _conv2d_case(device, (3, 17, 13, 32), (3, 3, 32, 64), 1, 1, "same")


def _conv2d_case(
    device: Device, x_shape: Shape, w_shape: Shape, stride: Pair, dilation: Pair, padding: Padding
) -> Cases:
    ops, how = device.ops, dict[str, Any]({"stride": stride, "dilation": dilation, "padding": padding})

    def f(x: Any, w: Any, b: Any) -> Any:
        return ops.conv2d(x, w, b, **how)

    def backward(dy: Any, x: Any, w: Any, b: Any) -> Any:
        dx = ops.conv2d_backward_x(dy, w, x.shape, **how)
        return dx, ops.conv2d_backward_w(dy, x, w.shape, **how), ops.bias_backward(dy)

    shapes = {"x": x_shape, "w": w_shape, "b": w_shape[3:]}
    yield from linear(device, "conv2d", f"x {x_shape}, w {w_shape}, {how}", f, backward, shapes)
    rng = np.random.default_rng(3)
    for dtype in DTYPES:
        x, w, b = (integers(shape, rng, dtype) for shape in shapes.values())
        y = reference.conv2d(x, w, b, **how)
        dy = integers(y.shape, rng, dtype)
        yield from agrees(device, "conv2d", "y", [x, w], exact=True, **how)
        yield from agrees(device, "conv2d", "y", [x, w, b], exact=True, relu=True, **how)
        yield from agrees(device, "conv2d_backward_x", "dx", [dy, w, x_shape], exact=True, **how)
        yield from agrees(device, "conv2d_backward_w", "dw", [dy, x, w_shape], exact=True, **how)


# x shape, window, stride, padding
_POOLS: list[tuple[Shape, Pair, Pair | None, Padding]] = [
    ((2, 6, 4, 3), 2, None, "valid"),
    ((1, 7, 5, 17), (3, 2), (2, 1), "valid"),  # windows overlap
    ((2, 5, 7, 5), (2, 3), 2, "same"),
    ((1, 9, 8, 33), 2, 3, "valid"),  # pixels that no window reads
    ((1, 5, 6, 1), (3, 4), 1, ((1, 0), (2, 1))),
    ((3, 31, 17, 33), 2, None, "valid"),
    ((2, 32, 30, 17), (3, 3), (2, 2), "same"),
]


def _max_pool2d(device: Device) -> Cases:
    for case in _POOLS:
        yield from _max_pool2d_case(device, *case)


def _max_pool2d_case(
    device: Device, shape: Shape, window: Pair, stride: Pair | None, padding: Padding
) -> Cases:
    ops, how = device.ops, dict[str, Any]({"window": window, "stride": stride, "padding": padding})

    def f(x: Any) -> Any:
        return ops.max_pool2d(x, **how)[0]

    def backward(dy: Any, x: Any) -> Any:
        return ops.max_pool2d_backward(dy, ops.max_pool2d(x, **how)[1], x.shape, **how)

    rng = np.random.default_rng(4)
    for dtype in DTYPES:
        x = distinct(shape, rng, dtype)
        y, argmax = reference.max_pool2d(x, **how)
        dy = integers(y.shape, rng, dtype)
        exact = {"linear": True, "step": 1 / 16, "tolerance": 0.0, "dy": dy}
        yield from smooth(device, "max_pool2d", f"x {shape}, {how}", f, backward, {"x": x}, **exact)
        yield from agrees(device, "max_pool2d", "y argmax", [x], exact=True, **how)
        yield from agrees(device, "max_pool2d_backward", "dx", [dy, argmax, shape], exact=True, **how)


def _avg_pool2d(device: Device) -> Cases:
    for case in _POOLS:
        yield from _avg_pool2d_case(device, *case)


def _avg_pool2d_case(
    device: Device, shape: Shape, window: Pair, stride: Pair | None, padding: Padding
) -> Cases:
    ops, how = device.ops, dict[str, Any]({"window": window, "stride": stride, "padding": padding})

    def f(x: Any) -> Any:
        return ops.avg_pool2d(x, **how)

    def backward(dy: Any, x: Any) -> Any:
        return (ops.avg_pool2d_backward(dy, x.shape, **how),)

    halves = window == 2 and padding == "valid"  # a quarter is exact, a third is not
    yield from linear(device, "avg_pool2d", f"x {shape}, {how}", f, backward, {"x": shape}, exact=halves)
    rng = np.random.default_rng(5)
    for dtype in DTYPES:
        x = integers(shape, rng, dtype)
        dy = integers(reference.avg_pool2d(x, **how).shape, rng, dtype)
        yield from agrees(device, "avg_pool2d", "y", [x], exact=halves, **how)
        yield from agrees(device, "avg_pool2d_backward", "dx", [dy, shape], exact=halves, **how)


def _conv2d_max_pool2d(device: Device) -> Cases:
    yield from _conv2d_max_pool2d_case(device, (2, 6, 5, 1), (3, 3, 1, 3), window=2)
    yield from _conv2d_max_pool2d_case(
        device, (1, 9, 8, 3), (3, 2, 3, 5), window=2, padding="same", stride=(1, 2)
    )
    yield from _conv2d_max_pool2d_case(
        device, (2, 8, 7, 5), (2, 3, 5, 17), window=3, pool_stride=2, dilation=(2, 1)
    )
    yield from _conv2d_max_pool2d_case(
        device, (1, 7, 9, 2), (2, 2, 2, 3), window=(2, 3), pool_padding="same", padding=1
    )
    yield from _conv2d_max_pool2d_case(device, (5, 32, 33, 3), (3, 3, 3, 32), window=2)
    yield from _conv2d_max_pool2d_case(device, (3, 15, 13, 32), (3, 3, 32, 64), window=2, padding="same")


def _conv2d_max_pool2d_case(device: Device, x_shape: Shape, w_shape: Shape, **how: Any) -> Cases:
    ops, name, shapes = device.ops, "conv2d_max_pool2d", {"x": x_shape, "w": w_shape, "b": w_shape[3:]}

    def f(x: Any, w: Any, b: Any) -> Any:
        return ops.conv2d_max_pool2d(x, w, b, relu=True, **how)[0]

    def backward(dy: Any, x: Any, w: Any, b: Any) -> Any:
        argmax = ops.conv2d_max_pool2d(x, w, b, relu=True, **how)[1]
        dx = ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **how)
        return dx, *ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **how)

    rng = np.random.default_rng(16)
    if x_shape[3] < 32 and w_shape[3] < 32:  # among more outputs, some are always a step away from a kink
        args = {key: normal(shape, rng, "float64") for key, shape in shapes.items()}
        yield from smooth(device, name, f"x {x_shape}, w {w_shape}, {how}", f, backward, args)
    for dtype in DTYPES:
        x, w, b = (integers(shape, rng, dtype) for shape in shapes.values())
        for relu in (False, True):
            yield from agrees(device, name, "y argmax", [x, w, b], exact=True, relu=relu, **how)
        y, argmax = reference.conv2d_max_pool2d(x, w, b, relu=True, **how)
        dy = integers(y.shape, rng, dtype)
        yield from agrees(device, f"{name}_backward_x", "dx", [dy, argmax, w, x_shape], exact=True, **how)
        yield from agrees(device, f"{name}_backward_w", "dw db", [dy, argmax, x, w_shape], exact=True, **how)


def _activations(device: Device) -> Cases:
    rng = np.random.default_rng(6)
    for name in ("relu", "sigmoid", "tanh"):
        for length in LENGTHS:
            yield from _activation_case(device, name, (length,), rng)
        yield from _activation_case(device, name, (2, 3, 5, 7), rng)


def _activation_case(device: Device, name: str, shape: Shape, rng: np.random.Generator) -> Cases:
    kinked = name == "relu"
    x = distinct(shape, rng) if kinked else normal(shape, rng, "float64")
    how: dict[str, Any] = {"linear": True, "step": 1 / 16} if kinked else {}
    yield from smooth(device, name, f"x {shape}", *_pair(device, name), {"x": x}, **how)
    for dtype in DTYPES:
        x = (distinct(shape, rng) if kinked else 3.0 * normal(shape, rng, "float64")).astype(dtype)
        dy = normal(shape, rng, dtype)
        y = getattr(reference, name)(x).astype(dtype)
        yield from agrees(device, name, "y", [x], exact=kinked)
        yield from agrees(device, f"{name}_backward", "dx", [dy, y], exact=kinked)


def _pair(device: Device, name: str) -> tuple[Callable[..., Any], Callable[..., Any]]:
    """An op of x and its gradient, which is written in terms of y."""
    forward, backward = getattr(device.ops, name), getattr(device.ops, f"{name}_backward")
    return forward, lambda dy, x: backward(dy, forward(x))


def _dropout(device: Device) -> Cases:
    rng = np.random.default_rng(14)
    forward, backward = device.ops.dropout, device.ops.dropout_backward
    for shape in (*((length,) for length in LENGTHS), (2, 3, 5, 7)):
        keep = rng.random(shape) >= 0.25
        how: dict[str, Any] = {"linear": True, "step": 1 / 16}
        there = {"keep": device.put(keep), "rate": 0.25}
        pair = partial(forward, **there), lambda dy, x, there=there: backward(dy, **there)
        yield from smooth(device, "dropout", f"x {shape}", *pair, {"x": normal(shape, rng, "float64")}, **how)
        for dtype in DTYPES:
            x, dy = integers(shape, rng, dtype), integers(shape, rng, dtype)
            yield from agrees(device, "dropout", "y", [x, keep, 0.5], exact=True)
            yield from agrees(device, "dropout_backward", "dx", [dy, keep, 0.5], exact=True)


def _rescale(device: Device) -> Cases:
    rng = np.random.default_rng(15)
    forward = device.ops.rescale
    how: dict[str, Any] = {"linear": True, "step": 1 / 16}
    pair = partial(forward, scale=-1.5, offset=0.25), lambda dy, x: forward(dy, -1.5)
    for shape in (*((length,) for length in LENGTHS), (2, 3, 5, 7)):
        yield from smooth(device, "rescale", f"x {shape}", *pair, {"x": normal(shape, rng, "float64")}, **how)
    for shape in ((1, 1), (33,), (9, 4), (7, 3, 5), (40, 512)):
        rows = rng.integers(0, shape[0], 2 * shape[0] - 1, dtype=np.int32)
        for stored, dtype in itertools.product(("uint8", *DTYPES), DTYPES):
            x = integers(shape, rng, "float64").astype(stored)
            for options in ({}, {"rows": rows}):
                yield from agrees(device, "rescale", "y", [x, 0.5, -2.0], exact=True, dtype=dtype, **options)


def _resample(device: Device) -> Cases:
    rng = np.random.default_rng(16)
    forward, backward = device.ops.resample, device.ops.resample_backward
    for shape, axis, taps, outputs in (
        ((1, 1), 1, 1, 1),
        ((3, 5), 1, 2, 7),
        ((2, 7, 5, 3), 1, 2, 7),
        ((2, 7, 5, 3), 2, 2, 5),
        ((3, 4, 6, 17), 2, 1, 3),
        ((2, 3, 2, 9), 3, 3, 33),
    ):
        index = rng.integers(0, shape[axis], (taps, shape[0], outputs), dtype=np.int32)
        weights, offset = (rng.integers(-8, 9, s) / 4 for s in (index.shape, index.shape[1:]))
        there = {"index": device.put(index), "weights": device.put(weights)}
        yield from smooth(
            device,
            "resample",
            f"x {shape}, axis {axis}, {taps} of {outputs}",
            lambda x, there=there, axis=axis, offset=offset: forward(
                x, axis, offset=device.put(offset), **there
            ),
            lambda dy, x, there=there, axis=axis, shape=shape: backward(dy, axis, x_shape=shape, **there),
            {"x": normal(shape, rng, "float64")},
            linear=True,
        )
        y_shape = (*shape[:axis], outputs, *shape[axis + 1 :])
        for dtype in DTYPES:
            x, dy = integers(shape, rng, dtype), integers(y_shape, rng, dtype)
            w, b = weights.astype(dtype), offset.astype(dtype)
            yield from agrees(device, "resample", "y", [x, axis, index], exact=True)
            yield from agrees(device, "resample", "y", [x, axis, index, w, b], exact=True)
            yield from agrees(device, "resample_backward", "dx", [dy, axis, index, shape], exact=True)
            yield from agrees(device, "resample_backward", "dx", [dy, axis, index, shape, w], exact=True)


_LOGITS: tuple[Shape, ...] = ((1, 1), (3, 2), (5, 3), (4, 10), (2, 17), (3, 33), (1031, 10))


def _softmax(device: Device) -> Cases:
    rng = np.random.default_rng(7)
    for shape in (*_LOGITS, (2, 3, 5)):
        x = normal(shape, rng, "float64")
        yield from smooth(device, "softmax", f"x {shape}", *_pair(device, "softmax"), {"x": x})
        for dtype in DTYPES:
            x, dy = 5.0 * normal(shape, rng, dtype), normal(shape, rng, dtype)
            yield from agrees(device, "softmax", "y", [x])
            yield from agrees(device, "softmax_backward", "dx", [dy, reference.softmax(x).astype(dtype)])


def _cross_entropy(device: Device) -> Cases:
    rng = np.random.default_rng(8)
    for shape in _LOGITS:
        labels, weights = rng.integers(0, shape[1], shape[0]), rng.random(shape) + 0.1
        yield from _cross_entropy_case(device, shape, "labels", labels, rng)
        yield from _cross_entropy_case(device, shape, "probabilities", weights, rng)  # of any sum


def _cross_entropy_case(
    device: Device, shape: Shape, kind: str, target: Array, rng: np.random.Generator
) -> Cases:
    ops, name = device.ops, "softmax_cross_entropy"

    def f(x: Any) -> Any:
        return ops.softmax_cross_entropy(x, device.put(target))[0]

    def backward(dloss: Any, x: Any) -> Any:
        _, y = ops.softmax_cross_entropy(x, device.put(target))
        return ops.softmax_cross_entropy_backward(dloss, y, device.put(target))

    x = normal(shape, rng, "float64")
    yield from smooth(device, name, f"x {shape}, {kind}", f, backward, {"x": x})
    for dtype in DTYPES:
        x, dloss = 5.0 * normal(shape, rng, dtype), normal(shape[:1], rng, dtype)
        t = target.astype(dtype) if kind == "probabilities" else target
        y = reference.softmax(x).astype(dtype)
        yield from agrees(device, name, "loss y", [x, t])
        yield from agrees(device, f"{name}_backward", "dx", [dloss, y, t])


def _mean_squared_error(device: Device) -> Cases:
    rng = np.random.default_rng(9)
    for shape in ((5,), (1, 1), (3, 17), (4, 3, 5), (2, 33), (1031, 10)):
        yield from _mean_squared_error_case(device, shape, rng)


def _mean_squared_error_case(device: Device, shape: Shape, rng: np.random.Generator) -> Cases:
    ops, name = device.ops, "mean_squared_error"
    target = device.put(normal(shape, rng, "float64"))

    def f(x: Any) -> Any:
        return ops.mean_squared_error(x, target)

    def backward(dy: Any, x: Any) -> Any:
        return ops.mean_squared_error_backward(dy, x, target)

    yield from smooth(device, name, f"x {shape}", f, backward, {"x": normal(shape, rng, "float64")})
    for dtype in DTYPES:
        x, t, dloss = (normal(s, rng, dtype) for s in (shape, shape, shape[:1]))
        yield from agrees(device, name, "loss", [x, t])
        yield from agrees(device, f"{name}_backward", "dx", [dloss, x, t])


def _batch_norm(device: Device) -> Cases:
    ops, rng = device.ops, np.random.default_rng(10)

    def f(x: Any, gamma: Any, beta: Any) -> Any:
        return ops.batch_norm(x, gamma, beta)[0]

    def backward(dy: Any, x: Any, gamma: Any, beta: Any) -> Any:
        _, mean, var = ops.batch_norm(x, gamma, beta)
        return ops.batch_norm_backward(dy, x, gamma, mean, var)

    for shape in ((7, 1), (5, 3), (2, 3, 4, 5), (9, 17), (3, 2, 2, 33), (3, 17, 19, 33)):
        draw = [normal(s, rng, "float64") for s in (shape, shape[-1:], shape[-1:])]
        args = dict(zip(("x", "gamma", "beta"), draw, strict=True))
        yield from smooth(device, "batch_norm", f"x {shape}", f, backward, args)
        for dtype in DTYPES:
            x, gamma, beta = (a.astype(dtype) for a in (2.0 * draw[0] + 3.0, *draw[1:]))
            dy = normal(shape, rng, dtype)
            mean, var = (a.astype(dtype) for a in reference.batch_norm(x, gamma, beta)[1:])
            yield from agrees(device, "batch_norm", "y mean var", [x, gamma, beta])
            yield from agrees(device, "batch_norm_backward", "dx dgamma dbeta", [dy, x, gamma, mean, var])
            yield from agrees(device, "batch_norm_inference", "y", [x, gamma, beta, mean, var])


# ------------------------------------------------------------------------------------------------- optimizers

_SHAPES: list[Shape] = [(3, 3, 3, 5), (5,), (1,), (17, 33), (33,), (70_001,)]


def _optimizers(device: Device) -> Cases:
    for momentum, nesterov in ((0.0, False), (0.9, False), (0.9, True)):
        how = {"learning_rate": 0.1, "momentum": momentum, "nesterov": nesterov}
        for decay in (0.0, 0.01):
            yield from _optimizer_case(
                device, "sgd_step", ["v"] * (momentum > 0), {**how, "weight_decay": decay}
            )
    for decay in (0.0, 0.01):
        yield from _optimizer_case(
            device, "adam_step", ["m", "v"], {"learning_rate": 0.01, "weight_decay": decay}
        )


def _optimizer_case(device: Device, op: str, slots: list[str], how: dict[str, Any]) -> Cases:
    for dtype in DTYPES:
        yield Case(op, partial(_steps, device, op, slots, how, dtype))


def _steps(device: Device, op: str, slots: list[str], how: dict[str, Any], dtype: str) -> Report:
    """Three steps from one start, by the op in dtype and by the reference in float64."""

    def walk(ops: Any, put: Callable[[Array], Any], float_type: str) -> list[list[Array]]:
        rng = np.random.default_rng(11)
        ws = [put(normal(shape, rng, dtype).astype(float_type)) for shape in _SHAPES]
        kept = [[put(np.zeros(shape, float_type)) for shape in _SHAPES] for _ in slots]
        for step in (1, 2, 3):
            dws = [put(normal(shape, rng, dtype).astype(float_type)) for shape in _SHAPES]
            counted = {"step": step} if op == "adam_step" else {}
            getattr(ops, op)(ws, dws, *(kept if slots else (None,)), **counted, **how)
        return [[host(array) for array in arrays] for arrays in (ws, *kept)]

    found, again = (walk(device.ops, device.put, dtype) for _ in range(2))
    expected = walk(reference, np.asarray, "float64")
    eps, findings = float(np.finfo(dtype).eps), []
    for label, ys, seconds, es in zip(["w", *slots], found, again, expected, strict=True):
        for i, (y, second, e) in enumerate(zip(ys, seconds, es, strict=True)):
            allowed = ULPS * eps * float(np.max(np.abs(e)))
            findings.append(_agreement(f"{label}[{i}]", y, second, e, np.dtype(dtype), allowed))
    return Report(f"{op} {how}", tuple(findings))


OPS: tuple[Callable[[Device], Cases], ...] = (
    _gemm,
    _bias,
    _conv2d,
    _max_pool2d,
    _avg_pool2d,
    _conv2d_max_pool2d,
    _activations,
    _dropout,
    _rescale,
    _resample,
    _softmax,
    _cross_entropy,
    _mean_squared_error,
    _batch_norm,
    _optimizers,
)
