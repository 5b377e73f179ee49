"""Files of arrays and a description: safetensors, whole or refused.

A file holds named arrays and one metadata entry "fastnn", sorted JSON: {"checksum": ..., "content": ...} with
the CRC-32 of content and arrays. Equal input gives equal bytes. A file is written beside its final place and
renamed, so that a run killed at any moment leaves the old file or the new one.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from . import _backend
from ._typing import Array

PathLike = str | os.PathLike[str]

INSTALL = 'files of models need safetensors: pip install "fastnn-kernels[train]"'


def write(
    path: PathLike, content: Mapping[str, Any], arrays: Mapping[str, Array], overwrite: bool = True
) -> None:
    """Put content (numbers, strings, lists, dicts) and arrays into the file, replacing an old one at once."""
    try:
        from safetensors.numpy import save
    except ImportError as error:
        raise ImportError(INSTALL) from error
    arrays = {name: np.ascontiguousarray(_backend.to_host(array)) for name, array in arrays.items()}
    text = _dump({"checksum": _checksum(content, arrays), "content": content})
    data = save(dict(arrays), metadata={"fastnn": text})
    path = Path(path)
    if not overwrite and path.exists():
        raise FileExistsError(f"{path} exists already")
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read(path: PathLike, kinds: tuple[str, ...]) -> tuple[dict[str, Any], dict[str, Array]]:
    """Content and arrays of a file whose content["kind"] is one of `kinds`.

    FileNotFoundError where there is none, ValueError where it is torn, changed, or something else.
    """
    try:
        from safetensors import SafetensorError, safe_open
    except ImportError as error:
        raise ImportError(INSTALL) from error
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"no such file: {path}")
    if not path.is_file():
        raise ValueError(f"{path} is not a file")
    try:
        with safe_open(path, framework="np") as file:
            metadata = file.metadata() or {}
            arrays: dict[str, Array] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is not a whole safetensors file: {error}") from error
    if "fastnn" not in metadata:
        raise ValueError(f"{path} was not written by fastnn: it has no metadata entry 'fastnn'")
    try:
        entry = json.loads(metadata["fastnn"])
        content = entry["content"]
        if entry["checksum"] != _checksum(content, arrays):
            raise ValueError("its checksum does not fit its content")
        kind = content["kind"]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {error}") from error
    if kind not in kinds:
        raise ValueError(f"{path} holds a {kind}, not a {' or '.join(kinds)}")
    return content, arrays


def pack(value: Any, arrays: dict[str, Array], name: str) -> Any:
    """`value` with each array in it, however deep, moved to `arrays` and a reference left in its place."""
    if isinstance(value, np.ndarray) or hasattr(value, "__cuda_array_interface__"):
        arrays[name] = value
        return {"array": name}
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, (list, tuple)):
        return [pack(item, arrays, f"{name}/{i}") for i, item in enumerate(value)]
    if isinstance(value, Mapping):
        return {"items": [[key, pack(item, arrays, f"{name}/{key}")] for key, item in value.items()]}
    return value


def unpack(value: Any, arrays: Mapping[str, Array]) -> Any:
    """What pack was given; tuples come back as lists."""
    if isinstance(value, list):
        return [unpack(item, arrays) for item in value]
    if isinstance(value, dict):
        if "array" in value:
            return arrays[value["array"]]
        return {key: unpack(item, arrays) for key, item in value["items"]}
    return value


def _dump(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def _checksum(content: Any, arrays: Mapping[str, Array]) -> int:
    checksum = zlib.crc32(_dump(content).encode())
    for name in sorted(arrays):
        array = arrays[name]
        checksum = zlib.crc32(f"{name} {array.dtype} {array.shape}".encode(), checksum)
        checksum = zlib.crc32(np.ascontiguousarray(array).data if array.size else b"", checksum)
    return checksum
