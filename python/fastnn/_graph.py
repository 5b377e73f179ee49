"""The steps of fit and evaluate on a GPU: recorded once for each batch size as a CUDA graph, then launched.

Whatever changes from step to step lies in one block of memory that one copy fills before the launch: the optimizer's
rates, the rows that make the batch, and what random layers need of chance. The sums of loss and metrics stay on the GPU
until somebody asks for them. A step whose loss is not finite is left out by the kernels themselves.
"""

from __future__ import annotations

import traceback
import warnings
from collections.abc import Callable, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from . import _backend, _random
from ._checks import same_objects
from ._typing import Array
from .layers import Layer
from .layers.base import Drawn
from .losses import Loss
from .metrics import Metric
from .optimizers import Optimizer

if TYPE_CHECKING:
    from ._data import Data
    from .models import Sequential

_KINDS: tuple[type, ...] = (Layer, Loss, Metric, Optimizer)


def record(work: Callable[[], None], jit_compile: bool | str) -> _backend.Graph | None:
    """The work as a CUDA graph. Where it cannot be one, jit_compile=True raises ValueError, "auto" warns of it: then None."""
    try:
        return _backend.Graph(work)
    except Exception as error:
        reason = f"{_culprit(error)} cannot be recorded into a CUDA graph ({error})"
        if jit_compile is True:
            raise ValueError(f"jit_compile=True: {reason}") from error
        # The user's call of fit, evaluate, predict or the model.
        warnings.warn(f"done without: {reason}", RuntimeWarning, stacklevel=7)
        return None


class GraphSteps:
    """Called with the rows of a batch it does a step; `read` gives the sums of the steps since it was last called."""

    lazy = True

    def __init__(self, model: Sequential, data: Data, most: int, training: bool, halting: bool) -> None:
        """most: how many steps may come between two calls of read. halting: after one whose loss is not finite, and until
        the next call of read, all are left out.
        """
        self._model, self._data, self._training = model, data, training
        self._steps: dict[int, _Step] = {}  # by batch size
        self._fixed: list[Any] = []
        self._sums = model.xp.empty((most, len(model.metrics_names)), np.float64)
        self._unread = 0
        self._halted = np.zeros((), like=self._sums) if halting else None  # 0, or NaN

    @classmethod
    def of(
        cls, model: Sequential, data: Data, most: int, training: bool, halting: bool = False
    ) -> GraphSteps | None:
        """None where steps are done one by one: on the CPU, or where the model's parts or its user want it."""
        if model.device == "cpu" or not model.jit_compile:
            return None
        parts: tuple[Any, ...] = (*model.layers, model.loss, *model.metrics)
        parts += (model.optimizer,) if training else ()
        for part in parts:
            if not part.supports_jit:
                if model.jit_compile is True:
                    raise ValueError(
                        f"jit_compile=True: {_name(part)} cannot be recorded, its supports_jit is False"
                    )
                return None
        return cls(model, data, most, training, halting)

    def at_once(self, most: int) -> int:
        return 1  # its launches are waited for by nobody

    def __call__(self, rows: slice | Array, touched: bool, count: int) -> int:
        """touched: other code has run since the last step, which may have changed more than numbers in arrays."""
        model, optimizer = self._model, self._model.optimizer
        if touched and not same_objects(_fixed(model), self._fixed):
            self._steps.clear()
        if isinstance(rows, slice):
            rows = np.arange(rows.start, min(rows.stop, len(self._data.x)), dtype=self._data.row_type)
        drawn: list[Drawn] = []
        numbers = np.zeros(2 + len(model.metrics_names))
        if self._training:
            drawn = model.draw(len(rows), model.seed, _random.TRAINING, optimizer.iterations)
            numbers[:2] = optimizer.rates(optimizer.iterations)
        inputs = [numbers, rows, *chain(*drawn)]
        if len(rows) not in self._steps:
            self._steps[len(rows)] = _Step(model, self._data, inputs, drawn, self._training, self._halted)
        step = self._steps[len(rows)]
        step(inputs)
        if touched:  # not before: the optimizer makes its slots in its first step
            self._fixed = _fixed(model)
        if self._training:
            optimizer.iterations += 1
        self._sums[self._unread] = step.sums
        self._unread += 1
        return 1

    def read(self) -> list[list[float]]:
        if not self._unread:
            return []
        sums: list[list[float]] = _backend.to_host(self._sums[: self._unread]).tolist()
        self._unread = 0
        if self._halted is not None:
            self._halted[...] = 0
        return sums


