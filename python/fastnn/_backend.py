"""array -> (native module, array module, stream): the only place that knows devices."""

from __future__ import annotations

import importlib
from functools import cache
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

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
        return importlib.import_module(f"fastnn._{name}")
    except ImportError as error:
        raise ImportError(
            f"fastnn: the native module fastnn._{name} does not load ({error}); {INSTALL_HINT}"
        ) from error


@cache
def _host(name: str) -> Backend:
    return Backend(name, _native(name), np, 0)


_host_name = "cpu"  # which module computes on NumPy arrays; tests put another one here


def of(array: object, op: str, name: str) -> Backend:
    """The backend of an array, or a TypeError that says what was given instead of one."""
    if isinstance(array, np.ndarray):
        return _host(_host_name)
    if hasattr(array, "__cuda_array_interface__"):
        check_device("cuda")
    raise TypeError(f"{op}: {name} must be a NumPy array, got {type(array).__name__}")


def cuda_state() -> str:
    """Why this installation cannot compute on a GPU, in a sentence."""
    return "this version of fastnn has no CUDA backend; its kernels run on the CPU"


def check_device(device: str) -> None:
    """Raise ValueError for an unknown device, RuntimeError for one that cannot be had here."""
    if device == "cuda":
        raise RuntimeError(f"device 'cuda' is not available: {cuda_state()}")
    if device != "cpu":
        raise ValueError(f"device must be 'cpu' or 'cuda', got {device!r}")


def module(device: str) -> Any:
    """The array module of a device: NumPy for "cpu"."""
    check_device(device)
    return np


def keep_freed_memory() -> None:
    """Let the C library keep what a training step frees for the next step, instead of giving it back to the system.

    Fresh pages cost as much as the arithmetic of a small network. glibc raises its threshold for giving memory back to twice
    the largest block it has seen freed, of up to 32 MB (mallopt(3), M_MMAP_THRESHOLD): so it is shown one, never touched.
    """
    np.empty(2**25 - 2**16, np.uint8)


def set_num_threads(count: int) -> None:
    """Use this many threads in CPU kernels, 1 to 1024; at first, one for each processor the process may run on.

    The number changes how long a kernel takes, never a bit of its result.
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
