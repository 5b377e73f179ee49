"""Checking, timing and judging: libraries prepare calls, contenders take turns, figures are medians over rounds.

A library computes a pass of a case in its natural layout. A contender is a library that checks its results against the
reference and then times so many calls when it is asked to; `Local` does that in this process, bench/run.py in others. In each
round every contender has one turn, in another order each time, so that a drift of the machine meets them alike; ratios are
taken within a round.
"""

from __future__ import annotations

import os
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from .._typing import Array
from .family import Case, Expected, Inputs, Work

# More than any L2 cache holds; and so much that the host launches the timed call meanwhile: 0.2 ms of an H100.
FLUSH_BYTES = 2**29
SAME = 0.03  # what differs by less than this is called the same, where the spread allows to say so
WARM_SECONDS, WARM_CALLS = 0.1, 3
# A rest is longer than a tick (10 ms at most): the time of a thread that spins is counted tick by tick.
REST_SECONDS, REST_TRIES = 0.012, 30


class Unsupported(Exception):
    """The library does not have this case; the message says why."""


class Wrong(Exception):
    """A result differs from the reference's."""


Clock = Callable[[Callable[[], Any], int], float]  # (call, how often) -> seconds of one


def wall_clock(call: Callable[[], Any], calls: int) -> float:
    """Seconds of one call by the processor's clock; a call before brings back what others drove out of the caches."""
    call()
    begin = time.perf_counter()
    for _ in range(calls):
        call()
    return (time.perf_counter() - begin) / calls


def step_clock(wait: Callable[[Any], Any]) -> Clock:
    """For calls that a GPU works off behind the host's back: wall time with all launches, until wait(last result) returns."""

    def clock(call: Callable[[], Any], calls: int) -> float:
        wait(call())
        begin = time.perf_counter()
        last = None
        for _ in range(calls):
            last = call()
        wait(last)
        return (time.perf_counter() - begin) / calls

    return clock


def event_clock(
    event: Callable[[], Any], elapsed_ms: Callable[[Any, Any], float], flush: Callable[[], Any]
) -> Clock:
    """For kernels on a GPU: a pair of events around each call.

    flush: overwrites the GPU's L2 cache before each call, outside of the events; while it runs, the host has time to launch
    the call, so that launches are not in the figure. elapsed_ms may wait for its second event, and is asked in order.
    """

    def clock(call: Callable[[], Any], calls: int) -> float:
        call()
        pairs = []
        for _ in range(calls):
            flush()
            begin, end = event(), event()
            begin.record()
            call()
            end.record()
            pairs.append((begin, end))
        return sum(elapsed_ms(begin, end) for begin, end in pairs) / calls / 1e3

    return clock


@dataclass
class Prepared:
    """A call ready to be timed; results brings what it returns into host memory, NHWC and HWIO."""

    call: Callable[[], Any]
    results: Callable[[Any], Sequence[Any]]
    clock: Clock = wall_clock


class Library(Protocol):
    """What a contender computes with."""

    def describe(self) -> dict[str, str]:
        """Versions, and settings that matter."""

    def prepare(self, case: Case, which: str, inputs: Inputs) -> Prepared:
        """Inputs brought where and how the library likes them. Raises Unsupported."""


class Contender(Protocol):
    """A library somewhere: in this process, or behind a pipe."""

    name: str
    cpu_seconds: float  # processor time of its last turn, of all threads

    def prepare(self, case: Case, which: str, expected: Path) -> dict[str, Any]:
        """Gives {"error": share of the bound, "seconds": a call and its clock take} or {"skipped": reason}."""

    def run(self, calls: int) -> float:
        """Seconds of one call."""


def save_expected(expected: Sequence[Expected], path: Path) -> None:
    """Write results of the reference for all contenders to compare with."""
    arrays: dict[str, Array] = {}
    for i, (value, bound) in enumerate(expected):
        arrays |= {f"value{i}": value, f"bound{i}": np.asarray(bound, np.float32)}
    np.savez(path, **arrays)  # type: ignore[arg-type]


