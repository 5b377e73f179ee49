"""The benches: names of cases, checks, statistics and verdicts on made-up numbers, files, and a whole small run."""

from __future__ import annotations

import importlib
import json
import os
import platform
import subprocess
import sys
import time
from pathlib import Path

import fake_cupy
import numpy as np
import pytest
from fastnn import cli
from fastnn.bench import cases, family, networks, own, report, timing

BENCH = Path(__file__).parents[1] / "bench"
ALL = [name for suite in cases.SUITES.values() for name in suite]


@pytest.fixture
def bench(monkeypatch):
    """The scripts of bench/, by name."""
    if not BENCH.is_dir():
        pytest.skip("the folder bench/ is not part of this copy of the sources")
    monkeypatch.syspath_prepend(str(BENCH))
    return lambda name: importlib.import_module(name)


# ---------------------------------------------------------------------- names


@pytest.mark.parametrize(
    "name", [*dict.fromkeys(ALL), "conv2d/n2h9w7c5k3r3s1p2u2:tf32", "max_pool2d/n1h8w8c1r3u1"]
)
def test_a_name_is_read_and_written_alike(name):
    case = cases.parse(name)
    assert str(case) == name
    assert cases.parse(str(case)) == case
    for which in case.passes:
        work = case.work(which)
        assert work.bytes > 0
        assert work.flops >= 0


def test_a_name_holds_sizes_and_defaults():
    case = cases.parse("conv2d/n32h15w14c32k64r3s2u2")
    assert dict(case.sizes) == {"n": 32, "h": 15, "w": 14, "c": 32, "k": 64, "r": 3, "s": 2, "p": 0, "u": 2}
    assert case.precision == "float32"
    assert cases.parse("gemm/m1n2k3-tn:bfloat16").precision == "bfloat16"
    assert cases.parse("gemm/m1n2k3")["t"] == "nn"
    assert cases.parse("max_pool2d/n1h8w8c1r2")["u"] == 2


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("winograd/n1", "no family 'winograd'"),
        ("gemm", "does not read like gemm/m{m}n{n}k{k}"),
        ("gemm/m1n2", "does not read like"),
        ("gemm/m1n2k3x", "does not read like"),
        ("gemm/m1n2k3-nn", "does not read like"),
        ("gemm/m01n2k3", "is written 'gemm/m1n2k3'"),
        ("gemm/m0n2k3", "m must be at least 1"),
        ("gemm/m1n2k3:float16", "precisions float32, tf32, bfloat16"),
        ("gemm/m1n2k3:float32", "is written 'gemm/m1n2k3'"),
        ("gemm/m1n2k3:", "precisions"),
        ("relu/n1c1:tf32", "precisions float32, not"),
        ("max_pool2d/n1h8w8c1r2u2", "is written 'max_pool2d/n1h8w8c1r2'"),
        ("conv2d/n1h4w4c1k1r3s3p0", "is written 'conv2d/n1h4w4c1k1r3s3'"),
    ],
)
def test_what_is_no_name_is_refused(name, message):
    with pytest.raises(ValueError, match=message):
        cases.parse(name)


@pytest.mark.parametrize("name", ["conv2d/n1h2w2c1k1r3s3", "max_pool2d/n1h2w2c1r3"])
def test_a_window_that_exceeds_the_image_is_refused(name):
    with pytest.raises(ValueError, match="exceeds"):
        cases.parse(name).inputs()


def test_selection():
    assert [str(c) for c in cases.select(["gemm", "gemm/m256n256k256", "relu/n3c4"])] == [
        *cases.SUITES["gemm"],
        "relu/n3c4",
    ]
    assert {c.family.name for c in cases.select(["conv2d/*"])} == {"conv2d"}
    assert all(c.precision == "float32" for c in cases.select(["all"]))
    with pytest.raises(ValueError, match="'gemms' is neither a suite"):
        cases.select(["gemms"])
    with pytest.raises(ValueError, match="a pattern that fits one"):
        cases.select(["lstm/*"])


# ---------------------------------------------------------------------- work and inputs


