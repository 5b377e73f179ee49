"""array -> (native module, array module, stream): the only place that knows devices."""

from __future__ import annotations

import importlib
import math
import sys
import threading
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from functools import cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

from . import _cgroups

INSTALL_HINT = "reinstall with `pip install --force-reinstall --no-cache-dir fastnn-kernels`"


class Backend(NamedTuple):
    """Where an array's kernels are, who allocates its results, and the stream that orders the work."""

    name: str
    native: Any  # the native module; see _cpu.pyi
    xp: Any  # numpy or cupy
    stream: int  # 0 on the CPU


@cache
def _native(name: str) -> ModuleType:
    try:
        native = importlib.import_module(f"fastnn._{name}")
    except ImportError as error:
        raise ImportError(
            f"fastnn: the native module fastnn._{name} does not load ({error}); {INSTALL_HINT}"
        ) from error
    if name == "cpu" and (limit := _cgroups.cpu_limit()) is not None:
        # More threads would use up the time of a period, then all wait for the next one.
        native.set_num_threads(min(native.get_num_threads(), math.ceil(limit)))
    return native


@cache
def _host(name: str) -> Backend:
    # Fresh pages cost as much as the arithmetic of a small network, so the C library is to keep what is freed for the next
    # op. glibc raises its threshold for giving memory back to twice the largest block it has seen freed, of up to 32 MB
    # (mallopt(3), M_MMAP_THRESHOLD): it is shown one, never touched.
    np.empty(2**25 - 2**16, np.uint8)
    return Backend(name, _native(name), np, 0)


_host_name = "cpu"  # which module computes on NumPy arrays; tests put another one here


def host() -> Backend:
    """The backend of NumPy arrays."""
    return _recording.backend or _host(_host_name)


class _Recording(threading.local):
    backend: Backend | None = None  # in the place of the host's, while a Tape is recorded in this thread


_recording = _Recording()


def of(array: object, op: str, name: str) -> Backend:
    """The backend of an array, or a TypeError that says what was given instead of one."""
    array = adopt(array)
    if isinstance(array, np.ndarray):
        return host()
    if _is_cupys(array) or hasattr(array, "__cuda_array_interface__"):
        return _cuda()
    raise TypeError(f"{op}: {name} must be a NumPy or CuPy array, got {type(array).__name__}")


def adopt(array: Any) -> Any:
    """An array of another library, PyTorch or JAX say, as NumPy's or CuPy's over the same memory; others as they are.

    CuPy lets its current stream wait for the one that an exporter names, as both protocols ask for.
    """
    if isinstance(array, np.ndarray) or _is_cupys(array):
        return array
    device = int(array.__dlpack_device__()[0]) if hasattr(array, "__dlpack_device__") else None
    if hasattr(array, "__cuda_array_interface__") or device in _DLPACK_CUDA:
        xp = _cuda().xp
        if isinstance(array, xp.ndarray):
            return array
        return xp.asarray(array) if hasattr(array, "__cuda_array_interface__") else xp.from_dlpack(array)
    return np.from_dlpack(array) if device == _DLPACK_CPU else array


def _is_cupys(array: object) -> bool:
    # By its type, because both protocols cost microseconds. Where CuPy was never imported there are no arrays of it.
    return isinstance(array, getattr(sys.modules.get("cupy"), "ndarray", ()))


# Device types of DLPack (https://dmlc.github.io/dlpack/latest/c_api.html): the CPU; CUDA's own memory and its managed memory.
_DLPACK_CPU, _DLPACK_CUDA = 1, (2, 13)


def cuda_state() -> str:
    """Why this installation cannot compute on a GPU, in a sentence; empty where it can."""
    try:
        importlib.import_module("fastnn._cuda")
    except ModuleNotFoundError:
        return (
            "this installation of fastnn was built without CUDA kernels: install the CUDA toolkit, so that nvcc is on PATH, "
            f"and {INSTALL_HINT}"
        )
    except ImportError as error:
        return f"fastnn._cuda does not load ({error}): {INSTALL_HINT}"
    try:
        cupy = importlib.import_module("cupy")
    except ImportError as error:
        return f'CuPy does not load ({error}): pip install "fastnn-kernels[cuda]", which is CuPy for CUDA 13'
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:  # CuPy's own errors, one for each thing that can be missing
        return f"there is no NVIDIA driver or no GPU ({error})"
    return "" if count else "the NVIDIA driver sees no GPU"


