"""Cases: a string such as `conv2d/n32h15w15c32k64r3s3` names a problem, holds its size, and is what repeats it.

    family/sizes[:precision]

A size is a letter and a number: n images, h by w pixels, c channels, k filters or the inner dimension of a product, r by s
taps, u stride, p padding. What has its default value is left out, so that a problem has one name. A family knows its
inputs, what comes out of the reference, and its work: floating-point operations, and bytes if every operand is read
and every result written once. A new family is one class here, and a method of that name for each library that has it.

Inputs are drawn from the name, so that every process has the same ones. Nothing but NumPy is needed to read this module.
"""

from __future__ import annotations

import fnmatch
import re
import zlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np

from .._typing import Array

PRECISIONS = ("float32", "tf32", "bfloat16")
_ROUNDOFF = {"float32": 0.0, "tf32": 2.0**-11, "bfloat16": 2.0**-8}  # of a factor, before the multiplication
_EPS = float(np.finfo(np.float32).eps)

Inputs = dict[str, Any]  # names to arrays, or to lists of arrays


class Work(NamedTuple):
    """What a pass must do at least: floating-point operations, and bytes read and written."""

    flops: float
    bytes: float


class Expected(NamedTuple):
    """A result in float64, and how far each element may be off."""

    value: Array
    bound: Array


@dataclass(frozen=True)
class Case:
    """A problem: a family, its sizes, and the precision of the factors of its products."""

    family: Family
    sizes: Mapping[str, Any]
    precision: str = "float32"

    def __getitem__(self, name: str) -> Any:
        return self.sizes[name]

    def __str__(self) -> str:
        suffix = "" if self.precision == "float32" else f":{self.precision}"
        return f"{self.family.name}/{self.family.format(self.sizes)}{suffix}"

    def inputs(self) -> Inputs:
        """The arrays that the case starts from, the same for all precisions and in every process."""
        name = f"{self.family.name}/{self.family.format(self.sizes)}"
        return self.family.inputs(self, np.random.default_rng(zlib.crc32(name.encode())))

    @property
    def passes(self) -> tuple[str, ...]:
        return self.family.passes

    def work(self, which: str) -> Work:
        """What the pass must do at least."""
        return self.family.work(self, which)

    def expected(self, which: str, inputs: Inputs) -> list[Expected]:
        """The pass's results by the reference."""
        return self.family.expected(self, which, inputs)


def parse(text: str) -> Case:
    """The case of this name; ValueError where it is none, or not the one way to write it."""
    family_name, _, rest = text.partition("/")
    if family_name not in FAMILIES:
        raise ValueError(f"case {text!r}: there is no family {family_name!r}, only {', '.join(FAMILIES)}")
    family = FAMILIES[family_name]
    body, colon, precision = rest.partition(":")
    found = family.pattern.fullmatch(body)
    if found is None:
        raise ValueError(f"case {text!r} does not read like {family.name}/{family.template}")
    given = {name: value for name, value in found.groupdict().items() if value is not None}
    sizes = {
        **family.defaults,
        **{name: int(value) if value.isdigit() else value for name, value in given.items()},
    }
    for name, value in sizes.items():
        if name in family.follows and name not in given:
            sizes[name] = sizes[family.follows[name]]
        elif value == 0 and name != "p":
            raise ValueError(f"case {text!r}: {name} must be at least 1")
    if colon and precision not in family.precisions:
        raise ValueError(
            f"case {text!r}: {family.name} knows the precisions {', '.join(family.precisions)}, not {precision!r}"
        )
    case = Case(family, sizes, precision or "float32")
    if str(case) != text:
        raise ValueError(f"case {text!r} is written {str(case)!r}")
    return case


