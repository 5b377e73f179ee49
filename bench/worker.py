"""One contender in a process of its own: commands come as JSON lines on stdin, answers go as JSON lines to stdout.

    python bench/worker.py FASTNN_FOLDER CONTENDER DEVICE THREADS

bench/run.py starts it, with the interpreter that has the contender's library. Of fastnn, a peer only reads fastnn/bench,
which needs NumPy; FASTNN_FOLDER says where that is, so that fastnn need not be installed beside every peer.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
import types
from pathlib import Path


def serve(folder: str, name: str, device: str, threads: int) -> None:
    """Answer commands until stdin ends."""
    if hasattr(os, "sched_setaffinity"):  # what some libraries take their number of threads from
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])
    answers = os.fdopen(os.dup(1), "w")  # libraries print to 1, and that must not get among the answers
    os.dup2(2, 1)
    if not name.startswith(
        "fastnn"
    ):  # the package without its __init__, so that nothing but fastnn.bench is loaded
        package = types.ModuleType("fastnn")
        package.__path__ = [folder]
        sys.modules["fastnn"] = package
    timing = importlib.import_module("fastnn.bench.timing")
    cases = importlib.import_module("fastnn.bench.cases")

    def answer(**content) -> None:
        answers.write(json.dumps(content) + "\n")
        answers.flush()

    try:
        library = importlib.import_module("peers").library(name, device, threads)
        contender = timing.Local(name, library)
        answer(ready=library.describe())
    except Exception as error:
        answer(failed=_short(error))
        return
    for line in sys.stdin:
        command = json.loads(line)
        contender.enter()
        try:
            if command["do"] == "prepare":
                told = contender.prepare(
                    cases.parse(command["case"]), command["pass"], Path(command["expected"])
                )
                told["idle"] = [contender.idle_seconds, contender.idle_cpu_seconds]
            else:
                begin = time.process_time()
                told = {"seconds": contender.run(command["calls"])}
        except Exception as error:
            traceback.print_exc()
            told = {"skipped": f"failed: {_short(error)}"}
        contender.rest()
        if command["do"] == "run":
            told["cpu"] = time.process_time() - begin
        answer(**told)


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).parent))
    serve(sys.argv[1], sys.argv[2], sys.argv[3], int(sys.argv[4]))
