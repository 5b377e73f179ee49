"""Families of cases: one op each, forward and backward."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from .family import (
    EPS,
    PRECISIONS,
    Case,
    Expected,
    Family,
    Inputs,
    Work,
    floats,
    normal,
    relative,
    sum_of_products,
)


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
            "a": normal(rng, *((k, m) if t[0] == "t" else (m, k))),
            "b": normal(rng, *((n, k) if t[1] == "t" else (k, n))),
        }

    def work(self, case: Case, which: str) -> Work:
        m, n, k = (case[name] for name in "mnk")
        return Work(2.0 * m * n * k, floats((m, k), (k, n), (m, n)))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from ..reference import gemm

        a, b, t = inputs["a"], inputs["b"], case["t"]
        options = {"transpose_a": t[0] == "t", "transpose_b": t[1] == "t"}
        squares = gemm(a * a, b * b, **options)
        return [sum_of_products(gemm(a, b, **options), squares, case["k"], case.precision)]


def taps_on_pixels(size: int, taps: int, padding: int, stride: int, outputs: int) -> int:
    """How many, of all outputs along an axis: a product with padding need not be computed."""
    begins = np.arange(outputs) * stride - padding
    return int((np.minimum(begins + taps, size) - np.maximum(begins, 0)).sum())


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
            "x": normal(rng, *x),
            "w": normal(rng, *w),
            "b": normal(rng, case["k"]),
            "dy": normal(rng, *y),
        }

    def work(self, case: Case, which: str) -> Work:
        x, w, y = self.shapes(case)
        rows = taps_on_pixels(case["h"], case["r"], case["p"], case["u"], y[1])
        cols = taps_on_pixels(case["w"], case["s"], case["p"], case["u"], y[2])
        return Work(2.0 * case["n"] * rows * cols * case["c"] * case["k"], floats(x, w, y))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, w, b, dy = (inputs[name] for name in ("x", "w", "b", "dy"))
        n, ho, wo, k = dy.shape
        options = {"stride": case["u"], "padding": case["p"]}
        if which == "forward":
            value = reference.conv2d(x, w, b, **options)
            squares = reference.conv2d(x * x, w * w, b * b, **options)
            return [sum_of_products(value, squares, int(np.prod(w.shape[:3])) + 1, case.precision)]
        if which == "backward_x":
            value = reference.conv2d_backward_x(dy, w, x.shape, **options)
            squares = reference.conv2d_backward_x(dy * dy, w * w, x.shape, **options)
            return [sum_of_products(value, squares, case["r"] * case["s"] * k, case.precision)]
        dw = reference.conv2d_backward_w(dy, x, w.shape, **options)
        squares = reference.conv2d_backward_w(dy * dy, x * x, w.shape, **options)
        db = sum_of_products(
            reference.bias_backward(dy), reference.bias_backward(dy * dy), n * ho * wo, case.precision
        )
        return [sum_of_products(dw, squares, n * ho * wo, case.precision), db]


class ConvPool2d(Family):
    """relu(conv(x, w) + b), padded by p, under a max pool of q by q; backward passes start from dy and the pool's winners.

    Work is that of outputs that a window reads, and backward that of one winner in each window.
    """

    name = "conv2d_max_pool2d"
    template = "n{n}h{h}w{w}c{c}k{k}r{r}s{s}[p{p}]q{q}"
    defaults: ClassVar = {"p": 0}
    passes = ("forward", "backward_x", "backward_w")

    @staticmethod
    def shapes(case: Case) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
        """Of x, w and y."""
        n, h, w, c, k, r, s, p, q = (case[name] for name in "nhwckrspq")
        y = (n, (h + 2 * p - r + 1) // q, (w + 2 * p - s + 1) // q, k)
        if min(y) < 1:
            raise ValueError(f"case {case}: the window exceeds the convolution's output")
        return (n, h, w, c), (r, s, c, k), y

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        from .. import reference

        x, w, y = self.shapes(case)
        arrays = {
            "x": normal(rng, *x),
            "w": normal(rng, *w),
            "b": normal(rng, case["k"]),
            "dy": normal(rng, *y),
        }
        # The winners are an input, because what is next to a tie may be decided either way.
        _, argmax = reference.conv2d_max_pool2d(
            arrays["x"], arrays["w"], arrays["b"], window=case["q"], padding=case["p"], relu=True
        )
        return {**arrays, "argmax": argmax.astype(np.uint8)}

    def work(self, case: Case, which: str) -> Work:
        x, w, y = self.shapes(case)
        rows = taps_on_pixels(case["h"], case["r"], case["p"], 1, y[1] * case["q"])
        cols = taps_on_pixels(case["w"], case["s"], case["p"], 1, y[2] * case["q"])
        share = 1 if which == "forward" else case["q"] ** 2
        flops = 2.0 * case["n"] * rows * cols * case["c"] * case["k"] / share
        return Work(flops, floats(x, w, y) + float(np.prod(y)))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, w, b, dy, argmax = (inputs[name] for name in ("x", "w", "b", "dy", "argmax"))
        options, taps = {"window": case["q"], "padding": case["p"]}, int(np.prod(w.shape[:3]))
        if which == "forward":
            value = reference.conv2d_max_pool2d(x, w, b, relu=True, **options)[0]
            squares = reference.conv2d_max_pool2d(x * x, w * w, b * b, **options)[0]
            return [sum_of_products(value, squares, taps + 1)]
        of_x, of_w = reference.conv2d_max_pool2d_backward_x, reference.conv2d_max_pool2d_backward_w
        if which == "backward_x":
            value = of_x(dy, argmax, w, x.shape, **options)
            squares = of_x(dy * dy, argmax, w * w, x.shape, **options)
            return [sum_of_products(value, squares, case["r"] * case["s"] * case["k"])]
        values = of_w(dy, argmax, x, w.shape, **options)
        of_squares = of_w(dy * dy, argmax, x * x, w.shape, **options)
        terms = dy[..., 0].size
        return [sum_of_products(v, s, terms) for v, s in zip(values, of_squares, strict=True)]


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
        return {"x": normal(rng, *x), "dy": normal(rng, *y)}

    def work(self, case: Case, which: str) -> Work:
        x, y = self.shapes(case)
        return Work(0.0, floats(x, y))


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
        return [relative(dx, 8 * EPS)]


class AvgPool2d(_Pool2d):
    __doc__ = f"The mean of each window. {_Pool2d.__doc__}"
    name = "avg_pool2d"

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        if which == "forward":
            return [relative(reference.avg_pool2d(inputs["x"], case["r"], case["u"]), 8 * EPS)]
        dx = reference.avg_pool2d_backward(inputs["dy"], inputs["x"].shape, case["r"], case["u"])
        return [relative(dx, 8 * EPS)]


class _Activation(Family):
    """n rows of c values, one function over each."""

    template = "n{n}c{c}"
    tolerance: ClassVar[float] = 16 * EPS

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        return {"x": normal(rng, case["n"], case["c"]), "dy": normal(rng, case["n"], case["c"])}

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, (2 if which == "forward" else 3) * floats((case["n"], case["c"])))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        y = getattr(reference, self.name)(inputs["x"])
        if which == "backward":
            y = getattr(reference, f"{self.name}_backward")(inputs["dy"], y)
        return [relative(y, self.tolerance)]


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


class Rescale(Family):
    """A batch of n images, h by w, c channels: rows of 16 n stored as uint8, as floats times 1 / 255."""

    name = "rescale"
    template = "n{n}h{h}w{w}c{c}"
    passes = ("forward",)
    scale: ClassVar[float] = 1 / 255

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        n, h, w, c = (case[name] for name in "nhwc")
        rows = rng.permutation(16 * n)[:n].astype(np.int32)
        return {"x": rng.integers(0, 256, (16 * n, h, w, c), np.uint8), "rows": rows}

    def work(self, case: Case, which: str) -> Work:
        shape = tuple(case[name] for name in "nhwc")
        return Work(0.0, 1.25 * floats(shape))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        return [relative(reference.rescale(inputs["x"], self.scale, rows=inputs["rows"]), 2 * EPS)]


class SoftmaxCrossEntropy(Family):
    """Loss of n rows of c logits for a label each; forward gives the rows' losses, backward the gradient of the logits."""

    name = "softmax_cross_entropy"
    template = "n{n}c{c}"

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        n, c = case["n"], case["c"]
        return {"x": normal(rng, n, c), "labels": rng.integers(0, c, n, dtype=np.int32)}

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, 2 * floats((case["n"], case["c"])) + 8.0 * case["n"])

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, labels = inputs["x"], inputs["labels"]
        loss, y = reference.softmax_cross_entropy(x, labels)
        if which == "forward":
            return [relative(loss, 16 * EPS)]
        mean = np.full(case["n"], 1 / case["n"])
        return [relative(reference.softmax_cross_entropy_backward(mean, y, labels), 16 * EPS)]


class BatchNorm(Family):
    """Batch normalisation of images n, h by w, c channels, with the batch's own mean and variance; backward gives dx."""

    name = "batch_norm"
    template = "n{n}h{h}w{w}c{c}"
    epsilon: ClassVar[float] = 1e-3

    def inputs(self, case: Case, rng: np.random.Generator) -> Inputs:
        shape, c = tuple(case[name] for name in "nhwc"), case["c"]
        return {
            "x": normal(rng, *shape),
            "dy": normal(rng, *shape),
            "gamma": 1 + normal(rng, c) / 4,
            "beta": normal(rng, c),
        }

    def work(self, case: Case, which: str) -> Work:
        return Work(0.0, (2 if which == "forward" else 3) * floats(tuple(case[name] for name in "nhwc")))

    def expected(self, case: Case, which: str, inputs: Inputs) -> list[Expected]:
        from .. import reference

        x, gamma = inputs["x"], inputs["gamma"]
        y, mean, var = reference.batch_norm(x, gamma, inputs["beta"], epsilon=self.epsilon)
        if which == "backward":
            y = reference.batch_norm_backward(inputs["dy"], x, gamma, mean, var, epsilon=self.epsilon)[0]
        return [relative(y, 1e-5)]