@cache
def _cuda_parts() -> tuple[Any, Any]:
    if state := cuda_state():
        raise RuntimeError(f"device 'cuda' is not available: {state}")
    return importlib.import_module("fastnn._cuda"), importlib.import_module("cupy")


def _cuda() -> Backend:
    native, cupy = _cuda_parts()
    return Backend("cuda", native, cupy, cupy.cuda.get_current_stream().ptr)


def stream(device: str) -> int:
    """What orders the work that this thread gives to a device: CuPy's current stream, or 0 on the CPU."""
    return 0 if device == "cpu" else _cuda().stream


def check_device(device: str) -> None:
    """Raise ValueError for an unknown device, RuntimeError for one that cannot be had here."""
    if device == "cuda":
        _cuda_parts()
    elif device != "cpu":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")


_PRECISIONS = {"cpu": ("float32", "winograd"), "cuda": ("float32", "tf32", "bfloat16")}


def check_precision(precision: str, device: str) -> None:
    """Raise ValueError for a precision that products cannot have there; ops.gemm and ops.conv2d say what each is."""
    if precision not in _PRECISIONS[device]:
        known = ", ".join(map(repr, _PRECISIONS[device]))
        raise ValueError(f"precision on device {device!r} must be one of {known}, got {precision!r}")


def module(device: str) -> Any:
    """The array module of a device: NumPy for "cpu", CuPy for "cuda"."""
    if device == "cpu":
        return np
    check_device(device)
    return _cuda_parts()[1]


def to_host(array: Any) -> Any:
    """A NumPy array of anything; waits for a GPU's work on it."""
    if not isinstance(array, np.ndarray) and hasattr(array, "__cuda_array_interface__"):
        return array.get()
    return np.asarray(array)


class Graph:
    """The GPU's part of a function, recorded; each launch does it again, on the same memory, in one call.

    While it is recorded nothing is computed, so whatever looks at a result raises. All kernels must have run once
    before: code cannot be loaded or compiled in a recording.
    """

    def __init__(self, work: Callable[[], None]) -> None:
        cupy = _cuda_parts()[1]
        # A launch writes where the recording allocated, long after those arrays are gone: this memory must serve nobody else.
        self._pool = cupy.cuda.MemoryPool()
        stream = cupy.cuda.Stream(non_blocking=True)  # the default stream cannot be recorded
        with cupy.cuda.using_allocator(self._pool.malloc), stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                with suppress(Exception):  # what was refused may have ended the recording already
                    stream.end_capture()
                raise
            self._graph = stream.end_capture()

    def launch(self) -> None:
        """On CuPy's current stream, which also orders it among all other work there."""
        self._graph.launch()

    @property
    def bytes(self) -> int:
        """Of memory that the recording keeps."""
        return int(self._pool.total_bytes())


class NotRecordable(Exception):
    """The work computes with more than kernels."""


