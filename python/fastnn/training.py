"""The training loop: steps, running means, and the position from which a run can continue."""

from __future__ import annotations

import math
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from . import _random
from ._data import Data
from ._graph import GraphSteps
from ._typing import Array
from .callbacks import Callback, History, Logs, TerminateOnNaN

if TYPE_CHECKING:
    from .models import Sequential


class Averages:
    """Means over samples of loss and metrics, in float64: a smaller last batch counts by its samples."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names = names
        self.sums = [0.0] * len(names)
        self.count = 0

    def add(self, sums: Sequence[float], count: int) -> None:
        self.sums = [old + new for old, new in zip(self.sums, sums, strict=True)]
        self.count += count

    def logs(self) -> dict[str, float]:
        return {name: total / self.count for name, total in zip(self.names, self.sums, strict=True)}


class Pace:
    """How many batches to do at once: what can be done in SECONDS, for which Ctrl-C and a progress bar wait."""

    MOST, SECONDS = 256, 0.1

    def __init__(self) -> None:
        self._count = 1
        self._begin = 0.0

    def begin(self, most: int) -> int:
        """How many now: one at least, else `most` at the most."""
        self._begin = time.perf_counter()
        return max(1, min(self._count, most))

    def end(self, done: int) -> None:
        """So many were done. Fewer than it could be say nothing of more."""
        if done == self._count:
            fitting = self.SECONDS / max(time.perf_counter() - self._begin, 1e-9) * done
            self._count = max(1, min(int(fitting), 2 * done, self.MOST))


class EagerSteps:
    """Called with the rows of `count` batches, at most as many as at_once says, it does as many steps, or fewer, and says how
    many; `read` gives the sums of the steps since it was last called.
    """

    lazy = False  # the sums are there after each call

    def __init__(self, steps: Callable[..., list[list[float]]], data: Data) -> None:
        """steps: called like Sequential._train_steps."""
        self._do, self._data, self._pace = steps, data, Pace()
        self._sums: list[list[float]] = []

    def at_once(self, most: int) -> int:
        return self._pace.begin(most)

    def __call__(self, rows: slice | Array, touched: bool, count: int) -> int:
        data = self._data
        if isinstance(rows, slice):
            sums = self._do(data.x[rows], *data.targets(rows), None, count)
        else:
            rows = np.asarray(rows, like=data.x)
            sums = self._do(data.x, *data.targets(rows), rows, count)
        self._sums += sums
        self._pace.end(len(sums))
        return len(sums)

    def read(self) -> list[list[float]]:
        sums, self._sums = self._sums, []
        return sums


class Evaluation:
    """Loss and metrics over the data, each time that it is called."""

    def __init__(self, model: Sequential, data: Data, batch_size: int) -> None:
        self._model, self._samples, self._size = model, len(data.x), batch_size
        steps = GraphSteps.of(model, data, math.ceil(self._samples / batch_size), training=False)
        self._steps = steps or EagerSteps(model._test_steps, data)

    def __call__(self, after_batch: Callable[[int], Any]) -> dict[str, float]:
        """after_batch(number of batches done) is called in between."""
        size, samples, averages = self._size, self._samples, Averages(self._model.metrics_names)
        self._steps.read()  # of a call that an interrupt has ended
        done = 0
        while done * size < samples:
            count = self._steps.at_once(samples // size - done)
            done += self._steps(slice(done * size, (done + count) * size), done == 0, count)
            after_batch(done)
        for start, sums in zip(range(0, samples, size), self._steps.read(), strict=True):
            averages.add(sums, min(size, samples - start))
        return averages.logs()


class _Done(NamedTuple):
    """A step whose sums have not been looked at."""

    batch: int  # how many of the epoch's are done with it
    step: int
    samples: int


class Run:
    """One call of fit.

    epoch, batch: where it stands, batch being how many of this epoch's are done. first_step: the optimizer's
    step at the epoch's begin, which fixes its order. `state` has all that `restore` needs to go on with the
    same bits.
    """

    def __init__(
        self,
        model: Sequential,
        data: Data,
        validation: Data | None,
        *,
        batch_size: int,
        epochs: int,
        initial_epoch: int,
        shuffle: bool,
        callbacks: Sequence[Callback],
    ) -> None:
        self.model, self.data = model, data
        self.batch_size, self.epochs, self.shuffle = batch_size, epochs, shuffle
        self.epoch, self.batch, self.first_step = initial_epoch, 0, 0
        self.steps = math.ceil(len(data.x) / batch_size)
        self.averages = Averages(model.metrics_names)
        self._unread: list[_Done] = []
        self.history = History()
        self.callbacks = sorted([*callbacks, self.history], key=lambda callback: callback.last)
        self._batch_begin = [
            c.on_train_batch_begin for c in self.callbacks if _has(c, "on_train_batch_begin")
        ]
        self._batch_end = [c for c in self.callbacks if _has(c, "on_train_batch_end")]
        self._batch_hooks = [
            c for c in self.callbacks if _has(c, "on_train_batch_begin") or _has(c, "on_train_batch_end")
        ]
        self._warn = not any(isinstance(callback, TerminateOnNaN) for callback in self.callbacks)
        self._terminators = [callback for callback in self.callbacks if type(callback) is TerminateOnNaN]
        halting = bool(self._terminators)
        steps = GraphSteps.of(model, data, self.steps, training=True, halting=halting)
        self._steps = steps or EagerSteps(model._train_steps, data)
        self._validate = None if validation is None else Evaluation(model, validation, batch_size)
        self._consistent = True  # weights, position and callbacks belong together: a backup may be taken
        self._identity = {
            "model": model.get_config(),
            "compile": model.get_compile_config(),
            "data": {"samples": len(data.x), "batch_size": batch_size, "shuffle": shuffle},
        }
        params = {"epochs": epochs, "steps": self.steps, "samples": len(data.x), "batch_size": batch_size}
        for callback in self.callbacks:
            callback.set_model(model)
            callback.set_params(params)

    def go(self) -> History:
        """Train to the last epoch, or until a callback sets model.stop_training."""
        with _deferred_interrupt() as self._check_interrupt:
            try:
                self._call("on_train_begin", {})
                logs: Logs = {}
                while self.epoch < self.epochs and (self.batch or not self.model.stop_training):
                    logs = self._run_epoch()
                self._call("on_train_end", logs)
            except KeyboardInterrupt:
                if self._consistent:
                    self._call("on_train_interrupt")
                raise
        return self.history

    def _run_epoch(self) -> Logs:
        model, size, epoch = self.model, self.batch_size, self.epoch
        if not self.batch:
            self.first_step = model.optimizer.iterations
            self.averages = Averages(model.metrics_names)
        order: Array | None = None
        if self.shuffle:
            rng, samples = _random.generator(model.seed, _random.SHUFFLE, self.first_step), len(self.data.x)
            order = rng.permutation(samples).astype(self.data.row_type)
        self._call("on_epoch_begin", epoch, {})
        touched = True  # by other code since the last step
        batch = self.batch  # of those done
        while batch < self.steps and not model.stop_training:
            self._check_interrupt()
            for begin in self._batch_begin:
                begin(batch, {})
                touched = True
            # Of one size, and before callbacks have their turn.
            whole = len(self.data.x) // size - batch
            count = self._steps.at_once(min([whole, *map(_batches_at_once, self._batch_hooks)]))
            rows = slice(batch * size, (batch + count) * size)
            self._consistent = False
            step = model.optimizer.iterations
            done = self._steps(rows if order is None else order[rows], touched, count)
            for number in range(1, done + 1):
                samples = min(size, len(self.data.x) - (batch + number - 1) * size)
                self._unread.append(_Done(batch + number, step + number, samples))
            self.batch = batch = batch + done
            self._consistent = True
            touched = any(callback.needs_batch_logs(batch - 1) for callback in self._batch_end)
            if touched or not self._steps.lazy or (self._batch_begin and self._terminators):
                self._read()
            if self.batch < batch:  # the run has ended with an earlier batch
                break
            if self._batch_end:
                logs = {} if self._unread else self.averages.logs()
                for callback in self._batch_end:
                    callback.on_train_batch_end(batch - 1, logs)
        self._read()
        logs = self.averages.logs()
        if self._validate is not None:
            scores = self._validate(lambda _: self._check_interrupt())
            logs.update((f"val_{name}", value) for name, value in scores.items())
        self._consistent = False
        self.epoch, self.batch = epoch + 1, 0
        self._call("on_epoch_end", epoch, logs)
        self._consistent = True
        return logs

    def _call(self, hook: str, *arguments: Any) -> None:
        for callback in self.callbacks:
            getattr(callback, hook)(*arguments)

    def _read(self) -> None:
        """Add up the sums of the steps since the last call; where they lie on a GPU, this waits for it."""
        if not self._unread:
            return
        done, self._unread = self._unread, []
        for (batch, step, samples), sums in zip(done, self._steps.read(), strict=True):
            self.averages.add(sums, samples)
            if math.isfinite(sums[0]):
                continue
            for callback in self._terminators:
                callback.on_train_batch_end(batch - 1, self.averages.logs())
            if self._terminators:  # the steps begun since then have changed nothing
                self.batch, self.model.optimizer.iterations = batch, step
                return
            if self._warn:
                self._warn = False
                warnings.warn(
                    f"epoch {self.epoch + 1}, batch {batch} (step {step}): the loss is {sums[0] / samples}; "
                    "such steps leave the weights as they were",
                    RuntimeWarning,
                    stacklevel=5,
                )

    # ------------------------------------------------------------------ resuming

    def state(self) -> dict[str, Any]:
        """All of the run, its arrays uncopied."""
        self._read()
        return {
            **self._identity,
            "seed": self.model.seed,
            "epoch": self.epoch,
            "batch": self.batch,
            "first_step": self.first_step,
            "sums": self.averages.sums,
            "count": self.averages.count,
            "stop_training": self.model.stop_training,
            "weights": self.model.weights,
            "optimizer": self.model.optimizer.get_state(),
            "callbacks": [[type(c).__name__, c.get_state()] for c in self._stateful()],
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continue where `state` was taken; ValueError where this run is another one."""
        names = [type(c).__name__ for c in self._stateful()]
        here = {**self._identity, "callbacks": names}
        there = {key: state[key] for key in self._identity} | {
            "callbacks": [name for name, _ in state["callbacks"]]
        }
        if difference := _difference(there, here):
            raise ValueError(difference)
        self.model.seed = state["seed"]
        self.epoch, self.batch, self.first_step = state["epoch"], state["batch"], state["first_step"]
        self.averages.sums, self.averages.count = state["sums"], state["count"]
        self.model.stop_training = state["stop_training"]
        self.model.set_weights(state["weights"])
        self.model.optimizer.set_state(state["optimizer"], self.model.trainable_weights)
        for callback, (_, saved) in zip(self._stateful(), state["callbacks"], strict=True):
            callback.set_state(saved)

    def _stateful(self) -> Iterator[Callback]:
        return (c for c in self.callbacks if c.state_names or _has(c, "get_state"))


