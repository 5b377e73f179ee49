"""What every layer is: named weights, and a forward and a backward pass that keep nothing on the layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np

from .. import _backend, _random, initializers
from .._checks import check_shape
from .._config import Configurable, Noticed, snake_case
from .._typing import Array, Shape

Rng: TypeAlias = np.random.Generator | None
Drawn: TypeAlias = Sequence[Array]  # what a layer's `draw` gave, on the layer's device
Grads: TypeAlias = dict[str, Array]  # the gradient of each array in a layer's params, under the same key


class Input:
    """The shape of one sample, as the first entry of a Sequential: Input((32, 32, 3))."""

    def __init__(self, shape: Sequence[int]) -> None:
        self.shape = check_shape(shape, "Input")


class Layer(Configurable):
    """Base of all layers.

    A layer is built once for one input shape: `params` (trained) and `state` (kept by the layer, like moving
    averages) then hold its arrays. `forward` and `backward` are pure; what backward needs of forward travels
    in `saved`. Shapes here are without the batch dimension; arrays have it in front.

    A subclass gives `forward`, `backward`, and where they are not the defaults `compute_output_shape`,
    `param_specs`, `state_specs`, `update_state` and `draw`. On a GPU, fit records one step's work on arrays and
    repeats it: the Python around it runs once. A layer for which that is wrong sets supports_jit = False.

    name: unique within a model, by default the class's name in snake case, numbered by the model.
    trainable: False keeps the params as they are during fit.
    input_shape: shape of one sample, for the first layer of a model.
    """

    random = False  # True: forward in training needs what `draw` gives
    supports_jit = True
    device = "cpu"  # the model's
    precision = "float32"  # of products; the model's

    def __init__(
        self, *, name: str | None = None, trainable: bool = True, input_shape: Sequence[int] | None = None
    ) -> None:
        if name is not None and (not isinstance(name, str) or not name or "/" in name):
            raise ValueError(f"a layer's name must be a non-empty string without '/', got {name!r}")
        self.auto_named = name is None
        self.name = snake_case(type(self).__name__) if name is None else name
        self.trainable = trainable
        self.input_shape = None if input_shape is None else check_shape(input_shape, self.name)
        self.output_shape: Shape | None = None
        self.dtype = "float32"
        self._params: Noticed[Array] | None = None
        self._state: Noticed[Array] = Noticed()

    # ------------------------------------------------------------------ for subclasses to define

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        """Shape of one output sample; ValueError where the layer cannot take such input."""
        return input_shape

    def param_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        """Shape and initializer of each array in params, in Keras's order."""
        return {}

    def state_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        """Shape and initializer of each array in state."""
        return {}

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        """x (N, *input_shape) -> (y (N, *output_shape), saved). In training a random layer takes its numbers from drawn."""
        raise NotImplementedError

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        """dy, of y's shape -> (dx, of x's shape, or None where not needed; gradients of params).

        The gradients are left out (an empty dict) where the layer is not trainable.
        """
        raise NotImplementedError

    def draw(self, rng: np.random.Generator, shape: Shape) -> Drawn:
        """What a training forward of a random layer needs of chance for an x of this shape (N, *input_shape).

        NumPy arrays, whose number, shapes and dtypes depend on the shape alone.
        """
        return ()

    def update_state(self, saved: Any) -> None:
        """Takes what a training forward saved into `state`, in place."""

    # ------------------------------------------------------------------ weights

    def build(self, input_shape: Sequence[int], dtype: str = "float32", rng: Rng = None) -> None:
        """Make the weights for samples of `input_shape`, drawn from rng, by default a new one."""
        shape = check_shape(input_shape, self.name)
        if self.built:
            if (shape, dtype) != (self.input_shape, self.dtype):
                raise ValueError(
                    f"{self.name} was built for {self.input_shape} {self.dtype}, not {shape} {dtype}"
                )
            return
        if self.input_shape not in (None, shape):
            raise ValueError(
                f"{self.name}: input_shape={self.input_shape} was given, but its input is {shape}"
            )
        output_shape = self.compute_output_shape(shape)
        rng = rng or _random.generator(_random.next_seed(), _random.INITIALIZATION)

        def create(specs: dict[str, tuple[Shape, str]]) -> Noticed[Array]:
            return Noticed(
                {k: self.xp.asarray(initializers.create(how, s, dtype, rng)) for k, (s, how) in specs.items()}
            )

        self.input_shape, self.output_shape, self.dtype = shape, output_shape, dtype
        self._params, self._state = create(self.param_specs(shape)), create(self.state_specs(shape))

    @property
    def xp(self) -> Any:
        """The array module of the device."""
        return _backend.module(self.device)

    @property
    def built(self) -> bool:
        return self._params is not None

    @property
    def params(self) -> dict[str, Array]:
        """The trained arrays by name; training changes them in place."""
        if self._params is None:
            raise ValueError(
                f"{self.name} has no weights yet: build it, or give its model an input shape "
                "(layers.Input, input_shape=, or a first call of fit)"
            )
        return self._params

    @property
    def state(self) -> dict[str, Array]:
        """The arrays that the layer itself keeps."""
        return self._state

    @property
    def weights(self) -> dict[str, Array]:
        """params, then state."""
        return {**self.params, **self.state}

    def get_weights(self) -> list[Array]:
        """Copies of params, then of state, as NumPy arrays."""
        return [_backend.to_host(w).copy() for w in self.weights.values()]

    def set_weights(self, weights: Sequence[Array]) -> None:
        """Takes arrays in the order of get_weights."""
        assign(list(self.weights.values()), weights, self.name)

    def count_params(self) -> int:
        """How many numbers params and state hold."""
        return sum(w.size for w in self.weights.values())

    def __call__(self, x: Array, training: bool = False) -> Array:
        """y for x (N, ...); builds the layer if need be."""
        x = self.xp.asarray(x)
        if not self.built:
            self.build(x.shape[1:], str(x.dtype) if x.dtype.kind == "f" else "float32")
        x = x.astype(self.dtype, copy=False)
        if x.shape[1:] != self.input_shape:
            raise ValueError(f"{self.name} takes (N, {str(self.input_shape)[1:]}, got {x.shape}")
        drawn: Drawn = ()
        if training and self.random:
            rng = _random.generator(_random.next_seed(), _random.TRAINING)
            drawn = [self.xp.asarray(array) for array in self.draw(rng, x.shape)]
        return self.forward(x, training, drawn)[0]

    def __repr__(self) -> str:
        arguments = ", ".join(f"{k}={v!r}" for k, v in self.get_config().items())
        return f"{type(self).__name__}({arguments})"


