"""BatchNormalization."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from .. import initializers, ops
from .._checks import check_number
from .._typing import Array, Shape
from .base import Drawn, Grads, Layer


class _Saved(NamedTuple):
    x: Array
    mean: Array
    var: Array
    batch: bool  # the statistics are those of this batch, so they depend on x


class BatchNormalization(Layer):
    """y = (x - mean) / sqrt(variance + epsilon) * gamma + beta for each channel: (N, ..., C) -> (N, ..., C).

    In training mean and variance are the batch's, over all axes but the last, and
    moving = momentum * moving + (1 - momentum) * batch; else they are the moving ones. The variance is the
    biased one, divided by the count, in both places, as in Keras. Where trainable is False the moving ones
    serve in training, too.

    params: gamma (C,), beta (C,). state: moving_mean (C,), moving_variance (C,).
    """

    def __init__(
        self,
        axis: int = -1,
        momentum: float = 0.99,
        epsilon: float = 1e-3,
        center: bool = True,
        scale: bool = True,
        beta_initializer: str = "zeros",
        gamma_initializer: str = "ones",
        moving_mean_initializer: str = "zeros",
        moving_variance_initializer: str = "ones",
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if axis != -1:
            raise ValueError(f"{self.name}: channels are the last axis, axis=-1, got axis={axis!r}")
        self.axis = axis
        self.momentum = check_number(momentum, f"{self.name}: momentum")
        self.epsilon = check_number(epsilon, f"{self.name}: epsilon")
        if not 0 <= self.momentum <= 1 or self.epsilon <= 0:
            raise ValueError(
                f"{self.name}: momentum must lie in [0, 1] and epsilon above 0, got {momentum} and {epsilon}"
            )
        self.center = center
        self.scale = scale
        self.beta_initializer = initializers.check(beta_initializer, self.name)
        self.gamma_initializer = initializers.check(gamma_initializer, self.name)
        self.moving_mean_initializer = initializers.check(moving_mean_initializer, self.name)
        self.moving_variance_initializer = initializers.check(moving_variance_initializer, self.name)

    def compute_output_shape(self, input_shape: Shape) -> Shape:
        if not input_shape:
            raise ValueError(f"{self.name} takes samples of at least one dimension, got scalars")
        return input_shape

    def param_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        specs: dict[str, tuple[Shape, str]] = {}
        if self.scale:
            specs["gamma"] = (input_shape[-1:], self.gamma_initializer)
        if self.center:
            specs["beta"] = (input_shape[-1:], self.beta_initializer)
        return specs

    def state_specs(self, input_shape: Shape) -> dict[str, tuple[Shape, str]]:
        return {
            "moving_mean": (input_shape[-1:], self.moving_mean_initializer),
            "moving_variance": (input_shape[-1:], self.moving_variance_initializer),
        }

    def forward(self, x: Array, training: bool = False, drawn: Drawn = ()) -> tuple[Array, Any]:
        gamma, beta = self._gamma(), self._beta()
        if training and self.trainable:
            y, mean, var = ops.batch_norm(x, gamma, beta, epsilon=self.epsilon)
            return y, _Saved(x, mean, var, True)
        mean, var = self.state["moving_mean"], self.state["moving_variance"]
        y = ops.batch_norm_inference(x, gamma, beta, mean, var, epsilon=self.epsilon)
        return y, _Saved(x, mean, var, False)

    def backward(self, dy: Array, saved: Any, need_dx: bool = True) -> tuple[Array | None, Grads]:
        x, mean, var, batch = saved
        dx: Array | None
        if batch:
            dx, dgamma, dbeta = ops.batch_norm_backward(dy, x, self._gamma(), mean, var, epsilon=self.epsilon)
        else:  # mean and variance are constants: y is linear in x
            slope = 1 / np.sqrt(var + self.epsilon)
            dgamma, dbeta = ops.bias_backward(dy * ((x - mean) * slope)), ops.bias_backward(dy)
            dx = dy * (self._gamma() * slope) if need_dx else None
        if not self.trainable:
            return dx, {}
        return dx, {k: {"gamma": dgamma, "beta": dbeta}[k] for k in self.params}

    def update_state(self, saved: Any) -> None:
        if not saved.batch:
            return
        for moving, batch in (("moving_mean", saved.mean), ("moving_variance", saved.var)):
            average = self.state[moving]
            average *= self.momentum
            average += batch * (1 - self.momentum)

    def _gamma(self) -> Array:
        gamma = self.params.get("gamma")
        return self.xp.ones_like(self.state["moving_mean"]) if gamma is None else gamma

    def _beta(self) -> Array:
        beta = self.params.get("beta")
        return self.xp.zeros_like(self.state["moving_mean"]) if beta is None else beta
