"""What a process around the kernels may do: threads, forks, instruction sets, arrays beyond 2**31 elements."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import fastnn
import numpy as np
import pytest
from fastnn import _backend, _cgroups, ops
from support import assert_identical, assert_same_bits, floats


def run_python(code, **environment):
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_many_threads_calling_at_once(rng):
    x, w, dy = floats(rng, (4, 17, 17, 5)), floats(rng, (3, 3, 5, 20)), floats(rng, (4, 15, 15, 20))

    def call(_):
        return ops.conv2d(x, w), ops.conv2d_backward_x(dy, w, x.shape), ops.conv2d_backward_w(dy, x, w.shape)

    expected = call(0)
    with ThreadPoolExecutor(8) as threads:
        for results in threads.map(call, range(200)):
            for actual, wanted in zip(results, expected, strict=True):
                assert_same_bits(actual, wanted)


def test_changing_the_thread_count_while_kernels_run(rng):
    x, w = floats(rng, (8, 17, 17, 5)), floats(rng, (3, 3, 5, 20))
    expected = ops.conv2d(x, w)
    before = fastnn.get_num_threads()

    def call(i):
        if i % 4 == 0:
            fastnn.set_num_threads(1 + i % 5)
        return ops.conv2d(x, w)

    with ThreadPoolExecutor(4) as threads:
        for actual in threads.map(call, range(100)):
            assert_same_bits(actual, expected)
    fastnn.set_num_threads(before)


def test_the_number_of_threads(host_only, each_schedule):
    assert each_schedule(fastnn.get_num_threads) == [1, 2, 3, 7]
    for bad, error in [
        (0, ValueError),
        (-1, ValueError),
        (1025, ValueError),
        (10**30, ValueError),
        (1.5, TypeError),
        ("2", TypeError),
        (True, TypeError),
    ]:
        with pytest.raises(error, match="count must be"):
            fastnn.set_num_threads(bad)


def test_the_gil_is_released_in_a_kernel(rng):
    """Another thread runs Python code while one long call is under way."""
    a = floats(rng, (900, 900))
    done = threading.Event()
    turns = []

    def count():
        while not done.is_set():
            turns.append(done.wait(1e-4))

    thread = threading.Thread(target=count)
    before = fastnn.get_num_threads()
    fastnn.set_num_threads(1)
    thread.start()
    ops.gemm(a, a)  # warm
    start = len(turns)
    ops.gemm(a, a)
    during = len(turns) - start
    done.set()
    thread.join()
    fastnn.set_num_threads(before)
    assert during >= 2


@pytest.mark.parametrize(
    ("groups", "files", "limit"),
    [
        # In a container, which sees its own group as the uppermost.
        ("0::/\n", {"cpu.max": "150000 100000\n"}, 1.5),
        ("0::/\n", {"cpu.max": "max 100000\n"}, None),
        ("0::/user/job\n", {"user/job/cpu.max": "max 100000\n", "user/cpu.max": "400000 100000\n"}, 4),
        ("0::/user/job\n", {"user/job/cpu.max": "50000 100000\n", "user/cpu.max": "400000 100000\n"}, 0.5),
        ("0::/gone\n", {}, None),
        (
            "5:memory:/job\n4:cpu,cpuacct:/job\n0::/\n",
            {"cpu,cpuacct/job/cpu.cfs_quota_us": "300000\n", "cpu,cpuacct/job/cpu.cfs_period_us": "100000\n"},
            3,
        ),
        ("4:cpu:/\n", {"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, None),
        ("4:cpuset:/\n3:cpuacct:/\n1:name=systemd:/\n", {}, None),
        (None, {}, None),  # another system
    ],
)
def test_limits_of_control_groups(tmp_path, groups, files, limit):
    contents = {f"sys/fs/cgroup/{name}": text for name, text in files.items()}
    if groups is not None:
        contents["proc/self/cgroup"] = groups
    for name, text in contents.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert _cgroups.cpu_limit(str(tmp_path)) == limit


@pytest.mark.parametrize(("limit", "threads"), [(0.5, 1), (1.5, 2), (1000.0, None), (None, None)])
def test_as_many_threads_as_there_are_processors_to_use(limit, threads):
    code = (
        "import fastnn; from fastnn import _cgroups\n"
        f"_cgroups.cpu_limit = lambda: {limit}\n"
        "print(fastnn.get_num_threads())"
    )
    allowed = len(os.sched_getaffinity(0))
    result = run_python(code)
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) == min(threads or allowed, allowed)


def test_threads_sleep_while_there_is_nothing_to_do(rng):
    """They look for the next kernel for 0.2 ms only."""
    x = floats(rng, (1000, 1000))
    before = fastnn.get_num_threads()
    fastnn.set_num_threads(3)
    ops.relu(x)
    time.sleep(0.02)
    begin = time.process_time()
    time.sleep(0.2)
    fastnn.set_num_threads(before)
    assert time.process_time() - begin < 0.05


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes():
    code = """