def _has(callback: Callback, hook: str) -> bool:
    """Whether the callback defines the hook itself."""
    return getattr(getattr(callback, hook), "__func__", None) is not getattr(Callback, hook)


def _batches_at_once(callback: Callback) -> int:
    """What it says, unless a subclass of the one that says so has a hook of its own, which is called for each batch."""
    for names in (vars(callback), *map(vars, type(callback).__mro__)):
        if "batches_at_once" in names:
            break
        if "on_train_batch_begin" in names or "on_train_batch_end" in names:
            return 1
    return callback.batches_at_once()


def _difference(there: Any, here: Any, name: str = "") -> str:
    """The first difference between a backup's description and this run's, in words; "" for none."""
    if isinstance(there, Mapping) and isinstance(here, Mapping) and set(there) == set(here):
        pairs = [(f"{name} {key}".strip(), there[key], here[key]) for key in there]
    elif isinstance(there, (list, tuple)) and isinstance(here, (list, tuple)) and len(there) == len(here):
        pairs = [(f"{name} {i}", a, b) for i, (a, b) in enumerate(zip(there, here, strict=True))]
    else:
        return "" if there == here else f"{name} was {there!r}, now it is {here!r}"
    return next((found for key, a, b in pairs if (found := _difference(a, b, key))), "")


@contextmanager
def _deferred_interrupt() -> Iterator[Callable[[], None]]:
    """Ctrl-C waits for a call of the function given, which then raises KeyboardInterrupt; a second one does not."""
    pending = False

    def interrupt(number: int, frame: FrameType | None) -> None:
        nonlocal pending
        if pending:
            raise KeyboardInterrupt
        pending = True

    def check() -> None:
        if pending:
            raise KeyboardInterrupt

    # Where somebody else handles the signal, or signals cannot be had, interrupts come as they come.
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
        yield check
        return
    signal.signal(signal.SIGINT, interrupt)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, signal.default_int_handler)
