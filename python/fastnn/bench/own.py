"""fastnn as a library of the benches: NumPy arrays on the CPU, CuPy arrays on a GPU, through what users call."""

from __future__ import annotations

import platform
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from .. import __version__, _backend, layers, losses, models, ops, optimizers
from .._typing import Array
from . import kernels, networks
from .family import Case, Inputs
from .timing import FLUSH_BYTES, Clock, Prepared, Unsupported, event_clock, step_clock, wall_clock

# The shortest run of fit that is timed. It begins with a recording of its step, which took as long as 40 steps on an H100.
FIT_STEPS, FIT_EPOCHS = 256, 8


class Fastnn:
    """The library under test. threads: of the CPU kernels, None for all processors. precision: where the case has none."""

    def __init__(self, device: str = "cpu", threads: int | None = None, precision: str = "float32") -> None:
        self.device, self.xp, self.precision = device, _backend.module(device), precision
        if threads is not None:
            _backend.set_num_threads(threads)
        self._flushed: Array | None = None

    def describe(self) -> dict[str, str]:
        told = {"fastnn": __version__, "python": platform.python_version(), "numpy": np.__version__}
        if self.device == "cuda":
            return {
                **told,
                "kernels": _backend.cuda_description(),
                "inference": "model(x)",
                "training": "model.fit",
            }
        return {
            **told,
            "kernels": _backend.instruction_set()[0],
            "threads": str(_backend.get_num_threads()),
            "precision": self.precision,
            "inference": "model(x)",
            "training": "model.train_on_batch",
        }

    def _clock(self, case: Case) -> Clock:
        """By the wall on the CPU; on a GPU by events around kernels, or by the wall around whole steps."""
        if self.device == "cpu":
            return wall_clock
        cuda = self.xp.cuda
        if case.family.whole:
            return step_clock(lambda _: cuda.get_current_stream().synchronize())
        if self._flushed is None:
            self._flushed = self.xp.empty(FLUSH_BYTES // 4, np.float32)
        flushed = self._flushed

        def elapsed_ms(begin: Any, end: Any) -> float:
            end.synchronize()
            return float(cuda.get_elapsed_time(begin, end))

        return event_clock(cuda.Event, elapsed_ms, lambda: flushed.fill(0))

    def prepare(self, case: Case, which: str, inputs: Inputs) -> Prepared:
        if case.precision != "float32" and self.device == "cpu":
            raise Unsupported(f"{case.precision} is for GPUs")
        prepare = getattr(self, case.family.name, None)
        if prepare is None:
            raise Unsupported(f"no bench of fastnn for {case.family.name}")
        there = {
            name: [self.xp.asarray(a) for a in value] if isinstance(value, list) else self.xp.asarray(value)
            for name, value in inputs.items()
        }
        prepared = prepare(case, which, there)
        call, clock = prepared if isinstance(prepared, tuple) else (prepared, self._clock(case))
        return Prepared(call, self._results, clock)

    @staticmethod
    def _results(value: Any) -> list[Array]:
        values = value if isinstance(value, (tuple, list)) else [value]
        return [_backend.to_host(v) for v in values]

    # ------------------------------------------------------------------ one method for each family

    def gemm(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        ta, tb = (c == "t" for c in case["t"])
        a, b, precision = i["a"], i["b"], case.precision
        return lambda: ops.gemm(a, b, transpose_a=ta, transpose_b=tb, precision=precision)

    def conv2d(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, w, b, dy = (i[name] for name in ("x", "w", "b", "dy"))
        precision = self.precision if case.precision == "float32" else case.precision
        options = {"stride": case["u"], "padding": case["p"], "precision": precision}
        if which == "forward":
            return lambda: ops.conv2d(x, w, b, **options)
        if which == "backward_x":
            return lambda: ops.conv2d_backward_x(dy, w, x.shape, **options)
        return lambda: (ops.conv2d_backward_w(dy, x, w.shape, **options), ops.bias_backward(dy))

    def conv2d_max_pool2d(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, w, b, dy, argmax = (i[name] for name in ("x", "w", "b", "dy", "argmax"))
        options, precision = {"window": case["q"], "padding": case["p"]}, self.precision
        if which == "forward":
            return lambda: ops.conv2d_max_pool2d(x, w, b, relu=True, precision=precision, **options)[0]
        if which == "backward_x":
            return lambda: ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **options)
        return lambda: ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **options)

    def max_pool2d(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, dy, r, u = i["x"], i["dy"], case["r"], case["u"]
        if which == "forward":
            return lambda: ops.max_pool2d(x, r, u)[0]
        argmax = ops.max_pool2d(x, r, u)[1]
        return lambda: ops.max_pool2d_backward(dy, argmax, x.shape, r, u)

    def avg_pool2d(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, dy, r, u = i["x"], i["dy"], case["r"], case["u"]
        if which == "forward":
            return lambda: ops.avg_pool2d(x, r, u)
        return lambda: ops.avg_pool2d_backward(dy, x.shape, r, u)

    def _activation(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, dy, op = i["x"], i["dy"], getattr(ops, case.family.name)
        if which == "forward":
            return lambda: op(x)
        y, back = op(x), getattr(ops, f"{case.family.name}_backward")
        return lambda: back(dy, y)

    relu = sigmoid = tanh = softmax = _activation

    def rescale(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, rows, scale = i["x"], i["rows"], kernels.Rescale.scale
        return lambda: ops.rescale(x, scale, rows=rows)

    def softmax_cross_entropy(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, labels = i["x"], i["labels"]
        if which == "forward":
            return lambda: ops.softmax_cross_entropy(x, labels)[0]
        y = ops.softmax_cross_entropy(x, labels)[1]
        mean = self.xp.asarray(np.full(case["n"], 1 / case["n"], np.float32))
        return lambda: ops.softmax_cross_entropy_backward(mean, y, labels)

    def batch_norm(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        x, dy, gamma, beta = (i[name] for name in ("x", "dy", "gamma", "beta"))
        epsilon = kernels.BatchNorm.epsilon
        if which == "forward":
            return lambda: ops.batch_norm(x, gamma, beta, epsilon=epsilon)[0]
        _, mean, var = ops.batch_norm(x, gamma, beta, epsilon=epsilon)
        return lambda: ops.batch_norm_backward(dy, x, gamma, mean, var, epsilon=epsilon)[0]

    def adam_step(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        ws, dws, ms, vs = (i[name] for name in ("ws", "dws", "ms", "vs"))

        def call() -> list[Array]:
            ops.adam_step(
                ws,
                dws,
                ms,
                vs,
                step=networks.AdamStep.step,
                learning_rate=networks.LEARNING_RATE,
                beta_1=networks.BETA_1,
                beta_2=networks.BETA_2,
                epsilon=networks.EPSILON,
            )
            return list(ws)

        return call

    def _model(self, name: str, weights: list[Array]) -> models.Sequential:
        """A network of networks.NETWORKS, as the tutorial's program writes it; images come in 0..1."""
        model = models.Sequential(
            [layers.Input(networks.IMAGE)], device=self.device, precision=self.precision
        )
        shapes = networks.NETWORKS[name]
        for number, shape in enumerate(shapes):
            activation = "relu" if number < len(shapes) - 1 else None
            if len(shape) == 4:
                model.add(layers.Conv2D(shape[3], shape[:2], activation=activation))
                if number < networks.POOLED[name]:
                    model.add(layers.MaxPooling2D((2, 2)))
                continue
            if len(shapes[number - 1]) == 4:
                model.add(layers.Flatten())
            model.add(layers.Dense(shape[1], activation=activation))
        model.set_weights([_backend.to_host(w) for w in weights])
        return model

    def inference(self, case: Case, which: str, i: Inputs) -> Callable[[], Any]:
        model, x = self._model(case["x"], i["weights"]), i["x"]
        return lambda: model(x)

    def train_step(self, case: Case, which: str, i: Inputs) -> tuple[Callable[[], Any], Clock]:
        model, x, labels = self._model(case["x"], i["weights"]), i["x"], i["labels"]
        adam = optimizers.Adam(networks.LEARNING_RATE, networks.BETA_1, networks.BETA_2, networks.EPSILON)
        model.compile(adam, losses.SparseCategoricalCrossentropy(from_logits=True))
        step = 0

        def call() -> float:
            nonlocal step
            loss = model.train_on_batch(x[step % len(x)], labels[step % len(x)])
            step += 1
            return float(loss)

        if self.device == "cpu":
            return call, wall_clock

        # On a GPU, fit is what need not wait for each step's loss.
        copies = -(-FIT_STEPS // len(x))
        images, targets = self.xp.concatenate(x * copies), self.xp.concatenate(labels * copies)
        steps = len(x) * copies

        def fit_clock(_: Callable[[], Any], calls: int) -> float:
            epochs = max(FIT_EPOCHS, -(-calls // steps))
            begin = time.perf_counter()
            model.fit(images, targets, batch_size=case["n"], epochs=epochs, shuffle=False, verbose=0)
            self.xp.cuda.get_current_stream().synchronize()
            return (time.perf_counter() - begin) / (epochs * steps)

        return call, fit_clock
