"""Data sets: what is damaged or hostile is refused by name, and nothing of it is run or written."""

from __future__ import annotations

import os
import pickle
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from cifar10_files import (
    LABELS,
    PY,
    ROWS,
    WRITERS,
    N,
    batch_dict,
    batch_files,
    make_small_and_apart,
    member,
    python2_batch,
    write_folder,
    write_tar,
    write_zip,
)
from fastnn.datasets import _archive, _files, _pickle, cifar10
from hypothesis import given, settings
from hypothesis import strategies as st


@pytest.fixture(autouse=True)
def small_and_apart(monkeypatch, tmp_path):
    make_small_and_apart(monkeypatch, tmp_path)


# Damaged files


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda data: data[:-1], rf"data_batch_3\.bin has {N * 3073 - 1} bytes; {N} records .* {N * 3073}"),
        (lambda data: data + b"\0", rf"has {N * 3073 + 1} bytes"),
        (lambda data: data[: 3073 * (N - 1)], rf"has {3073 * (N - 1)} bytes"),
        (lambda data: b"", "has 0 bytes"),
        (lambda data: data[:3073] + b"\x0a" + data[3074:], r"data_batch_3\.bin: record 1 has label 10"),
    ],
)
@pytest.mark.parametrize("archive", [False, True])
def test_binary_batch_damaged(tmp_path, change, message, archive):
    files = batch_files()
    files["data_batch_3.bin"] = change(files["data_batch_3.bin"])
    path = write_tar(tmp_path / "a", files=files) if archive else write_folder(tmp_path / "a", files=files)
    with pytest.raises(ValueError, match=message):
        cifar10.load_data(path)


@pytest.mark.parametrize(("layout", "suffix"), [("binary", ".bin"), ("python2", "")])
def test_batch_missing(tmp_path, layout, suffix):
    folder = write_folder(tmp_path / "data", layout)
    (folder / f"data_batch_4{suffix}").unlink()
    (folder / f"test_batch{suffix}").unlink()
    with pytest.raises(ValueError, match="lacks data_batch_4, test_batch"):
        cifar10.load_data(folder)


def test_batch_twice(tmp_path):
    again = batch_files()["data_batch_2.bin"]
    for name in ("data_batch_2.bin", "data_batch_2"):
        with pytest.raises(ValueError, match=f"{name}: this batch is there twice"):
            cifar10.load_data(write_tar(tmp_path / "a.tar", [member(f"other/{name}", again)]))


def test_file_too_large(tmp_path, monkeypatch):
    folder = write_folder(tmp_path / "data")
    monkeypatch.setattr(_files, "MAX_FILE", 10_000)
    with pytest.raises(ValueError, match=r"data_batch_1\.bin has 10001 bytes; .* more than 10000"):
        cifar10.load_data(folder)


# Pickles


class Evil:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "arguments", "name"),
    [
        (exec, ("open('{0}', 'w')",), r"(builtins|__builtin__)\.exec"),
        (os.system, ("touch {0}",), r"(posix|nt)\.system"),
        (np.frombuffer, (b"1234",), r"numpy\S*\.frombuffer"),
        (bytearray, (10,), r"bytearray"),
        (Path, ("a",), "pathlib"),
    ],
    ids=["exec", "system", "numpy", "bytearray", "class"],
)
def test_pickle_that_calls_is_refused_and_never_run(tmp_path, protocol, function, arguments, name):
    folder = write_folder(tmp_path / "data", "python2")
    marker = tmp_path / "ran"
    arguments = [a.format(marker) if isinstance(a, str) else a for a in arguments]
    content = batch_dict(ROWS[:N], LABELS[:N]) | {"more": Evil(function, *arguments)}
    (folder / "data_batch_1").write_bytes(pickle.dumps(content, protocol))
    with pytest.raises(ValueError, match=f"data_batch_1: .*({name}).* refused"):
        cifar10.load_data(folder)
    assert not marker.exists()


