"""Files and tables of figures: JSON with machine and versions, a table for a terminal, a table in Markdown."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SCHEMA = 1
DISTURBED = 0.15  # processors; what others used beside a contender, where it is worth a word


def machine() -> dict[str, Any]:
    """The processor and the system, without the machine's name."""
    found: dict[str, str] = {}
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            key, colon, value = line.partition(":")
            if colon:
                found.setdefault(key.strip(), value.strip())
    except OSError:  # not Linux
        pass
    told: dict[str, Any] = {
        "processor": found.get("model name") or platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {'.'.join(platform.release().split('.')[:2])}",
        "architecture": platform.machine(),
    }
    if "cpu family" in found:
        told["processor"] += f" (family {found['cpu family']} model {found.get('model', '?')})"
    flags = set(found.get("flags", "").split())
    if flags:
        told["instruction_sets"] = [
            name for name in ("avx2", "fma", "avx512f", "avx512_bf16", "amx_tile") if name in flags
        ]
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        told["memory_gib"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30)
    return told


def content(
    title: str,
    settings: Mapping[str, Any],
    contenders: Mapping[str, Any],
    peak: Mapping[str, Any] | None,
    results: Sequence[Mapping[str, Any]],
) -> dict[str, Any]:
    """What stands in a file of results: how, on what, with what, and the entries that timing.summarise makes."""
    return {
        "schema": SCHEMA,
        "title": title,
        "machine": machine(),
        "settings": dict(settings),
        "contenders": dict(contenders),
        "peak": peak,
        "results": list(results),
    }


def load(path: str | os.PathLike[str]) -> dict[str, Any]:
    """A file of results; ValueError where it is none."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error})") from error
    if not isinstance(content, dict) or content.get("schema") != SCHEMA or "results" not in content:
        raise ValueError(
            f"{path} holds no results of bench/run.py in the form that this version reads ({SCHEMA})"
        )
    return content


def save(content: Mapping[str, Any], path: str | os.PathLike[str]) -> None:
    """Write a file of results, whole or not at all."""
    path = Path(path)
    unfinished = path.with_name(f"{path.name}.tmp")
    unfinished.write_text(json.dumps(_rounded(content), indent=1) + "\n", encoding="utf-8")
    os.replace(unfinished, path)


def _rounded(value: Any) -> Any:
    """Floats to five digits, which is more than a timing holds."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, Mapping):
        return {key: _rounded(item) for key, item in value.items()}
    return [_rounded(item) for item in value] if isinstance(value, (list, tuple)) else value


def duration(seconds: float) -> str:
    """3 digits and a unit: 12.3 us."""
    unit, factor = next(((u, f) for u, f in (("s", 1.0), ("ms", 1e3)) if seconds * f >= 0.9995), ("us", 1e6))
    return f"{seconds * factor:.3g} {unit}" if seconds * factor < 999.5 else f"{seconds * factor:.0f} {unit}"


def rate(figures: Mapping[str, Any]) -> str:
    """Images a second, GFLOP/s or GB/s, whichever says most of the case."""
    for key, unit in (("images_per_s", "images/s"), ("gflops", "GFLOP/s"), ("gbps", "GB/s")):
        if key in figures:
            return f"{figures[key]:,.0f} {unit}" if figures[key] >= 100 else f"{figures[key]:.3g} {unit}"
    return ""


def columns(name: str, figures: Mapping[str, Any]) -> list[str]:
    """A contender's line: name, median, p20..p80, rate, % of the ceiling, its time to fastnn's."""
    if "skipped" in figures:
        return [name, "skipped", figures["skipped"], "", "", ""]
    seconds = figures["seconds"]
    percent = f"{figures['ceiling_percent']:.0f}%" if "ceiling_percent" in figures else "not measured"
    ratio = ""
    if "ratio" in figures:
        r = figures["ratio"]
        ratio = f"{r['median']:.2f}x [{r['p20']:.2f}, {r['p80']:.2f}] {r['verdict']}"
    if figures["disturbed"] > DISTURBED:
        ratio += f" (disturbed: {figures['disturbed']:.1f} processors were busy with something else)"
    return [
        name,
        duration(seconds["median"]),
        f"{duration(seconds['p20'])} .. {duration(seconds['p80'])}",
        rate(figures),
        percent,
        ratio,
    ]