@pytest.mark.parametrize(
    "name", ["conv2d/n2h7w6c3k4r3s2p1u2", "conv2d/n1h5w5c2k3r3s3", "conv2d/n1h4w4c1k1r1s1"]
)
def test_operations_of_a_convolution_are_those_on_pixels(name):
    case = cases.parse(name)
    x, w, y = case.family.shapes(case)
    count = 0
    for i in range(y[1]):
        for j in range(y[2]):
            rows = [i * case["u"] - case["p"] + r for r in range(w[0])]
            cols = [j * case["u"] - case["p"] + s for s in range(w[1])]
            count += sum(0 <= a < x[1] and 0 <= b < x[2] for a in rows for b in cols)
    assert case.work("forward").flops == 2 * count * x[0] * x[3] * w[3]


def test_operations_of_the_tutorial_network():
    assert cases.parse("inference/tutorial-n1").work("forward").flops == 9_097_216
    assert cases.parse("train_step/tutorial-n2").work("step").flops == 2 * 25_736_448


def test_inputs_are_the_same_everywhere_and_for_all_precisions():
    first, second, other = (cases.parse(f"gemm/m4n5k{k}").inputs()["a"] for k in ("6", "6:tf32", "7"))
    assert first.tobytes() == second.tobytes()
    assert first.ravel()[0] != other.ravel()[0]


# ---------------------------------------------------------------------- checks

SMALL = [
    "gemm/m5n4k3-nt",
    "conv2d/n2h6w5c3k4r3s3p1",
    "conv2d_max_pool2d/n2h7w6c3k4r3s2q2",
    "max_pool2d/n1h6w7c2r3u2",
    "avg_pool2d/n1h6w6c2r2",
    "relu/n3c5",
    "sigmoid/n3c5",
    "tanh/n3c5",
    "softmax/n3c5",
    "rescale/n2h3w4c3",
    "softmax_cross_entropy/n3c5",
    "batch_norm/n2h3w3c4",
    "adam_step/tutorial",
    "inference/tutorial-n1",
    "train_step/tutorial-n2",
]


def test_every_family_is_tested():
    assert {name.split("/")[0] for name in SMALL} == set(cases.FAMILIES)


@pytest.mark.parametrize("name", SMALL)
def test_fastnn_passes_and_a_spoiled_result_does_not(name, tmp_path):
    case = cases.parse(name)
    for which in case.passes:
        expected = case.expected(which, case.inputs())
        prepared = own.Fastnn().prepare(case, which, case.inputs())
        results = [
            np.array(r) for _ in range(case.family.checked_calls) for r in prepared.results(prepared.call())
        ]
        assert 0 <= timing.largest_error(results, expected) <= 1
        path = timing.expected_file(tmp_path)
        timing.save_expected(expected, path)
        assert (
            timing.largest_error(results, timing.load_expected(path)) <= 1.001
        )  # bounds are kept in float32
        for number, result in enumerate(results):
            for spoil in (0.01 * (np.abs(result).max() + 1), np.nan):
                spoiled = [r.copy() for r in results]
                spoiled[number].reshape(-1)[-1] += spoil
                with pytest.raises(timing.Wrong, match=rf"result {number}: 1 of {result.size} elements"):
                    timing.largest_error(spoiled, expected)
        with pytest.raises(timing.Wrong, match="has shape"):
            timing.largest_error([r[None] for r in results], expected)
        with pytest.raises(timing.Wrong, match="the reference has"):
            timing.largest_error([*results, results[0]], expected)


def test_a_missing_term_of_a_long_sum_shows():
    case = cases.parse("gemm/m4n4k4096")
    inputs = case.inputs()
    a, b = inputs["a"], inputs["b"]
    with pytest.raises(timing.Wrong):
        timing.largest_error([a[:, 1:] @ b[1:]], case.expected("forward", inputs))


# ---------------------------------------------------------------------- statistics and verdicts


def test_spread():
    assert timing.spread([5, 1, 2, 3, 4]) == pytest.approx({"median": 3, "p20": 1.8, "p80": 4.2})


@pytest.mark.parametrize(
    ("low", "high", "word"),
    [
        (1.2, 1.5, "faster"),
        (1.01, 1.5, "faster"),
        (0.5, 0.9, "slower"),
        (0.99, 1.02, "same"),
        (0.9, 1.1, "undecided"),
        (1.0, 1.1, "undecided"),
    ],
)
def test_verdict(low, high, word):
    assert timing.verdict({"median": (low + high) / 2, "p20": low, "p80": high}) == word


