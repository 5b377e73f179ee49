"""Checks and times fastnn beside other libraries, case by case: a table, and files to compare and to publish.

    python bench/run.py gemm 'conv2d/*' train_step/tutorial-n32 --out build/bench
    python bench/run.py --python torch=/path/to/torch/env/bin/python --python jax=...
    python bench/run.py --list

Each contender is a process of its own, with its library's default settings and all processors; one computes at a time. Its
results are compared with the reference before it is timed; in each round every contender has a turn, in random order; figures
are medians over the rounds with the 20th and 80th percentile, and ratios are taken within a round. bench/peers.py has the
contenders, fastnn/bench/cases.py the cases. A library that is missing is skipped by name.

--out DIR gets results.json and results.md, renewed after each case, and roofline.png, which needs matplotlib. --device cuda
measures on a GPU: kernels by events around calls with a flushed L2 cache, whole steps by the wall, launches included.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

try:
    from fastnn.bench import cases, family, report, timing
except ImportError as error:
    sys.exit(
        f"bench/run.py: fastnn does not load ({error}): pip install . first, or set PYTHONPATH to a built checkout"
    )

import fastnn
import peers
import roofline

HERE = Path(__file__).resolve().parent
START_LIMIT, ANSWER_LIMIT = 120, 300  # seconds: of an import, of a compilation


class Remote:
    """A contender in a process of its own (bench/worker.py). It starts at once; `wait` until it is there, or found not to be."""

    def __init__(self, name: str, python: str, device: str, threads: int, logs: Path) -> None:
        self.name, self.device, self.threads = name, device, threads
        env = {**os.environ}
        if peers.split(name)[0] != "fastnn":
            env.pop("PYTHONPATH", None)  # another environment's packages
        for variable, value in peers.environment(name, threads).items():
            if value is None:
                env.pop(variable, None)
            else:
                env[variable] = value
        self.log = logs / f"{name}.log"
        self.told: dict = {}
        self.idle = [0.0, 0.0]
        self.cpu_seconds = 0.0
        command = [
            python,
            str(HERE / "worker.py"),
            str(Path(fastnn.__file__).parent),
            name,
            device,
            str(threads),
        ]
        with self.log.open("w") as log:
            try:
                self.process = subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, env=env, cwd=HERE
                )
            except OSError as error:
                self.process = None
                self.told = {"skipped": f"{python} does not start ({error})"}

    def wait(self) -> None:
        """Until its library is imported, the first time."""
        if self.told:
            return
        answer = self._answer(START_LIMIT)
        if "ready" in answer:
            self.told = answer["ready"]
        else:
            self.told = {"skipped": answer.get("failed", answer.get("skipped"))}
            self.stop()

    @property
    def ready(self) -> bool:
        return self.process is not None

    def _answer(self, limit: float) -> dict:
        if not select.select([self.process.stdout], [], [], limit)[0]:
            self.stop()
            return {"skipped": f"failed: no answer within {limit} s"}
        line = self.process.stdout.readline()
        if not line:
            code = self.process.wait()
            self.process = None
            last = (self.log.read_text(errors="replace").strip().splitlines() or ["no message"])[-1]
            return {"skipped": f"failed: the process ended with status {code}: {last[:300]}"}
        return json.loads(line)

    def _ask(self, **command) -> dict:
        if self.process is None:
            return {"skipped": "failed: its process has ended"}
        self.process.stdin.write(json.dumps(command).encode() + b"\n")
        self.process.stdin.flush()
        return self._answer(ANSWER_LIMIT)

    def prepare(self, case, which, expected) -> dict:
        told = self._ask(do="prepare", case=str(case), expected=str(expected), **{"pass": which})
        self.idle = told.pop("idle", self.idle)
        return told

    def run(self, calls: int) -> float:
        told = self._ask(do="run", calls=calls)
        if "seconds" not in told:
            raise RuntimeError(f"{self.name}: {told['skipped']}")
        self.cpu_seconds = told["cpu"]
        return told["seconds"]

    def stop(self) -> None:
        """End the process."""
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process = None


def measure_peak(threads: int, folder: Path) -> dict | None:
    """What bench/peak.cpp measures, None where there is no compiler or it fails."""
    compiler = os.environ.get("CXX") or shutil.which("c++") or shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        print("ceilings: not measured, there is no C++ compiler (set CXX)")
        return None
    program = folder / "peak"
    try:
        if not program.exists():
            flags = ["-O3", "-march=native", "-std=c++17", "-pthread"]
            subprocess.run(
                [compiler, *flags, HERE / "peak.cpp", "-o", program],
                check=True,
                capture_output=True,
                text=True,
            )
        ran = subprocess.run([program, str(threads)], check=True, capture_output=True, text=True, timeout=120)
    except (OSError, subprocess.SubprocessError) as error:
        print(
            f"ceilings: not measured, bench/peak.cpp failed: {error} {getattr(error, 'stderr', '') or ''}".strip()
        )
        return None
    return json.loads(ran.stdout)


def combine(runs: list[dict | None], threads: int) -> dict | None:
    """Of several measurements the highest: what the machine can do."""
    measured = [run[str(threads)] for run in runs if run]
    if not measured:
        return None
    sizes = [size for size, _ in measured[0]["gbps"]]
    return {
        "gflops": max(max(run["gflops"].values()) for run in measured),
        "bandwidth": [[size, max(run["gbps"][i][1] for run in measured)] for i, size in enumerate(sizes)],
        "all": runs,
    }


@contextlib.contextmanager
def turn(files: list[str]):
    """Exclusive locks on these files, in this order, for as long as it lasts."""
    with contextlib.ExitStack() as stack:
        if files:
            import fcntl

            for file in files:
                fcntl.flock(stack.enter_context(open(file, "a")), fcntl.LOCK_EX)
        yield


def commit() -> str:
    """The checkout's commit, and whether it was changed since."""
    try:
        ran = subprocess.run(
            ["git", "describe", "--always", "--dirty"], cwd=HERE, capture_output=True, text=True, check=True
        )
        return ran.stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def options(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="bench/run.py",
        description="Check and time fastnn beside other libraries.",
        epilog=f"Suites: {', '.join(cases.SUITES)}. Contenders on the CPU: {', '.join(peers.DEFAULT['cpu'])}.",
    )
    add = parser.add_argument
    add("cases", nargs="*", metavar="CASE", help="a case, a pattern, a suite; default: all")
    add("--list", action="store_true", help="show the cases and leave")
    add("--device", choices=["cpu", "cuda"], default="cpu")
    add("--passes", metavar="NAMES", help="only these, by commas, such as forward,backward_x")
    add("--contenders", metavar="NAMES", help="only these, by commas")
    add(
        "--python", action="append", default=[], metavar="LIBRARY=PATH", help="interpreter that has a library"
    )
    add("--threads", type=int, metavar="N", help="default: all processors")
    add("--rounds", type=int, default=15, metavar="N", help="turns of each contender; default: 15")
    add("--window", type=float, default=0.04, metavar="S", help="seconds of a turn; default: 0.04")
    add("--limit", type=float, metavar="S", help="begin no further case after so many seconds")
    add("--out", metavar="DIR", help="folder for results.json, results.md and roofline.png")
    add("--title", default="fastnn beside other libraries", help="of results.md")
    lock = "hold a lock on this file during each case: benches and builds take turns"
    add("--lock", action="append", default=[], metavar="FILE", help=lock)
    chosen = parser.parse_args(argv)
    if chosen.rounds < 1 or chosen.window <= 0 or (chosen.threads is not None and chosen.threads < 1):
        parser.error("--rounds and --threads must be at least 1, --window above 0")
    try:
        chosen.cases = cases.select(chosen.cases or ["all"])
        chosen.contenders = (
            chosen.contenders.split(",") if chosen.contenders else peers.DEFAULT[chosen.device]
        )
        for name in chosen.contenders:
            peers.split(name)
        chosen.pythons = dict(text.partition("=")[::2] for text in chosen.python)
        if unknown := set(chosen.pythons) - set(peers.LIBRARIES):
            raise ValueError(
                f"--python LIBRARY=PATH: {', '.join(sorted(unknown))} is none of {', '.join(peers.LIBRARIES)}"
            )
    except ValueError as error:
        parser.error(str(error))
    return chosen