def load_expected(path: Path) -> list[Expected]:
    """What save_expected wrote."""
    with np.load(path) as stored:
        return [Expected(stored[f"value{i}"], stored[f"bound{i}"]) for i in range(len(stored.files) // 2)]


def largest_error(results: Sequence[Array], expected: Sequence[Expected]) -> float:
    """The largest error as a share of its bound; Wrong where it exceeds the bound, or is NaN."""
    if len(results) != len(expected):
        raise Wrong(f"{len(results)} results, the reference has {len(expected)}")
    worst = 0.0
    for number, (result, (value, bound)) in enumerate(zip(results, expected, strict=True)):
        result = np.asarray(result)
        if result.shape != value.shape:
            raise Wrong(f"result {number} has shape {result.shape}, the reference {value.shape}")
        error = np.abs(result - value)
        good = error <= bound  # false for NaN
        if not good.all():
            at = np.unravel_index(int(np.argmin(good)), error.shape)
            raise Wrong(
                f"result {number}: {np.size(good) - np.count_nonzero(good)} of {np.size(good)} elements differ from the "
                f"reference, the first at {tuple(map(int, at))}: {result[at]:.9g} for {value[at]:.9g}, allowed {bound[at]:.2g}"
            )
        inexact = bound > 0
        worst = max(worst, float((error[inexact] / bound[inexact]).max(initial=0)))
    return worst


class Local:
    """A library in this process as a contender."""

    def __init__(self, name: str, library: Library) -> None:
        self.name, self.library = name, library
        self.cpu_seconds = 0.0
        self.idle_seconds = self.idle_cpu_seconds = (
            0.0  # between commands: a peer whose threads spin shows here
        )
        self._left = time.perf_counter(), time.process_time()
        self._inputs: tuple[str, Inputs] = ("", {})
        self._prepared: Prepared | None = None

    def prepare(self, case: Case, which: str, expected: Path) -> dict[str, Any]:
        self._prepared = None
        if self._inputs[0] != str(case):
            self._inputs = str(case), case.inputs()
        try:
            # In-place updates must not reach the inputs of the next pass.
            copies = {
                name: [a.copy() for a in value] if isinstance(value, list) else value.copy()
                for name, value in self._inputs[1].items()
            }
            prepared = self.library.prepare(case, which, copies)
            results = [
                np.asarray(result)
                for _ in range(case.family.checked_calls)
                for result in prepared.results(prepared.call())
            ]
            error = largest_error(results, load_expected(expected))
        except Unsupported as reason:
            return {"skipped": str(reason)}
        except Wrong as reason:
            return {"skipped": f"wrong: {reason}"}
        self._prepared = prepared
        seconds, begin = float("inf"), time.perf_counter()
        calls = 0
        while calls < WARM_CALLS or time.perf_counter() - begin < WARM_SECONDS:
            start = time.perf_counter()
            prepared.clock(prepared.call, 1)
            seconds = min(seconds, (time.perf_counter() - start) / 2)  # a clock makes one call more
            calls += 1
        return {"error": error, "seconds": seconds}

    def run(self, calls: int) -> float:
        assert self._prepared is not None
        cpu = time.process_time()
        seconds = self._prepared.clock(self._prepared.call, calls)
        self.cpu_seconds = time.process_time() - cpu
        return seconds

    def enter(self) -> None:
        """The contender's turn begins: what its threads used since `rest` was idling."""
        wall, cpu = self._left
        self.idle_seconds += time.perf_counter() - wall
        self.idle_cpu_seconds += time.process_time() - cpu

    def rest(self) -> None:
        """The contender's turn ends: wait for its threads, which may spin for a while, not to disturb the next one's turn."""
        for _ in range(REST_TRIES):
            cpu = time.process_time()
            time.sleep(REST_SECONDS)
            if time.process_time() - cpu < REST_SECONDS / 10:
                break
        self._left = time.perf_counter(), time.process_time()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, 20th and 80th percentile."""
    low, middle, high = np.percentile(np.asarray(values, np.float64), [20, 50, 80])
    return {"median": float(middle), "p20": float(low), "p80": float(high)}


def verdict(ratios: Mapping[str, float]) -> str:
    """What a spread of ratios, others' time to ours, says: faster, slower, same, or undecided where it does not say."""
    low, high = ratios["p20"], ratios["p80"]
    if low >= 1 / (1 + SAME) and high <= 1 + SAME:
        return "same"
    if low > 1:
        return "faster"
    return "slower" if high < 1 else "undecided"


def busy_seconds() -> float | None:
    """Processor time that this machine has spent on anything, of all its processors; None where it does not tell.

    Time that a hypervisor gave to others counts as well.
    """
    try:
        fields = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0].split()
    except OSError:  # not Linux
        return None
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(int, fields[1:9])
    return (user + nice + system + irq + softirq + steal) / os.sysconf("SC_CLK_TCK")


def measure(
    case: Case,
    which: str,
    contenders: Sequence[Contender],
    expected: Path,
    *,
    rounds: int,
    window: float,
) -> dict[str, dict[str, Any]]:
    """A pass by every contender: {name: {"rounds": seconds of a call in each round, "error", "calls", "disturbed"} or {"skipped":
    reason}}.

    expected: where the reference's results are or come. window: seconds of one turn, of at least one call. disturbed: how many
    processors were busy with something else meanwhile, on average.
    """
    save_expected(case.expected(which, case.inputs()), expected)
    found: dict[str, dict[str, Any]] = {}
    ready: list[Contender] = []
    for contender in contenders:
        told = contender.prepare(case, which, expected)
        if "skipped" in told:
            found[contender.name] = told
            continue
        calls = max(case.family.least_calls, round(window / max(told["seconds"], 1e-9)))
        found[contender.name] = {"error": told["error"], "calls": calls, "rounds": []}
        ready.append(contender)
    order = random.Random(0)  # fixed: a run can be repeated
    walls, others = dict.fromkeys(found, 0.0), dict.fromkeys(found, 0.0)
    for _ in range(rounds):
        order.shuffle(ready)
        for contender in ready:
            mine, name = found[contender.name], contender.name
            begin, own, busy = time.perf_counter(), time.process_time(), busy_seconds()
            mine["rounds"].append(contender.run(mine["calls"]))
            busy_after, local = busy_seconds(), isinstance(contender, Local)
            walls[name] += time.perf_counter() - begin
            if busy is not None and busy_after is not None:
                own = 0.0 if local else time.process_time() - own
                others[name] += busy_after - busy - own - contender.cpu_seconds
    for contender in ready:  # the system counts in ticks: a little less than nothing can come out
        found[contender.name]["disturbed"] = max(0.0, others[contender.name] / walls[contender.name])
    return found


def ceiling(work: Work, peak: Mapping[str, Any] | None) -> float | None:
    """Seconds that the work takes at the machine's measured peaks, None where none were measured.

    Arithmetic and memory traffic overlap; the bandwidth is that of the largest measured arrays that are
    smaller than all operands together, so that none can pass it because a part of them stays in a cache.
    """
    if peak is None:
        return None
    speeds = [gbps for size, gbps in peak["bandwidth"] if size < work.bytes] or [peak["bandwidth"][0][1]]
    return float(max(work.flops / (peak["gflops"] * 1e9), work.bytes / (speeds[-1] * 1e9)))


def summarise(
    case: Case,
    which: str,
    found: Mapping[str, dict[str, Any]],
    peak: Mapping[str, Any] | None = None,
    baseline: str = "fastnn",
) -> dict[str, Any]:
    """The entry of a pass in a file of results; ratios are of a contender's time to the baseline's."""
    work = case.work(which)
    ideal = ceiling(work, peak)
    entry: dict[str, Any] = {
        "case": str(case),
        "pass": which,
        "flops": float(work.flops),
        "bytes": float(work.bytes),
        "contenders": {},
    }
    reference = found.get(baseline, {}).get("rounds")
    for name, figures in found.items():
        shown = dict(figures)
        if "rounds" in figures:
            seconds = spread(figures["rounds"])
            middle = seconds["median"]
            shown |= {"seconds": seconds, "gbps": work.bytes / middle / 1e9}
            if work.flops:
                shown["gflops"] = work.flops / middle / 1e9
            if case.family.items:
                shown[f"{case.family.items}_per_s"] = case["n"] / middle
            if ideal is not None:
                shown["ceiling_percent"] = 100 * ideal / middle
            if reference and name != baseline:
                ratios = spread(
                    [theirs / ours for theirs, ours in zip(figures["rounds"], reference, strict=True)]
                )
                shown["ratio"] = {**ratios, "verdict": verdict(ratios)}
        entry["contenders"][name] = shown
    return entry


def expected_file(folder: str | Path) -> Path:
    """Where a run keeps the reference's results."""
    return Path(folder) / "expected.npz"
