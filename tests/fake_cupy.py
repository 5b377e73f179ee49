"""A double of CuPy for machines without a GPU: arrays that look like a GPU's and lie in host memory.

What CuPy refuses, this refuses: arrays never become NumPy's by themselves, and the two kinds do not mix. With the host
execution of the CUDA kernels behind it, everything above the kernels runs as it would on a GPU. Names are CuPy's.

On a stream that is being captured nothing is computed: what would have been is recorded with its very arrays, and a launch of
the graph does it again on them. What CUDA refuses there raises. A graph's memory must come from a MemoryPool of its own.
"""

from __future__ import annotations

import ctypes
import itertools
import types
import weakref
from contextlib import contextmanager

import numpy as np

# ---- Memory: new arrays of a graph come from the allocator in use


def _default_allocator(size):
    return np.full(size, 0x7F, np.uint8)


class MemoryPool:
    """Keeps all that it gave, so that nothing of it is given twice."""

    def __init__(self):
        self.blocks = []

    def malloc(self, size):
        self.blocks.append(_default_allocator(size))
        return self.blocks[-1]

    def total_bytes(self):
        return sum(block.nbytes for block in self.blocks)


_allocator = _default_allocator


@contextmanager
def using_allocator(allocator):
    global _allocator
    before, _allocator = _allocator, allocator
    try:
        yield
    finally:
        _allocator = before


def _new(shape, dtype):
    """An array full of 0x7f bytes."""
    return _allocator(int(np.prod(shape)) * np.dtype(dtype).itemsize).view(dtype).reshape(shape)


# ---- Streams and graphs


class Stream:
    _numbers = itertools.count(2)

    def __init__(self, null=False, non_blocking=False):
        self.ptr = 0 if null else next(self._numbers)
        self.non_blocking = non_blocking
        self.recording = None

    def __enter__(self):
        _streams.append(self)
        return self

    def __exit__(self, *_):
        assert _streams.pop() is self

    def begin_capture(self):
        if not self.non_blocking:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        self.recording = Recording()

    def end_capture(self):
        recording, self.recording = self.recording, None
        if recording.invalid:
            raise RuntimeError("cudaErrorStreamCaptureInvalidated")
        return Graph(recording)

    def synchronize(self):
        if self.recording:
            self.recording.invalid = True
            raise RuntimeError("cudaErrorStreamCaptureUnsupported")


_streams = [Stream(null=True)]


def get_current_stream():
    return _streams[-1]


def _refuse(what):
    """For what waits for the GPU, or copies from memory that may be gone at the launch."""
    if get_current_stream().recording:
        raise RuntimeError(
            f"the current stream is capturing, so synchronous API calls are disallowed: {what}"
        )


class Recording:
    def __init__(self):
        self.work, self.results, self.invalid = [], [], False
        self.pool = getattr(_allocator, "__self__", None)

    def result(self, shape, dtype):
        """An array for what an operation will give. Zeros until the recording ends: they may be indices."""
        array = _new(shape, dtype)
        array[...] = 0
        self.results.append(array)
        return array


class Graph:
    def __init__(self, recording):
        assert isinstance(recording.pool, MemoryPool), "the memory of this graph would be handed out again"
        self._work, self._pool = recording.work, weakref.ref(recording.pool)
        for array in recording.results:
            array.reshape(-1).view(np.uint8)[...] = 0x7F

    def launch(self):
        _refuse("launch")
        assert self._pool() is not None, "the memory of this graph is gone"
        with np.errstate(all="ignore"):
            for work in self._work:
                work()


@np.errstate(all="ignore")  # a GPU does not warn
def _do(function, *args, **options):
    """A NumPy function on the arrays inside: done, or on a stream that is captured, recorded."""
    inner, named = _inner(args), _inner(options)
    recording = get_current_stream().recording
    if not recording:
        return _outer(function(*inner, **named))
    if named.get("out") is not None:
        recording.work.append(lambda: function(*inner, **named))
        return options["out"]
    like = np.asarray(function(*inner, **named))  # for its shape and type alone
    arrays = [value for value in (*inner, *named.values()) if isinstance(value, np.ndarray)]
    if any(np.may_share_memory(like, array) for array in arrays):
        return ndarray(like)  # a view, which no GPU has to work for
    result = recording.result(like.shape, like.dtype)
    recording.work.append(lambda: np.copyto(result, function(*inner, **named)))
    return ndarray(result)


