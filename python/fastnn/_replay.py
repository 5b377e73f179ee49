"""Forward and backward on the CPU, recorded for batches of one size, then played back: no Python between the kernels.

At small batches the Python around a kernel takes as long as the kernel, and fresh memory for each result costs more than that.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import attrgetter, is_
from typing import TYPE_CHECKING, Any

from . import _backend, layers
from ._typing import Array
from .layers.base import Drawn, Layer
from .layers.fusion import Block, ConvPool, run

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
        layers.Flatten,
        layers.GlobalAveragePooling2D,
        layers.MaxPooling2D,
        layers.ReLU,
    }
)
_IN_INFERENCE = _OPS_ALONE | {layers.Dropout, layers.RandomFlip, layers.RandomTranslation}


class Replay:
    """A model's forward, and in training its backward, for batches of one size.

    The blocks up to the last that is not ops alone, such as Rescaling, run as ever; none of them may be trained. Results lie
    in memory that the next call writes.
    """

    def __init__(self, model: Sequential, x: Array, training: bool, drawn: Sequence[Drawn]) -> None:
        kinds = _OPS_ALONE if training else _IN_INFERENCE
        self._training, self._blocks = training, model.blocks
        others = [i for i, block in enumerate(self._blocks) if type(block) not in kinds]
        first = others[-1] + 1 if others else 0
        self._before, self._recorded = self._blocks[:first], self._blocks[first:]
        if not self._recorded or (training and any(b.trainable and b.params for b in self._before)):
            raise _backend.NotRecordable("no block to record")
        self._layers = [layer for block in self._recorded for layer in _layers(block)]
        self._arrays = [arrays for layer in self._layers for arrays in (layer.params, layer.state)]
        named = [(arrays, name, w) for arrays in self._arrays for name, w in arrays.items()]
        self._homes, self._names, self._weights = (
            (list(part) for part in zip(*named, strict=True)) if named else ([], [], [])
        )
        self._host = _backend.host()
        self._changes = self._current_changes()
        x, _ = run(self._before, x, training, drawn)
        self._forward = _backend.Tape(lambda: self._record_forward(x), self._weights)
        if training:
            self._backward = _backend.Tape(lambda: self._record_backward(model), self._forward.memory())

    def _record_forward(self, x: Array) -> None:
        self._x = _backend.host().xp.empty(x.shape, x.dtype)
        self._x[...] = x
        self._y, self._saved = run(self._recorded, self._x, self._training)

    def _record_backward(self, model: Sequential) -> None:
        self._dy = _backend.host().xp.empty(self._y.shape, self._y.dtype)
        self._dy[...] = 0
        _, self._gradients = model.backward(self._dy, [None] * len(self._before) + self._saved, need_dx=False)

    def _current_changes(self) -> list[int]:
        return list(map(attrgetter("changes"), self._layers))

    def fits(self, model: Sequential) -> bool:
        """Whether all that was taken as given still is."""
        return (
            model.blocks is self._blocks
            and _backend.host() is self._host
            and self._current_changes() == self._changes
            and sum(map(len, self._arrays)) == len(self._weights)
            and all(map(is_, map(dict.get, self._homes, self._names), self._weights))
        )

    def forward(self, x: Array, drawn: Sequence[Drawn] = ()) -> tuple[Array, list[Any]]:
        """As Sequential.forward."""
        x, saved = run(self._before, x, self._training, drawn)
        self._x[...] = x
        self._forward.launch()
        return self._y, saved + self._saved

    def backward(self, dy: Array) -> list[Array]:
        """Gradients of trainable_weights, for what forward was last called with."""
        self._dy[...] = dy
        self._backward.launch()
        return self._gradients


class Replays:
    """A model's recordings, of the batch sizes it saw last; each is lent to one caller at a time."""

    _SIZES = 4

    def __init__(self) -> None:
        self._free: dict[tuple[int, bool], list[Replay]] = {}  # by size and training; the last used last
        self._refused: dict[tuple[int, bool], list[Block]] = {}

    def take(
        self, model: Sequential, x: Array, training: bool = False, drawn: Sequence[Drawn] = ()
    ) -> Replay | None:
        """One for batches like x, of the model's dtype, to be given back; None where there can be none, or not yet: what comes
        but once is not worth a recording.
        """
        key = len(x), training
        if model.device != "cpu" or not model.jit_compile or self._refused.get(key) is model.blocks:
            return None
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
            return Replay(model, x, training, drawn)
        except _backend.NotRecordable:
            self._refused[key] = model.blocks
            return None

    def give_back(self, replay: Replay | None, x: Array, training: bool = False) -> None:
        if replay:
            self._free.setdefault((len(x), training), []).append(replay)

    def __reduce__(self) -> tuple[type, tuple[()]]:
        return Replays, ()  # a copy of a model records its own


def _layers(block: Block) -> list[Layer]:
    if isinstance(block, ConvPool):
        return [block.conv, block.pool]
    assert isinstance(block, Layer)
    return [block]
