"""Says of each case of two files of results whether fastnn became faster: python bench/compare.py OLD.json NEW.json

    faster, slower   the middle three fifths of the rounds do not overlap, and the medians differ by more than 3%
    same             the medians differ by less, and so do the ends of those fifths, twice over
    undecided        all else, and fewer than 5 rounds: measure again

Times of two runs compare only if the machine was in the same state. --against CONTENDER compares fastnn's ratios to a library
that both runs have instead, round by round, which takes the machine's drift out. Exit status 1 where anything is slower.
"""

from __future__ import annotations

import argparse
import sys

from fastnn.bench import report
from fastnn.bench.timing import SAME, spread

LEAST_ROUNDS = 5  # a spread of fewer says nothing


def series(figures: dict, against: str | None) -> list[float] | None:
    """What is compared, less being better: fastnn's time in each round, or its share of the other's time."""
    ours = figures.get("fastnn", {}).get("rounds")
    if against is None or ours is None:
        return ours
    theirs = figures.get(against, {}).get("rounds")
    return None if theirs is None else [a / b for a, b in zip(ours, theirs, strict=True)]


def judge(old: list[float], new: list[float]) -> tuple[str, float]:
    """The verdict, and how many times faster the new one is."""
    before, after = spread(old), spread(new)
    change = before["median"] / after["median"]
    near = 1 / (1 + SAME) <= change <= 1 + SAME
    if min(len(old), len(new)) < LEAST_ROUNDS:
        return "undecided", change
    if not near and before["p20"] > after["p80"]:
        return "faster", change
    if not near and before["p80"] < after["p20"]:
        return "slower", change
    widest = max(before["p80"], after["p80"]) / min(before["p20"], after["p20"])
    return ("same" if near and widest <= (1 + SAME) ** 2 else "undecided"), change


def compare(old: dict, new: dict, against: str | None = None) -> list[tuple[str, str, str, float | None]]:
    """(case, pass, verdict, how many times faster) of all cases of either; those of one alone are `only in ...`."""
    before = {(e["case"], e["pass"]): series(e["contenders"], against) for e in old["results"]}
    after = {(e["case"], e["pass"]): series(e["contenders"], against) for e in new["results"]}
    rows: list[tuple[str, str, str, float | None]] = []
    for key in dict.fromkeys([*before, *after]):
        first, second = before.get(key), after.get(key)
        if first and second:
            rows.append((*key, *judge(first, second)))
        elif first or second:
            rows.append((*key, "only in the old" if first else "only in the new", None))
    return rows


def differences(old: dict, new: dict) -> list[str]:
    """In what the two runs differ that makes their times differ."""
    pairs = [
        (f"{part} {key}", old[part].get(key), new[part].get(key))
        for part, keys in _SAME.items()
        for key in keys
    ]
    return [f"{name}: {a} and {b}" for name, a, b in pairs if a != b]


_SAME = {"machine": ("processor", "cores"), "settings": ("device", "threads")}


def main(argv: list[str] | None = None) -> int:
    """Compare two files; the exit status is 1 where anything is slower, 2 where they cannot be compared."""
    parser = argparse.ArgumentParser(
        prog="bench/compare.py", description="Say per case whether fastnn became faster."
    )
    parser.add_argument("old")
    parser.add_argument("new")
    parser.add_argument(
        "--against", metavar="CONTENDER", help="compare ratios to this library instead of times"
    )
    chosen = parser.parse_args(argv)
    try:
        old, new = report.load(chosen.old), report.load(chosen.new)
    except (OSError, ValueError) as error:
        print(f"bench/compare.py: {error}", file=sys.stderr)
        return 2
    for difference in differences(old, new):
        print(f"beware, the runs differ in {difference}")
    rows = compare(old, new, chosen.against)
    for case, which, verdict, change in rows:
        print(f"{case:<44} {which:<11} {verdict:<10} {'' if change is None else f'{change:.2f}x'}".rstrip())
    counts = [
        f"{sum(row[2] == word for row in rows)} {word}" for word in ("faster", "slower", "same", "undecided")
    ]
    print(", ".join(counts))
    return int(any(row[2] == "slower" for row in rows))


if __name__ == "__main__":
    sys.exit(main())