PEAK = {"gflops": 100.0, "bandwidth": [[1024, 50.0], [2**20, 20.0]]}


def test_ceiling_is_the_slower_of_arithmetic_and_memory():
    assert timing.ceiling(family.Work(1e9, 1000), PEAK) == pytest.approx(0.01)
    assert timing.ceiling(family.Work(0, 1000), PEAK) == pytest.approx(1000 / 50e9)
    assert timing.ceiling(family.Work(0, 2**20), PEAK) == pytest.approx(2**20 / 50e9)
    assert timing.ceiling(family.Work(0, 2**30), PEAK) == pytest.approx(2**30 / 20e9)
    assert timing.ceiling(family.Work(1, 1), None) is None


class Scripted:
    """A contender with given times."""

    def __init__(self, name, times, log=None, told=None):
        self.name, self.times, self.log = name, list(times), [] if log is None else log
        self.told, self.cpu_seconds = told or {"error": 0.5, "seconds": 0.01}, 0.0

    def prepare(self, case, which, expected):
        assert timing.load_expected(expected)
        return self.told

    def run(self, calls):
        self.log.append((self.name, calls))
        return self.times.pop(0)


def entry(ours, theirs, name="gemm/m8n8k8"):
    case = cases.parse(name)
    found = {
        "fastnn": {"error": 0, "calls": 1, "rounds": ours, "disturbed": 0.0},
        "other": {"error": 0, "calls": 1, "rounds": theirs, "disturbed": 0.5},
    }
    return timing.summarise(case, case.passes[0], found, PEAK)


def test_contenders_take_turns(tmp_path):
    log = []
    there = [Scripted("fastnn", [1, 2, 3], log), Scripted("other", [2, 4, 6], log)]
    absent = Scripted("absent", [], log, {"skipped": "wrong: result 0"})
    case = cases.parse("train_step/tutorial-n1")
    found = timing.measure(
        case, "step", [*there, absent], timing.expected_file(tmp_path), rounds=3, window=0.1
    )
    assert [sorted(log[i : i + 2]) for i in (0, 2, 4)] == [[("fastnn", 10), ("other", 10)]] * 3
    summary = timing.summarise(case, "step", found, PEAK)
    assert summary["contenders"]["absent"] == {"skipped": "wrong: result 0"}
    other = summary["contenders"]["other"]
    assert other["ratio"] == {
        "median": 2,
        "p20": 2,
        "p80": 2,
        "verdict": "faster",
    }  # within a round, whatever drifts
    assert other["images_per_s"] == 1 / 4
    assert other["gflops"] == pytest.approx(25_736_448 / 4 / 1e9)
    assert other["ceiling_percent"] == pytest.approx(25_736_448 / 100e9 / 4 * 100)
    assert "wrong: result 0" in report.text(summary)


def test_a_turn_has_at_least_as_many_calls_as_the_family_asks_for(tmp_path):
    slow = Scripted("fastnn", [1], told={"error": 0, "seconds": 10})
    timing.measure(
        cases.parse("train_step/tutorial-n1"),
        "step",
        [slow],
        timing.expected_file(tmp_path),
        rounds=1,
        window=0.1,
    )
    assert slow.log == [("fastnn", 4)]


def test_what_else_was_running_shows(tmp_path, monkeypatch):
    class Sleeping(Scripted):
        def run(self, calls):
            time.sleep(0.1)
            self.cpu_seconds = 0.1
            return super().run(calls)

    busy = iter([5.0, 5.15, 6.0, 6.15])
    monkeypatch.setattr(timing, "busy_seconds", lambda: next(busy))
    case, path = cases.parse("relu/n2c2"), timing.expected_file(tmp_path)
    contender = Sleeping("other", [1, 1])
    found = timing.measure(case, "forward", [contender], path, rounds=2, window=0.1)
    assert 0.2 < found["other"]["disturbed"] <= 0.5
    monkeypatch.setattr(timing, "busy_seconds", lambda: None)
    contender.times = [1, 1]
    assert timing.measure(case, "forward", [contender], path, rounds=2, window=0.1)["other"]["disturbed"] == 0