class Run:
    """One run: its contenders, its ceilings and its results so far."""

    def __init__(self, chosen: argparse.Namespace, scratch: Path) -> None:
        self.chosen, self.scratch = chosen, scratch
        self.threads = chosen.threads or len(os.sched_getaffinity(0))
        self.contenders: dict[str, Remote] = {}
        self.peaks: list[dict | None] = []
        self.found: list[tuple] = []  # (case, pass, what each contender has)
        self.left_out: list[str] = []
        self.begin = time.monotonic()

    def ready(self, names: list[str]) -> list[Remote]:
        """Those of the contenders that are there. Whichever this case is the first to need start side by side."""
        new = [name for name in names if name not in self.contenders]
        for name in new:
            python = self.chosen.pythons.get(peers.split(name)[0], sys.executable)
            threads = peers.threads_of(name, self.threads)
            self.contenders[name] = Remote(name, python, self.chosen.device, threads, self.scratch)
        for remote in (self.contenders[name] for name in new):
            remote.wait()
            if not remote.ready:
                print(f"{remote.name}: skipped: {remote.told['skipped']}")
        return [self.contenders[name] for name in names if self.contenders[name].ready]

    def measure_peak(self) -> None:
        """Measure the ceilings, at the begin and at the end; the higher ones count."""
        if self.chosen.device == "cpu":
            with turn(self.chosen.lock):
                self.peaks.append(measure_peak(self.threads, self.scratch))

    def measure(self, case: family.Case) -> None:
        """All passes of a case, by all contenders that are there."""
        if self.chosen.limit and time.monotonic() - self.begin > self.chosen.limit:
            print(f"{case}: left out, the limit of {self.chosen.limit:g} s is reached")
            self.left_out.append(str(case))
            return
        with turn(self.chosen.lock):
            names = [name for name in self.chosen.contenders if peers.wanted(name, case.family.name)]
            ready = self.ready(names)
            for which in case.passes:
                if self.chosen.passes and which not in self.chosen.passes.split(","):
                    continue
                figures = timing.measure(
                    case,
                    which,
                    ready,
                    timing.expected_file(self.scratch),
                    rounds=self.chosen.rounds,
                    window=self.chosen.window,
                )
                self.found.append((case, which, figures))
                entry = timing.summarise(case, which, figures, combine(self.peaks, self.threads))
                print(report.text(entry), flush=True)

    def content(self) -> dict:
        """What stands in results.json."""
        peak = combine(self.peaks, self.threads)
        settings = {
            "date": datetime.date.today().isoformat(),
            "commit": commit(),
            "device": self.chosen.device,
            "threads": self.threads,
            "rounds": self.chosen.rounds,
            "seconds of a turn": self.chosen.window,
            "seconds of the run": round(time.monotonic() - self.begin),
        }
        if self.left_out:
            settings["left out at the limit"] = self.left_out
        told = {}
        for name, contender in self.contenders.items():
            wall, cpu = contender.idle
            told[name] = dict(contender.told)
            if wall:  # a peer whose threads spin between its turns would slow the others down
                told[name]["processor use between turns"] = f"{100 * cpu / wall:.1f}%"
        results = [timing.summarise(*found, peak) for found in self.found]
        return report.content(self.chosen.title, settings, told, peak, results)

    def stop(self) -> None:
        """End all contenders."""
        for contender in self.contenders.values():
            contender.stop()