class Family:
    """One kind of problem.

    template: the sizes as they are written, `{n}` a number, `{x:a|b}` one of these words; what stands in brackets is left
    out where it has its default. follows: sizes whose default is another size.
    """

    name: ClassVar[str]
    template: ClassVar[str]
    defaults: ClassVar[Mapping[str, Any]] = {}
    follows: ClassVar[Mapping[str, str]] = {}
    passes: ClassVar[tuple[str, ...]] = ("forward", "backward")
    precisions: ClassVar[tuple[str, ...]] = ("float32",)
    checked_calls: ClassVar[int] = 1  # results of so many calls in a row are compared
    least_calls: ClassVar[int] = 1  # in a turn
    whole: ClassVar[bool] = False  # on a GPU, launches from the host are part of its time
    items: ClassVar[str] = ""  # what a rate counts, where it is not operations or bytes

    _FIELD: ClassVar[re.Pattern[str]] = re.compile(r"\{(\w)(?::([^}]*))?\}")

    @property
    def pattern(self) -> re.Pattern[str]:
        text = self.template.replace("[", "(?:").replace("]", ")?")
        return re.compile(self._FIELD.sub(lambda m: f"(?P<{m[1]}>{m[2] or '[0-9]+'})", text))

    def format(self, sizes: Mapping[str, Any]) -> str:
        """The sizes as the template writes them."""

        def optional(part: re.Match[str]) -> str:
            fields = self._FIELD.findall(part[1])
            plain = all(
                sizes[f] == sizes.get(self.follows.get(f, ""), self.defaults.get(f)) for f, _ in fields
            )
            return "" if plain else part[1]

        text = re.sub(r"\[([^\]]*)\]", optional, self.template)
        return self._FIELD.sub(lambda m: str(sizes[m[1]]), text)

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        raise NotImplementedError

    def work(self, case: Case, which: str) -> Work:
        raise NotImplementedError

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        raise NotImplementedError


def _normal(rng: np.random.Generator, *shape: int) -> Array:
    return rng.standard_normal(shape, dtype=np.float32)


def _sum_of_products(value: Array, squares: Array, terms: int, precision: str = "float32") -> Expected:
    """A sum of `terms` products of random factors; squares: the same sum over the squares of the factors.

    Rounding errors of such a sum add up like a random walk (Higham and Mary 2019), so that its standard deviation and the root
    of its length bound the error of any order of summation, while a term left out shows.
    """
    relative = 8 * (_EPS * (np.sqrt(terms) + 4) + _ROUNDOFF[precision])
    return Expected(value, relative * np.sqrt(squares) + float(np.finfo(np.float32).tiny))


def _relative(value: Array, tolerance: float) -> Expected:
    """A result that is right to a fraction of its largest element."""
    value = np.asarray(value, np.float64)
    return Expected(value, np.full(value.shape, tolerance * max(float(np.abs(value).max(initial=0)), 1e-30)))


def _floats(*shapes: Sequence[int]) -> float:
    return 4.0 * sum(float(np.prod(shape)) for shape in shapes)


class Gemm(Family):
    """C = op(A) op(B), m by n, k terms; tn: A lies transposed (a weight's gradient), nt: B does (an input's)."""

    name = "gemm"
    template = "m{m}n{n}k{k}[-{t:nt|tn|tt}]"
    defaults: ClassVar = {"t": "nn"}
    passes = ("forward",)
    precisions = PRECISIONS

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        m, n, k, t = (case[name] for name in "mnkt")
        return {
            "a": _normal(rng, *((k, m) if t[0] == "t" else (m, k))),
            "b": _normal(rng, *((n, k) if t[1] == "t" else (k, n))),
        }

    def work(self, case: Case, which: str) -> Work:
        m, n, k = (case[name] for name in "mnk")
        return Work(2.0 * m * n * k, _floats((m, k), (k, n), (m, n)))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from ..reference import gemm

        a, b, t = inputs["a"], inputs["b"], case["t"]
        options = {"transpose_a": t[0] == "t", "transpose_b": t[1] == "t"}
        squares = gemm(a * a, b * b, **options)
        return [_sum_of_products(gemm(a, b, **options), squares, case["k"], case.precision)]