import os, sys, warnings
warnings.simplefilter("ignore", DeprecationWarning)
import numpy as np, fastnn
from fastnn import ops
fastnn.set_num_threads(3)
x = np.random.default_rng(0).standard_normal((8, 20, 20, 3)).astype(np.float32)
w = np.random.default_rng(1).standard_normal((3, 3, 3, 16)).astype(np.float32)
expected = ops.conv2d(x, w).tobytes()
for _ in range(5):
    child = os.fork()
    if child == 0:
        same = fastnn.get_num_threads() == 3 and all(ops.conv2d(x, w).tobytes() == expected for _ in range(20))
        os._exit(0 if same else 1)
    if os.waitpid(child, 0)[1] != 0:
        sys.exit("the child failed")
    assert ops.conv2d(x, w).tobytes() == expected
print("fine")
"""
    result = run_python(code)
    assert result.stdout == "fine\n", result.stderr


CHECK_ISA = """
import numpy as np
from fastnn import _backend, ops, reference
rng = np.random.default_rng(0)
make = lambda *shape: rng.integers(-4, 5, shape).astype(dtype)
same = np.testing.assert_array_equal
for dtype in (np.float32, np.float64):
    for c, k, options in [(3, 32, {}), (5, 33, {"padding": "same", "stride": 2}), (17, 7, {"dilation": 2})]:
        x, w, b = make(2, 9, 8, c), make(3, 3, c, k), make(k)
        y = ops.conv2d(x, w, b, relu=True, **options)
        same(y, reference.conv2d(x, w, b, relu=True, **options))
        dy = make(*y.shape)
        same(ops.conv2d_backward_x(dy, w, x.shape, **options), reference.conv2d_backward_x(dy, w, x.shape, **options))
        same(ops.conv2d_backward_w(dy, x, w.shape, **options), reference.conv2d_backward_w(dy, x, w.shape, **options))
        same(ops.bias_backward(dy), reference.bias_backward(dy))
    for transpose_a in (False, True):
        for transpose_b in (False, True):
            a, b = make(*((19, 29) if transpose_a else (29, 19))), make(*((37, 19) if transpose_b else (19, 37)))
            same(ops.gemm(a, b, transpose_a=transpose_a, transpose_b=transpose_b),
                 reference.gemm(a, b, transpose_a=transpose_a, transpose_b=transpose_b))
    x = make(2, 9, 7, 19)
    y, argmax = ops.max_pool2d(x, 3, 2, 1)
    same(argmax, reference.max_pool2d(x, 3, 2, 1)[1])
    same(ops.max_pool2d_backward(y, argmax, x.shape, 3, 2, 1), reference.max_pool2d_backward(y, argmax, x.shape, 3, 2, 1))
    same(ops.relu(x), reference.relu(x))
    x = rng.standard_normal((20, 11)).astype(dtype)
    np.testing.assert_allclose(ops.softmax(x), reference.softmax(x), rtol=1e-5)
    np.testing.assert_allclose(ops.tanh(x), reference.tanh(x), rtol=1e-5)