def test_busy_seconds_count_up():
    first = timing.busy_seconds()
    if first is None:
        pytest.skip("this system does not tell how busy it is")
    assert first > 0
    end = time.process_time() + 0.05
    while time.process_time() < end:
        pass
    assert timing.busy_seconds() > first


def test_threads_that_spin_show():
    spun = []

    class Spinning(timing.Local):
        def rest(self):
            super().rest()
            begin = time.process_time()
            sum(i * i for i in range(200_000))  # between two turns
            spun.append(time.process_time() - begin)

    contender = Spinning("other", own.Fastnn())
    contender.rest()
    contender.enter()
    assert contender.idle_seconds > 0
    assert contender.idle_cpu_seconds >= spun[0] > 0


def test_a_turn_waits_for_threads_that_spin():
    """NumPy's OpenBLAS has its threads look for work some 130 ms after a product."""
    contender = timing.Local("numpy", None)
    a = np.ones((512, 512), np.float32)
    for _ in range(20):
        a @ a
    contender.rest()
    begin = time.process_time()
    time.sleep(0.1)
    assert time.process_time() - begin < 0.05


# ---------------------------------------------------------------------- files


def results(*entries):
    settings = {"date": "2024-01-01", "device": "cpu", "threads": 2, "rounds": 5, "seconds of a turn": 0.1}
    return report.content("made up", settings, {"fastnn": {"fastnn": "0"}}, PEAK, entries)


def test_files_of_results(tmp_path):
    content = results(entry([1.0] * 5, [2.0] * 5))
    report.save(content, tmp_path / "r.json")
    assert report.load(tmp_path / "r.json") == content
    assert not list(tmp_path.glob("*.tmp"))
    text = report.markdown(content)
    assert "| gemm/m8n8k8 | forward | other | 2 s | 2 s .. 2 s |" in text
    assert "2.00x [2.00, 2.00] faster (disturbed: 0.5 processors were busy with something else)" in text
    assert "1 passes; fastnn against other: 1 faster." in text
    (tmp_path / "x.json").write_text("[1")
    with pytest.raises(ValueError, match="is not JSON"):
        report.load(tmp_path / "x.json")
    (tmp_path / "y.json").write_text('{"schema": 99}')
    with pytest.raises(ValueError, match="holds no results"):
        report.load(tmp_path / "y.json")


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (4567, "4567 s"),
        (2.345, "2.35 s"),
        (0.0123, "12.3 ms"),
        (0.0009996, "1 ms"),
        (0.00051, "510 us"),
        (4.2e-6, "4.2 us"),
        (1e-8, "0.01 us"),
    ],
)
def test_durations(seconds, shown):
    assert report.duration(seconds) == shown


def test_the_machine_is_told_without_its_name():
    told = json.dumps(report.machine())
    assert report.machine()["cores"] >= 1
    assert platform.node() not in told


def test_compare(bench, tmp_path, capsys):
    compare = bench("compare")
    steady, noisy = [1.0, 1.0, 1.0, 1.01, 1.01], [0.8, 0.9, 1.0, 1.1, 1.2]
    half = [x / 2 for x in steady]
    assert compare.judge(steady, half) == ("faster", 2.0)
    assert compare.judge(half, steady) == ("slower", 0.5)
    assert compare.judge(steady, steady) == ("same", 1.0)
    assert compare.judge(noisy, noisy) == ("undecided", 1.0)
    assert compare.judge(noisy, [x * 1.1 for x in noisy])[0] == "undecided"
    assert compare.judge([1.0] * 2, [0.5] * 2)[0] == "undecided"  # too few rounds to say
    old = results(entry(steady, steady), entry(steady, steady, "gemm/m9n9k9"))
    new = results(entry(steady, half), entry(steady, steady, "gemm/m7n7k7"))
    report.save(old, tmp_path / "old.json")
    report.save({**new, "settings": {**new["settings"], "threads": 1}}, tmp_path / "new.json")
    files = [str(tmp_path / "old.json"), str(tmp_path / "new.json")]
    assert compare.main(files) == 0
    shown = capsys.readouterr().out
    assert "the runs differ in settings threads: 2 and 1" in shown
    assert "0 faster, 0 slower, 1 same, 0 undecided" in shown
    assert "only in the old" in shown
    assert "only in the new" in shown
    assert (
        compare.main([*files, "--against", "other"]) == 1
    )  # the other one doubled its speed, fastnn did not
    assert "1 slower" in capsys.readouterr().out
    assert compare.main([files[0], str(tmp_path / "none.json")]) == 2