def write(content: dict, out: Path) -> None:
    """results.json and results.md."""
    report.save(content, out / "results.json")
    (out / "results.md").write_text(report.markdown(content), encoding="utf-8")


def main(argv: list[str] | None = None) -> int:
    """Run the benches; exit status 1 where fastnn is not there, failed a case, or gave a wrong result."""
    chosen = options(argv)
    if chosen.list:
        for case in chosen.cases:
            print(case, *case.passes)
        return 0
    out = Path(chosen.out) if chosen.out else None
    if out:
        out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="fastnn-bench-") as folder:
        run = Run(chosen, Path(folder))
        try:
            run.measure_peak()
            if peak := combine(run.peaks, run.threads):
                print(report.ceilings(peak, run.threads))
            print(f"{report.TITLES}\n")
            for case in chosen.cases:
                run.measure(case)
                if out:  # each time: what stops the run leaves what it has
                    write(run.content(), out)
            run.measure_peak()
            content = run.content()
        finally:
            run.stop()
    if out:
        write(content, out)
        try:
            roofline.draw(content, out / "roofline.png")
        except (ImportError, ValueError) as error:
            print(f"no roofline.png: {error}")
    print(report.summary(content["results"]))
    absent = "fastnn" in run.contenders and "skipped" in content["contenders"]["fastnn"]
    ours = [entry["contenders"]["fastnn"] for entry in content["results"] if "fastnn" in entry["contenders"]]
    return int(absent or any(map(report.broken, ours)))


if __name__ == "__main__":
    sys.exit(main())
