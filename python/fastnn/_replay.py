"""Inference, and on the CPU steps of training, recorded for batches of one size, then played back: no Python between the kernels.

At small batches the Python around a kernel takes as long as the kernel, and fresh memory for each result costs more than that.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from itertools import chain
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any, Generic, NamedTuple, TypeVar

import numpy as np

from . import _backend, _config, _graph, _random, layers, ops
from ._arguments import in_order
from ._config import Configurable
from ._data import floats, readable
from ._typing import Array, Shape
from .layers.base import Drawn, Layer
from .layers.fusion import Block, ConvPool, run
from .losses import CategoricalCrossentropy, Loss, MeanSquaredError, SparseCategoricalCrossentropy
from .optimizers import SGD, Adam

if TYPE_CHECKING:
    from .models import Sequential

# Blocks that do nothing with numbers but call ops, in forward and backward; of exactly these classes, because a subclass may
# compute something else.
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
        layers.RandomFlip,
        layers.RandomTranslation,
        layers.ReLU,
        layers.Rescaling,
    }
)


# Batches of one size, on one stream, of samples of one kind: their dtype and, where they are rows of others, those others'
# shape; None where they become floats before the recording.
_Key = tuple[int, int, tuple[str, Shape | None] | None]


class Replay:
    """A model's forward for batches of one size, beginning with the samples' conversion to floats.

    The blocks up to the last that is not ops alone, such as a layer of the user's, run as ever. Results lie in memory that the
    next call writes.
    """

    _training = False
    key: _Key  # where Replays keeps it

    def __init__(self, model: Sequential, x: Array, rows: Array | None = None) -> None:
        self._dtype = model.dtype
        self._blocks = model.blocks
        others = [i for i, block in enumerate(self._blocks) if type(block) not in _OPS_ALONE]
        first = others[-1] + 1 if others else 0
        self._before, self._recorded = self._blocks[:first], self._blocks[first:]
        # Whether batches can follow each other without Python. In training it may be left what can wait, as normalization can.
        self.alone = not self._before
        if not self._recorded:
            raise _backend.NotRecordable("no block to record")
        layers = [layer for block in self._recorded for layer in _layers(block)]
        self._parts: list[Configurable] = [*layers]
        self._dicts: list[dict[str, Any]] = [
            *chain.from_iterable((part.params, part.state) for part in layers)
        ]
        self._weights = [array for arrays in self._dicts for array in arrays.values()]
        self._host = _backend.host()
        size = len(x if rows is None else rows)
        drawn = model.draw(size, model.seed, _random.TRAINING, 0) if self._training else []
        self._drawn = drawn[first:]
        # Whether samples come to the recording as floats; or else they become floats in it.
        self._as_floats = bool(self._before) or not readable(x, rows)
        if self._as_floats:
            x, rows = run(self._before, floats(x, self._dtype, rows), self._training, drawn)[0], None
        self._record(model, [x.copy()] if rows is None else [x, rows])
        self._looked_at = _config.last_change
        self._changes = self._current_changes()
        named = [(values, name, value) for values in self._dicts for name, value in values.items()]
        self._named = [list(column) for column in zip(*named, strict=True)] or [[], [], []]

    def _record(self, model: Sequential, inputs: Sequence[Array]) -> None:
        self._forward = _backend.Tape(lambda: self._record_forward(inputs), self._weights, inputs)

    def _record_forward(self, inputs: Sequence[Array]) -> None:
        x, rows = inputs[0], inputs[1] if len(inputs) > 1 else None
        first, rest, saved = self._recorded[0], self._recorded, []
        if type(first) is layers.Rescaling and not self._as_floats:  # in one pass with the conversion
            x = ops.rescale(x, first.scale, first.offset, rows=rows, dtype=self._dtype)
            rest, saved = rest[1:], [None]
        elif not self._as_floats:
            x = floats(x, self._dtype, rows)
        self._x = x
        self._y, kept = run(rest, x, self._training, self._drawn[len(saved) :])
        self._saved = saved + kept

    def _current_changes(self) -> list[int]:
        return list(map(attrgetter("_changes"), self._parts))

    def fits(self, model: Sequential) -> bool:
        """Whether all that was taken as given still is."""
        if model.blocks is not self._blocks or _backend.host() is not self._host:
            return False
        last_change = _config.last_change
        if last_change != self._looked_at:
            if not self._unchanged():
                return False
            self._looked_at = last_change
        return True

    def _unchanged(self) -> bool:
        dicts, names, values = self._named
        return (
            self._current_changes() == self._changes
            and sum(map(len, self._dicts)) == len(values)
            and all(map(is_, map(dict.get, dicts, names), values))
        )

    def _samples(
        self, x: Array, rows: Array | None = None, drawn: Sequence[Drawn] = ()
    ) -> tuple[list[Array], list[Any]]:
        """-> (what the recording is given of the samples, what the blocks before it have saved)."""
        if not self._as_floats:
            return [x] if rows is None else [x, rows], []
        x, saved = run(self._before, floats(x, self._dtype, rows), self._training, drawn)
        return [in_order(np.asarray(x, self._x.dtype))], saved

    def _by_batch(self, array: Array, count: int) -> Array:
        """With a row for each batch, as launch_steps takes what differs from one to the next; a single one as it is."""
        array = in_order(array)
        return array if count == 1 else array.reshape(count, len(self._y), *array.shape[1:])

    def _launch(
        self,
        tapes: Sequence[_backend.Tape],
        inputs: Sequence[Array],
        results: Sequence[Array],
        kept: Sequence[Array],
    ) -> int:
        """One batch after the other without Python in between (see launch_steps in _cpu.pyi), so many as `kept` has rows for."""
        native = [tape.native for tape in tapes]
        return int(self._host.native.launch_steps(len(kept[0]), native, inputs, results, kept))

    def forward(self, x: Array) -> Array:
        """y."""
        self._forward.launch(*self._samples(x)[0])
        return self._y

    def batches(self, x: Array, count: int) -> Array:
        """y of `count` batches, where this recording is `alone`."""
        (x,), _ = self._samples(x)
        y = np.empty((count * len(self._y), *self._y.shape[1:]), self._y.dtype)
        self._launch([self._forward], [self._by_batch(x, count)], [self._y], [self._by_batch(y, count)])
        return y


class GraphReplay(Replay):
    """A model's forward on a GPU, as a CUDA graph. Launches on one stream alone: it orders the use of their memory."""

    MOST = 2**28  # bytes kept; where there are more, kernels take so long that nothing is gained

    def _record(self, model: Sequential, inputs: Sequence[Array]) -> None:
        (self._input,) = inputs
        graph = _graph.record(lambda: self._record_forward(inputs), model.jit_compile)
        if graph is None:
            raise _backend.NotRecordable("not as a CUDA graph")
        self._graph, self._saved = graph, []  # it has what forward saved
        self.alone = False
        if graph.bytes > self.MOST:
            raise _backend.NotRecordable(f"more than {self.MOST} bytes would be kept")

    def forward(self, x: Array) -> Array:
        if self._as_floats:
            x, _ = run(self._before, floats(x, self._dtype), self._training)
        self._input[...] = x
        self._graph.launch()
        return self._y