class _Step:
    """The step for batches of one size, on memory of its own.

    The first is done kernel by kernel, because what loads or compiles code cannot be recorded. The second is recorded.
    """

    def __init__(
        self,
        model: Sequential,
        data: Data,
        inputs: Sequence[Array],
        drawn: Sequence[Drawn],
        training: bool,
        halted: Array | None,
    ) -> None:
        self._model, self._data, self._training, self._halted = model, data, training, halted
        self._inbox = _Inbox(model.xp, inputs)
        numbers, self._rows, *arrays = self._inbox.arrays
        self._rates, self.sums = numbers[:3], numbers[2:]  # the loss is both
        self._totals = [self.sums[i : i + 1].reshape(()) for i in range(len(self.sums))]
        left = iter(arrays)
        self._drawn = [[next(left) for _ in of_block] for of_block in drawn]
        self._graph: _backend.Graph | None = None
        self._calls = 0

    def __call__(self, inputs: Sequence[Array]) -> None:
        if self._calls == 1:
            self._graph = record(self._work, self._model.jit_compile)
        self._calls += 1
        self._inbox.fill(inputs)
        if self._graph is None:
            self._work()
        else:
            self._graph.launch()

    def _work(self) -> None:
        """All of a step, on arrays alone: compare Sequential.test_step, and of training train_step."""
        model, loss, xp = self._model, self._model.loss, self._model.xp
        x, y, weights = self._data.batch(self._rows)
        y_pred, saved = model.forward(x, self._training, self._drawn)
        losses, of_loss = loss.forward(y_pred, y, weights)
        measured = (metric.values(y, y_pred) for metric in model.metrics)
        for values, total in zip((losses, *measured), self._totals, strict=True):
            xp.asarray(values).sum(dtype=np.float64, out=total)
        if self._training:
            self._learn(saved, of_loss)

    def _learn(self, saved: list[Any], of_loss: Any) -> None:
        model = self._model
        if self._halted is not None:
            self._totals[0] += self._halted
            np.multiply(self._totals[0], 0.0, out=self._halted)
        states = [array for layer in model.layers for array in layer.state.values()]
        before = [array.copy() for array in states]
        for block, kept in zip(model.blocks, saved, strict=True):
            block.update_state(kept)
        if states:
            finite = np.isfinite(self._totals[0])
            for array, old in zip(states, before, strict=True):
                array[...] = model.xp.where(finite, array, old)
        _, grads = model.backward(model.loss.backward(of_loss), saved, need_dx=False)
        model.optimizer.update(model.trainable_weights, grads, self._rates)


class _Inbox:
    """Arrays on the GPU whose contents one copy from the host replaces."""

    def __init__(self, xp: Any, like: Sequence[Array]) -> None:
        self._xp = xp
        ends = np.cumsum([-(-array.nbytes // 16) * 16 for array in like])  # each at a multiple of 16 bytes
        self._host, self._there = np.zeros(ends[-1], np.uint8), xp.empty(ends[-1], np.uint8)

        def views(memory: Array) -> list[Array]:
            begins = (int(end) - -(-array.nbytes // 16) * 16 for array, end in zip(like, ends, strict=True))
            return [
                memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
                for begin, array in zip(begins, like, strict=True)
            ]

        self._slots, self.arrays = views(self._host), views(self._there)

    def fill(self, arrays: Sequence[Array]) -> None:
        for slot, array in zip(self._slots, arrays, strict=True):
            slot[...] = array
        self._there[...] = self._xp.asarray(
            self._host
        )  # CuPy copies at once, to memory that the GPU then reads from


def _fixed(model: Sequential) -> list[Any]:
    """All that a recording takes as given, each the same object as long as nobody has set it anew."""
    optimizer = model.optimizer
    fixed: list[Any] = [optimizer, *model.weights]
    fixed += [value for key, value in vars(optimizer).items() if key not in ("iterations", "_rate")]
    for part in (*model.layers, model.loss, *model.metrics):
        fixed += [part, *vars(part).values()]
    return fixed


def _culprit(error: BaseException) -> str:
    """Which part of the model was at work when the error came."""
    owners = (frame.f_locals.get("self") for frame, _ in traceback.walk_tb(error.__traceback__))
    return next((_name(owner) for owner in owners if isinstance(owner, _KINDS)), "the work")


def _name(part: Any) -> str:
    kind = next(kind for kind in _KINDS if isinstance(part, kind))
    return f"{kind.__name__.lower()} {part.name!r}"
