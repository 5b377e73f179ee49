"""What a gradient check found: a Finding for each array, a Report of several, a table of many."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ._typing import Array

SHOWN = 3  # reports of one name that the table prints in full


class GradientError(AssertionError):
    """A gradient differs from what a check found; the message is the report."""


@dataclass(frozen=True)
class Finding:
    """What one check found of one array; `error` to `numeric` are those of the worst element."""

    label: str  # the array: "dx", "dkernel", or an output's name
    check: str
    dtype: str
    elements: int  # numbers compared
    wrong: int  # how many of them exceeded their tolerance
    error: float  # |analytic - numeric|
    tolerance: float
    index: tuple[int, ...] | None  # None where a whole direction is meant
    analytic: float  # what backward gave
    numeric: float  # what it should be
    note: str = ""

    @classmethod
    def failure(cls, label: str, check: str, note: str, dtype: str = "") -> Finding:
        """What fails before there is a number to compare."""
        return cls(label, check, dtype, 0, 0, np.inf, 0.0, None, np.nan, np.nan, note)

    @property
    def passed(self) -> bool:
        return self.wrong == 0 and not self.note

    def __str__(self) -> str:
        text = f"{self.label:<8} {self.check} {self.dtype}: "
        if self.elements:
            text += f"error {self.error:.3g}, tolerance {self.tolerance:.3g}, {self.elements} compared, "
        if self.wrong:
            place = "" if self.index is None else f"[{', '.join(map(str, self.index))}]"
            text += (
                f"{self.wrong} wrong; {self.label}{place} is {self.analytic:.9g}, not {self.numeric:.9g}, "
            )
        return text + ("ok" if self.passed else "FAILED") + (f" ({self.note})" if self.note else "")


@dataclass(frozen=True)
class Report:
    """What a check found, an entry for each array it compared. True where all of them pass."""

    name: str
    findings: tuple[Finding, ...]

    @property
    def passed(self) -> bool:
        return all(finding.passed for finding in self.findings)

    def __bool__(self) -> bool:
        return self.passed

    def __str__(self) -> str:
        verdict = "ok" if self.passed else "FAILED"
        return "\n".join([f"{self.name}: {verdict}", *(f"  {finding}" for finding in self.findings)])

    def raise_if_failed(self) -> None:
        """Raise GradientError, an AssertionError, with the whole report where anything failed."""
        if not self.passed:
            raise GradientError(str(self))


def compare(
    label: str,
    actual: Array,
    expected: Array,
    tolerance: float | Array,
    check: str = "reference",
    note: str = "",
) -> Finding:
    """Element by element: |actual - expected| <= tolerance. A value that is not finite fails.

    tolerance is a number or an array of expected's shape. Shapes that differ fail as a whole, and so does
    anything with a note.
    """
    dtype = str(actual.dtype)
    if actual.shape != expected.shape:
        return Finding.failure(label, check, f"shape {actual.shape}, should be {expected.shape}", dtype)
    if expected.size == 0:
        return Finding(label, check, dtype, 0, 0, 0.0, 0.0, None, 0.0, 0.0, note)
    found, wanted = actual.astype(np.float64), expected.astype(np.float64)
    allowed = np.broadcast_to(np.asarray(tolerance, dtype=np.float64), wanted.shape)
    with np.errstate(all="ignore"):
        error = np.abs(found - wanted)
        good = (error <= allowed) & np.isfinite(error) & np.isfinite(allowed)
        rank = np.where(good, error / np.maximum(allowed, 1e-300), 2.0 + error)  # good ones are at most 1
    worst = int(np.argmax(np.where(np.isfinite(rank), rank, np.inf)))
    index = tuple(int(i) for i in np.unravel_index(worst, wanted.shape))
    numbers = float(error[index]), float(allowed[index]), index, float(found[index]), float(wanted[index])
    return Finding(label, check, dtype, wanted.size, int(np.sum(~good)), *numbers, note)


def excess(finding: Finding) -> float:
    """How many times its tolerance a finding's error is."""
    ratio = finding.error / max(finding.tolerance, 1e-300)
    return ratio if np.isfinite(ratio) else np.inf


def table(results: Sequence[tuple[str, Report]]) -> str:
    """The results of `run`: a row with the worst case of each name, check and dtype, then what failed."""
    rows: dict[str, dict[tuple[str, str], list[Finding]]] = {}
    failed: dict[str, list[Report]] = {}
    for name, report in results:
        for finding in report.findings:
            rows.setdefault(name, {}).setdefault((finding.check, finding.dtype), []).append(finding)
        if not report.passed:
            failed.setdefault(name, []).append(report)

    lines = [("op", "check", "dtype", "numbers", "error", "tolerance", "verdict")]
    for name, checks in rows.items():
        for key, findings in checks.items():
            worst = max(findings, key=lambda finding: (not finding.passed, excess(finding)))
            count = f"{sum(finding.elements for finding in findings):,}"
            verdict = "ok" if worst.passed else f"FAILED {worst.label}"
            lines.append((name, *key, count, f"{worst.error:.1e}", f"{worst.tolerance:.1e}", verdict))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = []
    for line in lines:
        cells = zip(line, widths, (str.ljust,) * 3 + (str.rjust,) * 3 + (str.ljust,), strict=True)
        text.append("  ".join(just(cell, width) for cell, width, just in cells).rstrip())
    text.insert(1, "-" * max(map(len, text)))

    for name, reports in failed.items():
        text += [f"\n{report}" for report in reports[:SHOWN]]
        if len(reports) > SHOWN:
            text.append(f"\n... and {len(reports) - SHOWN} more of {name}")
    wrong = sum(map(len, failed.values()))
    text.append(
        f"\n{wrong} of {len(results)} checks FAILED" if wrong else f"\nall {len(results)} checks pass"
    )
    return "\n".join(text)
