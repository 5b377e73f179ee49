"""CIFAR-10: 60,000 colour photographs of 32x32 pixels in 10 classes (Krizhevsky 2009).

https://www.cs.toronto.edu/~kriz/cifar.html describes the two layouts that `load_data` reads.
"""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from .._typing import Array
from . import _pickle
from ._files import Files, cache_dir, read_file, require

Split: TypeAlias = tuple[Array, Array]  # images (N, 32, 32, 3) and labels (N, 1), both uint8

CLASS_NAMES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

URL = "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz"
SHA256 = "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"
SIZE = 170_498_071  # bytes

RECORDS = 10_000  # images in each of the six batches
_PIXELS = 3 * 32 * 32
_BATCHES = ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch")
_FILES = frozenset(_BATCHES) | frozenset(f"{name}.bin" for name in _BATCHES)
_INSIDE = (  # what a folder given as path may hold
    "cifar-10-batches-bin",
    "cifar-10-batches-py",
    "cifar-10-binary.tar.gz",
    "cifar-10-python.tar.gz",
)


def load_data(path: str | os.PathLike[str] | None = None) -> tuple[Split, Split]:
    """(x_train, y_train), (x_test, y_test) as in Keras: images uint8 (N, 32, 32, 3), labels uint8 (N, 1).

    `path` is one of, or a folder that holds one of (default: the cache folder, `datasets.cache_dir()`):

    - the folder or archive (.tar.gz, .tar, .zip) of CIFAR-10's binary version, ``data_batch_1.bin`` ...;
    - the folder or archive of its Python version, ``data_batch_1`` ..., whose pickles are read but never run;
    - folders of images, ``train/<class>/*.png`` (or .jpg, .jpeg) and ``test/<class>/*``, 32x32 pixels. The
      classes are `class_names(path)`, the images come in the order of their file names, so that classes mix.

    The official layouts give 50,000 and 10,000 images. Archives are read in memory, never unpacked to disk.
    Raises FileNotFoundError where there are no data (nothing is downloaded: see `download`) and ValueError,
    naming the file and the numbers, where they are not what CIFAR-10 holds.
    """
    found = _find(path)
    return _load_images(found) if _is_image_folder(found) else _load_batches(found)


def class_names(path: str | os.PathLike[str] | None = None) -> tuple[str, ...]:
    """The names that belong to the labels of `load_data(path)`.

    They are CLASS_NAMES, unless `path` is a folder of images with other classes: then those, sorted.
    """
    found = _find(path)
    return _image_classes(found) if _is_image_folder(found) else CLASS_NAMES


def is_cached() -> bool:
    """Whether the cache folder has CIFAR-10, so that `load_data()` finds it."""
    return _look_in(cache_dir()) is not None


def download(url: str = URL, *, progress: bool = True) -> Path:
    """Bring the Python version (170 MB) into the cache folder, where `load_data` finds it. Returns its path.

    A broken download is continued by the next call. `url` may be a mirror: the file must have the official
    size and SHA-256, or it is refused. Needs the packages pooch and tqdm.
    """
    from ._download import fetch

    archive = cache_dir() / "cifar-10-python.tar.gz"
    fetch(url, archive, sha256=SHA256, size=SIZE, progress=progress)
    return archive


def _find(path: str | os.PathLike[str] | None) -> Path:
    start = cache_dir() if path is None else Path(path).expanduser()
    found = start if start.is_file() else _look_in(start)
    if found is None:
        lacks = "has no" if start.exists() else "does not exist: no"
        raise FileNotFoundError(
            f"{start} {lacks} CIFAR-10. Looked for data_batch_1.bin (binary version), data_batch_1 (Python "
            f"version), train/<class>/ and test/<class>/ (images), {', '.join(_INSIDE)}. `fastnn download "
            "cifar10` brings it into the cache folder; or pass the path of a folder or archive that has it"
        )
    return found


def _look_in(folder: Path) -> Path | None:
    if _is_image_folder(folder) or any((folder / name).is_file() for name in _FILES):
        return folder
    for name in _INSIDE:
        inside = folder / name
        if inside.is_file() or any((inside / name).is_file() for name in _FILES):
            return inside
    return None


def _load_batches(path: Path) -> tuple[Split, Split]:
    train, test = _empty(5 * RECORDS), _empty(RECORDS)
    missing = list(_BATCHES)
    for name, read in _archive_files(path) if path.is_file() else _folder_files(path):
        where = f"{path}: {name}"
        batch = name.removesuffix(".bin")
        if batch not in missing:
            raise ValueError(f"{where}: this batch is there twice")
        missing.remove(batch)
        # Only inside these calls do the batch's bytes live, so that no two batches are in memory at once.
        parse = _parse_binary if name.endswith(".bin") else _parse_python
        if batch == "test_batch":
            _store(*parse(where, read()), *test)
        else:
            first = _BATCHES.index(batch) * RECORDS
            _store(*parse(where, read()), *(part[first : first + RECORDS] for part in train))
    if missing:
        raise ValueError(f"{path} lacks {', '.join(missing)} (each with or without .bin)")
    return train, test


