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
                x = self.xp.where(coin[:, None, None, None], np.flip(x, axis), x)
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
        shifts, left = [], list(drawn)
        for axis in axes:
            taps = [(left.pop(0), left.pop(0)) for _ in range(1 if self.interpolation == "nearest" else 2)]
            shifts.append(self._shift(x, axis, taps))
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
        """For each of the one or two pixels that an output reads: which (N, length), and its weight (N, length or 1)."""
        if self.interpolation == "nearest":
            first = np.floor(0.5 - pixels)
            parts = [np.ones(len(pixels))]
        else:  # output i reads at i - pixels: between pixels i + first and i + first + 1
            first = np.floor(-pixels)
            parts = [1 + pixels + first, -pixels - first]
        taps = []
        for offset, part in enumerate(parts):
            index, inside = self._fold(np.arange(length) + (first.astype(np.int64)[:, None] + offset), length)
            taps += [index, part[:, None] if inside is None else part[:, None] * inside]
        return taps

    def _shift(self, x: Array, axis: int, taps: Sequence[tuple[Array, Array]]) -> _Shift:
        n, height, width, channels = x.shape
        view = (n, 1, height, width * channels) if axis == 1 else (n, height, width, channels)
        rows = np.arange(n * view[1], like=x).reshape(n, view[1], 1) * x.shape[axis]
        flat = [((rows + index[:, None]).reshape(-1), weight[:, None, :, None]) for index, weight in taps]
        return _Shift(view, flat, self.fill_value if self.fill_mode == "constant" else 0.0)

    def _fold(self, index: Array, length: int) -> tuple[Array, Array | None]:
        """The pixels that the positions `index` read, and for fill_mode "constant" which of them are real."""
        if self.fill_mode == "reflect":
            index = index % (2 * length)
            return np.minimum(index, 2 * length - 1 - index), None
        if self.fill_mode == "wrap":
            return index % length, None
        clipped = index.clip(0, length - 1)
        return clipped, clipped == index if self.fill_mode == "constant" else None


class _Shift(NamedTuple):
    """A map of images along one axis: each output is a weighted sum of one or two pixels, and of `fill`."""

    view: Shape  # the batch as (N, repeat, length of the axis, inner)
    taps: list[
        tuple[Array, Array]
    ]  # positions in (N * repeat * length, inner), weights (N, 1, length or 1, 1)
    fill: float  # what the weight that is missing to 1 falls on

    def apply(self, x: Array) -> Array:
        pixels = x.reshape(-1, self.view[-1])
        y = np.zeros(self.view, x.dtype, like=x)
        for positions, weights in self.taps:
            read = pixels.take(positions, axis=0).reshape(self.view)
            read *= weights.astype(x.dtype)
            y += read
        if self.fill:
            missing = sum((-weights for _, weights in self.taps), start=np.zeros((), like=x) + 1)
            y += (missing * self.fill).astype(x.dtype)
        return y.reshape(x.shape)

    def adjoint(self, dy: Array) -> Array:
        # On the host: a scattered sum on a GPU would be one of atomics, in no order. Few networks need this at all.
        above = _backend.to_host(dy)
        dx = np.zeros(dy.shape, dy.dtype)
        for taps in self.taps:
            positions, weights = map(_backend.to_host, taps)
            parts = above.reshape(self.view) * weights.astype(dy.dtype)
            np.add.at(dx.reshape(-1, self.view[-1]), positions, parts.reshape(-1, self.view[-1]))
        return np.asarray(dx, like=dy)
