"""The optimizers: each step updates all parameters of a network in one call of the fused kernel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import ops
from .._checks import check_count, check_number, same_objects
from .._config import Configurable, Noticed, deserialize, serialize, snake_case
from .._typing import Array
from ..layers.base import assign
from .schedules import SCHEDULES, LearningRateSchedule


class Optimizer(Configurable):
    """Base of all optimizers.

    learning_rate: a number, or a schedule of the step. It may be set anew at any time where it is a number.
    iterations: steps done.
    slots: what the update rule remembers, tuples parallel to the parameters.

    A subclass gives `_step` and where they are not the defaults `slot_names` and `_rates`. supports_jit: its steps
    may be recorded into a CUDA graph, for which `_step` must heed all three of `rates` (see ops.Rates).
    """

    slot_names: tuple[str, ...] = ()
    supports_jit = False
    _progress = frozenset({"iterations", "learning_rate", "_rate"})

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule,
        weight_decay: float | None = None,
        name: str | None = None,
    ) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.weight_decay = None if weight_decay is None else _check_rate(weight_decay, "weight_decay")
        self.schedule: LearningRateSchedule | None = None
        self._rate = 0.0
        if isinstance(learning_rate, Mapping):
            learning_rate = deserialize(learning_rate, SCHEDULES, "learning-rate schedule")
        if isinstance(learning_rate, LearningRateSchedule):
            self.schedule = learning_rate
        else:
            self.learning_rate = learning_rate
        self.iterations = 0
        self.slots: dict[str, tuple[Array, ...]] = {}
        self._params: list[Array] = []

    @property
    def learning_rate(self) -> float:
        """That of the next step."""
        return self._learning_rate(self.iterations)

    @learning_rate.setter
    def learning_rate(self, value: float) -> None:
        if self.schedule is not None:
            raise TypeError(
                f"{self.name}: the learning rate follows {type(self.schedule).__name__}, it cannot be set"
            )
        self._rate = _check_rate(value, "learning_rate")

    def _learning_rate(self, step: int) -> float:
        return self._rate if self.schedule is None else self.schedule(step)

    def get_config(self) -> dict[str, Any]:
        config = super().get_config()
        if self.schedule is not None:
            config["learning_rate"] = serialize(self.schedule)
        return config

    def build(self, params: Sequence[Array]) -> None:
        """Begin anew, with empty slots for these parameters."""
        self._allocate(params)
        self.iterations = 0

    def _allocate(self, params: Sequence[Array]) -> None:
        self._params = list(params)
        self.slots = Noticed({name: tuple(map(np.zeros_like, params)) for name in self.slot_names})

    def rates(self, step: int) -> ops.Rates:
        """What `update` needs for the step that `step` others precede."""
        return self._rates(step + 1, self._learning_rate(step))

    def advance(self) -> ops.Rates:
        """Count a step; gives what `update` needs for it."""
        rates = self.rates(self.iterations)
        self.iterations += 1
        return rates

    def apply(self, params: Sequence[Array], grads: Sequence[Array]) -> None:
        """One step: changes params in place. The first call fixes which parameters these are."""
        self.prepare(params)
        rates = self.advance()
        if params:
            self._step(params, grads, np.array([*rates, 0.0], like=params[0]))

    def update(self, params: Sequence[Array], grads: Sequence[Array], rates: Array) -> None:
        """The array work of a step that is counted elsewhere: rates (3,) as for ops.sgd_step, where the params lie."""
        self.prepare(params)
        if params:
            self._step(params, grads, rates)

    def prepare(self, params: Sequence[Array]) -> None:
        """Make slots for these parameters, if there are none yet; ValueError where there are some for others."""
        if not self._params:
            self._allocate(params)
        if not same_objects(params, self._params):
            raise ValueError(
                f"{self.name} was built for {len(self._params)} parameter arrays and got {len(params)} others; "
                "after a change of what is trainable, call compile again"
            )

    def _rates(self, step: int, rate: float) -> ops.Rates:
        """Those of step number `step`, from 1, for its learning rate."""
        return ops.Rates.sgd(rate, self.weight_decay or 0.0)

    def _step(self, ws: Sequence[Array], dws: Sequence[Array], rates: Array) -> None:
        raise NotImplementedError

    def get_state(self) -> dict[str, Any]:
        """iterations, learning rate (None where it follows a schedule) and slots, without copies."""
        rate = None if self.schedule is not None else self._rate
        return {"iterations": self.iterations, "learning_rate": rate, "slots": self.slots}

    def set_state(self, state: Mapping[str, Any], params: Sequence[Array]) -> None:
        """Continue with these parameters from what get_state gave."""
        slots = state["slots"]
        if slots and set(slots) != set(self.slot_names):
            raise ValueError(
                f"{self.name} keeps {list(self.slot_names)}, the saved state has {sorted(slots)}"
            )
        self.build(params)
        for name, arrays in slots.items():
            assign(self.slots[name], arrays, f"{self.name} {name}")
        self.iterations = check_count(state["iterations"], "iterations", least=0)
        if state["learning_rate"] is not None:
            self.learning_rate = state["learning_rate"]


class SGD(Optimizer):
    """v = momentum * v - learning_rate * g;  w += v, or with nesterov w += momentum * v - learning_rate * g.

    weight_decay first takes learning_rate * weight_decay * w from every w.
    """

    supports_jit = True

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, name)
        self.momentum = check_number(momentum, "momentum")
        if not 0 <= self.momentum <= 1:
            raise ValueError(f"momentum must lie in [0, 1], got {momentum}")
        self.nesterov = nesterov
        if self.momentum:
            self.slot_names = ("velocity",)

    def _step(self, ws: Sequence[Array], dws: Sequence[Array], rates: Array) -> None:
        velocities = self.slots.get("velocity")
        ops.sgd_step(ws, dws, velocities, momentum=self.momentum, nesterov=self.nesterov, rates=rates)


class Adam(Optimizer):
    """Adam (Kingma & Ba 2015) in Keras's form, at step t = 1, 2, ...:

    m += (g - m) * (1 - beta_1);  v += (g^2 - v) * (1 - beta_2);
    w -= learning_rate * sqrt(1 - beta_2^t) / (1 - beta_1^t) * m / (sqrt(v) + epsilon).
    weight_decay first takes learning_rate * weight_decay * w from every w.
    """

    slot_names = ("m", "v")
    supports_jit = True

    def __init__(
        self,
        learning_rate: float | LearningRateSchedule = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        weight_decay: float | None = None,
        name: str | None = None,
    ) -> None:
        super().__init__(learning_rate, weight_decay, name)
        self.beta_1 = check_number(beta_1, "beta_1")
        self.beta_2 = check_number(beta_2, "beta_2")
        self.epsilon = check_number(epsilon, "epsilon")
        if not (0 <= self.beta_1 < 1 and 0 <= self.beta_2 < 1) or self.epsilon <= 0:
            raise ValueError(
                f"beta_1 and beta_2 must lie in [0, 1) and epsilon above 0, got {beta_1}, {beta_2}, {epsilon}"
            )

    def _rates(self, step: int, rate: float) -> ops.Rates:
        return ops.Rates.adam(step, rate, self.beta_1, self.beta_2, self.weight_decay or 0.0)

    def _step(self, ws: Sequence[Array], dws: Sequence[Array], rates: Array) -> None:
        ops.adam_step(
            ws,
            dws,
            self.slots["m"],
            self.slots["v"],
            beta_1=self.beta_1,
            beta_2=self.beta_2,
            epsilon=self.epsilon,
            rates=rates,
        )


OPTIMIZERS: dict[str, type[SGD] | type[Adam]] = {"Adam": Adam, "SGD": SGD}


def get(optimizer: Any, custom_objects: Mapping[str, type[Optimizer]] | None = None) -> Optimizer:
    """An optimizer from its name in any case, its serialized form, or itself."""
    if isinstance(optimizer, Optimizer):
        return optimizer
    if isinstance(optimizer, Mapping):
        return deserialize(optimizer, {**OPTIMIZERS, **(custom_objects or {})}, "optimizer")
    if not isinstance(optimizer, str):
        raise TypeError(f"optimizer must be a name or an optimizers.Optimizer, got {optimizer!r}")
    known = {name.lower(): cls for name, cls in OPTIMIZERS.items()}
    if optimizer.lower() not in known:
        raise ValueError(f"unknown optimizer {optimizer!r}; known are {', '.join(known)}")
    return known[optimizer.lower()]()


def _check_rate(value: Any, what: str) -> float:
    rate = check_number(value, what)
    if rate < 0:
        raise ValueError(f"{what} must not be negative, got {rate}")
    return rate