def _archive_files(path: Path) -> Files:
    from ._archive import archive_files  # tarfile and zipfile take time to import

    return archive_files(path, _FILES)


def _folder_files(path: Path) -> Files:
    binary = any((path / f"{name}.bin").is_file() for name in _BATCHES)
    for name in _BATCHES:
        file = path / (f"{name}.bin" if binary else name)
        if file.is_file():
            yield file.name, partial(read_file, file)


def _store(labels: Array, rows: Array, images: Array, targets: Array) -> None:
    """Put a batch's rows of three planes of 32x32 pixels where its images (N, 32, 32, 3) belong."""
    targets[:, 0] = labels
    images[:] = rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def _parse_binary(where: str, data: bytes) -> tuple[Array, Array]:
    """Labels (RECORDS,) and rows (RECORDS, 3072) of records of one label byte and 3072 pixel bytes."""
    size = 1 + _PIXELS
    if len(data) != RECORDS * size:
        raise ValueError(f"{where} has {len(data)} bytes; {RECORDS} records of {size} are {RECORDS * size}")
    records = np.frombuffer(data, np.uint8).reshape(RECORDS, size)
    _check_labels(where, records[:, 0])
    return records[:, 0], records[:, 1:]


def _parse_python(where: str, data: bytes) -> tuple[Array, Array]:
    """The same of a pickled dictionary with "labels", a list of integers, and "data", a uint8 array."""
    try:
        batch = _pickle.loads(data)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error
    labels, matrix = batch.get(b"labels"), _pickle.uint8_matrix(batch.get(b"data"))
    if not isinstance(labels, list) or any(type(label) is not int for label in labels):
        raise ValueError(f"{where} has no list of integers under 'labels'")
    if matrix is None:
        raise ValueError(f"{where} has no uint8 array of two axes under 'data'")
    shape, raw = matrix
    if shape != (RECORDS, _PIXELS) or len(labels) != RECORDS:
        raise ValueError(
            f"{where} has data of shape {shape} and {len(labels)} labels; "
            f"CIFAR-10's batches have {(RECORDS, _PIXELS)} and {RECORDS}"
        )
    _check_labels(where, np.array(labels))
    return np.array(labels, np.uint8), np.frombuffer(raw, np.uint8).reshape(shape)


def _check_labels(where: str, labels: Array) -> None:
    wrong = np.flatnonzero((labels < 0) | (labels > 9))
    if wrong.size:
        raise ValueError(f"{where}: record {wrong[0]} has label {labels[wrong[0]]}; CIFAR-10's are 0 to 9")


def _is_image_folder(path: Path) -> bool:
    return (path / "train").is_dir() and (path / "test").is_dir()


def _subfolders(path: Path) -> set[str]:
    return {entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")}


def _image_classes(path: Path) -> tuple[str, ...]:
    train, test = _subfolders(path / "train"), _subfolders(path / "test")
    if train != test:
        raise ValueError(f"{path}: class folders {sorted(train ^ test)} are in only one of train/ and test/")
    if not 1 <= len(train) <= 10:
        raise ValueError(f"{path}: train/ has {len(train)} class folders; 1 to 10 are read")
    return CLASS_NAMES if train == set(CLASS_NAMES) else tuple(sorted(train))


def _load_images(path: Path) -> tuple[Split, Split]:
    classes = _image_classes(path)
    pillow = require("PIL.Image", "pillow")
    return _load_split(path / "train", classes, pillow), _load_split(path / "test", classes, pillow)


def _load_split(folder: Path, classes: tuple[str, ...], pillow: Any) -> Split:
    files = [
        (file.name, label, file)
        for label, name in enumerate(classes)
        for file in (folder / name).iterdir()
        if file.suffix.lower() in (".png", ".jpg", ".jpeg") and file.is_file()
    ]
    if not files:
        raise ValueError(f"{folder} has no .png, .jpg or .jpeg images in its class folders")
    images, labels = _empty(len(files))
    for i, (_, label, file) in enumerate(sorted(files)):
        images[i], labels[i] = _read_image(file, pillow), label
    return images, labels


def _read_image(file: Path, pillow: Any) -> Array:
    try:
        with pillow.open(file, formats=("PNG", "JPEG")) as image:
            (width, height), mode = image.size, image.mode
            # Looked at before the pixels are decoded: a small file may claim to be huge.
            fits = (width, height) == (32, 32) and mode in ("1", "L", "LA", "P", "RGB", "RGBA")
            pixels: Array | None = np.asarray(image.convert("RGB")) if fits else None
    except Exception as error:  # a damaged image makes Pillow raise errors of many kinds
        raise ValueError(f"{file} cannot be read as a PNG or JPEG image ({error})") from error
    if pixels is None:
        raise ValueError(f"{file} has {width}x{height} pixels of mode {mode}; 32x32 of 8 bits are needed")
    return pixels


def _empty(n: int) -> Split:
    return np.empty((n, 32, 32, 3), np.uint8), np.empty((n, 1), np.uint8)
