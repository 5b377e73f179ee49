"""A double of CuPy for machines without a GPU: arrays that look like a GPU's and lie in host memory.

What CuPy refuses, this refuses: arrays never become NumPy's by themselves, and the two kinds do not mix. With the host
execution of the CUDA kernels behind it, everything above the kernels runs as it would on a GPU. Names are CuPy's.
"""

from __future__ import annotations

import types

import numpy as np


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


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
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
        options = _inner(options if out is None else {**options, "out": out})
        result = ufunc(*map(_inner, inputs), **options)
        return out[0] if out is not None else _outer(result)

    def __array_function__(self, function, kinds, args, options):
        if function in (np.asarray, np.array):
            return asarray(*args, **options)
        return _outer(function(*_inner(args), **_inner(options)))

    def __getitem__(self, key):
        return _outer(self._array[_inner(key)])

    def __setitem__(self, key, value):
        self._array[_inner(key)] = _inner(value)

    def __len__(self):
        return len(self._array)

    def __float__(self):
        return float(self._array)

    def __int__(self):
        return int(self._array)

    def __bool__(self):
        return bool(self._array)

    def get(self):
        return self._array.copy()

    @property
    def flags(self):
        inner = self._array.flags
        return types.SimpleNamespace(c_contiguous=inner.c_contiguous, f_contiguous=inner.f_contiguous)


def _forward(name):
    def method(self, *args, **options):
        return _outer(getattr(self._array, name)(*_inner(args), **_inner(options)))

    return method


for _name in ("shape", "dtype", "ndim", "size", "itemsize", "strides", "T", "nbytes"):
    setattr(ndarray, _name, property(lambda self, name=_name: _outer(getattr(self._array, name))))
for _name in (
    "reshape",
    "astype",
    "copy",
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
    return ndarray(np.array(value, dtype, order="C"))


def ascontiguousarray(value, dtype=None):
    return ndarray(np.ascontiguousarray(_inner(value), dtype))


def empty(shape, dtype):
    size = int(np.prod(shape)) * np.dtype(dtype).itemsize
    return ndarray(np.full(size, 0x7F, np.uint8).view(dtype).reshape(shape))


def concatenate(arrays):
    return ndarray(np.concatenate(_inner(list(arrays))))


def where(condition, x, y):
    return ndarray(np.where(_inner(condition), _inner(x), _inner(y)))


def ones_like(x):
    return ndarray(np.ones_like(x._array))


def zeros_like(x):
    return ndarray(np.zeros_like(x._array))