class Conv2d(Family):
    """y = conv(x, w) + b on images n, h by w, c channels, k filters of r by s; the gradient of w comes with that of b."""

    name = "conv2d"
    template = "n{n}h{h}w{w}c{c}k{k}r{r}s{s}[p{p}][u{u}]"
    defaults: ClassVar = {"p": 0, "u": 1}
    passes = ("forward", "backward_x", "backward_w")
    precisions = PRECISIONS

    @staticmethod
    def shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of x, w and y."""
        n, h, w, c, k, r, s, p, u = (case[name] for name in "nhwckrspu")
        y = (n, (h + 2 * p - r) // u + 1, (w + 2 * p - s) // u + 1, k)
        if min(y) < 1:
            raise ValueError(f"case {case}: the filter exceeds the padded image")
        return (n, h, w, c), (r, s, c, k), y

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        x, w, y = self.shapes(case)
        return {
            "x": _normal(rng, *x),
            "w": _normal(rng, *w),
            "b": _normal(rng, case["k"]),
            "dy": _normal(rng, *y),
        }

    def work(self, case: Case, which: str) -> Work:
        x, w, y = self.shapes(case)
        rows = self._taps(case["h"], case["r"], case["p"], case["u"], y[1])
        cols = self._taps(case["w"], case["s"], case["p"], case["u"], y[2])
        return Work(2.0 * case["n"] * rows * cols * case["c"] * case["k"], _floats(x, w, y))

    @staticmethod
    def _taps(size: int, taps: int, padding: int, stride: int, outputs: int) -> int:
        """How many taps of all outputs along an axis lie on pixels: a product with padding need not be computed."""
        begins = np.arange(outputs) * stride - padding
        return int((np.minimum(begins + taps, size) - np.maximum(begins, 0)).sum())

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, w, b, dy = (inputs[name] for name in ("x", "w", "b", "dy"))
        n, ho, wo, k = dy.shape
        options = {"stride": case["u"], "padding": case["p"]}
        if which == "forward":
            value = reference.conv2d(x, w, b, **options)
            squares = reference.conv2d(x * x, w * w, b * b, **options)
            return [_sum_of_products(value, squares, int(np.prod(w.shape[:3])) + 1, case.precision)]
        if which == "backward_x":
            value = reference.conv2d_backward_x(dy, w, x.shape, **options)
            squares = reference.conv2d_backward_x(dy * dy, w * w, x.shape, **options)
            return [_sum_of_products(value, squares, case["r"] * case["s"] * k, case.precision)]
        dw = reference.conv2d_backward_w(dy, x, w.shape, **options)
        squares = reference.conv2d_backward_w(dy * dy, x * x, w.shape, **options)
        db = _sum_of_products(
            reference.bias_backward(dy), reference.bias_backward(dy * dy), n * ho * wo, case.precision
        )
        return [_sum_of_products(dw, squares, n * ho * wo, case.precision), db]


class ConvPool2d(Family):
    """relu(conv(x, w) + b) under a max pool of q by q; backward passes start from dy and the pool's winners.

    Work is that of outputs that a window reads, and backward that of one winner in each window.
    """

    name = "conv2d_max_pool2d"
    template = "n{n}h{h}w{w}c{c}k{k}r{r}s{s}q{q}"
    passes = ("forward", "backward_x", "backward_w")

    @staticmethod
    def shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of x, w and y."""
        n, h, w, c, k, r, s, q = (case[name] for name in "nhwckrsq")
        y = (n, (h - r + 1) // q, (w - s + 1) // q, k)
        if min(y) < 1:
            raise ValueError(f"case {case}: the window exceeds the convolution's output")
        return (n, h, w, c), (r, s, c, k), y

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        from .. import reference

        x, w, y = self.shapes(case)
        arrays = {
            "x": _normal(rng, *x),
            "w": _normal(rng, *w),
            "b": _normal(rng, case["k"]),
            "dy": _normal(rng, *y),
        }
        # The winners are an input, because what is next to a tie may be decided either way.
        _, argmax = reference.conv2d_max_pool2d(
            arrays["x"], arrays["w"], arrays["b"], window=case["q"], relu=True
        )
        return {**arrays, "argmax": argmax.astype(np.uint8)}

    def work(self, case: Case, which: str) -> Work:
        x, w, y = self.shapes(case)
        outputs = float(np.prod(y)) * (case["q"] ** 2 if which == "forward" else 1)
        return Work(2.0 * outputs * float(np.prod(w[:3])), _floats(x, w, y) + float(np.prod(y)))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, w, b, dy, argmax = (inputs[name] for name in ("x", "w", "b", "dy", "argmax"))
        window, taps = case["q"], int(np.prod(w.shape[:3]))
        if which == "forward":
            value = reference.conv2d_max_pool2d(x, w, b, window=window, relu=True)[0]
            squares = reference.conv2d_max_pool2d(x * x, w * w, b * b, window=window)[0]
            return [_sum_of_products(value, squares, taps + 1)]
        of_x, of_w = reference.conv2d_max_pool2d_backward_x, reference.conv2d_max_pool2d_backward_w
        if which == "backward_x":
            value = of_x(dy, argmax, w, x.shape, window=window)
            squares = of_x(dy * dy, argmax, w * w, x.shape, window=window)
            return [_sum_of_products(value, squares, case["r"] * case["s"] * case["k"])]
        values = of_w(dy, argmax, x, w.shape, window=window)
        of_squares = of_w(dy * dy, argmax, x * x, w.shape, window=window)
        terms = dy[..., 0].size
        return [_sum_of_products(v, s, terms) for v, s in zip(values, of_squares, strict=True)]


class _Pool2d(Family):
    """Windows of r by r pixels, every u pixels; u is r where it is not given."""

    template = "n{n}h{h}w{w}c{c}r{r}[u{u}]"
    defaults: ClassVar = {"u": 0}
    follows: ClassVar = {"u": "r"}

    @staticmethod
    def shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """Of x and y."""
        n, h, w, c, r, u = (case[name] for name in "nhwcru")
        y = (n, (h - r) // u + 1, (w - r) // u + 1, c)
        if min(y) < 1:
            raise ValueError(f"case {case}: the window exceeds the image")
        return (n, h, w, c), y

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        x, y = self.shapes(case)
        return {"x": _normal(rng, *x), "dy": _normal(rng, *y)}

    def work(self, case: Case, which: str) -> Work:
        x, y = self.shapes(case)
        return Work(0.0, _floats(x, y))


class MaxPool2d(_Pool2d):
    __doc__ = f"The maximum of each window. {_Pool2d.__doc__}"
    name = "max_pool2d"

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        y, argmax = reference.max_pool2d(inputs["x"], case["r"], case["u"])
        if which == "forward":
            return [Expected(y, np.zeros(y.shape))]  # a maximum is exact
        dx = reference.max_pool2d_backward(
            inputs["dy"], argmax, inputs["x"].shape, window=case["r"], stride=case["u"]
        )
        return [_relative(dx, 8 * _EPS)]


class AvgPool2d(_Pool2d):
    __doc__ = f"The mean of each window. {_Pool2d.__doc__}"
    name = "avg_pool2d"

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        if which == "forward":
            return [_relative(reference.avg_pool2d(inputs["x"], case["r"], case["u"]), 8 * _EPS)]
        dx = reference.avg_pool2d_backward(inputs["dy"], inputs["x"].shape, case["r"], case["u"])
        return [_relative(dx, 8 * _EPS)]


class _Activation(Family):
    """n rows of c values, one function over each."""

    template = "n{n}c{c}"
    tolerance: ClassVar[float] = 16 * _EPS

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        return {"x": _normal(rng, case["n"], case["c"]), "dy": _normal(rng, case["n"], case["c"])}

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, (2 if which == "forward" else 3) * _floats((case["n"], case["c"])))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        y = getattr(reference, self.name)(inputs["x"])
        if which == "backward":
            y = getattr(reference, f"{self.name}_backward")(inputs["dy"], y)
        return [_relative(y, self.tolerance)]


class Relu(_Activation):
    __doc__ = f"max(x, 0) of {_Activation.__doc__}"
    name = "relu"
    tolerance = 0.0


class Sigmoid(_Activation):
    __doc__ = f"1 / (1 + exp(-x)) of {_Activation.__doc__}"
    name = "sigmoid"


class Tanh(_Activation):
    __doc__ = f"Hyperbolic tangent of {_Activation.__doc__}"
    name = "tanh"


class Softmax(_Activation):
    __doc__ = f"exp(x) / sum(exp(x)) of {_Activation.__doc__}"
    name = "softmax"


class SoftmaxCrossEntropy(Family):
    """Loss of n rows of c logits for a label each; forward gives the rows' losses, backward the gradient of the logits."""

    name = "softmax_cross_entropy"
    template = "n{n}c{c}"

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        n, c = case["n"], case["c"]
        return {"x": _normal(rng, n, c), "labels": rng.integers(0, c, n, dtype=np.int32)}

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, 2 * _floats((case["n"], case["c"])) + 8.0 * case["n"])

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, labels = inputs["x"], inputs["labels"]
        loss, y = reference.softmax_cross_entropy(x, labels)
        if which == "forward":
            return [_relative(loss, 16 * _EPS)]
        mean = np.full(case["n"], 1 / case["n"])
        return [_relative(reference.softmax_cross_entropy_backward(mean, y, labels), 16 * _EPS)]