class _Saved(NamedTuple):
    """Of a step's forward, for its backward."""

    given: list[Array]  # to the recordings
    before: list[Any]  # of the blocks before the recorded ones
    recorded_loss: bool
    of_loss: Any  # where it is not


class Step(Replay):
    """All that a step of training computes with arrays: forward, the loss, backward and the optimizer's update.

    A loss or an optimizer that may not be kernels alone runs as ever, in between; so does the loss of weighted samples.
    No block before the recorded ones may be trained.
    """

    _training = True

    def _record(self, model: Sequential, inputs: Sequence[Array]) -> None:
        if self._trains_before():
            raise _backend.NotRecordable("a block that is not recorded is trained")
        self._compiled, self._loss, self._optimizer = model._compiled, model.loss, model.optimizer
        self._stateful = [
            (i, block)
            for i, block in enumerate(self._blocks)
            if i < len(self._before) or any(layer.state for layer in _layers(block))
        ]
        self._trained = model.trainable_weights
        self._targets: list[Array] = []  # of the recorded loss
        if kernels_alone(self._loss):
            self._parts.append(self._loss)
            if isinstance(self._loss, SparseCategoricalCrossentropy):
                self._targets.append(np.zeros(len(inputs[-1]), np.int32))
            else:
                shape = len(inputs[-1]), *model._sample_output_shape()
                self._targets.append(np.zeros(shape, self._dtype))
        self._rates = np.full(3, np.nan)  # a step with such a loss changes nothing
        # All recordings of a step have the same inputs.
        given = [*inputs, *self._targets, *_chance(self._drawn), self._rates]
        self._forward = _backend.Tape(lambda: self._record_forward(inputs), self._weights, given)
        self._tapes = [self._forward]
        known = [*self._forward.memory()]
        if self._targets:
            self._loss_backward = _backend.Tape(self._record_loss_backward, known, given)
            self._tapes.append(self._loss_backward)
            known = [*self._loss_backward.memory()]
        self._updates = type(self._optimizer) in (SGD, Adam)
        if self._updates:
            self._optimizer.prepare(self._trained)
            self._parts.append(self._optimizer)
            self._dicts.append(self._optimizer.slots)
            known += chain(*self._optimizer.slots.values())
        self._backward = _backend.Tape(lambda: self._record_backward(model), known, given)
        self._tapes.append(self._backward)
        self._rates[2] = 0
        self.alone = self.alone and bool(self._targets) and self._updates

    def _record_forward(self, inputs: Sequence[Array]) -> None:
        super()._record_forward(inputs)
        if self._targets:
            self._losses, self._of_loss = self._loss.forward(self._y, *self._targets)

    def _record_loss_backward(self) -> None:
        self._dy = self._loss.backward(self._of_loss)

    def _record_backward(self, model: Sequential) -> None:
        if not self._targets:
            self._dy = _filled(self._y.shape, self._y.dtype, 0)
        _, self._gradients = model.backward(self._dy, [None] * len(self._before) + self._saved, need_dx=False)
        if self._updates:
            self._optimizer.update(self._trained, self._gradients, self._rates)

    def _trains_before(self) -> bool:
        return any(block.trainable and block.params for block in self._before)

    def _unchanged(self) -> bool:
        return super()._unchanged() and not self._trains_before()

    def fits(self, model: Sequential) -> bool:
        return model._compiled is self._compiled and super().fits(model)

    def forward_loss(
        self, x: Array, rows: Array | None, y: Array, sample_weight: Array | None, drawn: Sequence[Drawn]
    ) -> tuple[Array, Array, _Saved]:
        """-> (the samples' losses, y_pred, what learn needs)."""
        samples, before = self._samples(x, rows, drawn)
        targets = [in_order(np.asarray(y, like.dtype)) for like in self._targets]
        given = [*samples, *targets, *_chance(drawn[len(self._before) :]), self._rates]
        self._forward.launch(*given)
        if targets and sample_weight is None:
            return self._losses, self._y, _Saved(given, before, True, None)
        losses, of_loss = self._loss.forward(self._y, y, sample_weight)
        return losses, self._y, _Saved(given, before, False, of_loss)

    def learn(self, saved: _Saved) -> None:
        """Update the layers' state, backward, and the optimizer's step."""
        kept = saved.before + self._saved
        for i, block in self._stateful:
            block.update_state(kept[i])
        if saved.recorded_loss:
            self._loss_backward.launch(*saved.given)
        else:
            self._dy[...] = self._loss.backward(saved.of_loss)
        if self._updates:
            self._rates[:2] = self._optimizer.advance()
        self._backward.launch(*saved.given)
        if not self._updates:
            self._optimizer.apply(self._trained, self._gradients)

    def steps(
        self, count: int, x: Array, rows: Array | None, y: Array, drawn: Sequence[Sequence[Drawn]]
    ) -> tuple[Array, Array]:
        """Steps on `count` batches one after the other, without Python in between, where this recording is `alone`: up to the
        first of a loss that is not finite. drawn: for each step -> (the samples' losses, y_pred), a row for each step done.
        """
        optimizer, before = self._optimizer, self._optimizer.iterations
        samples, _ = self._samples(x, rows)
        samples[-1] = self._by_batch(samples[-1], count)  # the samples, or the rows of them
        targets = [self._by_batch(np.asarray(y, like.dtype), count) for like in self._targets]
        chance = [np.stack(arrays) for arrays in zip(*map(_chance, drawn), strict=True)] if drawn[0] else []
        rates = np.array([(*optimizer.rates(step), 0.0) for step in range(before, before + count)])
        normalized = [(block, self._saved[i]) for i, block in self._stateful]
        results = [self._losses, self._y, *chain(*((saved.mean, saved.var) for _, saved in normalized))]
        kept = [np.empty((count, *like.shape), like.dtype) for like in results]
        done = self._launch(self._tapes, [*samples, *targets, *chance, rates], results, kept)
        optimizer.iterations = before + done
        losses, y_pred, *statistics = kept if done == count else [rows[:done] for rows in kept]
        if not normalized:
            return losses, y_pred
        learned = done if math.isfinite(sum(losses[-1].tolist())) else done - 1
        for (block, saved), means, variances in zip(
            normalized, statistics[::2], statistics[1::2], strict=True
        ):
            for mean, var in zip(means[:learned], variances[:learned], strict=True):
                block.update_state(saved._replace(mean=mean, var=var))
        return losses, y_pred