def test_roofline(bench, tmp_path):
    roofline = bench("roofline")
    roofline.draw(results(entry([1.0] * 5, [2.0] * 5)), tmp_path / "r.png")
    assert (tmp_path / "r.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(ValueError, match="no ceilings"):
        roofline.draw({**results(), "peak": None}, tmp_path / "x.png")


# ---------------------------------------------------------------------- contenders


def test_names_of_contenders(bench):
    peers = bench("peers")
    assert peers.split("torch-channels-last-fused-tuned") == ("torch", {"channels-last", "fused", "tuned"})
    for names in peers.DEFAULT.values():
        assert all(peers.split(name) for name in names)
    for name in ("caffe", "torch-slow", "jax-fused"):
        with pytest.raises(ValueError, match=name):
            peers.split(name)
    assert [peers.threads_of(name, 2) for name in ("jax", "jax-one-thread")] == [2, 1]
    assert peers.wanted("torch", "conv2d")
    assert not peers.wanted("torch-compile", "conv2d")
    assert not peers.wanted("torch-channels-last", "gemm")
    assert not peers.wanted("keras", "gemm")
    assert not peers.wanted("numpy", "conv2d")
    assert peers.wanted("torch-channels-last-fused", "train_step")


def test_environment_of_contenders(bench):
    peers = bench("peers")
    assert peers.environment("numpy", 2)["OPENBLAS_CORETYPE"] is None
    assert peers.environment("torch", 3)["OMP_NUM_THREADS"] == "3"
    assert "MALLOC_TOP_PAD_" not in peers.environment("torch-fused", 1)
    assert "MALLOC_TOP_PAD_" in peers.environment("torch-tuned", 1)


def test_a_whole_run(bench, tmp_path):
    """fastnn and NumPy in processes of their own, and a library that is not there."""
    command = [
        sys.executable,
        str(BENCH / "run.py"),
        *("gemm/m32n16k8", "max_pool2d/n1h4w4c2r2"),
        *("--contenders", "fastnn,caffe", "--rounds", "3", "--window", "0.001"),
        *("--out", str(tmp_path), "--threads", "1", "--lock", str(tmp_path / "lock")),
    ]
    wrong = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert wrong.returncode == 2
    assert "caffe" in wrong.stderr
    command[command.index("fastnn,caffe")] = "fastnn,fastnn-one-thread,numpy,jax"
    command[command.index("--threads") + 1] = "2"
    command += ["--python", f"jax={tmp_path / 'no-such-python'}"]
    env = {**os.environ, "CXX": str(tmp_path / "no-compiler")}
    ran = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False, env=env)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "ceilings: not measured" in ran.stdout
    assert "jax: skipped: " in ran.stdout
    content = report.load(tmp_path / "results.json")
    assert [(e["case"], e["pass"], list(e["contenders"])) for e in content["results"]] == [
        ("gemm/m32n16k8", "forward", ["fastnn", "fastnn-one-thread", "numpy"]),
        ("max_pool2d/n1h4w4c2r2", "forward", ["fastnn", "fastnn-one-thread"]),
        ("max_pool2d/n1h4w4c2r2", "backward", ["fastnn", "fastnn-one-thread"]),
    ]
    assert set(content) == {"schema", "title", "machine", "settings", "contenders", "peak", "results"}
    product = content["results"][0]["contenders"]
    assert set(product["fastnn"]) == {"error", "calls", "rounds", "disturbed", "seconds", "gbps", "gflops"}
    assert set(product["numpy"]["ratio"]) == {"median", "p20", "p80", "verdict"}
    assert all(len(figures["rounds"]) == 3 for figures in product.values())
    assert content["contenders"]["fastnn"]["threads"] == "2"
    assert content["contenders"]["fastnn-one-thread"]["threads"] == "1"
    assert "numpy" in content["contenders"]["numpy"]
    assert "| gemm/m32n16k8 | forward | fastnn |" in (tmp_path / "results.md").read_text()


