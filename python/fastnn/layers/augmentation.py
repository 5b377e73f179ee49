"""RandomFlip and RandomTranslation: each sample of a training batch its own way; else the identity."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from .. import _backend
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
            return x, None
        (coins,) = check_drawn(drawn, self.name)
        return self._flipped(x, coins), coins

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        return [rng.random((2, shape[0])) < 0.5]

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        return dy if saved is None else self._flipped(dy, saved), {}  # a flip is its own inverse and adjoint

    def _flipped(self, x: Array, coins: Array) -> Array:
        for axis, (coin, wanted) in enumerate(zip(coins, _FLIPS[self.mode], strict=True), start=1):
            if wanted:
                index = np.arange(x.shape[axis], like=x)
                read = _Gather.of(x, axis, self.xp.where(coin[:, None], index[::-1], index))
                x = read.apply(x).reshape(x.shape)
        return x


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
            return x, None
        axes = [axis for axis, ends in self._ranges() if ends != (0, 0)]
        if axes:
            check_drawn(drawn, self.name)
        fill = self.fill_value if self.fill_mode == "constant" else 0.0
        shifts, left = [], list(drawn)
        for axis in axes:
            index, *weights = (left.pop(0) for _ in range(2 if self.interpolation == "nearest" else 3))
            shifts.append(_Shift(_Gather.of(x, axis, index), [w[:, None, :, None] for w in weights], fill))
            x = shifts[-1].apply(x)
        return x, shifts

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        drawn: list[Array] = []
        for axis, ends in self._ranges():
            pixels = rng.uniform(*ends, shape[0]) * shape[axis]
            if ends != (0, 0):
                drawn += self._taps(shape[axis], pixels)
        return drawn

    def _ranges(self) -> tuple[tuple[int, tuple[float, float]], ...]:
        return (1, self.height_factor), (2, self.width_factor)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        for shift in reversed(saved or []):
            dy = shift.adjoint(dy)
        return dy, {}

    def _taps(self, length: int, pixels: Array) -> list[Array]:
        """Which pixels are read, (N, length or length + 1), and the weight of each output's first and, where it has one, its
        second, (N, length or 1): output i reads the i-th of those pixels and the one after it.
        """
        if self.interpolation == "nearest":
            first = np.floor(0.5 - pixels)
            parts = [np.ones((len(pixels), 1))]
        else:  # output i reads at i - pixels: between pixels i + first and i + first + 1
            first = np.floor(-pixels)
            parts = [(1 + pixels + first)[:, None], (-pixels - first)[:, None]]
        reach = np.arange(length + len(parts) - 1)
        index, inside = self._fold(reach + first.astype(np.int64)[:, None], length)
        if inside is not None:
            parts = [part * inside[:, i : i + length] for i, part in enumerate(parts)]
        return [index, *parts]

    def _fold(self, index: Array, length: int) -> tuple[Array, Array | None]:
        """The pixels that the positions `index` read, and for fill_mode "constant" which of them are real."""
        if self.fill_mode == "reflect":
            index = index % (2 * length)
            return np.minimum(index, 2 * length - 1 - index), None
        if self.fill_mode == "wrap":
            return index % length, None
        clipped = index.clip(0, length - 1)
        return clipped, clipped == index if self.fill_mode == "constant" else None


class _Gather(NamedTuple):
    """Reads each sample's own positions along an axis of images: whole rows of memory, or whole pixels."""

    rows: Array  # of x as (rows, inner)
    view: Shape  # of what is read: (N, repeat, positions, inner)

    @classmethod
    def of(cls, x: Array, axis: int, index: Array) -> _Gather:
        """x: (N, H, W, C); index: (N, positions) along axis 1 or 2."""
        n, height, width, channels = x.shape
        repeat, inner = (1, width * channels) if axis == 1 else (height, channels)
        first = np.arange(n * repeat, like=x).reshape(n, repeat, 1) * x.shape[axis]
        return cls((first + index[:, None]).reshape(-1), (n, repeat, index.shape[1], inner))

    def apply(self, x: Array) -> Array:
        return x.reshape(-1, self.view[-1]).take(self.rows, axis=0).reshape(self.view)

    def adjoint(self, read: Array, shape: Shape) -> Array:
        # On the host: a scattered sum on a GPU would be one of atomics, in no order. Few networks need this at all.
        x = np.zeros(shape, read.dtype)
        rows, parts = map(_backend.to_host, (self.rows, read))
        np.add.at(x.reshape(-1, self.view[-1]), rows, parts.reshape(-1, self.view[-1]))
        return np.asarray(x, like=read)


class _Shift(NamedTuple):
    """A map of images along one axis: each output is a weighted sum of one pixel or two that lie side by side, and of `fill`."""

    gather: _Gather
    weights: list[Array]  # of each output's first and second pixel, (N, 1, length or 1, 1)
    fill: float  # what the weight that is missing to 1 falls on

    def apply(self, x: Array) -> Array:
        read = self.gather.apply(x)
        length = read.shape[2] - len(self.weights) + 1
        parts: list[Array] = [
            read[:, :, i : i + length] * w.astype(x.dtype) for i, w in enumerate(self.weights)
        ]
        y = parts[0]
        for part in parts[1:]:
            y += part
        if self.fill:
            missing = sum((-weight for weight in self.weights), start=np.zeros((), like=x) + 1)
            y += (missing * self.fill).astype(x.dtype)
        return y.reshape(x.shape)

    def adjoint(self, dy: Array) -> Array:
        n, repeat, _, inner = self.gather.view
        above = dy.reshape(n, repeat, -1, inner)
        read = np.zeros(self.gather.view, dy.dtype, like=dy)
        for i, w in enumerate(self.weights):
            read[:, :, i : i + above.shape[2]] += above * w.astype(dy.dtype)
        return self.gather.adjoint(read, dy.shape)
