"""Where data lie, and what reading them has in common."""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

MAX_FILE = 64 << 20  # bytes; the largest genuine file, a pickled CIFAR-10 batch, has 31 MB

# Pairs of a file's name and the function that reads it, to be called before the next pair is asked for.
Files: TypeAlias = Iterator[tuple[str, Callable[[], bytes]]]


def cache_dir() -> Path:
    """The folder for downloads: ``$FASTNN_HOME``, else ``$XDG_CACHE_HOME/fastnn``, else ``~/.cache/fastnn``.

    It is only named here; ``download`` creates it.
    """
    if home := os.environ.get("FASTNN_HOME"):
        return Path(home).expanduser()
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "fastnn"


def require(module: str, package: str) -> Any:
    """Import an optional module, or say which package is missing and how to get it."""
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ImportError(
            f'{package} is needed here and cannot be imported ({error}): pip install "fastnn-kernels[train]"'
        ) from error


def read_file(path: Path) -> bytes:
    """All bytes of a regular file of at most MAX_FILE bytes."""
    with path.open("rb") as file:
        data = file.read(MAX_FILE + 1)
    check_size(f"{path}", len(data))
    return data


def check_size(where: str, size: int) -> None:
    if size > MAX_FILE:
        raise ValueError(f"{where} has {size} bytes; no file of CIFAR-10 may have more than {MAX_FILE}")
