"""The few types that signatures share."""

from __future__ import annotations

from typing import Any, TypeAlias

import numpy.typing as npt

Array: TypeAlias = npt.NDArray[Any]  # NumPy on the CPU; a CuPy array stands in its place on a GPU
Shape: TypeAlias = tuple[int, ...]
Pair: TypeAlias = int | tuple[int, int]  # one number for both of (height, width), or one each
Padding: TypeAlias = str | int | tuple[int, int] | tuple[tuple[int, int], tuple[int, int]]