def changed(**values):
    return pickle.dumps(batch_dict(ROWS[:N], LABELS[:N]) | values, protocol=2)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (changed(labels=[0, 1, 10, 2]), "record 2 has label 10"),
        (changed(labels=[0, -1, 1, 2]), "record 1 has label -1"),
        (changed(labels=[0, 1, 2]), f"data of shape \\({N}, 3072\\) and 3 labels"),
        (changed(labels=[0, 1, 2, "3"]), "no list of integers under 'labels'"),
        (changed(labels=[0, 1, 2, True]), "no list of integers under 'labels'"),
        (changed(labels=None), "no list of integers under 'labels'"),
        (changed(data=ROWS[:3]), "data of shape \\(3, 3072\\) and 4 labels"),
        (changed(data=ROWS[:N, :-1].copy()), "data of shape \\(4, 3071\\)"),
        (changed(data=ROWS[:N].astype(np.int32)), "no uint8 array"),
        (changed(data=ROWS[:N].astype(np.int8)), "no uint8 array"),
        (changed(data=np.asfortranarray(ROWS[:N])), "no uint8 array"),
        (changed(data=ROWS[:N].reshape(N, 3, 1024)), "no uint8 array"),
        (changed(data=np.array([None])), "no uint8 array"),
        (changed(data=ROWS[:N].tobytes()), "no uint8 array"),
        (python2_batch(ROWS[:3], LABELS[:N]).replace(b"(K\x01M\x03", b"(K\x01M\x04"), "no uint8 array"),
        (python2_batch(ROWS[:N], LABELS[:N])[:-5000], "breaks off at byte"),
        (pickle.dumps([1, 2], 2), "no dictionary"),
        (pickle.dumps({"x": 1.5}, 2), "opcode b'G' at byte"),
        (pickle.dumps({}, 2), "no list of integers"),
        (b"", "breaks off at byte 0"),
        (b"\x80\x02.", "malformed pickle"),
        (b"\x80\x02K\x01K\x02R.", "malformed pickle"),
        (b"\x80\x02K\x01}b.", "malformed pickle"),
        (b"\x80\x02}\x8e" + b"\xff" * 8, "breaks off"),
        (b"\x80\x02}r\xff\xff\xff\xff0", "opcode b'0'"),  # a memo of 2^32 places is never made
        (b"})" + b"\x85" * 100_000 + b"K\x01s.", "malformed pickle"),  # no hash of 100,000 nested tuples
        (b"}" * 300_000, "more than 200000 pickle opcodes"),
        (
            b"c_codecs\nencode\nq\x00X\x00\x01\x00\x00" + b"a" * 256 + b"q\x01X\x06\x00\x00\x00latin1q\x02"
            b"\x86q\x03R" + b"h\x00h\x03R" * 50,
            "_codecs.encode is used in a way",
        ),
        (b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00hex\x86R.", "_codecs.encode is used in a"),
        (pickle.dumps(batch_dict(ROWS[:N], LABELS[:N]), 5), r"numeric\._frombuffer|opcode b'\\x96'"),
    ],
)
def test_pickle_wrong(tmp_path, data, message):
    folder = write_folder(tmp_path / "data", "python2")
    (folder / "data_batch_2").write_bytes(data)
    with pytest.raises(ValueError, match=f"data_batch_2.*{message}"):
        cifar10.load_data(folder)


@pytest.mark.parametrize("layout", ["python2", "protocol 2, numpy 2", "protocol 4"])
def test_pickle_cut_anywhere_is_refused(layout):
    data = WRITERS[layout](ROWS[:1, :40].copy(), LABELS[:1])
    assert _pickle.uint8_matrix(_pickle.loads(data)[b"data"]) == ((1, 40), ROWS[0, :40].tobytes())
    for size in range(len(data)):
        with pytest.raises(ValueError, match="pickle"):
            _pickle.loads(data[:size])


@settings(max_examples=500, deadline=None)
@given(st.data())
def test_pickle_of_any_bytes_is_read_or_refused(data):
    """Random changes to a real pickle, so that most of it is still one."""
    content = bytearray(python2_batch(ROWS[:2, :5].copy(), LABELS[:2]))
    for _ in range(data.draw(st.integers(1, 5))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at : at + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=4))
    try:
        batch = _pickle.loads(bytes(content))
    except ValueError:
        return
    matrix = _pickle.uint8_matrix(batch.get(b"data"))
    assert matrix is None or len(matrix[1]) == matrix[0][0] * matrix[0][1]


# Archives


LINK = {"type": tarfile.SYMTYPE, "linkname": "/etc/passwd"}
HOSTILE = [
    (member("../evil"), "'../evil' points outside"),
    (member(f"{PY}/../../evil"), "points outside"),
    (member("/tmp/evil"), "'/tmp/evil' points outside"),
    (member("..\\evil"), "points outside"),
    (member("C:\\evil"), "points outside"),
    (member("..", type=tarfile.DIRTYPE), "points outside"),
    (member("link", **LINK), "'link' is a link"),
    (member("hard", type=tarfile.LNKTYPE, linkname=f"{PY}/test_batch.bin"), "'hard' is a link"),
    (member("device", type=tarfile.CHRTYPE), "'device' is of type b'3'"),
    (member("pipe", type=tarfile.FIFOTYPE), "'pipe' is of type b'6'"),
]


@pytest.mark.parametrize(("extra", "message"), HOSTILE)
@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_hostile_tar(tmp_path, extra, message, mode):
    path = write_tar(tmp_path / "in" / "a.tar", [extra], mode)
    with pytest.raises(ValueError, match="a.tar: member .*" + message.replace("\\", "\\\\")):
        cifar10.load_data(path)
    assert sorted(tmp_path.rglob("*")) == [path.parent, path]


def test_link_in_place_of_a_batch(tmp_path):
    """A link first, then a file of the same name: the old way to write through it."""
    link, _ = member(f"{PY}/data_batch_1.bin", **LINK)
    path = write_tar(tmp_path / "a.tar")
    path.write_bytes(link.tobuf() + path.read_bytes())
    with pytest.raises(ValueError, match=r"data_batch_1\.bin' is a link"):
        cifar10.load_data(path)


