"""Sequential: layers in a row, trained, judged, saved. Names, defaults and semantics are Keras's."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from . import _backend, _progress, _random, _saving, losses, metrics, optimizers
from . import layers as layer_classes
from ._checks import check_count, check_shape
from ._config import deserialize, serialize
from ._data import Data, check_inputs, floats
from ._replay import GraphReplay, Replay, Replays, Step, kernels_alone
from ._typing import Array, Shape
from .callbacks import Callback, History
from .layers import Input, Layer
from .layers.base import Drawn, assign
from .layers.fusion import Block, fuse, run
from .losses import Loss
from .metrics import MeanMetric, Metric
from .optimizers import Optimizer
from .training import Evaluation, Pace, Run

BatchShape = tuple[int | None, ...]  # (None, ...), None being the batch

_LAYERS: dict[str, type[Layer]] = {
    name: cls
    for name in layer_classes.__all__
    if issubclass(cls := getattr(layer_classes, name), Layer) and cls is not Layer
}


_METRICS = frozenset(metrics.METRICS.values())


class Sequential:
    """Layers in a row: the output of each is the input of the next.

    layers: what to `add`. dtype: "float32" or "float64", of weights and of all computation; input of any real
    dtype is cast to it batch by batch. device: "cpu", or "cuda": weights and all computation on the GPU, through
    CuPy. precision: of the products in dense and convolutional layers, as ops.gemm and ops.conv2d have it; like the device
    it is not saved with the model. The weights are made as soon as the input's shape is
    known: by layers.Input, by the first layer's input_shape=, by build, or by the first call of fit.
    """

    def __init__(
        self,
        layers: Iterable[Layer | Input] | None = None,
        name: str | None = None,
        dtype: str = "float32",
        device: str = "cpu",
        precision: str = "float32",
    ) -> None:
        if dtype not in ("float32", "float64"):
            raise ValueError(f"dtype must be 'float32' or 'float64', got {dtype!r}")
        _backend.check_device(device)
        _backend.check_precision(precision, device)
        self.name = "sequential" if name is None else name
        self.dtype = str(dtype)
        self.device = device
        self.precision = precision
        self.seed = _random.next_seed()
        self.layers: list[Layer] = []
        self.stop_training = False
        self.jit_compile: bool | str = "auto"
        self.history: History | None = None
        self._input_shape: tuple[int, ...] | None = None
        self._compiled: tuple[Optimizer, Loss, list[Metric]] | None = None
        self._run: Run | None = None
        # Layers, what they became, and whether any is random.
        self._fused: tuple[list[Layer], list[Block], bool] = ([], [], False)
        self._replays = Replays[Replay]({"cpu": Replay, "cuda": GraphReplay})
        self._steps = Replays[Step]({"cpu": Step})
        for layer in layers or ():
            self.add(layer)

    # ------------------------------------------------------------------ structure

    def add(self, layer: Layer | Input) -> None:
        """Append a layer, built at once where the input's shape is known."""
        if isinstance(layer, Input):
            if self.layers or self._input_shape:
                raise ValueError("Input must come first in a Sequential, and only once")
            self._input_shape = layer.shape
            return
        if not isinstance(layer, Layer):
            raise TypeError(f"a Sequential consists of layers, got {layer!r}")
        names = {other.name for other in self.layers}
        if layer.name in names:
            if not layer.auto_named:
                raise ValueError(f"the layers' names must differ, there is a {layer.name!r} already")
            layer.name = next(name for i in itertools.count(1) if (name := f"{layer.name}_{i}") not in names)
        if self._input_shape is not None:
            self._build_layer(len(self.layers), layer, self._sample_output_shape())
        elif not self.layers and layer.input_shape is not None:
            self._build_layer(0, layer, layer.input_shape)
            self._input_shape = layer.input_shape
        self.layers.append(layer)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the weights for input of this shape, the batch in front: (None, 32, 32, 3)."""
        sample = [n for n in input_shape[1:] if n is not None]
        if len(sample) != len(input_shape) - 1:
            raise ValueError(
                f"only the batch, in front, may be None in an input shape, got {tuple(input_shape)}"
            )
        shapes = [check_shape(sample, "build")]
        if self._input_shape not in (None, shapes[0]):
            raise ValueError(f"the model was built for samples of {self._input_shape}, not {shapes[0]}")
        for layer in self.layers:  # all shapes first: a layer that does not fit leaves the model unbuilt
            shapes.append(layer.compute_output_shape(shapes[-1]))
        for index, layer in enumerate(self.layers):
            self._build_layer(index, layer, shapes[index])
        self._input_shape = shapes[0]

    def _build_layer(self, index: int, layer: Layer, input_shape: Shape) -> None:
        layer.device, layer.precision = self.device, self.precision
        layer.build(input_shape, self.dtype, _random.generator(self.seed, _random.INITIALIZATION, index))

    def _sample_output_shape(self) -> Shape:
        shape = self.layers[-1].output_shape if self.layers else self._input_shape
        if shape is None:
            raise ValueError(
                "the model has no input shape yet: begin with layers.Input, or call build or fit first"
            )
        return shape

    @property
    def xp(self) -> Any:
        """The array module of the device: NumPy or CuPy."""
        return _backend.module(self.device)

    @property
    def built(self) -> bool:
        return self._input_shape is not None

    @property
    def input_shape(self) -> BatchShape:
        """(None, ...), None being the batch."""
        self._sample_output_shape()
        return (None, *(self._input_shape or ()))

    @property
    def output_shape(self) -> BatchShape:
        """(None, ...), None being the batch."""
        return (None, *self._sample_output_shape())

    def get_layer(self, name: str | None = None, index: int | None = None) -> Layer:
        """The layer of this name, or of this place in the row."""
        if (name is None) == (index is None):
            raise ValueError("get_layer takes either a name or an index")
        if index is not None:
            if not -len(self.layers) <= index < len(self.layers):
                raise ValueError(f"there is no layer {index}, the model has {len(self.layers)}")
            return self.layers[index]
        for layer in self.layers:
            if layer.name == name:
                return layer
        raise ValueError(
            f"there is no layer {name!r}; there are {', '.join(layer.name for layer in self.layers)}"
        )

    # ------------------------------------------------------------------ weights

    @property
    def weights(self) -> list[Array]:
        """The arrays themselves, layer by layer: its params, then its state."""
        self._sample_output_shape()
        return [w for layer in self.layers for w in layer.weights.values()]

    @property
    def trainable_weights(self) -> list[Array]:
        """The params of the layers that are trainable."""
        self._sample_output_shape()
        return [w for layer in self.layers if layer.trainable for w in layer.params.values()]

    def get_weights(self) -> list[Array]:
        """Copies of `weights`, in Keras's order, as NumPy arrays."""
        return [_backend.to_host(w).copy() for w in self.weights]

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Take arrays in the order of get_weights; nothing is changed where any does not fit."""
        assign(self.weights, weights, self.name)

    def count_params(self) -> int:
        """How many numbers all weights hold."""
        return sum(w.size for w in self.weights)

    def summary(self, line_length: int = 65, print_fn: Callable[[str], Any] = print) -> None:
        """Print a table of the layers: name, output shape, number of parameters."""
        trainable = sum(w.size for w in self.trainable_weights)
        wide, narrow = line_length * 45 // 100, line_length * 35 // 100

        def row(layer: str, shape: str, count: str) -> str:
            return f" {layer:<{wide}}{shape:<{narrow}}{count:>{line_length - wide - narrow - 2}}"

        def total(title: str, count: int) -> str:
            return f"{title} params: {count:,} ({count * np.dtype(self.dtype).itemsize / 1024:,.2f} KB)"

        print_fn(f'Model: "{self.name}"')
        print_fn("_" * line_length)
        print_fn(row("Layer (type)", "Output Shape", "Param #"))
        print_fn("=" * line_length)
        for layer in self.layers:
            shape = str((None, *(layer.output_shape or ())))
            print_fn(row(f"{layer.name} ({type(layer).__name__})", shape, f"{layer.count_params():,}"))
        print_fn("=" * line_length)
        print_fn(total("Total", self.count_params()))
        print_fn(total("Trainable", trainable))
        print_fn(total("Non-trainable", self.count_params() - trainable))

    # ------------------------------------------------------------------ forward and backward

    @property
    def blocks(self) -> list[Block]:
        """What forward and backward run: the layers, some of them computed as one."""
        if self._fused[0] != self.layers:
            random = any(layer.random for layer in self.layers)
            self._fused = list(self.layers), fuse(self.layers), random
        return self._fused[1]

    def forward(
        self, x: Array, training: bool = False, drawn: Sequence[Drawn] = ()
    ) -> tuple[Array, list[Any]]:
        """x (N, ...) of the model's dtype -> (y, what backward needs of each block).

        drawn: what `draw` gave for a batch of this size, on the model's device; needed in training where layers are random.
        """
        return run(self.blocks, x, training, drawn)

    def draw(self, n: int, seed: int, *stream: int) -> list[Drawn]:
        """What each block needs of chance to train on n samples, in NumPy arrays; empty where no layer is random."""
        blocks = self.blocks
        if not self._fused[2]:
            return []
        rng = _random.generator(seed, *stream)
        return [
            block.draw(rng, (n, *(block.input_shape or ()))) if isinstance(block, Layer) else ()
            for block in blocks
        ]

    def _there(self, drawn: Sequence[Drawn]) -> list[Drawn]:
        return [[self.xp.asarray(array) for array in of_block] for of_block in drawn]

    def backward(self, dy: Array, saved: list[Any], need_dx: bool = True) -> tuple[Array | None, list[Array]]:
        """dy, saved -> (dx, gradients parallel to trainable_weights).

        Without need_dx, layers below the first trainable one are left out. Empties `saved` on its way, so
        that activations are freed as soon as they have served.
        """
        blocks = self.blocks
        trained = [i for i, block in enumerate(blocks) if block.trainable and block.params]
        lowest = 0 if need_dx else min(trained, default=len(blocks))
        grads: list[Array] = []
        dx: Array | None = dy
        for i in reversed(range(lowest, len(blocks))):
            assert dx is not None
            dx, of_block = blocks[i].backward(dx, saved.pop(), need_dx or i > lowest)
            grads.extend(of_block[key] for key in reversed(blocks[i].params) if key in of_block)
        grads.reverse()
        return dx if need_dx else None, grads

    def __call__(self, x: Any, training: bool = False) -> Array:
        """y for samples x (N, ...) of any real dtype, in one piece."""
        x = check_inputs(self, x)
        if not training:
            return self._infer(x)
        drawn = self.draw(len(x), _random.next_seed(), _random.TRAINING)
        return self.forward(floats(self.xp.asarray(x), self.dtype), training, self._there(drawn))[0]

    def _infer(self, x: Array, count: int = 1) -> Array:
        """y of `count` batches of one size, or of the first alone where there is Python to be done for each."""
        if self.device != "cpu":
            x = self.xp.asarray(x)
        first = x[: len(x) // count] if count > 1 else x
        replay = self._replays.take(self, first)
        try:
            if count > 1 and replay and replay.alone:
                return replay.batches(x, count)
            return replay.forward(first).copy() if replay else self.forward(floats(first, self.dtype))[0]
        finally:
            self._replays.give_back(replay)

    # ------------------------------------------------------------------ training

    def compile(
        self,
        optimizer: str | Optimizer,
        loss: str | Loss,
        metrics: Sequence[str | Metric | Callable[[Array, Array], Array]] | None = None,
        jit_compile: bool | str = "auto",
    ) -> None:
        """Fix optimizer, loss and metrics, by name or as objects. The optimizer begins anew, without momentum.

        jit_compile: whether work that repeats is recorded once for each batch size, then played back, to the same bits in
        less time; False keeps the memory that a recording holds. On a GPU fit and evaluate record a step as a CUDA graph,
        and so does inference from the first layer on behind which all are of this library, where it holds less than 256 MB.
        "auto" where it can be; True raises ValueError there where it cannot, and says what is in the way: a layer,
        loss, metric or optimizer whose supports_jit is False, or one that looks at results in Python. What such a part does
        in Python besides array work is done once, not at each step. On the CPU forward and backward are recorded from the
        first layer on behind which all are of this library and compute with its kernels alone, where they hold less
        than 64 MB.
        """
        if jit_compile not in (True, False, "auto"):
            raise ValueError(f"jit_compile must be True, False or 'auto', got {jit_compile!r}")
        self._compile(optimizer, loss, metrics or (), {})
        self.jit_compile = jit_compile

    def _compile(self, optimizer: Any, loss: Any, wanted: Sequence[Any], custom: Mapping[str, Any]) -> None:
        if isinstance(wanted, (str, Metric)):
            wanted = [wanted]
        chosen_optimizer, chosen_loss = optimizers.get(optimizer, custom), losses.get(loss, custom)
        chosen_metrics = [metrics.get(metric, chosen_loss, custom) for metric in wanted]
        names = ["loss", *(metric.name for metric in chosen_metrics)]
        if len(set(names)) != len(names):
            raise ValueError(
                f"the metrics' names must differ from each other and from 'loss', got {names[1:]}"
            )
        chosen_optimizer.build(self.trainable_weights if self.built else [])
        self._compiled = chosen_optimizer, chosen_loss, chosen_metrics

    def _parts(self) -> tuple[Optimizer, Loss, list[Metric]]:
        if self._compiled is None:
            raise ValueError("the model has no optimizer, loss and metrics yet: call compile first")
        return self._compiled

    @property
    def optimizer(self) -> Optimizer:
        return self._parts()[0]

    @property
    def loss(self) -> Loss:
        return self._parts()[1]

    @property
    def metrics(self) -> list[Metric]:
        return self._parts()[2]

    @property
    def metrics_names(self) -> list[str]:
        """ "loss", then the metrics: the order in which evaluate gives them."""
        return ["loss", *(metric.name for metric in self.metrics)]

    def fit(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Callback | Sequence[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Sequence[Any] | None = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
    ) -> History:
        """Train from epoch initial_epoch up to epoch `epochs`; gives loss and metrics of each as a History.

        x: samples (N, ...) of any real dtype; y: targets as the loss takes them. batch_size: 32 by default.
        validation_data: (x, y) or (x, y, sample_weight); validation_split instead sets apart that last part
        of the data. class_weight: a factor for the loss of each class named. verbose: 0 nothing, 1 ("auto")
        a bar on a terminal and a line for each epoch, 2 lines only.

        A step whose loss is NaN or infinite leaves the weights as they were and is warned of, once. Ctrl-C
        takes effect between two batches; on the CPU small ones are trained several at once, for about 0.1 s
        (see callbacks.Callback.batches_at_once).
        """
        self._parts()
        size, epochs = _batch_size(batch_size), check_count(epochs, "epochs", least=0)
        initial_epoch = check_count(initial_epoch, "initial_epoch", least=0)
        level = _progress.check_verbose(verbose)
        data = Data.of(self, x, y, sample_weight)
        validation = None
        if validation_data is not None:
            if not isinstance(validation_data, (tuple, list)) or len(validation_data) not in (2, 3):
                raise ValueError("validation_data must be (x, y) or (x, y, sample_weight)")
            validation = Data.of(self, *validation_data)
        elif validation_split:
            data, validation = data.split(validation_split)
        data = data.weighted(class_weight)
        given = [callbacks] if isinstance(callbacks, Callback) else list(callbacks or ())
        for callback in given:
            if not isinstance(callback, Callback):
                raise TypeError(f"callbacks must be callbacks.Callback objects, got {callback!r}")
        self.stop_training = False
        self._run = Run(
            self,
            data,
            validation,
            batch_size=size,
            epochs=epochs,
            initial_epoch=initial_epoch,
            shuffle=shuffle,
            callbacks=[_progress.ProgressBar(level), *given] if level else given,
        )
        try:
            self.history = self._run.go()
        finally:
            self._run = None
        return self.history

    @property
    def run(self) -> Run:
        """The call of fit that is in progress."""
        if self._run is None:
            raise ValueError("no fit is in progress")
        return self._run

    def train_step(
        self, x: Array, y: Array, sample_weight: Array | None = None, rows: Array | None = None
    ) -> list[float]:
        """One step on a checked batch; gives the sums over its samples of the loss and of each metric.

        rows: int32, which of x the samples are, those of y and sample_weight in their order; None: all of them. Where the loss is
        NaN or infinite, everything but the optimizer's step count stays as it was.
        """
        return self._train_steps(x, y, sample_weight, rows, 1)[0]

    def _train_steps(
        self, x: Array, y: Array, sample_weight: Array | None, rows: Array | None, count: int
    ) -> list[list[float]]:
        """Like train_step for `count` batches of one size that follow each other, or as many of them, one at least, as can be
        done without Python between the kernels: up to the first whose loss is NaN or infinite.
        """
        size, optimizer = len(y) // count, self._parts()[0]
        first_x, first_rows = (x[:size], None) if rows is None else (x, rows[:size])
        step = self._steps.take(self, first_x, first_rows)
        try:
            if step and step.alone and sample_weight is None:
                done = range(optimizer.iterations, optimizer.iterations + count)
                drawn = [self.draw(size, self.seed, _random.TRAINING, number) for number in done]
                return self._sums_of_steps(*step.steps(count, x, rows, y, drawn), y)
            weights = None if sample_weight is None else sample_weight[:size]
            return [self._train_step(step, first_x, y[:size], weights, first_rows)]
        finally:
            self._steps.give_back(step)

    def _train_step(
        self, step: Step | None, x: Array, y: Array, sample_weight: Array | None, rows: Array | None
    ) -> list[float]:
        optimizer, loss, _ = self._parts()
        drawn = self._there(self.draw(len(y), self.seed, _random.TRAINING, optimizer.iterations))
        if step:
            losses, y_pred, of_step = step.forward_loss(x, rows, y, sample_weight, drawn)
        else:
            y_pred, saved = self.forward(floats(self.xp.asarray(x), self.dtype, rows), True, drawn)
            losses, of_loss = loss.forward(y_pred, y, sample_weight)
        sums = self._sums(losses, y_pred, y)
        if not math.isfinite(sums[0]):
            optimizer.iterations += 1
        elif step:
            step.learn(of_step)
        else:
            for block, kept in zip(self.blocks, saved, strict=True):
                block.update_state(kept)
            _, grads = self.backward(loss.backward(of_loss), saved, need_dx=False)
            optimizer.apply(self.trainable_weights, grads)
        return sums

    def test_step(self, x: Array, y: Array, sample_weight: Array | None = None) -> list[float]:
        """Sums over a checked batch's samples of the loss and of each metric."""
        return self._test_steps(x, y, sample_weight, None, 1)[0]

    def _test_steps(
        self, x: Array, y: Array, sample_weight: Array | None, rows: None, count: int
    ) -> list[list[float]]:
        """Like test_step for `count` batches of one size that follow each other, or for the first alone."""
        y_pred, size = self._infer(x, count), len(y) // count

        def losses_of(samples: slice) -> Array:
            weights = None if sample_weight is None else sample_weight[samples]
            return self.loss.forward(y_pred[samples], y[samples], weights)[0]

        if len(y_pred) == size:
            first = slice(size)
            return [self._sums(losses_of(first), y_pred, y[first])]
        if kernels_alone(self.loss):  # each sample's on its own
            losses = losses_of(slice(None)).reshape(count, size)
        else:
            losses = np.stack([losses_of(slice(i, i + size)) for i in range(0, len(y), size)])
        return self._sums_of_steps(losses, y_pred.reshape(count, size, *y_pred.shape[1:]), y)

    def _sums(self, losses: Array, y_pred: Array, y: Array) -> list[float]:
        measured = [metric.values(y, y_pred) for metric in self.metrics]
        # In float64. Python has added up the few numbers of a batch before a reduction of NumPy's has begun.
        return [
            float(sum(v.ravel().tolist()) if isinstance(v, np.ndarray) else v.sum(dtype=np.float64))
            for v in (losses, *measured)
        ]

    def _sums_of_steps(self, losses: Array, y_pred: Array, y: Array) -> list[list[float]]:
        """_sums of several steps on the CPU: losses and y_pred have a row for each, y has what belongs to them, and maybe more.

        This library's metrics judge each sample on its own, so they are asked once; others for each step.
        """
        steps, size = losses.shape
        columns = [losses]
        for metric in self.metrics:
            of_all = y[: steps * size]
            if type(metric) in _METRICS:
                values = metric.values(of_all, y_pred.reshape(-1, *y_pred.shape[2:])).reshape(steps, size)
            else:
                by_step = zip(of_all.reshape(steps, size, *y.shape[1:]), y_pred, strict=True)
                values = np.stack([metric.values(*of_step) for of_step in by_step])
            columns.append(values)
        sums = [[float(sum(row)) for row in values.tolist()] for values in columns]
        return [list(of_step) for of_step in zip(*sums, strict=True)]

    def train_on_batch(
        self,
        x: Any,
        y: Any,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One step on these samples; gives their loss, or [loss, metrics ...], or a dict with return_dict."""
        data = Data.of(self, x, y, sample_weight).weighted(class_weight)
        return self._scores(self.train_step(data.x, data.y, data.weights), len(data.x), return_dict)

    def test_on_batch(self, x: Any, y: Any, sample_weight: Any = None, return_dict: bool = False) -> Any:
        """Like train_on_batch, without training."""
        data = Data.of(self, x, y, sample_weight)
        return self._scores(self.test_step(data.x, data.y, data.weights), len(data.x), return_dict)

    def evaluate(
        self,
        x: Any,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        return_dict: bool = False,
    ) -> Any:
        """Means over the samples: the loss, or [loss, metrics ...], or a dict with return_dict."""
        level, size = _progress.check_verbose(verbose), _batch_size(batch_size)
        data = Data.of(self, x, y, sample_weight)
        steps = -(-len(data.x) // size)
        begin = time.perf_counter()
        with _progress.Bar(steps, level) as bar:
            logs = Evaluation(self, data, size)(bar.step)
        if level:
            line = f"{steps}/{steps} - {time.perf_counter() - begin:.1f}s - {_progress.format_logs(logs)}"
            print(line, flush=True)
        return self._scores(list(logs.values()), 1, return_dict)

    def _scores(self, sums: list[float], count: int, return_dict: bool) -> Any:
        values = [total / count for total in sums]
        if return_dict:
            return dict(zip(self.metrics_names, values, strict=True))
        return values if len(values) > 1 else values[0]

    def predict(self, x: Any, batch_size: int | None = None, verbose: int | str = "auto") -> Array:
        """y for samples x (N, ...), computed batch by batch, as a NumPy array. May be called from many threads at once."""
        level, size = _progress.check_verbose(verbose), _batch_size(batch_size)
        x = check_inputs(self, x)
        parts, pace, done = [], Pace(), 0
        with _progress.Bar(-(-len(x) // size), level) as bar:
            while done < len(x):
                count = pace.begin((len(x) - done) // size if self.device == "cpu" else 1)
                parts.append(self._infer(x[done : done + count * size], count))
                pace.end(-(-len(parts[-1]) // size))
                done += len(parts[-1])
                bar.step(-(-done // size))
        y: Array = _backend.to_host(self.xp.concatenate(parts))
        return y

    # ------------------------------------------------------------------ files

    def get_config(self) -> dict[str, Any]:
        """Name, dtype, shape of a sample, and the layers."""
        return {
            "name": self.name,
            "dtype": self.dtype,
            "input_shape": None if self._input_shape is None else list(self._input_shape),
            "layers": [serialize(layer) for layer in self.layers],
        }

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        custom_objects: Mapping[str, Any] | None = None,
        device: str = "cpu",
        precision: str = "float32",
    ) -> Sequential:
        """A model that get_config described, with new weights."""
        model = cls(name=config["name"], dtype=config["dtype"], device=device, precision=precision)
        known = {**_LAYERS, **(custom_objects or {})}
        for entry in config["layers"]:
            model.add(deserialize(entry, known, "layer"))
        if config["input_shape"] is not None and not model.built:
            model.build((None, *config["input_shape"]))
        return model

    def get_compile_config(self) -> dict[str, Any] | None:
        """Optimizer, loss and metrics; None before compile. Functions as metrics are left out."""
        if self._compiled is None:
            return None
        optimizer, loss, chosen = self._compiled
        return {
            "optimizer": serialize(optimizer),
            "loss": serialize(loss),
            "metrics": [serialize(m) for m in chosen if not isinstance(m, MeanMetric)],
        }

    def save(
        self, filepath: _saving.PathLike, overwrite: bool = True, include_optimizer: bool = True
    ) -> None:
        """Write layers, weights, compile arguments and the optimizer's state to a safetensors file.

        The same model gives the same bytes. A file at that place is replaced at once, or with
        overwrite=False refused.
        """
        content: dict[str, Any] = {
            "kind": "model",
            "model": self.get_config(),
            "compile": self.get_compile_config(),
        }
        content |= {"seed": self.seed, "optimizer": None}
        arrays = self._named_weights()
        if include_optimizer and self._compiled is not None and self.optimizer.iterations:
            content["optimizer"] = _saving.pack(self.optimizer.get_state(), arrays, "optimizer")
        _saving.write(filepath, content, arrays, overwrite)

    def save_weights(self, filepath: _saving.PathLike, overwrite: bool = True) -> None:
        """Write the weights alone, for load_weights of a model with the same layers."""
        _saving.write(filepath, {"kind": "weights"}, self._named_weights(), overwrite)

    def load_weights(self, filepath: _saving.PathLike) -> None:
        """Take the weights of a file that save_weights or save wrote."""
        _, arrays = _saving.read(filepath, ("weights", "model"))
        self._set_named_weights(arrays, filepath)

    def _named_weights(self) -> dict[str, Array]:
        self._sample_output_shape()
        return {f"{layer.name}/{key}": w for layer in self.layers for key, w in layer.weights.items()}

    def _set_named_weights(self, arrays: Mapping[str, Array], path: _saving.PathLike) -> None:
        own = self._named_weights()
        given = {name for name in arrays if name.count("/") == 1}  # the optimizer's have more
        if given != set(own):
            raise ValueError(
                f"{path} does not fit the model: only one of them has {sorted(given ^ set(own))}"
            )
        assign(list(own.values()), [arrays[name] for name in own], str(path))


def load_model(
    filepath: _saving.PathLike,
    custom_objects: Mapping[str, Any] | None = None,
    compile: bool = True,
    device: str = "cpu",
    precision: str = "float32",
) -> Sequential:
    """The model that Sequential.save wrote, compiled as it was if compile is True, so that fit can go on.

    custom_objects: layers, losses, metrics and optimizers of your own, {class name: class}. Raises
    FileNotFoundError where there is no file, ValueError where it is torn, or no model.
    """
    content, arrays = _saving.read(filepath, ("model",))
    custom = custom_objects or {}
    try:
        model = Sequential.from_config(content["model"], custom, device, precision)
        model.seed = content["seed"]
        model._set_named_weights(arrays, filepath)
        if compile and content["compile"] is not None:
            parts = content["compile"]
            model._compile(parts["optimizer"], parts["loss"], parts["metrics"], custom)
            if content["optimizer"] is not None:
                state = _saving.unpack(content["optimizer"], arrays)
                model.optimizer.set_state(state, model.trainable_weights)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{filepath} holds no model that can be built: {error}") from error
    return model


def _batch_size(batch_size: int | None) -> int:
    return 32 if batch_size is None else check_count(batch_size, "batch_size")