HEADER = ["contender", "median", "p20 .. p80", "rate", "ceiling", "its time / fastnn's"]


# How `text` lays out a line: columns of a contender's figures.
_LINE = "  {:<32} {:>9}  {:<22} {:>18} {:>12}  {}"
TITLES = _LINE.format(*HEADER).rstrip()


def ceilings(peak: Mapping[str, Any], threads: int) -> str:
    """The measured ceilings in a line."""
    speeds = [gbps for _, gbps in peak["bandwidth"]]
    return (
        f"ceilings of {threads} threads: {peak['gflops']:.0f} GFLOP/s, {speeds[-1]:.0f} GB/s from memory, "
        f"up to {max(speeds):.0f} GB/s from caches"
    )


def text(entry: Mapping[str, Any]) -> str:
    """A pass as lines for a terminal; what a contender does not have is left out, what failed is not."""
    lines = [f"{entry['case']} {entry['pass']}"]
    for name, figures in entry["contenders"].items():
        if "skipped" not in figures:
            lines.append(_LINE.format(*columns(name, figures)).rstrip())
        elif broken(figures):
            lines.append(f"  {name:<32} {figures['skipped']}")
    return "\n".join(lines)


def broken(figures: Mapping[str, Any]) -> bool:
    """Whether a contender was to have the case and did not do it; that it has no such thing goes without saying."""
    return "skipped" in figures and figures["skipped"].startswith(("wrong", "failed"))


def summary(results: Sequence[Mapping[str, Any]]) -> str:
    """In a line: in how many passes fastnn is faster than each of the others, slower, the same, and undecided."""
    counts: dict[str, dict[str, int]] = {}
    for entry in results:
        for name, figures in entry["contenders"].items():
            if "ratio" in figures:
                of_name = counts.setdefault(name, dict.fromkeys(("faster", "slower", "same", "undecided"), 0))
                of_name[figures["ratio"]["verdict"]] += 1
    told = [
        f"{name}: {', '.join(f'{n} {word}' for word, n in of.items() if n)}" for name, of in counts.items()
    ]
    return f"{len(results)} passes; fastnn against {'; '.join(told) or 'nobody'}"


def markdown(content: Mapping[str, Any]) -> str:
    """All results as a document: how measured, on what, and a table."""
    lines = [f"# {content['title']}", ""]
    lines += [f"- {key}: {_inline(value)}" for key, value in content["machine"].items()]
    lines += [f"- {key}: {_inline(value)}" for key, value in content["settings"].items()]
    peak = content["peak"]
    lines.append(
        f"- {ceilings(peak, content['settings']['threads'])}" if peak else "- ceilings: not measured"
    )
    lines += ["", "| contender | |", "| --- | --- |"]
    lines += [f"| {name} | {_inline(told)} |" for name, told in content["contenders"].items()]
    lines += [
        "",
        "Medians over rounds in which contenders took turns; ratios within a round, above 1 where fastnn is faster.",
        f"{summary(content['results'])}.",
    ]
    head = ["case", "pass", *HEADER]
    lines += ["", f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    for entry in content["results"]:
        for name, figures in entry["contenders"].items():
            if "skipped" in figures and not broken(figures):
                continue
            cells = [entry["case"], entry["pass"], *columns(name, figures)]
            lines.append(f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _inline(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_inline(item)}" for key, item in value.items())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(_inline(item) for item in value)
    return f"{value:.5g}" if isinstance(value, float) else str(value)