class BatchNorm(Family):
    """Batch normalisation of images n, h by w, c channels, with the batch's own mean and variance; backward gives dx."""

    name = "batch_norm"
    template = "n{n}h{h}w{w}c{c}"
    epsilon: ClassVar[float] = 1e-3

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        shape, c = tuple(case[name] for name in "nhwc"), case["c"]
        return {
            "x": _normal(rng, *shape),
            "dy": _normal(rng, *shape),
            "gamma": 1 + _normal(rng, c) / 4,
            "beta": _normal(rng, c),
        }

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, (2 if which == "forward" else 3) * _floats(tuple(case[name] for name in "nhwc")))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, gamma = inputs["x"], inputs["gamma"]
        y, mean, var = reference.batch_norm(x, gamma, inputs["beta"], epsilon=self.epsilon)
        if which == "backward":
            y = reference.batch_norm_backward(inputs["dy"], x, gamma, mean, var, epsilon=self.epsilon)[0]
        return [_relative(y, 1e-5)]


# The tutorial's network: filters HWIO and matrices as they lie, each followed by its bias.
NETWORKS: dict[str, tuple[tuple[int, ...], ...]] = {
    "tutorial": ((3, 3, 3, 32), (3, 3, 32, 64), (3, 3, 64, 64), (1024, 64), (64, 10))
}
POOLED = {"tutorial": 2}  # so many of its convolutions have a 2x2 maximum pool behind them
IMAGE = (32, 32, 3)
# Adam's, for every library. Where epsilon stands in the formula differs among them: so small, it does not show in a loss.
LEARNING_RATE, BETA_1, BETA_2, EPSILON = 1e-3, 0.9, 0.999, 1e-10
BATCHES = 16  # a training step takes the next of so many batches that lie in memory


