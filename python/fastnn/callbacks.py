"""Callbacks of fit. Names, defaults and semantics are Keras's.

A callback that remembers something from epoch to epoch gives it by `get_state` and takes it back by
`set_state`, so that a run which BackupAndRestore resumes continues as if it had never stopped.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from . import _saving
from ._checks import check_count, check_number
from ._typing import Array

if TYPE_CHECKING:
    from .models import Sequential

Logs = dict[str, Any]  # loss and metrics of the epoch so far; at its end those of validation too, as val_...


class Callback:
    """Base of all callbacks.

    model: the model in training. params: "epochs", "steps" (batches in an epoch), "samples", "batch_size".
    Epochs and batches count from 0. What a callback puts into the logs at the end of an epoch is seen by
    those after it, and stands in the history.
    """

    model: Sequential
    params: dict[str, Any]
    state_names: tuple[str, ...] = ()  # the attributes that a resumed run needs
    last = False  # True: called after all others, whatever its place in the list

    def set_model(self, model: Sequential) -> None:
        self.model = model

    def set_params(self, params: dict[str, Any]) -> None:
        self.params = params

    def on_train_begin(self, logs: Logs) -> None:
        """Before the first epoch; logs is empty here, and where an epoch or a batch begins."""

    def on_train_end(self, logs: Logs) -> None:
        """After the last epoch, with its logs."""

    def on_train_interrupt(self) -> None:
        """Ctrl-C ends the run between two batches; KeyboardInterrupt is raised after this."""

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None: ...

    def on_epoch_end(self, epoch: int, logs: Logs) -> None: ...

    def on_train_batch_begin(self, batch: int, logs: Logs) -> None: ...

    def on_train_batch_end(self, batch: int, logs: Logs) -> None: ...

    def needs_batch_logs(self, batch: int) -> bool:
        """Whether on_train_batch_end will look at its logs after this batch.

        Where no callback does, a GPU's figures are not waited for, and the logs may be empty.
        """
        return True

    def batches_at_once(self) -> int:
        """How many batches, from the next one on, may be trained before on_train_batch_end is called, for the last of them alone.

        Where every callback with such a hook allows some, small batches are trained on the CPU without Python in between.
        """
        return 1

    def get_state(self) -> dict[str, Any]:
        """What a resumed run needs: numbers, strings, arrays, and lists and dicts of these."""
        return {name: getattr(self, name) for name in self.state_names}

    def set_state(self, state: dict[str, Any]) -> None:
        """Take back what get_state gave; called after on_train_begin."""
        for name in self.state_names:
            setattr(self, name, state[name])


class History(Callback):
    """What fit returns: `history`, loss and metrics of each epoch by name, and `epoch`, their numbers."""

    state_names = ("history", "epoch")

    def __init__(self) -> None:
        self.history: dict[str, list[float]] = {}
        self.epoch: list[int] = []

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self.epoch.append(epoch)
        for name, value in logs.items():
            self.history.setdefault(name, []).append(value)


class LambdaCallback(Callback):
    """Functions as callbacks, each with the arguments of the method of its name."""

    def __init__(
        self,
        on_epoch_begin: Callable[[int, Logs], Any] | None = None,
        on_epoch_end: Callable[[int, Logs], Any] | None = None,
        on_train_begin: Callable[[Logs], Any] | None = None,
        on_train_end: Callable[[Logs], Any] | None = None,
        on_train_batch_begin: Callable[[int, Logs], Any] | None = None,
        on_train_batch_end: Callable[[int, Logs], Any] | None = None,
    ) -> None:
        functions = {name: function for name, function in locals().items() if name.startswith("on_")}
        for name, function in functions.items():
            if function is not None:
                setattr(self, name, function)


class TerminateOnNaN(Callback):
    """Ends the run at the first batch whose loss is NaN or infinite, with the weights from before it.

    report: None, or a sentence that names the epoch and the batch (from 1), which is also printed.
    """

    state_names = ("report",)

    def __init__(self) -> None:
        self.report: str | None = None

    def on_train_begin(self, logs: Logs) -> None:
        self.report = None

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._epoch = epoch

    def needs_batch_logs(self, batch: int) -> bool:
        return type(self) is not TerminateOnNaN  # it is called once more as soon as such a batch is known

    def batches_at_once(self) -> int:
        return sys.maxsize  # such a batch is the last of those trained at once

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if not math.isfinite(logs.get("loss", 0.0)):
            report = f"Epoch {self._epoch + 1}, batch {batch + 1}: the loss is {logs['loss']}; training ends."
            if report != self.report:
                print(report)
            self.report = report
            self.model.stop_training = True


class CSVLogger(Callback):
    """A line for each epoch: epoch (from 0), then loss and metrics in alphabetical order, all digits.

    append: continue an existing file instead of replacing it.
    """

    state_names = ("_keys", "_start", "_text")

    def __init__(self, filename: _saving.PathLike, separator: str = ",", append: bool = False) -> None:
        self.filename = Path(filename)
        self.separator = separator
        self.append = append

    def on_train_begin(self, logs: Logs) -> None:
        self._keys: list[str] = []
        self._start = 0  # where in the file this run's lines begin
        self._text = ""  # and what they are

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        written = self._text
        if not self._keys:
            self._keys = ["epoch", *sorted(logs)]
            self._start = self.filename.stat().st_size if self.append and self.filename.exists() else 0
            if not self._start:
                self._text = self._line(self._keys)
        row = {"epoch": epoch, **logs}
        self._text += self._line([row.get(key, "NA") for key in self._keys])
        self._write_after(written)

    def set_state(self, state: dict[str, Any]) -> None:
        super().set_state(state)
        if self._keys:
            self._write_after("")  # lines of epochs that the resumed run does again go away

    def _line(self, values: list[Any]) -> str:
        import csv
        import io

        line = io.StringIO()
        csv.writer(line, delimiter=self.separator, lineterminator="\n").writerow(values)
        return line.getvalue()

    def _write_after(self, kept: str) -> None:
        """Put the rest of the text behind its first part, which the file has already."""
        self.filename.parent.mkdir(parents=True, exist_ok=True)
        with open(self.filename, "ab") as file:
            file.truncate(min(self._start + len(kept.encode()), file.tell()))
            file.write(self._text[len(kept) :].encode())


class _Monitor(Callback):
    """Compares one entry of the logs with its best so far."""

    def __init__(self, monitor: str, mode: str, min_delta: float = 0.0) -> None:
        if mode not in ("auto", "min", "max"):
            raise ValueError(f"mode must be 'auto', 'min' or 'max', got {mode!r}")
        if mode == "auto":
            rising = ("acc", "auc", "precision", "recall", "f1")
            mode = "max" if any(word in monitor for word in rising) else "min"
        self.monitor = monitor
        self.mode = mode
        self.min_delta = abs(check_number(min_delta, "min_delta"))
        self.best = math.inf if mode == "min" else -math.inf

    def _value(self, logs: Logs) -> float:
        if self.monitor not in logs:
            raise ValueError(
                f"{type(self).__name__}: the logs have no {self.monitor!r}, only {', '.join(logs)}"
                + ("; give fit validation data" if self.monitor.startswith("val_") else "")
            )
        return float(logs[self.monitor])

    def _improves(self, value: float, reference: float) -> bool:
        if self.mode == "min":
            return value + self.min_delta < reference
        return value - self.min_delta > reference


class EarlyStopping(_Monitor):
    """Ends the run when `monitor` has not improved by more than min_delta for `patience` epochs.

    baseline: only what is better than it counts as progress. restore_best_weights: at the end the model gets
    the weights of its best epoch. start_from_epoch: epochs before it are not looked at.
    """

    state_names = ("best", "best_epoch", "best_weights", "stopped_epoch", "wait")

    def __init__(
        self,
        monitor: str = "val_loss",
        min_delta: float = 0.0,
        patience: int = 0,
        verbose: int = 0,
        mode: str = "auto",
        baseline: float | None = None,
        restore_best_weights: bool = False,
        start_from_epoch: int = 0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.patience = check_count(patience, "patience", least=0)
        self.verbose = verbose
        self.baseline = baseline
        self.restore_best_weights = restore_best_weights
        self.start_from_epoch = start_from_epoch
        self._reset()

    def _reset(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.best_epoch = self.stopped_epoch = self.wait = 0
        self.best_weights: list[Array] | None = None

    def on_train_begin(self, logs: Logs) -> None:
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        value = self._value(logs)
        if epoch < self.start_from_epoch:
            return
        improved = self._improves(value, self.best)
        if self.restore_best_weights and (improved or self.best_weights is None):
            self.best_weights = self.model.get_weights()
            self.best_epoch = epoch
        self.wait += 1
        if improved:
            self.best, self.best_epoch = value, epoch
            if self.baseline is None or self._improves(value, self.baseline):
                self.wait = 0
        elif self.wait >= self.patience and epoch > 0:
            self.stopped_epoch = epoch
            self.model.stop_training = True

    def on_train_end(self, logs: Logs) -> None:
        if self.stopped_epoch and self.verbose:
            print(f"Epoch {self.stopped_epoch + 1}: early stopping")
        if self.best_weights is not None:
            if self.verbose:
                print(f"Restoring the weights of the best epoch: {self.best_epoch + 1}")
            self.model.set_weights(self.best_weights)


class ReduceLROnPlateau(_Monitor):
    """Multiplies the learning rate by `factor` after `patience` epochs without progress of `monitor`.

    min_delta: what counts as progress. cooldown: epochs after a reduction that do not count. min_lr: the least
    learning rate. The logs get the epoch's "learning_rate".
    """

    state_names = ("best", "wait", "cooldown_counter")

    def __init__(
        self,
        monitor: str = "val_loss",
        factor: float = 0.1,
        patience: int = 10,
        verbose: int = 0,
        mode: str = "auto",
        min_delta: float = 1e-4,
        cooldown: int = 0,
        min_lr: float = 0.0,
    ) -> None:
        super().__init__(monitor, mode, min_delta)
        self.factor = check_number(factor, "factor")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie between 0 and 1, got {factor}")
        self.patience = check_count(patience, "patience", least=0)
        self.verbose = verbose
        self.cooldown = check_count(cooldown, "cooldown", least=0)
        self.min_lr = check_number(min_lr, "min_lr")
        self._reset()

    def _reset(self) -> None:
        self.best = math.inf if self.mode == "min" else -math.inf
        self.wait = self.cooldown_counter = 0

    def on_train_begin(self, logs: Logs) -> None:
        self._reset()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        optimizer = self.model.optimizer
        rate = logs["learning_rate"] = optimizer.learning_rate
        value = self._value(logs)
        if self.cooldown_counter:
            self.cooldown_counter -= 1
            self.wait = 0
        if self._improves(value, self.best):
            self.best, self.wait = value, 0
        elif not self.cooldown_counter:
            self.wait += 1
            if self.wait >= self.patience and rate > self.min_lr:
                optimizer.learning_rate = max(rate * self.factor, self.min_lr)
                if self.verbose:
                    print(f"Epoch {epoch + 1}: the learning rate is now {optimizer.learning_rate:g}")
                self.wait, self.cooldown_counter = 0, self.cooldown


class ModelCheckpoint(_Monitor):
    """Saves the model, or its weights, at the end of each epoch or every save_freq batches.

    filepath may hold fields: "model-{epoch:02d}-{val_loss:.2f}.safetensors", epoch (and batch) from 1.
    save_best_only: only where `monitor` is better than before, and than initial_value_threshold if given.
    """

    state_names = ("best",)

    def __init__(
        self,
        filepath: _saving.PathLike,
        monitor: str = "val_loss",
        verbose: int = 0,
        save_best_only: bool = False,
        save_weights_only: bool = False,
        mode: str = "auto",
        save_freq: str | int = "epoch",
        initial_value_threshold: float | None = None,
    ) -> None:
        super().__init__(monitor, mode)
        self.filepath = os.fspath(filepath)
        self.verbose = verbose
        self.save_best_only = save_best_only
        self.save_weights_only = save_weights_only
        self.save_freq = _check_save_freq(save_freq)
        if initial_value_threshold is not None:
            self.best = check_number(initial_value_threshold, "initial_value_threshold")
        self._epoch = 0

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._epoch = epoch

    def needs_batch_logs(self, batch: int) -> bool:
        return _is_due(self.save_freq, self.model)

    def batches_at_once(self) -> int:
        return _batches_until_due(self.save_freq, self.model)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if self.needs_batch_logs(batch):
            self._save({"epoch": self._epoch + 1, "batch": batch + 1}, logs)

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        if self.save_freq == "epoch":
            self._save({"epoch": epoch + 1}, logs)

    def _save(self, position: dict[str, int], logs: Logs) -> None:
        if self.save_best_only:
            value = self._value(logs)
            if not self._improves(value, self.best):
                return
            self.best = value
        try:
            path = self.filepath.format(**position, **logs)
        except (KeyError, IndexError) as error:
            raise ValueError(
                f"ModelCheckpoint: no value for {error} of filepath {self.filepath!r}; "
                f"known are {', '.join([*position, *logs])}"
            ) from error
        if self.verbose:
            print(f"Epoch {position['epoch']}: saving {path}")
        (self.model.save_weights if self.save_weights_only else self.model.save)(path)


class BackupAndRestore(Callback):
    """Backs up the run in a folder, and continues it from there in the next fit: with the same bits.

    The backup, one file that is replaced at once, has all of the run: weights, optimizer, position in the
    epoch with its sums, seed, history, and the state of the other callbacks. It is written at the end of each
    epoch, with an integer save_freq also every so many batches, and when Ctrl-C ends the run. fit must then
    be called with the same model, compile arguments, data, batch size and callbacks; it may have more epochs.

    delete_checkpoint: remove the backup when fit has come to its end.
    """

    last = True

    def __init__(
        self, backup_dir: _saving.PathLike, save_freq: str | int = "epoch", delete_checkpoint: bool = True
    ) -> None:
        self.backup_dir = Path(backup_dir)
        self.save_freq = _check_save_freq(save_freq)
        self.delete_checkpoint = delete_checkpoint

    @property
    def path(self) -> Path:
        """The backup's file."""
        return self.backup_dir / "backup.safetensors"

    def on_train_begin(self, logs: Logs) -> None:
        if self.path.exists():
            content, arrays = _saving.read(self.path, ("backup",))
            try:
                self.model.run.restore(_saving.unpack(content["run"], arrays))
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{self.path} does not fit this run: {error}") from error

    def needs_batch_logs(self, batch: int) -> bool:
        return False  # the run's state has them

    def batches_at_once(self) -> int:
        return _batches_until_due(self.save_freq, self.model)

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        if _is_due(self.save_freq, self.model):
            self._save()

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._save()

    def on_train_interrupt(self) -> None:
        self._save()

    def on_train_end(self, logs: Logs) -> None:
        if self.delete_checkpoint:
            self.path.unlink(missing_ok=True)

    def _save(self) -> None:
        arrays: dict[str, Array] = {}
        run = _saving.pack(self.model.run.state(), arrays, "run")
        _saving.write(self.path, {"kind": "backup", "run": run}, arrays)


def _check_save_freq(save_freq: str | int) -> str | int:
    if isinstance(save_freq, str):
        if save_freq != "epoch":
            raise ValueError(f"save_freq must be 'epoch' or a number of batches, got {save_freq!r}")
        return save_freq
    return check_count(save_freq, "save_freq")


def _batches_until_due(save_freq: str | int, model: Sequential) -> int:
    if save_freq == "epoch":
        return sys.maxsize
    return int(save_freq) - model.optimizer.iterations % int(save_freq)


def _is_due(save_freq: str | int, model: Sequential) -> bool:
    return save_freq != "epoch" and model.optimizer.iterations % int(save_freq) == 0
