"""Inference, and on the CPU steps of training, recorded for batches of one size, then played back: no Python between the kernels.

At small batches the Python around a kernel takes as long as the kernel, and fresh memory for each result costs more than that.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from . import _backend, _graph, layers
from ._checks import same_objects
from ._typing import Array
from .layers import base
from .layers.base import Drawn, Layer
from .layers.fusion import Block, ConvPool, run
from .losses import CategoricalCrossentropy, Loss, MeanSquaredError, SparseCategoricalCrossentropy
from .optimizers import SGD, Adam

if TYPE_CHECKING:
    from .models import Sequential

# Blocks that do nothing with numbers but call ops, in forward and backward; of exactly these classes, because a subclass may
# compute something else. In inference some more.
_OPS_ALONE: frozenset[type] = frozenset(
    {
        ConvPool,
        layers.Activation,
        layers.AveragePooling2D,
        layers.BatchNormalization,
        layers.Conv2D,
        layers.Dense,
        layers.Dropout,
        layers.Flatten,
        layers.GlobalAveragePooling2D,
        layers.MaxPooling2D,
        layers.ReLU,
    }
)
_IN_INFERENCE = _OPS_ALONE | {layers.RandomFlip, layers.RandomTranslation}


class Replay:
    """A model's forward for batches of one size.

    The blocks up to the last that is not ops alone, such as Rescaling, run as ever. Results lie in memory that the next call
    writes.
    """

    _training, _kinds = False, _IN_INFERENCE
    key: tuple[int, int]  # where Replays keeps it

    def __init__(self, model: Sequential, x: Array, drawn: Sequence[Drawn] = ()) -> None:
        self._blocks = model.blocks
        others = [i for i, block in enumerate(self._blocks) if type(block) not in self._kinds]
        first = others[-1] + 1 if others else 0
        self._before, self._recorded = self._blocks[:first], self._blocks[first:]
        if not self._recorded:
            raise _backend.NotRecordable("no block to record")
        self._layers = [layer for block in self._recorded for layer in _layers(block)]
        self._arrays = [arrays for layer in self._layers for arrays in (layer.params, layer.state)]
        named = [(arrays, name, w) for arrays in self._arrays for name, w in arrays.items()]
        self._homes, self._names, self._weights = (
            (list(part) for part in zip(*named, strict=True)) if named else ([], [], [])
        )
        self._host = _backend.host()
        self._looked_at = base.last_change
        self._changes = self._current_changes()
        x, _ = run(self._before, x, self._training, drawn)
        self._x = x.copy()
        self._drawn = drawn[first:]
        self._given: Array | None = None  # forward's x, for backward
        self._record(model.jit_compile)

    def _record(self, jit_compile: bool | str) -> None:
        self._forward = _backend.Tape(self._record_forward, self._weights, self._x)

    def _record_forward(self) -> None:
        # What the recorded blocks need of chance, in memory that each call fills anew.
        self._drawn = [
            [_filled(array.shape, array.dtype, array) for array in of_block] for of_block in self._drawn
        ]
        self._y, self._saved = run(self._recorded, self._x, self._training, self._drawn)

    def _current_changes(self) -> list[int]:
        return list(map(attrgetter("changes"), self._layers))

    def fits(self, model: Sequential) -> bool:
        """Whether all that was taken as given still is."""
        if model.blocks is not self._blocks or _backend.host() is not self._host:
            return False
        last_change = base.last_change
        if last_change != self._looked_at:
            if not self._unchanged():
                return False
            self._looked_at = last_change
        return True

    def _unchanged(self) -> bool:
        return (
            self._current_changes() == self._changes
            and sum(map(len, self._arrays)) == len(self._weights)
            and all(map(is_, map(dict.get, self._homes, self._names), self._weights))
        )

    def forward(self, x: Array, drawn: Sequence[Drawn] = ()) -> tuple[Array, list[Any]]:
        """As Sequential.forward."""
        x, saved = run(self._before, x, self._training, drawn)
        if not (x.flags.c_contiguous and x.flags.aligned):
            x = x.copy()
        for inside, array in zip(chain(*self._drawn), chain(*drawn[len(self._before) :]), strict=True):
            inside[...] = array
        self._forward.launch(x)
        self._given = x
        return self._y, saved + self._saved

    def let_go(self) -> None:
        """Keep the caller's samples no longer."""
        self._given = None