def network_weights(name: str, rng: np.random.Generator) -> list[Array]:
    """Initial weights in Keras's order: glorot_uniform, and biases of 0."""
    weights = []
    for shape in NETWORKS[name]:
        limit = np.sqrt(6 / (np.prod(shape[:-2]) * (shape[-2] + shape[-1])))
        weights += [rng.uniform(-limit, limit, shape).astype(np.float32), np.zeros(shape[-1], np.float32)]
    return weights


def _network_work(name: str, n: int, training: bool) -> Work:
    """Products and sums of convolutions and matrices alone; bytes of images, weights and results alone."""
    flops, size, first = 0.0, IMAGE[0], True
    for i, shape in enumerate(NETWORKS[name]):
        pixels = 1
        if len(shape) == 4:
            size -= shape[0] - 1
            pixels = size * size
            size = size // 2 if i < POOLED[name] else size
        of_layer = 2.0 * n * pixels * float(np.prod(shape))
        flops += of_layer * ((2 if first else 3) if training else 1)  # no gradient of the images
        first = False
    parameters = sum(float(np.prod(shape)) + shape[-1] for shape in NETWORKS[name])
    return Work(flops, _floats((n, *IMAGE)) + 4 * parameters * (8 if training else 1))


def _network_forward(name: str, weights: Sequence[Array], x: Array) -> tuple[Array, list[Any]]:
    """Logits of images by the reference, and what the way back needs."""
    from .. import reference

    saved: list[Any] = []
    shapes = NETWORKS[name]
    for i, shape in enumerate(shapes):
        w, b = weights[2 * i], weights[2 * i + 1]
        if len(shape) == 2:
            x = x.reshape(len(x), -1)
        pre = reference.conv2d(x, w, b) if len(shape) == 4 else reference.gemm(x, w, bias=b)
        y = pre if i == len(shapes) - 1 else reference.relu(pre)
        pooled, argmax = reference.max_pool2d(y, 2) if i < POOLED[name] else (y, None)
        saved.append((x, y, argmax))
        x = pooled
    return x, saved


