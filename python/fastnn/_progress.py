"""What fit, evaluate and predict show: a live bar on a terminal, else one line."""

from __future__ import annotations

import sys
import time
from typing import Any

from .callbacks import Callback, Logs


def check_verbose(verbose: Any) -> int:
    """0: nothing, 1: a bar where the output is a terminal and tqdm is there, 2: lines. "auto" is 1."""
    if verbose == "auto":
        return 1
    if verbose not in (0, 1, 2):
        raise ValueError(f"verbose must be 0, 1, 2 or 'auto', got {verbose!r}")
    return int(verbose)


class Bar:
    """A live bar over `total` batches, or nothing where none can or shall be shown."""

    def __init__(self, total: int, verbose: int, title: str = "", initial: int = 0) -> None:
        self._bar: Any = None
        self._due = 0.0
        if verbose != 1 or not sys.stdout.isatty():
            return
        try:
            from tqdm import tqdm
        except ImportError:
            return
        self._bar = tqdm(
            total=total,
            initial=initial,
            desc=title or None,
            file=sys.stdout,
            leave=False,
            dynamic_ncols=True,
            bar_format="{desc}{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}{postfix}]",
        )

    @property
    def due(self) -> bool:
        """Whether it is time to draw it anew: ten times a second, so that drawing costs no step anything."""
        return self._bar is not None and time.perf_counter() >= self._due

    def show(self, done: int, text: str = "") -> None:
        self._due = time.perf_counter() + 0.1
        self._bar.n = done
        self._bar.set_postfix_str(text, refresh=True)

    def step(self, done: int) -> None:
        """`done` batches are done."""
        if self.due:
            self.show(done)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        if self._bar is not None:
            self._bar.close()


def format_logs(logs: Logs) -> str:
    return " - ".join(f"{name}: {value:.4f}" for name, value in logs.items())


class ProgressBar(Callback):
    """fit's bar, and at the end of each epoch its line: seconds, training images/s, loss and metrics."""

    def __init__(self, verbose: int) -> None:
        self._verbose = verbose
        self._bar = Bar(0, 0)

    def on_epoch_begin(self, epoch: int, logs: Logs) -> None:
        self._title = f"Epoch {epoch + 1}/{self.params['epochs']}"
        self._first = self.model.run.batch  # not 0 where a resumed run begins inside the epoch
        self._images = 0
        self._bar = Bar(self.params["steps"], self._verbose, self._title + " ", self._first)
        self._begin = self._now = time.perf_counter()

    def needs_batch_logs(self, batch: int) -> bool:
        return (
            self._bar.due or batch + 1 == self.params["steps"]
        )  # at the end for the time that is taken there

    def batches_at_once(self) -> int:
        return sys.maxsize

    def on_train_batch_end(self, batch: int, logs: Logs) -> None:
        size, samples = self.params["batch_size"], self.params["samples"]
        self._images = min((batch + 1) * size, samples) - self._first * size
        self._now = time.perf_counter()
        if logs and self._bar.due:
            self._bar.show(batch + 1, f"{format_logs(logs)} - {self._rate()}")

    def on_epoch_end(self, epoch: int, logs: Logs) -> None:
        self._bar.close()
        seconds = time.perf_counter() - self._begin
        print(f"{self._title} - {seconds:.1f}s - {self._rate()} - {format_logs(logs)}", flush=True)

    def on_train_interrupt(self) -> None:
        self._bar.close()

    def _rate(self) -> str:
        return f"{self._images / max(self._now - self._begin, 1e-9):,.0f} images/s"