class GraphReplay(Replay):
    """A model's forward on a GPU, as a CUDA graph. Launches on one stream alone: it orders the use of their memory."""

    _kinds = _IN_INFERENCE | {layers.Rescaling}
    MOST = 2**28  # bytes kept; where there are more, kernels take so long that nothing is gained

    def _record(self, jit_compile: bool | str) -> None:
        graph = _graph.record(self._record_forward, jit_compile)
        if graph is None:
            raise _backend.NotRecordable("not as a CUDA graph")
        self._graph, self._saved = graph, []  # it has what forward saved
        if graph.bytes > self.MOST:
            raise _backend.NotRecordable(f"more than {self.MOST} bytes would be kept")

    def forward(self, x: Array, drawn: Sequence[Drawn] = ()) -> tuple[Array, list[Any]]:
        """y, and nothing for backward."""
        self._x[...] = run(self._before, x, self._training, drawn)[0]
        self._graph.launch()
        return self._y, []


class Step(Replay):
    """All that a step of training computes with arrays: forward, the loss, backward and the optimizer's update.

    A loss or an optimizer that may not be kernels alone runs as ever, in between; so does the loss of weighted samples.
    No block before the recorded ones may be trained.
    """

    _training, _kinds = True, _OPS_ALONE

    def __init__(self, model: Sequential, x: Array, drawn: Sequence[Drawn] = ()) -> None:
        super().__init__(model, x, drawn)
        if self._trains_before():
            raise _backend.NotRecordable("a block that is not recorded is trained")
        self._optimizer, self._loss = model.optimizer, model.loss
        self._trained = model.trainable_weights
        known = [*self._forward.memory()]
        self._loss_tapes: tuple[_backend.Tape, _backend.Tape] | None = None  # forward and backward
        if _kernels_alone(self._loss):
            forward = _backend.Tape(self._record_loss, known)
            backward = _backend.Tape(self._record_loss_backward, forward.memory())
            self._loss_tapes, known = (forward, backward), [*backward.memory()]
        self._updates = type(self._optimizer) in (SGD, Adam)
        if self._updates:
            self._optimizer.prepare(self._trained)
        self._slots = self._current_slots()
        self._compiled = model._compiled
        settings = [
            (vars(part), name, value)
            for part in (self._loss, self._optimizer)
            for name, value in vars(part).items()
            if name not in ("iterations", "_rate")
        ]
        self._settings = [list(column) for column in zip(*settings, strict=True)]
        self._backward = _backend.Tape(lambda: self._record_backward(model), [*known, *self._slots], self._x)

    def _current_slots(self) -> list[Array]:
        return [*chain(*self._optimizer.slots.values())]

    def _trains_before(self) -> bool:
        return any(block.trainable and block.params for block in self._before)

    def _record_loss(self) -> None:
        sparse = isinstance(self._loss, SparseCategoricalCrossentropy)
        shape, dtype = (self._y.shape[:1], np.int32) if sparse else (self._y.shape, self._y.dtype)
        self._target = _filled(shape, dtype, 0)
        self._losses, self._of_loss = self._loss.forward(self._y, self._target)

    def _record_loss_backward(self) -> None:
        self._dy = self._loss.backward(self._of_loss)

    def _record_backward(self, model: Sequential) -> None:
        if not self._loss_tapes:
            self._dy = _filled(self._y.shape, self._y.dtype, 0)
        _, self._gradients = model.backward(self._dy, [None] * len(self._before) + self._saved, need_dx=False)
        if self._updates:
            self._rates = _filled(3, float, np.nan)  # a step with such a loss changes nothing
            self._optimizer.update(self._trained, self._gradients, self._rates)
            self._rates[2] = 0

    def _unchanged(self) -> bool:
        return super()._unchanged() and not self._trains_before()

    def fits(self, model: Sequential) -> bool:
        return (
            super().fits(model)
            and model._compiled is self._compiled
            and all(map(is_, map(dict.get, *self._settings[:2]), self._settings[2]))
            and same_objects(self._current_slots(), self._slots)
        )

    def losses(self, y: Array, sample_weight: Array | None = None) -> Array:
        """The samples' losses, for what forward was last called with."""
        self._weighted = sample_weight is not None
        if self._loss_tapes and not self._weighted:
            self._target[...] = y
            self._loss_tapes[0].launch()
            return self._losses
        losses, self._of_weighted = self._loss.forward(self._y, y, sample_weight)
        return losses

    def learn(self) -> None:
        """Backward and the optimizer's step, for what losses was last called with."""
        if self._loss_tapes and not self._weighted:
            self._loss_tapes[1].launch()
        else:
            self._dy[...] = self._loss.backward(self._of_weighted)
        if self._updates:
            # One by one, because NumPy takes longer to make an array of them first.
            self._rates[0], self._rates[1] = self._optimizer.advance()
        self._backward.launch(self._given)
        if not self._updates:
            self._optimizer.apply(self._trained, self._gradients)


