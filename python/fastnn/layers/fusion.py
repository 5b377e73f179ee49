"""Layers that stand next to each other and are computed as one: what Sequential runs in their place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from .. import ops
from .._typing import Array
from .base import Drawn, Grads, Layer
from .convolution import Conv2D
from .pooling import MaxPooling2D


class Block(Protocol):
    """A layer, or several as one: what forward, backward and an optimizer see of it."""

    @property
    def trainable(self) -> bool: ...
    @property
    def params(self) -> dict[str, Array]: ...
    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]: ...
    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]: ...
    def update_state(self, saved: Any) -> None: ...


class ConvPool:
    """A Conv2D, without activation or with ReLU, and the MaxPooling2D behind it.

    The map between them is not kept. The output has the same bits as that of the two layers (see ops.conv2d_max_pool2d of
    precision "winograd"); the gradients are sums over the
    pool's winners alone, in an order of their own, so they differ from the layers' by rounding.
    """

    def __init__(self, conv: Conv2D, pool: MaxPooling2D) -> None:
        self.conv, self.pool = conv, pool
        self._options: dict[str, Any] = {
            **conv.options,
            "window": pool.pool_size,
            "pool_stride": pool.strides,
            "pool_padding": pool.padding,
        }

    @property
    def trainable(self) -> bool:
        return self.conv.trainable

    @property
    def params(self) -> dict[str, Array]:
        return self.conv.params

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        params, relu = self.conv.params, self.conv.activation == "relu"
        y, argmax = ops.conv2d_max_pool2d(x, params["kernel"], params.get("bias"), relu=relu, **self._options)
        return y, (x, argmax)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        x, argmax = saved
        w = self.conv.params["kernel"]
        grads: Grads = {}
        if self.trainable:
            dw, db = ops.conv2d_max_pool2d_backward_w(dy, argmax, x, w.shape, **self._options)
            grads = {"kernel": dw, "bias": db} if self.conv.use_bias else {"kernel": dw}
        if not need_dx:
            return None, grads
        return ops.conv2d_max_pool2d_backward_x(dy, argmax, w, x.shape, **self._options), grads

    def update_state(self, saved: Any) -> None:
        pass


def run(
    blocks: Sequence[Block], x: Array, training: bool = False, drawn: Sequence[Drawn] = ()
) -> tuple[Array, list[Any]]:
    """x through the blocks -> (y, what backward needs of each). drawn: of each block, or empty where none is random."""
    saved = []
    for i, block in enumerate(blocks):
        x, kept = block.forward(x, training, drawn[i] if drawn else ())
        saved.append(kept)
    return x, saved


def fuse(layers: Sequence[Layer]) -> list[Block]:
    """The layers in order, those that can be computed together as one block."""
    blocks: list[Block] = []
    for layer in layers:
        before = blocks[-1] if blocks else None
        # Of exactly these classes: a subclass may compute something else.
        if (
            type(before) is Conv2D
            and type(layer) is MaxPooling2D
            and before.activation in (None, "relu")
            and layer.pool_size[0] * layer.pool_size[1] <= ops.MAX_POSITIONS
        ):
            blocks[-1] = ConvPool(before, layer)
        else:
            blocks.append(layer)
    return blocks
