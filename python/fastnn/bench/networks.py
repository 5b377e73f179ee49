"""Families of cases: a network's training step, its inference, and its optimizer's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from .._typing import Array
from .family import Case, Expected, Family, Inputs, Work, floats, normal, relative

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
    return Work(flops, floats((n, *IMAGE)) + 4 * parameters * (8 if training else 1))


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
            losses.append(relative(loss.mean(), 2e-4))
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
        return [relative(y, 2e-5)]


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
            "dws": [normal(rng, *w.shape) for w in weights],
            "ms": [normal(rng, *w.shape) for w in weights],
            "vs": [normal(rng, *w.shape) ** 2 for w in weights],
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