class Native:
    """The native module: its kernels, too, are recorded on a stream that is captured."""

    def __init__(self, module):
        self._module = module

    def __getattr__(self, name):
        value = getattr(self._module, name)
        if isinstance(value, type) or name.endswith("_workspace") or name.startswith("set_"):
            return value

        def kernel(*args):
            stream = get_current_stream()
            assert args[-1] == stream.ptr, f"{name} is not on the current stream"
            if not stream.recording:
                return value(*args)
            stream.recording.work.append(lambda: value(*args))
            return None

        return kernel


cuda = types.SimpleNamespace(
    MemoryPool=MemoryPool,
    Stream=Stream,
    get_current_stream=get_current_stream,
    using_allocator=using_allocator,
)


# ---- Arrays


def _inner(value):
    """The NumPy array inside; what CuPy would refuse is refused."""
    if isinstance(value, ndarray):
        return value._array
    if isinstance(value, np.ndarray) and value.ndim:
        raise TypeError("Unsupported type <class 'numpy.ndarray'>")
    if isinstance(value, (list, tuple)):
        return type(value)(map(_inner, value))
    if isinstance(value, dict):
        return {key: _inner(item) for key, item in value.items()}
    return value


def _outer(value):
    if isinstance(value, np.ndarray):
        return ndarray(value)
    if isinstance(value, np.generic):  # CuPy's reductions give arrays of no dimensions
        return ndarray(np.asarray(value))
    if isinstance(value, tuple):
        return tuple(map(_outer, value))
    return value


class ndarray(np.lib.mixins.NDArrayOperatorsMixin, ctypes.c_byte):
    """Of a base with the buffer protocol, which CuPy's have as well: what takes one for host memory finds a single byte."""

    def __init__(self, array):
        self._array = array

    @property
    def __cuda_array_interface__(self):
        inner = self._array.__array_interface__
        keys = ("shape", "typestr", "data", "strides")
        return {**{key: inner[key] for key in keys}, "version": 3, "stream": 1}

    def __array__(self, *_, **__):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Use `.get()`.")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **options):
        if method != "__call__":
            return NotImplemented  # no ufunc.at: it would be a sum of atomics
        if out is None:
            return _do(ufunc, *inputs, **options)
        return _do(ufunc, *inputs, **options, out=out[0])

    def __array_function__(self, function, kinds, args, options):
        if function in (np.asarray, np.array):
            return asarray(*args, **options)
        # NumPy names a device for ones, full and eye of `like`, even where nobody asked for one.
        if "device" in options:
            raise TypeError(f"{function.__name__}() got an unexpected keyword argument 'device'")
        return _do(function, *args, **options)

    def __getitem__(self, key):
        return _do(np.ndarray.__getitem__, self, key)

    def __setitem__(self, key, value):
        _do(lambda *of, out: out.__setitem__(*of), key, value, out=self)

    def __len__(self):
        return len(self._array)

    def __float__(self):
        _refuse("float")
        return float(self._array)

    def __int__(self):
        _refuse("int")
        return int(self._array)

    def __bool__(self):
        _refuse("bool")
        return bool(self._array)

    def get(self):
        _refuse("get")
        return self._array.copy()

    @property
    def flags(self):
        inner = self._array.flags
        return types.SimpleNamespace(c_contiguous=inner.c_contiguous, f_contiguous=inner.f_contiguous)


def _forward(name):
    def method(self, *args, **options):
        return _do(getattr(np.ndarray, name), self, *args, **options)

    return method


for _name in ("shape", "dtype", "ndim", "size", "itemsize", "strides", "T", "nbytes"):
    setattr(ndarray, _name, property(lambda self, name=_name: _outer(getattr(self._array, name))))
for _name in (
    "reshape",
    "astype",
    "copy",
    "view",
    "sum",
    "max",
    "min",
    "mean",
    "argmax",
    "clip",
    "take",
    "all",
    "any",
):
    setattr(ndarray, _name, _forward(_name))


def asarray(value, dtype=None):
    """CuPy copies from the host; so does this, so that nothing is shared by chance."""
    if isinstance(value, ndarray):
        return value if dtype is None or value.dtype == dtype else value.astype(dtype)
    _refuse("a copy from the host")
    return ndarray(np.array(value, dtype, order="C"))


def ascontiguousarray(value, dtype=None):
    return _do(np.ascontiguousarray, value, dtype)


def empty(shape, dtype):
    recording = get_current_stream().recording
    return ndarray(recording.result(shape, dtype) if recording else _new(shape, dtype))


def concatenate(arrays):
    return _do(np.concatenate, list(arrays))


def where(condition, x, y):
    return _do(np.where, condition, x, y)


def ones_like(x):
    return _do(np.ones_like, x)


def zeros_like(x):
    return _do(np.zeros_like, x)