def test_huge_member(tmp_path):
    """Its header claims 8 GB: refused before any of it is read."""
    path = write_tar(tmp_path / "a.tar")
    info = tarfile.TarInfo("data_batch_1")
    info.size = 8 << 30
    path.write_bytes(info.tobuf() + path.read_bytes())
    with pytest.raises(ValueError, match=f"'data_batch_1' has {8 << 30} bytes"):
        cifar10.load_data(path)


def test_tar_header_that_swells(tmp_path, monkeypatch):
    """A pax header is read whole by tarfile itself, before any member can be checked."""
    monkeypatch.setattr(_archive, "MAX_ARCHIVE", 1 << 20)
    path = tmp_path / "a.tar"
    with tarfile.open(path, "w:gz", format=tarfile.PAX_FORMAT, pax_headers={"comment": "a" * (3 << 20)}):
        pass
    assert path.stat().st_size < 20_000
    with pytest.raises(ValueError, match=f"more than {1 << 20} bytes when decompressed"):
        cifar10.load_data(path)


def test_too_many_members(tmp_path):
    with pytest.raises(ValueError, match="more than 100 members"):
        cifar10.load_data(write_tar(tmp_path / "a.tar", [member(f"file{i}") for i in range(100)]))


@pytest.mark.parametrize("kept", [0, 3, 30, 1000, 0.5, 0.99, -4])
def test_truncated_gzip(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar.gz", mode="w:gz")
    data = path.read_bytes()
    path.write_bytes(data[: int(kept * len(data)) if isinstance(kept, float) else kept])
    with pytest.raises(ValueError, match=r"a\.tar\.gz"):
        cifar10.load_data(path)


@pytest.mark.parametrize("kept", [0.1, 0.5, 0.8])
def test_truncated_tar(tmp_path, kept):
    path = write_tar(tmp_path / "a.tar")
    path.write_bytes(path.read_bytes()[: int(kept * N * 6 * 3073)])
    with pytest.raises(ValueError, match=r"a\.tar"):
        cifar10.load_data(path)


@pytest.mark.parametrize("kind", ["tar.gz", "zip"])
def test_one_flipped_bit_in_a_compressed_archive(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(_archive, "_CHUNK", 512)  # so that the checksum is not read along with the last file
    path = tmp_path / "a"
    data = bytearray((write_zip(path) if kind == "zip" else write_tar(path, mode="w:gz")).read_bytes())
    data[len(data) // 2] ^= 4
    path.write_bytes(data)
    with pytest.raises(ValueError, match=r"a.*(damaged|not a whole)"):
        cifar10.load_data(path)


def zip_member(name, mode=0, flags=0):
    info = zipfile.ZipInfo("stand-in")
    info.filename, info.external_attr = name, mode << 16
    info.flag_bits |= flags
    return info


@pytest.mark.parametrize(
    ("info", "message"),
    [
        (zip_member("../evil"), "points outside"),
        (zip_member("/evil"), "points outside"),
        (zip_member("D:evil"), "points outside"),
        (zip_member("link", 0o120777), "is a link"),
        (zip_member("device", 0o020666), "of mode 20666"),
    ],
)
def test_hostile_zip(tmp_path, info, message):
    path = write_zip(tmp_path / "a.zip", extra=[(info, b"/etc/passwd")])
    with pytest.raises(ValueError, match=f"a.zip: member .*{message}"):
        cifar10.load_data(path)
    assert sorted(tmp_path.rglob("*")) == [path]


@pytest.mark.parametrize(
    ("offset", "value", "message"), [(8, 1, "is encrypted"), (10, 12, "compression type 12")]
)
def test_zip_that_needs_more(tmp_path, offset, value, message):
    path = write_zip(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[data.index(b"PK\x01\x02") + offset] = value  # in the first entry of the directory
    path.write_bytes(data)
    with pytest.raises(ValueError, match=message):
        cifar10.load_data(path)


def test_zip_member_shorter_than_it_claims(tmp_path):
    path = write_zip(tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    at = data.index(b"PK\x01\x02") + 24  # the size in the first entry of the directory
    assert int.from_bytes(data[at : at + 4], "little") == N * 3073
    data[at] += 5
    path.write_bytes(data)
    with pytest.raises(
        ValueError, match=rf"data_batch_1\.bin' ends after {N * 3073} of {N * 3073 + 5} bytes"
    ):
        cifar10.load_data(path)


def test_huge_zip_member(tmp_path, monkeypatch):
    monkeypatch.setattr(_files, "MAX_FILE", 3073 * N)
    path = write_zip(tmp_path / "a.zip", extra=[("bomb", bytes(1 << 20))])
    with pytest.raises(ValueError, match=f"'bomb' has {1 << 20} bytes"):
        cifar10.load_data(path)


@pytest.mark.parametrize("content", [b"", b"hello", bytes(1024), b"PK\x03\x04", b"\x1f\x8b\x08\x00"])
def test_no_archive_at_all(tmp_path, content):
    (tmp_path / "a").write_bytes(content)
    with pytest.raises(ValueError, match=r"not a whole \.tar, \.tar\.gz or \.zip archive|lacks data_batch_1"):
        cifar10.load_data(tmp_path / "a")
