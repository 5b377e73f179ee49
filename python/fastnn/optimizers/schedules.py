"""Learning rates as functions of the step, counted from 0: give one as an optimizer's learning_rate."""

from __future__ import annotations

import bisect
import math
from collections.abc import Sequence

from .._checks import check_count, check_number
from .._config import Configurable


class LearningRateSchedule(Configurable):
    """Base of all schedules: schedule(step) is the learning rate of that step."""

    def __call__(self, step: int) -> float:
        raise NotImplementedError


class ExponentialDecay(LearningRateSchedule):
    """initial * decay_rate^(step / decay_steps); the exponent is rounded down with staircase."""

    def __init__(
        self, initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
    ) -> None:
        self.initial_learning_rate = check_number(initial_learning_rate, "initial_learning_rate")
        self.decay_steps = check_count(decay_steps, "decay_steps")
        self.decay_rate = check_number(decay_rate, "decay_rate")
        self.staircase = staircase

    def __call__(self, step: int) -> float:
        exponent = step // self.decay_steps if self.staircase else step / self.decay_steps
        return float(self.initial_learning_rate * self.decay_rate**exponent)


class InverseTimeDecay(LearningRateSchedule):
    """initial / (1 + decay_rate * step / decay_steps); the quotient is rounded down with staircase."""

    def __init__(
        self, initial_learning_rate: float, decay_steps: int, decay_rate: float, staircase: bool = False
    ) -> None:
        self.initial_learning_rate = check_number(initial_learning_rate, "initial_learning_rate")
        self.decay_steps = check_count(decay_steps, "decay_steps")
        self.decay_rate = check_number(decay_rate, "decay_rate")
        self.staircase = staircase

    def __call__(self, step: int) -> float:
        time = step // self.decay_steps if self.staircase else step / self.decay_steps
        return self.initial_learning_rate / (1 + self.decay_rate * time)


class PiecewiseConstantDecay(LearningRateSchedule):
    """values[i] up to and including step boundaries[i], and the last value from then on."""

    def __init__(self, boundaries: Sequence[int], values: Sequence[float]) -> None:
        self.boundaries = [check_count(b, "a boundary", least=0) for b in boundaries]
        self.values = [check_number(v, "a learning rate") for v in values]
        if len(self.values) != len(self.boundaries) + 1:
            raise ValueError(
                f"values must be one more than boundaries, got {len(self.values)} and {len(self.boundaries)}"
            )
        if sorted(self.boundaries) != self.boundaries:
            raise ValueError(f"boundaries must ascend, got {self.boundaries}")

    def __call__(self, step: int) -> float:
        return self.values[bisect.bisect_left(self.boundaries, step)]


class PolynomialDecay(LearningRateSchedule):
    """(initial - end) * (1 - step / decay_steps)^power + end until decay_steps, then end.

    With cycle, decay_steps grows by its own length each time that it is reached.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        end_learning_rate: float = 0.0001,
        power: float = 1.0,
        cycle: bool = False,
    ) -> None:
        self.initial_learning_rate = check_number(initial_learning_rate, "initial_learning_rate")
        self.decay_steps = check_count(decay_steps, "decay_steps")
        self.end_learning_rate = check_number(end_learning_rate, "end_learning_rate")
        self.power = check_number(power, "power")
        self.cycle = cycle

    def __call__(self, step: int) -> float:
        steps = self.decay_steps
        if self.cycle:
            steps *= max(1, math.ceil(step / steps))
        rest = 1 - min(step, steps) / steps
        return float(
            (self.initial_learning_rate - self.end_learning_rate) * rest**self.power + self.end_learning_rate
        )


class CosineDecay(LearningRateSchedule):
    """Half a cosine from initial down to alpha * initial over decay_steps, after an optional linear warm-up.

    Without warmup_target: initial * ((1 - alpha) * (1 + cos(pi * step / decay_steps)) / 2 + alpha).
    With it, the first warmup_steps go linearly from initial to warmup_target, where the cosine starts.
    """

    def __init__(
        self,
        initial_learning_rate: float,
        decay_steps: int,
        alpha: float = 0.0,
        warmup_target: float | None = None,
        warmup_steps: int = 0,
    ) -> None:
        self.initial_learning_rate = check_number(initial_learning_rate, "initial_learning_rate")
        self.decay_steps = check_count(decay_steps, "decay_steps")
        self.alpha = check_number(alpha, "alpha")
        self.warmup_target = None if warmup_target is None else check_number(warmup_target, "warmup_target")
        self.warmup_steps = check_count(warmup_steps, "warmup_steps", least=0)

    def __call__(self, step: int) -> float:
        peak = self.initial_learning_rate
        if self.warmup_target is not None:
            if step < self.warmup_steps:
                return peak + (self.warmup_target - peak) * step / self.warmup_steps
            peak = self.warmup_target
            step -= self.warmup_steps
        cosine = 0.5 * (1 + math.cos(math.pi * min(step, self.decay_steps) / self.decay_steps))
        return peak * ((1 - self.alpha) * cosine + self.alpha)


SCHEDULES: dict[str, type[LearningRateSchedule]] = {
    cls.__name__: cls
    for cls in (CosineDecay, ExponentialDecay, InverseTimeDecay, PiecewiseConstantDecay, PolynomialDecay)
}