print(_backend.instruction_set()[0])
"""


@pytest.mark.parametrize("isa", _backend.instruction_set()[1])
def test_every_instruction_set_of_this_machine(isa):
    result = run_python(CHECK_ISA, FASTNN_ISA=isa)
    assert result.stdout == isa + "\n", result.stderr


def test_an_instruction_set_that_is_not_there():
    result = run_python("import fastnn; fastnn.get_num_threads()", FASTNN_ISA="mmx")
    assert result.returncode == 1
    assert "FASTNN_ISA=mmx is not among the instruction sets" in result.stderr
    assert "baseline" in result.stderr


def test_import_is_light():
    """Importing fastnn brings in NumPy and nothing else that is large."""
    heavy = ["matplotlib", "sklearn", "tqdm", "pooch", "safetensors", "PIL", "scipy", "cupy", "torch"]
    result = run_python(f"import fastnn, sys; print([m for m in {heavy} if m in sys.modules])")
    assert result.stdout == "[]\n", result.stderr


# ---- Arrays of more than 2**31 elements. Zeros that no one writes take no memory, so that a forward which touches few of
# them costs nothing; a gradient of that size is written in full and runs only when asked for.

STEP = 2**16
WIDTH = 2**14 * STEP + 2  # two rows of them are 2**31 + 4 pixels


@pytest.fixture
def big_image():
    """(1, 2, WIDTH, 1), all zero but the last pixel, in memory that is not there until it is touched."""
    try:
        x = np.zeros((1, 2, WIDTH, 1), np.float32)
    except MemoryError:
        pytest.skip("the system does not promise 9 GB of untouched memory")
    x[0, 1, -1] = 7
    return x


def test_forward_beyond_2_to_the_31(big_image):
    w = np.ones((2, 2, 1, 1), np.float32)
    y, argmax = ops.max_pool2d(big_image, 2, (1, STEP))
    convolved = ops.conv2d(big_image, w, stride=(1, STEP))
    mean = ops.avg_pool2d(big_image, 2, (1, STEP))
    assert y.shape == convolved.shape == mean.shape == (1, 1, 2**14 + 1, 1)
    assert (y[0, 0, -1, 0], argmax[0, 0, -1, 0], convolved[0, 0, -1, 0], mean[0, 0, -1, 0]) == (7, 3, 7, 1.75)
    assert y.sum() == convolved.sum() == 7
    dw = ops.conv2d_backward_w(np.ones_like(y), big_image, w.shape, stride=(1, STEP))
    assert_identical(dw[:, :, 0, 0], [[0, 0], [0, 7]])


@pytest.mark.skipif(
    os.environ.get("FASTNN_LARGE_TESTS") != "1", reason="writes 9 GB: set FASTNN_LARGE_TESTS=1 to run it"
)
@pytest.mark.parametrize("op", ["conv2d_backward_x", "max_pool2d_backward", "avg_pool2d_backward"])
def test_backward_beyond_2_to_the_31(op):
    # Two large images, not a wide one: backward keeps a number or two for each row and column.
    shape, stride, dy = (2, 2**15 + 2, 2**15 + 2, 1), 2**14, np.zeros((2, 3, 3, 1), np.float32)
    assert np.prod(shape) > 2**31
    dy[-1, -1, -1] = 4
    if op == "conv2d_backward_x":
        dx, last = ops.conv2d_backward_x(dy, np.ones((2, 2, 1, 1), np.float32), shape, stride=stride), 4
    elif op == "max_pool2d_backward":
        dx, last = ops.max_pool2d_backward(dy, np.full(dy.shape, 3, np.int32), shape, 2, stride), 4
    else:
        dx, last = ops.avg_pool2d_backward(dy, shape, 2, stride), 1
    assert dx[-1, -1, -1, 0] == last
    assert np.count_nonzero(dx) == (1 if op == "max_pool2d_backward" else 4)
