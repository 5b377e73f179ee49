"""Checks of arguments: each check_ gives back the value in its one form, or raises with what it got."""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np

from ._typing import Shape


def same_objects(a: Sequence[Any], b: Sequence[Any]) -> bool:
    """Whether both hold the very same objects in the same order."""
    return len(a) == len(b) and all(map(operator.is_, a, b))


def check_shape(shape: Sequence[int], owner: str) -> Shape:
    """A tuple of positive integers."""
    try:
        result = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(
            f"{owner}: a shape is a sequence of integers without the batch, got {shape!r}"
        ) from None
    if any(n < 1 for n in result):
        raise ValueError(f"{owner}: every dimension of a sample must be at least 1, got {result}")
    return result


def check_count(value: Any, what: str, least: int = 1) -> int:
    """An integer of at least `least`."""
    if isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{what} must be an integer, got {value!r}")
    try:
        count = operator.index(value)
    except TypeError:
        raise TypeError(f"{what} must be an integer, got {value!r}") from None
    if count < least:
        raise ValueError(f"{what} must be at least {least}, got {count}")
    return count


def check_number(value: Any, what: str) -> float:
    """A finite real number."""
    if isinstance(value, (bool, str)) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{what} must be a number, got {value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{what} must be finite, got {value}")
    return float(value)


def check_pair(value: Any, what: str) -> tuple[int, int]:
    """One positive integer for both of (height, width), or one each."""
    values = tuple(value) if isinstance(value, (tuple, list)) else (value, value)
    if len(values) != 2:
        raise ValueError(f"{what} must be an integer or a pair of integers, got {value!r}")
    return check_count(values[0], what), check_count(values[1], what)
