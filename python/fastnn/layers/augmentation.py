"""RandomFlip and RandomTranslation: each sample of a training batch its own way; else the identity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from .. import ops
from .._checks import check_number
from .._typing import Array, Shape
from .base import Drawn, Grads, Layer, check_drawn, check_image

_FLIPS = {"horizontal": (False, True), "vertical": (True, False), "horizontal_and_vertical": (True, True)}
_FILLS = ("reflect", "wrap", "constant", "nearest")


class _Augmentation(Layer):
    random = True

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        return check_image(input_shape, self.name)


class RandomFlip(_Augmentation):
    """Mirrors each image (H, W, C) with probability 1/2: left-right, top-bottom, or both independently.

    mode: "horizontal", "vertical" or "horizontal_and_vertical".
    """

    def __init__(self, mode: str = "horizontal_and_vertical", **options: Any) -> None:
        super().__init__(**options)
        if mode not in _FLIPS:
            raise ValueError(f"{self.name}: mode must be one of {', '.join(_FLIPS)}, got {mode!r}")
        self.mode = mode

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        if not training:
            return x, ()
        check_drawn(drawn, self.name)
        for axis, index in zip(self._axes(), drawn, strict=True):
            x = ops.resample(x, axis, index)
        return x, drawn

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        coins = rng.random((2, shape[0])) < 0.5
        drawn = []
        for axis in self._axes():
            index = np.arange(shape[axis], dtype=np.int32)
            drawn.append(np.where(coins[axis - 1][:, None], index[::-1], index)[None])
        return drawn

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        for axis, index in reversed([*zip(self._axes(), saved, strict=False)]):
            dy = ops.resample_backward(dy, axis, index, dy.shape)
        return dy, {}

    def _axes(self) -> list[int]:
        return [axis for axis, wanted in enumerate(_FLIPS[self.mode], start=1) if wanted]


class RandomTranslation(_Augmentation):
    """Shifts each image by its own random part of its size: (N, H, W, C) -> (N, H, W, C).

    height_factor: the shift downwards is uniform in [lower, upper) * H pixels; one number f means (-f, f).
    width_factor: likewise to the right, in parts of W; by default as height_factor.
    fill_mode: what lies beyond the edge: "reflect" (d c b a | a b c d | d c b a), "wrap", "nearest" (the edge
    pixel) or "constant" (fill_value). interpolation: "bilinear" between pixels, or "nearest".
    """

    def __init__(
        self,
        height_factor: float | Sequence[float],
        width_factor: float | Sequence[float] | None = None,
        fill_mode: str = "reflect",
        interpolation: str = "bilinear",
        fill_value: float = 0.0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.height_factor = self._range(height_factor, "height_factor")
        self.width_factor = (
            self.height_factor if width_factor is None else self._range(width_factor, "width_factor")
        )
        if fill_mode not in _FILLS:
            raise ValueError(f"{self.name}: fill_mode must be one of {', '.join(_FILLS)}, got {fill_mode!r}")
        if interpolation not in ("bilinear", "nearest"):
            raise ValueError(f"{self.name}: interpolation must be bilinear or nearest, got {interpolation!r}")
        self.fill_mode = fill_mode
        self.interpolation = interpolation
        self.fill_value = check_number(fill_value, f"{self.name}: fill_value")

    def _range(self, factor: float | Sequence[float], what: str) -> tuple[float, float]:
        ends = tuple(factor) if isinstance(factor, (tuple, list)) else None
        if ends is None:
            size = check_number(factor, f"{self.name}: {what}")
            ends = (-abs(size), abs(size))
        if len(ends) != 2:
            raise ValueError(f"{self.name}: {what} must be a number or a pair (lower, upper), got {factor!r}")
        lower, upper = (check_number(end, f"{self.name}: {what}") for end in ends)
        if not -1 <= lower <= upper <= 1:
            raise ValueError(f"{self.name}: {what} needs -1 <= lower <= upper <= 1, got {factor!r}")
        return lower, upper

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        if not training:
            return x, ()
        if self._axes():
            check_drawn(drawn, self.name)
        shifts = [*zip(self._axes(), self._of_axes(drawn, x.dtype), strict=True)]
        for axis, (index, weights, offset) in shifts:
            x = ops.resample(x, axis, index, weights, offset)
        return x, shifts

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        drawn: list[Array] = []
        for axis, ends in self._ranges():
            pixels = rng.uniform(*ends, shape[0]) * shape[axis]
            if axis in self._axes():
                drawn += self._taps(shape[axis], pixels)
        return drawn

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        for axis, (index, weights, _) in reversed(saved):
            dy = ops.resample_backward(dy, axis, index, dy.shape, weights)
        return dy, {}

    def _ranges(self) -> tuple[tuple[int, tuple[float, float]], ...]:
        return (1, self.height_factor), (2, self.width_factor)

    def _axes(self) -> list[int]:
        return [axis for axis, ends in self._ranges() if ends != (0, 0)]

    def _of_axes(self, drawn: Drawn, dtype: Any) -> Iterator[tuple[Array, Array | None, Array | None]]:
        """What _taps gave for each axis, None for what it left out."""
        left = iter(drawn)
        weighted = self.interpolation == "bilinear" or self.fill_mode == "constant"
        filled = self.fill_mode == "constant" and bool(self.fill_value)
        for index in left:
            weights, offset = (
                next(left).astype(dtype, copy=False) if there else None for there in (weighted, filled)
            )
            yield index, weights, offset

    def _taps(self, length: int, pixels: Array) -> list[Array]:
        """Of each output along an axis the one pixel or the two that it reads; where they differ from 1, their weights; and where
        something is to be added, that: index (T, N, length), weights likewise, offset (N, length).
        """
        if self.interpolation == "nearest":
            first = np.floor(0.5 - pixels)
            parts = [np.ones((len(pixels), 1))]
        else:  # output i reads at i - pixels: between pixels i + first and i + first + 1
            first = np.floor(-pixels)
            parts = [(1 + pixels + first)[:, None], (-pixels - first)[:, None]]
        table, inside = _beyond(self.fill_mode, length)
        # Of the table: its entry `length + 1` is of position 0.
        at = first.astype(np.int64)[:, None] + np.arange(length + 1, 2 * length + 1 + len(parts))
        taps = [at[:, i : i + length] for i in range(len(parts))]
        index = np.empty((len(parts), len(pixels), length), np.int32)
        for of_tap, tap in zip(index, taps, strict=True):
            of_tap[...] = table[tap]
        if self.fill_mode == "constant":
            parts = [part * inside[tap] for part, tap in zip(parts, taps, strict=True)]
        elif self.interpolation == "nearest":
            return [index]
        # Of the dtype that the model computes with, if there is one yet.
        weights = np.empty(index.shape, self.dtype if self.built else np.float64)
        for of_tap, part in zip(weights, parts, strict=True):
            of_tap[...] = part
        if self.fill_mode != "constant" or not self.fill_value:
            return [index, weights]
        missing: Array = 1 - parts[0]
        for part in parts[1:]:
            missing = missing - part
        return [index, weights, (missing * self.fill_value).astype(weights.dtype)]


@cache
def _beyond(fill_mode: str, length: int) -> tuple[Array, Array]:
    """Of the positions from -length - 1 to 2 length + 1 along an axis, which an image moved by its whole size reads: the pixels
    there, and whether they are the image's own.
    """
    at = np.arange(-length - 1, 2 * length + 2)
    pixels = at.clip(0, length - 1)
    inside = pixels == at
    if fill_mode == "reflect":
        around = at % (2 * length)
        pixels = np.minimum(around, 2 * length - 1 - around)
    elif fill_mode == "wrap":
        pixels = at % length
    return pixels.astype(np.int32), inside