class Tape:
    """The kernels that a function calls on NumPy arrays, recorded; each launch calls them again, on the same memory.

    They run while they are recorded. Work that is not a kernel's would not be repeated, so all that a kernel reads or writes
    must be `known`, or memory that ops allocated since: other arrays raise NotRecordable. What NumPy writes into memory that is
    known goes unnoticed: of that the caller must be sure. Memory begins at multiples of 64 bytes, where vectors load fastest.
    A launch is given an array in the place of each of the `inputs`, which only kernels may have read: of its shape and type,
    and in C order. Those that were recorded are not kept.
    """

    MOST = 2**26  # bytes allocated; where there are more, kernels take so long that nothing is gained

    def __init__(self, work: Callable[[], None], known: Iterable[Any], inputs: Sequence[Any] = ()) -> None:
        self._memory = {id(root): root for root in map(_root, known)}
        self._inputs = {id(_root(array)) for array in inputs}
        self._bytes = 0
        real = _host(_host_name)
        self.native = real.native.Tape()
        _recording.backend = real._replace(
            native=_Native(real.native, self._call), xp=_Memory(real.xp, self._know)
        )
        try:
            work()
        finally:
            _recording.backend = None
        if not all(map(self.native.add_input, inputs)):
            raise NotRecordable("a kernel has a part of an input")
        self.launch: Callable[..., None] = self.native.launch

    def memory(self) -> Iterable[Any]:
        """All arrays that are known now, without the inputs."""
        return self._memory.values()

    def _know(self, array: Any) -> None:
        self._bytes += array.nbytes
        if self._bytes > self.MOST:
            raise NotRecordable(f"more than {self.MOST} bytes would be kept")
        self._memory[id(array)] = array

    def _call(self, kernel: Callable[..., Any], *arguments: Any) -> None:
        for argument in arguments:
            for array in argument if isinstance(argument, (list, tuple)) else [argument]:
                root = id(_root(array)) if isinstance(array, np.ndarray) else None
                if root and root not in self._memory and root not in self._inputs:
                    raise NotRecordable(f"{kernel.__name__} is given an array that no kernel has made")
        self.native.record(kernel, *arguments)


def _root(array: Any) -> Any:
    """The array whose memory this one is a view of."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


class _Native:
    """A native module whose kernels are called through `call`; its shapes and sizes are what they are."""

    def __init__(self, native: Any, call: Callable[..., None]) -> None:
        self._native, self._call = native, call

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._native, name)
        return found if isinstance(found, type) or name.endswith("_workspace") else partial(self._call, found)


class _Memory:
    """NumPy, with an `empty` whose memory is aligned and shown to `know`."""

    def __init__(self, xp: Any, know: Callable[[Any], None]) -> None:
        self._xp, self._know = xp, know

    def __getattr__(self, name: str) -> Any:
        return getattr(self._xp, name)

    def empty(self, shape: Any, dtype: Any = float) -> Any:
        dtype, shape = np.dtype(dtype), tuple(np.atleast_1d(np.asarray(shape, np.int64)).tolist())
        size = math.prod(shape) * dtype.itemsize
        memory = self._xp.empty(size + 63, np.uint8)
        self._know(memory)
        begin = -memory.ctypes.data % 64
        return memory[begin : begin + size].view(dtype).reshape(shape)


def cuda_description() -> str:
    """The GPU, CuPy and the architectures of the kernels, in a line."""
    native, cupy = _cuda_parts()
    device = cupy.cuda.Device()
    name = cupy.cuda.runtime.getDeviceProperties(device.id)["name"].decode()
    return f"{name}, compute capability {device.compute_capability}, CuPy {cupy.__version__}, kernels for {native.architectures}"


def set_num_threads(count: int) -> None:
    """Use this many threads in CPU kernels, 1 to 1024; at first, one for each processor that the process may use.

    Those are what its affinity allows, and no more than its control groups grant time of, as a container's may. The number
    changes how long a kernel takes, never a bit of its result. After a kernel its threads stay awake for 0.5 ms, in which the
    next one may come.
    """
    if isinstance(count, bool) or not isinstance(count, (int, np.integer)):
        raise TypeError(f"set_num_threads: the count must be an integer, got {type(count).__name__}")
    if not 1 <= count <= 1024:
        raise ValueError(f"set_num_threads: the count must be from 1 to 1024, got {count}")
    _host("cpu").native.set_num_threads(int(count))


def get_num_threads() -> int:
    """How many threads CPU kernels use."""
    return int(_host("cpu").native.get_num_threads())


def instruction_set() -> tuple[str, list[str]]:
    """The instruction set that the CPU kernels run with, and all that this build and processor have."""
    native = _host("cpu").native
    return native.isa, list(native.isas)