def kernels_alone(loss: Loss) -> bool:
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
        self._free: dict[_Key, list[R]] = {}  # the last used last
        self._refused: dict[int, list[Block]] = {}

    def take(self, model: Sequential, x: Array, rows: Array | None = None) -> R | None:
        """One for batches like x, or like those rows of it, to be given back; None where there can be none, or not yet: what
        comes but once is not worth a recording.
        """
        kind, size = self._kinds.get(model.device), len(x if rows is None else rows)
        if kind is None or not model.jit_compile:
            return None
        if self._refused and self._refused.get(size) is model.blocks:
            return None
        stored = (x.dtype.char, None if rows is None else x.shape) if readable(x, rows) else None
        key = size, _backend.stream(model.device), stored
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
            replay = kind(model, x, rows)
        except _backend.NotRecordable:
            self._refused[size] = model.blocks
            return None
        replay.key = key
        return replay

    def give_back(self, replay: R | None) -> None:
        if replay:
            self._free.setdefault(replay.key, []).append(replay)

    def __reduce__(self) -> tuple[type, tuple[Mapping[str, type[R]]]]:
        return Replays, (self._kinds,)  # a copy of a model records its own


def _filled(shape: Any, dtype: Any, value: Any) -> Array:
    """Memory that the tape being recorded knows."""
    array: Array = _backend.host().xp.empty(shape, dtype)
    array[...] = value
    return array


def _chance(drawn: Sequence[Drawn]) -> list[Array]:
    """What was drawn for all blocks, as kernels read it: truth values as bytes."""
    return [array.view(np.uint8) if array.dtype == bool else array for array in chain(*drawn)]


def _layers(block: Block) -> list[Layer]:
    if isinstance(block, ConvPool):
        return [block.conv, block.pool]
    assert isinstance(block, Layer)
    return [block]
