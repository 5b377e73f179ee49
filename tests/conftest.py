"""The backend fixture, and outputs that show what a kernel did not write or wrote outside."""

from __future__ import annotations

import functools
import signal
import types
from contextlib import contextmanager

import fake_cupy
import numpy as np
import pytest
from fastnn import _backend, ops
from hypothesis import HealthCheck, settings

settings.register_profile(
    "fastnn",
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
settings.load_profile("fastnn")

# A shell starts what it runs in the background without Ctrl-C, which the tests send to themselves and their children.
signal.signal(signal.SIGINT, signal.default_int_handler)

# A further backend joins here and every op test runs on it. Where there is no GPU, tests/test_cuda.py has the one test that
# is skipped for it, with the reason, or fails with FASTNN_REQUIRE_CUDA=1.
BACKENDS = ["cpu", "cuda_host"] if _backend.cuda_state() else ["cpu", "cuda_host", "cuda"]
THREAD_COUNTS = (1, 2, 3, 7)


class PoisonedNumpy(types.SimpleNamespace):
    """numpy as ops.py uses it, but `empty` gives memory full of NaN (or 0x7f bytes) between two canaries.

    By turns it begins at a multiple of 16 bytes, where kernels may use vectors, and one element behind.
    """

    ndarray = np.ndarray
    ascontiguousarray = staticmethod(np.ascontiguousarray)
    GUARD = 24  # elements: whole vectors of 16 bytes

    def __init__(self):
        super().__init__(guarded=[])

    def empty(self, shape, dtype):
        dtype = np.dtype(dtype)
        size = int(np.prod(shape))
        start = self.GUARD + len(self.guarded) % 2
        memory = np.empty(start + size + self.GUARD, dtype)
        memory.view(np.uint8).fill(0x7F)
        body = memory[start : start + size]
        if dtype.kind == "f":
            body.fill(np.nan)
        self.guarded.append((memory, start, size))
        return body.reshape(shape)

    def check(self):
        for memory, start, size in self.guarded:
            for name, guard in (("before", memory[:start]), ("behind", memory[start + size :])):
                assert (guard.view(np.uint8) == 0x7F).all(), (
                    f"a kernel wrote {name} an array of {size} elements"
                )
        self.guarded.clear()


def on_gpu(op, xp):
    """The op on the GPU for arguments in host memory: they go there, and back come results and what was written in place."""

    @functools.wraps(op)
    def call(*args, **options):
        there = {}  # a host array's id -> it, and its copy on the GPU

        def bring(value):
            if isinstance(value, np.ndarray):
                return there.setdefault(id(value), (value, xp.asarray(value)))[1]
            if isinstance(value, (list, tuple)):
                return type(value)(map(bring, value))
            return value

        def fetch(value):
            if isinstance(value, tuple):
                return tuple(map(fetch, value))
            if not isinstance(value, xp.ndarray):
                return value
            return next((host for host, copy in there.values() if copy is value), value.get())

        result = op(*bring(args), **{key: bring(value) for key, value in options.items()})
        for host, copy in there.values():
            if host.flags.writeable:
                host[...] = copy.get()
        return fetch(result)

    return call


class Device:
    """What a test needs to know of a backend: how to bring an array there and back."""

    def __init__(self, name):
        self.name = name
        self.precisions = ["float32"] if name == "cpu" else ["float32", "tf32", "bfloat16"]

    def array(self, x):
        return x

    def numpy(self, y):
        return y


@pytest.fixture(params=BACKENDS)
def backend(request, monkeypatch):
    """A backend to run ops on. What ops allocate in host memory is poisoned before and checked after."""
    if request.param == "cuda":
        xp = _backend.module("cuda")
        for name, op in list(vars(ops).items()):
            if isinstance(op, types.FunctionType) and op.__module__ == ops.__name__ and name[0] != "_":
                monkeypatch.setattr(ops, name, on_gpu(op, xp))
        yield Device("cuda")
        return
    poisoned = PoisonedNumpy()
    real = _backend._host(request.param)
    monkeypatch.setattr(_backend, "_host_name", request.param)
    monkeypatch.setattr(_backend, "_host", lambda name: real._replace(xp=poisoned))
    yield Device(request.param)
    poisoned.check()


@pytest.fixture
def on_host(monkeypatch):
    """A context in which NumPy arrays are computed by the native module of the given name."""

    @contextmanager
    def on(name):
        with monkeypatch.context() as patch:
            patch.setattr(_backend, "_host_name", name)
            yield

    return on


@pytest.fixture
def cuda(monkeypatch):
    """Device "cuda" as a machine without a GPU can have it: a double of CuPy, and the kernels' host execution."""
    native = fake_cupy.Native(_backend._native("cuda_host"))
    monkeypatch.setattr(_backend, "_cuda_parts", lambda: (native, fake_cupy))
    return _backend._cuda()


@pytest.fixture
def launches(cuda, monkeypatch):
    """One entry for each launch of a graph."""
    made, launch = [], fake_cupy.Graph.launch
    monkeypatch.setattr(fake_cupy.Graph, "launch", lambda graph: (made.append(graph), launch(graph))[1])
    return made


@pytest.fixture
def no_cuda(monkeypatch):
    """A machine that cannot compute on a GPU, and the reason it gives."""
    reason = "something is missing"
    monkeypatch.setattr(_backend, "cuda_state", lambda: reason)
    _backend._cuda_parts.cache_clear()
    return reason


@pytest.fixture
def rng():
    return np.random.default_rng(20240601)


@pytest.fixture
def host_only(backend):
    """For tests of host threads, or of layouts in memory, which do not survive the way to a GPU and back."""
    if backend.name == "cuda":
        pytest.skip("is about the host: threads, or layouts that copies to a GPU do not keep")


@pytest.fixture
def each_schedule(backend):
    """Calls a function under every schedule of the backend's work and returns the results; all is put back after.

    On the CPU a schedule is a number of threads; where CUDA threads are fibers, the random order they run in as well.
    """
    if backend.name == "cuda":  # a GPU has its own, each time another
        yield lambda f: [f() for _ in THREAD_COUNTS]
        return
    native = _backend._native(backend.name)
    before = native.get_num_threads()
    set_order = getattr(native, "set_order_seed", lambda seed: None)

    def run(f):
        results = []
        for seed, count in enumerate(THREAD_COUNTS, start=1):
            native.set_num_threads(count)
            set_order(seed)
            results.append(f())
        return results

    yield run
    native.set_num_threads(before)
    set_order(1)