def test_a_wrong_result_is_told_and_not_timed(monkeypatch, tmp_path):
    class Broken(own.Fastnn):
        def relu(self, case, which, i):
            return lambda: i["x"]

    case = cases.parse("relu/n3c5")
    contender = timing.Local("fastnn", Broken())
    found = timing.measure(
        case, "forward", [contender], timing.expected_file(tmp_path), rounds=2, window=0.001
    )
    assert found["fastnn"]["skipped"].startswith("wrong: result 0: ")
    monkeypatch.setattr(own, "Fastnn", lambda *_: Broken())
    assert cli.main(["bench", "relu/n3c5"]) == 1


def test_command(capsys, tmp_path):
    assert cli.main(["bench", "--list"]) == 0
    shown = capsys.readouterr().out
    assert "conv2d/n32h15w15c32k64r3s3 forward backward_x backward_w\n" in shown
    assert f"suites: {', '.join(cases.SUITES)}\n" in shown
    file = tmp_path / "f" / "r.json"
    arguments = [
        "bench",
        "gemm/m4n4k4",
        "relu/n4c4",
        "--rounds",
        "2",
        "--window",
        "0.0001",
        "--out",
        str(file),
    ]
    assert cli.main(arguments) == 0
    assert "gemm/m4n4k4 forward\n  fastnn " in capsys.readouterr().out
    assert [e["pass"] for e in report.load(file)["results"]] == ["forward", "forward", "backward"]
    assert cli.main(["bench", "gems"]) == 1
    assert "fastnn: error: 'gems' is neither a suite" in capsys.readouterr().err


# ---------------------------------------------------------------------- a GPU's side, on a double of CuPy


class Event:
    """An event on a clock that each flush and call moves on."""

    clock = 0.0

    def record(self):
        self.at = Event.clock

    def synchronize(self):
        pass


def test_event_clock_counts_calls_and_not_flushes():
    def move(ms):
        Event.clock += ms

    clock = timing.event_clock(Event, lambda a, b: b.at - a.at, lambda: move(100))
    assert clock(lambda: move(2), 5) == pytest.approx(2e-3)


def test_step_clock_waits_for_the_last_call():
    waited, made = [], iter(range(100))
    assert timing.step_clock(waited.append)(lambda: next(made), 3) > 0
    assert waited == [0, 3]


@pytest.mark.parametrize(
    "name", ["gemm/m5n4k3:tf32", "conv2d/n2h6w5c3k4r3s3:bfloat16", "train_step/tutorial-n1"]
)
def test_fastnn_on_a_gpu(cuda, monkeypatch, tmp_path, name):
    monkeypatch.setattr(fake_cupy.cuda, "Event", Event, raising=False)
    monkeypatch.setattr(fake_cupy.cuda, "get_elapsed_time", lambda begin, end: 0.5, raising=False)
    monkeypatch.setattr(fake_cupy.ndarray, "fill", lambda self, value: None, raising=False)
    monkeypatch.setattr(own, "FLUSH_BYTES", 64)
    monkeypatch.setattr(own, "FIT_STEPS", 6)  # of batches that are 4: 8 steps
    monkeypatch.setattr(own, "FIT_EPOCHS", 2)
    monkeypatch.setattr(timing, "WARM_SECONDS", 0)
    monkeypatch.setattr(timing, "WARM_CALLS", 1)
    monkeypatch.setattr(networks, "BATCHES", 4)
    case = cases.parse(name)
    for which in case.passes:
        found = timing.measure(
            case,
            which,
            [timing.Local("fastnn", own.Fastnn("cuda"))],
            timing.expected_file(tmp_path),
            rounds=1,
            window=1e-9,
        )
        assert "rounds" in found["fastnn"], found
        if not case.family.whole:
            assert found["fastnn"]["rounds"] == [0.5e-3]


def test_lower_precision_is_not_for_the_cpu():
    case = cases.parse("gemm/m4n4k4:tf32")
    with pytest.raises(timing.Unsupported, match="GPU"):
        own.Fastnn().prepare(case, "forward", case.inputs())