def _network_backward(name: str, weights: Sequence[Array], saved: list[Any], dy: Array) -> list[Array]:
    """Gradients of the weights by the reference, in their order."""
    from .. import reference

    gradients: list[Array] = []
    for i, shape in reversed(list(enumerate(NETWORKS[name]))):
        x, y, argmax = saved[i]
        if argmax is not None:
            dy = reference.max_pool2d_backward(dy.reshape(argmax.shape), argmax, y.shape, 2)
        dy = dy.reshape(y.shape)
        if i < len(NETWORKS[name]) - 1:
            dy = reference.relu_backward(dy, y)
        w = weights[2 * i]
        db = reference.bias_backward(dy)
        if len(shape) == 4:
            dw = reference.conv2d_backward_w(dy, x, w.shape)
            dy = reference.conv2d_backward_x(dy, w, x.shape) if i else dy
        else:
            dy, dw = reference.gemm_backward(dy, x, w)
        gradients = [dw, db, *gradients]
    return gradients


class TrainStep(Family):
    """A training step of a network on n images: forward, loss, backward, Adam. Each call takes the next batch of float32
    images in memory; checked are the losses of the first steps, which hang on all gradients and on the update."""

    name = "train_step"
    template = "{x:tutorial}-n{n}"
    passes = ("step",)
    checked_calls = 4
    least_calls = 4
    whole = True
    items = "images"

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        n = case["n"]
        return {
            "weights": network_weights(case["x"], rng),
            "x": [rng.random((n, *IMAGE), dtype=np.float32) for _ in range(BATCHES)],
            "labels": [rng.integers(0, 10, n, dtype=np.int32) for _ in range(BATCHES)],
        }

    def work(self, case: Case, which: str) -> Work:
        return _network_work(case["x"], case["n"], training=True)

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        weights = [w.astype(np.float64) for w in inputs["weights"]]
        ms, vs = [np.zeros(w.shape) for w in weights], [np.zeros(w.shape) for w in weights]
        losses = []
        for step in range(1, self.checked_calls + 1):
            x, labels = inputs["x"][step - 1], inputs["labels"][step - 1]
            y, saved = _network_forward(case["x"], weights, x)
            loss, softmax = reference.softmax_cross_entropy(y, labels)
            losses.append(_relative(loss.mean(), 2e-4))
            dy = reference.softmax_cross_entropy_backward(np.full(len(x), 1 / len(x)), softmax, labels)
            gradients = _network_backward(case["x"], weights, saved, dy)
            reference.adam_step(
                weights,
                gradients,
                ms,
                vs,
                step=step,
                learning_rate=LEARNING_RATE,
                beta_1=BETA_1,
                beta_2=BETA_2,
                epsilon=EPSILON,
            )
        return losses


class Inference(Family):
    """Logits of a network for n float32 images in memory."""

    name = "inference"
    template = "{x:tutorial}-n{n}"
    passes = ("forward",)
    whole = True
    items = "images"

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        weights = network_weights(case["x"], rng)
        return {"weights": weights, "x": rng.random((case["n"], *IMAGE), dtype=np.float32)}

    def work(self, case: Case, which: str) -> Work:
        return _network_work(case["x"], case["n"], training=False)

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        y, _ = _network_forward(case["x"], inputs["weights"], inputs["x"])
        return [_relative(y, 2e-5)]


class AdamStep(Family):
    """Adam's update of all weights of a network, its tenth step."""

    name = "adam_step"
    template = "{x:tutorial}"
    passes = ("step",)
    step: ClassVar[int] = 10

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        weights = network_weights(case["x"], rng)
        return {
            "ws": weights,
            "dws": [_normal(rng, *w.shape) for w in weights],
            "ms": [_normal(rng, *w.shape) for w in weights],
            "vs": [_normal(rng, *w.shape) ** 2 for w in weights],
        }

    def work(self, case: Case, which: str) -> Work:
        parameters = sum(float(np.prod(shape)) + shape[-1] for shape in NETWORKS[case["x"]])
        return Work(0.0, 4 * 7 * parameters)

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        ws, ms, vs = ([a.astype(np.float64) for a in inputs[name]] for name in ("ws", "ms", "vs"))
        reference.adam_step(
            ws, inputs["dws"], ms, vs, step=self.step, learning_rate=LEARNING_RATE, epsilon=EPSILON
        )
        # Where epsilon stands differs among libraries; it shows only where v is next to nothing.
        tolerance = [
            (w, 1e-6 + LEARNING_RATE * 1e-3 * np.abs(m / np.sqrt(v)))
            for w, m, v in zip(ws, ms, vs, strict=True)
        ]
        return [Expected(w, bound) for w, bound in tolerance]


