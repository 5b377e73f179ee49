"""Activations by name: each a forward op and a backward op that needs the output alone."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .. import ops
from .._typing import Array


class Function(NamedTuple):
    forward: Callable[[Array], Array]  # x -> y
    backward: Callable[[Array, Array], Array]  # (dy, y) -> dx


FUNCTIONS = {
    "relu": Function(ops.relu, ops.relu_backward),
    "sigmoid": Function(ops.sigmoid, ops.sigmoid_backward),
    "softmax": Function(ops.softmax, ops.softmax_backward),
    "tanh": Function(ops.tanh, ops.tanh_backward),
}


def check(name: str | None, owner: str) -> str | None:
    """The activation's name, None for the identity ("linear")."""
    if name in (None, "linear"):
        return None
    if not isinstance(name, str):
        raise TypeError(f"{owner}: activation must be a name or None, got {name!r}")
    if name not in FUNCTIONS:
        raise ValueError(f"{owner}: unknown activation {name!r}; known are linear, {', '.join(FUNCTIONS)}")
    return name


def apply(name: str | None, x: Array) -> Array:
    return x if name is None else FUNCTIONS[name].forward(x)


def apply_backward(name: str | None, dy: Array, y: Array) -> Array:
    return dy if name is None else FUNCTIONS[name].backward(dy, y)