def _kernels_alone(loss: Loss) -> bool:
    """Whether a loss calls ops and does nothing else; of exactly these classes, as with blocks."""
    if type(loss) is SparseCategoricalCrossentropy:
        return loss.from_logits
    if type(loss) is CategoricalCrossentropy:
        return loss.from_logits and not loss.label_smoothing
    return type(loss) is MeanSquaredError


R = TypeVar("R", bound=Replay)


class Replays(Generic[R]):
    """A model's recordings of one purpose, of the batch sizes it saw last; each is lent to one caller at a time."""

    _SIZES = 4

    def __init__(self, kinds: Mapping[str, type[R]]) -> None:
        """kinds: by device."""
        self._kinds = kinds
        self._free: dict[tuple[int, int], list[R]] = {}  # by size and stream; the last used last
        self._refused: dict[int, list[Block]] = {}

    def take(self, model: Sequential, x: Array, drawn: Sequence[Drawn] = ()) -> R | None:
        """One for batches like x, of the model's dtype, to be given back; None where there can be none, or not yet: what comes
        but once is not worth a recording.
        """
        kind, size = self._kinds.get(model.device), len(x)
        if kind is None or not model.jit_compile or self._refused.get(size) is model.blocks:
            return None
        key = size, _backend.stream(model.device)
        free = self._free.pop(key, None)
        if free is None:
            for oldest in list(self._free)[: 1 - self._SIZES]:
                self._free.pop(oldest, None)
            self._free[key] = []
            return None
        self._free[key] = free
        try:
            while not (replay := free.pop()).fits(model):
                pass
            return replay
        except IndexError:  # none is left
            pass
        try:
            replay = kind(model, x, drawn)
        except _backend.NotRecordable:
            self._refused[size] = model.blocks
            return None
        replay.key = key
        return replay

    def give_back(self, replay: R | None) -> None:
        if replay:
            replay.let_go()
            self._free.setdefault(replay.key, []).append(replay)

    def __reduce__(self) -> tuple[type, tuple[Mapping[str, type[R]]]]:
        return Replays, (self._kinds,)  # a copy of a model records its own


def _filled(shape: Any, dtype: Any, value: Any) -> Array:
    """Memory that the tape being recorded knows."""
    array: Array = _backend.host().xp.empty(shape, dtype)
    array[...] = value
    return array


def _layers(block: Block) -> list[Layer]:
    if isinstance(block, ConvPool):
        return [block.conv, block.pool]
    assert isinstance(block, Layer)
    return [block]