FAMILIES: dict[str, Family] = {
    family.name: family()
    for family in (
        Gemm,
        Conv2d,
        ConvPool2d,
        MaxPool2d,
        AvgPool2d,
        Relu,
        Sigmoid,
        Tanh,
        Softmax,
        SoftmaxCrossEntropy,
        BatchNorm,
        AdamStep,
        Inference,
        TrainStep,
    )
}


def _layers(n: int) -> list[str]:
    """The tutorial network's layers, first to last."""
    return [
        f"conv2d/n{n}h32w32c3k32r3s3",
        f"conv2d/n{n}h15w15c32k64r3s3",
        f"conv2d/n{n}h6w6c64k64r3s3",
        f"conv2d_max_pool2d/n{n}h32w32c3k32r3s3q2",
        f"conv2d_max_pool2d/n{n}h15w15c32k64r3s3q2",
        f"max_pool2d/n{n}h30w30c32r2",
        f"max_pool2d/n{n}h13w13c64r2",
        f"relu/n{n * 900}c32",
        f"gemm/m{n}n64k1024",
        f"gemm/m{n}n1024k64-nt",
        f"gemm/m1024n64k{n}-tn",
        f"gemm/m{n}n10k64",
        f"softmax_cross_entropy/n{n}c10",
    ]


SUITES: dict[str, list[str]] = {
    "training": ["train_step/tutorial-n32", "train_step/tutorial-n128"],
    "inference": [f"inference/tutorial-n{n}" for n in (1, 32, 256)],
    "layers-1": _layers(1),
    "layers-32": _layers(32),
    "layers-128": _layers(128),
    "resnet": [
        "conv2d/n32h32w32c64k64r3s3p1",
        "conv2d/n32h16w16c128k128r3s3p1",
        "conv2d/n32h8w8c256k256r3s3p1",
        "conv2d/n32h16w16c64k256r1s1",
        "conv2d/n32h32w32c64k128r3s3p1u2",
    ],
    "gemm": [f"gemm/m{n}n{n}k{n}" for n in (256, 512, 1024, 2048)],
    "skinny": [
        "gemm/m28800n32k27",
        "gemm/m5408n64k288",
        "gemm/m512n64k576",
        "gemm/m8n4096k1024",
        "gemm/m4096n8k1024",
        "gemm/m256n256k16384-tn",
    ],
    "pool": ["max_pool2d/n32h112w112c64r3u2", "avg_pool2d/n32h30w30c32r2", "avg_pool2d/n32h8w8c256r8"],
    "activation": [
        "relu/n4096c1024",
        "sigmoid/n1024c1024",
        "tanh/n1024c1024",
        "softmax/n1024c1024",
        "softmax/n32c10",
    ],
    "norm": ["batch_norm/n32h32w32c64"],
    "optimizer": ["adam_step/tutorial"],
    "precision": [  # on a GPU's tensor cores
        f"{case}:{precision}"
        for precision in ("tf32", "bfloat16")
        for case in (
            "gemm/m1024n1024k1024",
            "gemm/m4096n4096k4096",
            "conv2d/n128h15w15c32k64r3s3",
            "conv2d/n32h32w32c64k64r3s3p1",
            "conv2d/n32h8w8c256k256r3s3p1",
        )
    ],
}


def select(names: Iterable[str]) -> list[Case]:
    """The cases that names mean: a suite, a case, a pattern over the suites' cases such as `conv2d/*`, or `all` of float32."""
    every = list(dict.fromkeys(name for suite in SUITES.values() for name in suite))
    chosen: dict[str, Case] = {}
    for name in names:
        if name == "all":
            found = [case for case in every if ":" not in case]
        elif name in SUITES:
            found = SUITES[name]
        elif any(c in name for c in "*?"):
            found = fnmatch.filter(every, name)
        elif "/" in name:
            found = [name]
        else:
            found = []
        if not found:
            raise ValueError(
                f"{name!r} is neither a suite ({', '.join(SUITES)}), nor all, a case, or a pattern that fits one"
            )
        chosen.update((case, parse(case)) for case in found)
    return list(chosen.values())
