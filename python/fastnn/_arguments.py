"""What ops make of their arguments: each gives the value in its one form, or raises with the op, the name and what it got."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from . import _backend
from ._backend import Backend
from ._typing import Array, Padding, Pair, Shape

FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
NUMBERS = (np.dtype(np.uint8), *FLOATS)  # what rescale reads
INDEX_LIMIT = 2**31
SIZE_LIMIT = 2**62


def is_in_order(array: Array) -> bool:
    """Whether in C order and aligned, as kernels read."""
    flags = array.flags
    return bool(flags.c_contiguous and getattr(flags, "aligned", True))


def in_order(array: Array) -> Array:
    """The array, or a copy that is."""
    return array if is_in_order(array) else array.copy("C")


def array(op: str, name: str, array: Array, dtypes: Sequence[np.dtype[Any]] = FLOATS) -> Array:
    """An array of one of these dtypes, in C order, aligned."""
    array = _backend.adopt(array)
    try:
        dtype = array.dtype
    except AttributeError:
        raise TypeError(f"{op}: {name} must be an array, got {type(array).__name__}") from None
    if dtype not in dtypes or not dtype.isnative:
        allowed = ", ".join(map(str, dtypes[:-1])) + f" or {dtypes[-1]}"
        raise TypeError(f"{op}: {name} must be {allowed} in native byte order, got {dtype!r}")
    return in_order(array)


def is_number(array: Array) -> bool:
    """Whether of a type that rescale reads."""
    return array.dtype in NUMBERS  # which another byte order is not


def integer(op: str, name: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        raise TypeError(f"{op}: {name} must be an integer, got {value!r}") from None


def bounded(op: str, name: str, value: object, limit: int = INDEX_LIMIT) -> int:
    """An integer that the native code can hold; the range that makes sense is checked there."""
    number = integer(op, name, value)
    if not -limit < number < limit:
        raise ValueError(f"{op}: {name} {number} is beyond {limit - 1}")
    return number


def pair(op: str, name: str, value: Pair) -> tuple[int, int]:
    if isinstance(value, (tuple, list)):
        if len(value) != 2:
            raise ValueError(f"{op}: {name} must be an integer or two (height, width), got {value!r}")
        return bounded(op, name, value[0]), bounded(op, name, value[1])
    number = bounded(op, name, value)
    return number, number


def padding(op: str, padding: Padding) -> tuple[int, int, int, int] | None:
    """(top, bottom, left, right), or None for "same"."""
    if isinstance(padding, str):
        if padding not in ("valid", "same"):
            raise ValueError(f'{op}: padding must be "valid", "same" or numbers of pixels, got {padding!r}')
        return None if padding == "same" else (0, 0, 0, 0)
    if isinstance(padding, (tuple, list)) and len(padding) == 2 and isinstance(padding[0], (tuple, list)):
        (top, bottom), (left, right) = (pair(op, "padding", side) for side in padding)
        return top, bottom, left, right
    height, width = pair(op, "padding", padding)
    return height, height, width, width


def shape(op: str, name: str, value: Sequence[int]) -> Shape:
    if not isinstance(value, (tuple, list)):
        raise TypeError(f"{op}: {name} must be a tuple of integers, got {value!r}")
    return tuple(bounded(op, name, d, SIZE_LIMIT) for d in value)


def result(op: str, backend: Backend, out: Array | None, shape: Shape, dtype: Any) -> Array:
    if out is None:
        try:
            return backend.xp.empty(shape, dtype)  # type: ignore[no-any-return]
        except MemoryError:  # a small input under huge padding
            raise ValueError(f"{op}: there is no memory for a result of shape {shape}") from None
    if not isinstance(out, backend.xp.ndarray):
        raise TypeError(f"{op}: out must be an array, got {type(out).__name__}")
    if out.dtype != dtype or not out.dtype.isnative:
        raise TypeError(f"{op}: out must be {np.dtype(dtype)!r}, got {out.dtype!r}")
    # Shape, layout, write access and overlap are checked by the native call.
    return out  # type: ignore[no-any-return]


def is_integer(array: Array) -> bool:
    return array.dtype.kind in "iu"


def indices(op: str, name: str, backend: Backend, indices: Array, limit: int) -> Array:
    """Integers in [0, limit) as int32. Those that int32 cannot hold are out of any range, and refused here."""
    if indices.dtype != np.int32 or not indices.dtype.isnative:
        if indices.size:
            low, high = int(indices.min()), int(indices.max())
            if low < -INDEX_LIMIT or high >= INDEX_LIMIT:
                raise ValueError(f"{op}: {name} from {low} to {high} are not all in [0, {limit})")
        indices = backend.xp.ascontiguousarray(indices, np.int32)
    return in_order(indices)


def positions(op: str, argmax: Array, dtype: Any) -> Array:
    """The positions that a forward returned, in C order."""
    argmax = _backend.adopt(argmax)
    if not hasattr(argmax, "dtype") or argmax.dtype != dtype or not argmax.dtype.isnative:
        raise TypeError(
            f"{op}: argmax must be the {np.dtype(dtype)} array that the forward returned, got {describe(argmax)}"
        )
    return in_order(argmax)


def mask(op: str, name: str, array: Array) -> Array:
    """An array of bool or uint8 as uint8, in C order."""
    array = _backend.adopt(array)
    if getattr(array, "dtype", None) not in (np.dtype(bool), np.dtype(np.uint8)):
        raise TypeError(f"{op}: {name} must be an array of bool or uint8, got {describe(array)}")
    return in_order(array).view(np.uint8)


def describe(value: object) -> str:
    dtype = getattr(value, "dtype", None)
    return type(value).__name__ if dtype is None else repr(dtype)
