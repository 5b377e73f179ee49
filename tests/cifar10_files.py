"""A tiny CIFAR-10 in every layout, for the tests of the data sets."""

from __future__ import annotations

import io
import pickle
import struct
import tarfile
import zipfile

import numpy as np
from fastnn.datasets import cifar10

N = 4  # records in each batch, for 10,000
BATCHES = ["data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"]
PY, BIN = "cifar-10-batches-py", "cifar-10-batches-bin"

random = np.random.default_rng(0)
IMAGES = random.integers(0, 256, (6 * N, 32, 32, 3), np.uint8)
LABELS = random.permutation(np.arange(6 * N, dtype=np.uint8) % 10)
ROWS = np.ascontiguousarray(IMAGES.transpose(0, 3, 1, 2).reshape(-1, 3072))


def make_small_and_apart(monkeypatch, tmp_path):
    """Batches of N records, and a cache folder that is not the user's."""
    monkeypatch.setattr(cifar10, "RECORDS", N)
    monkeypatch.setenv("FASTNN_HOME", str(tmp_path / "cache"))


def assert_is_the_data(loaded):
    (x_train, y_train), (x_test, y_test) = loaded
    for array, expected in (
        (x_train, IMAGES[: 5 * N]),
        (y_train, LABELS[: 5 * N, None]),
        (x_test, IMAGES[5 * N :]),
        (y_test, LABELS[5 * N :, None]),
    ):
        assert array.dtype == np.uint8
        assert array.flags.c_contiguous
        assert array.flags.writeable
        np.testing.assert_array_equal(array, expected)


def binary_batch(rows, labels):
    return np.concatenate([labels[:, None], rows], axis=1).tobytes()


def python2_batch(rows, labels):
    """What Python 2 and NumPy 1 wrote: protocol 2, byte strings, long memo numbers."""

    def short(text):
        return b"U" + bytes([len(text)]) + text

    array = (
        b"cnumpy.core.multiarray\n_reconstruct\nq\x07cnumpy\nndarray\nq\x08K\x00\x85U\x01b\x87R"
        + b"(K\x01"
        + b"".join(b"M" + struct.pack("<H", n) for n in rows.shape)
        + b"\x86cnumpy\ndtype\nq\x09U\x02u1K\x00K\x01\x87R"
        + b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89T"
        + struct.pack("<i", rows.size)
        + rows.tobytes()
        + b"tb"
    )
    names = [short(b"frog_s_%06d.png" % i) + b"r" + struct.pack("<i", 256 + i) for i in range(len(rows))]
    title = short(b"batch_label") + b"q\x02" + short(b"training batch 1 of 5") + b"q\x03"
    numbers = short(b"labels") + b"q\x04]q\x05(" + b"".join(b"K" + bytes([n]) for n in labels) + b"e"
    content = [title, numbers, short(b"data"), array, short(b"filenames"), b"](", *names, b"e"]
    return b"\x80\x02}q\x01(" + b"".join(content) + b"u."


def batch_dict(rows, labels):
    return {"batch_label": "b", "labels": labels.tolist(), "data": rows, "filenames": ["a.png"] * len(labels)}


def python3_batch(protocol, numpy_core=b""):
    def write(rows, labels):
        data = pickle.dumps(batch_dict(rows, labels), protocol)
        for name in (b"numpy._core", b"numpy.core") if numpy_core else ():
            data = data.replace(name, numpy_core)
        return data

    return write


def bytes_keys_batch(rows, labels):
    """Loaded in Python 3 with encoding="bytes" and written again."""
    content = {key.encode(): value for key, value in batch_dict(rows, labels).items()}
    return pickle.dumps(content, protocol=2)


WRITERS = {
    "binary": binary_batch,
    "python2": python2_batch,
    "protocol 1": python3_batch(1),
    "protocol 2, numpy 1": python3_batch(2, b"numpy.core"),
    "protocol 2, numpy 2": python3_batch(2, b"numpy._core"),
    "protocol 3": python3_batch(3),
    "protocol 4": python3_batch(4),
    "bytes keys": bytes_keys_batch,
}


def batch_files(layout="binary"):
    suffix = ".bin" if layout == "binary" else ""
    write = WRITERS[layout]
    return {
        name + suffix: write(ROWS[i * N : (i + 1) * N], LABELS[i * N : (i + 1) * N])
        for i, name in enumerate(BATCHES)
    }


def write_folder(folder, layout="binary", files=None):
    folder.mkdir(parents=True)
    for name, data in (files or batch_files(layout)).items():
        (folder / name).write_bytes(data)
    (folder / "batches.meta").write_bytes(b"never read")
    return folder


def member(name, data=b"", **attributes):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for key, value in attributes.items():
        setattr(info, key, value)
    return info, data


def write_tar(path, members=(), mode="w", layout="binary", files=None):
    """The whole data set (or the files given), and behind it the members given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for info, data in [
            member(PY, type=tarfile.DIRTYPE),
            *(member(f"{PY}/{name}", data) for name, data in (files or batch_files(layout)).items()),
            *members,
        ]:
            tar.addfile(info, io.BytesIO(data))
    return path


def write_zip(path, layout="binary", extra=()):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in batch_files(layout).items():
            archive.writestr(f"{PY}/{name}", data)
        for info, data in extra:
            archive.writestr(info, data)
    return path