# ---------------------------------------------------------------------- helpers of the layers


def assign(targets: Sequence[Array], values: Sequence[Array], owner: str) -> None:
    """Copy values into targets, none of them where any does not fit."""
    if len(values) != len(targets):
        raise ValueError(f"{owner} has {len(targets)} weight arrays, {len(values)} were given")
    arrays = [_backend.to_host(value) for value in values]
    for i, (target, value) in enumerate(zip(targets, arrays, strict=True)):
        if target.shape != value.shape:
            raise ValueError(f"{owner}: weight {i} has shape {target.shape}, the given array {value.shape}")
        if value.dtype.kind not in "fiu":
            raise TypeError(f"{owner}: weight {i} must be of real numbers, got dtype {value.dtype}")
    for target, value in zip(targets, arrays, strict=True):
        target[...] = np.asarray(value, like=target)


def check_drawn(drawn: Drawn, owner: str) -> Drawn:
    if not len(drawn):
        raise ValueError(f"{owner}: forward in training needs what draw gives")
    return drawn


def check_padding(padding: str, owner: str) -> str:
    if padding not in ("valid", "same"):
        raise ValueError(f"{owner}: padding must be 'valid' or 'same', got {padding!r}")
    return padding


def check_image(shape: Shape, owner: str) -> Shape:
    """A sample of (height, width, channels)."""
    if len(shape) != 3:
        raise ValueError(
            f"{owner} takes images of shape (height, width, channels), got samples of shape {shape}"
        )
    return shape


def window_output(
    owner: str,
    image: Shape,
    window: tuple[int, int],
    strides: tuple[int, int],
    padding: str,
    dilation: tuple[int, int] = (1, 1),
) -> tuple[int, int]:
    """How many positions (rows, columns) a window takes over an image: ceil(size / stride) with "same"."""
    reach = tuple((w - 1) * d + 1 for w, d in zip(window, dilation, strict=True))
    if padding == "same":
        return -(-image[0] // strides[0]), -(-image[1] // strides[1])
    if reach[0] > image[0] or reach[1] > image[1]:
        raise ValueError(f"{owner}: window {reach[0]}x{reach[1]} exceeds its input {image[0]}x{image[1]}")
    return (image[0] - reach[0]) // strides[0] + 1, (image[1] - reach[1]) // strides[1] + 1
