"""`fastnn bench`: fastnn alone, from an installed package; bench/run.py of the source tree compares it with other libraries."""

from __future__ import annotations

import datetime
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import cases, report, timing


def run(
    names: Sequence[str],
    *,
    device: str = "cpu",
    threads: int | None = None,
    rounds: int = 15,
    window: float = 0.04,
    out: str | None = None,
) -> int:
    """Check and time cases, print a table, and write it to the JSON file `out`. Returns 1 where a result is wrong."""
    from .own import Fastnn

    chosen = cases.select(names or ["all"])
    library = Fastnn(device, threads)
    contender = timing.Local("fastnn", library)
    told = library.describe()
    print(", ".join(f"{key}: {value}" for key, value in told.items()))
    print(f"ceilings: not measured (bench/run.py of the source tree does)\n{report.TITLES}\n")
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="fastnn-bench-") as folder:
        for case in chosen:
            for which in case.passes:
                found = timing.measure(
                    case, which, [contender], timing.expected_file(folder), rounds=rounds, window=window
                )
                results.append(timing.summarise(case, which, found))
                print(report.text(results[-1]), flush=True)
    if out is not None:
        settings = {
            "date": datetime.date.today().isoformat(),
            "device": device,
            "threads": told.get("threads", ""),
            "rounds": rounds,
            "seconds of a turn": window,
        }
        Path(out).parent.mkdir(parents=True, exist_ok=True)
        report.save(report.content("fastnn alone", settings, {"fastnn": told}, None, results), out)
    return int(any(report.broken(entry["contenders"]["fastnn"]) for entry in results))
