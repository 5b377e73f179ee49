"""Read the files of an archive: each member is checked, none is ever unpacked to disk."""

from __future__ import annotations

import gzip
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PureWindowsPath
from typing import IO, Any

from ._files import Files, check_size

MAX_ARCHIVE = 400 << 20  # bytes after decompression; the official archives have 185 MB
MAX_MEMBERS = 100  # they have 9
_CHUNK = 1 << 20
_DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, OSError, NotImplementedError)


def archive_files(path: Path, wanted: frozenset[str]) -> Files:
    """The files of a .tar, .tar.gz or .zip archive (told by its content) whose last name part is wanted.

    Every member is checked, wanted or not. Raises ValueError naming the first that is absolute, has ``..`` in
    its name, is a link, a device or too large, and where the archive is damaged.
    """
    with path.open("rb") as file:
        magic = file.read(4)
        file.seek(0)
        zipped, gzipped = magic == b"PK\x03\x04", magic[:2] == b"\x1f\x8b"
        members = _zip_members(file) if zipped else _tar_members(file, gzipped)
        try:
            for count, (name, size, kind, member) in enumerate(members, 1):
                where = f"{path}: member {name!r}"
                if count > MAX_MEMBERS:
                    raise ValueError(f"{path}: more than {MAX_MEMBERS} members; CIFAR-10's archives have 9")
                as_path = PureWindowsPath(name)  # knows both kinds of slash, and drive letters
                if as_path.anchor or ".." in as_path.parts:
                    raise ValueError(f"{where} points outside the archive; refused")
                if kind not in ("file", "folder"):
                    raise ValueError(f"{where} is {kind}; only plain files and folders are read")
                check_size(where, size)
                if kind == "file" and as_path.name in wanted:
                    yield as_path.name, partial(_read_member, where, member, size)
        except _DAMAGED as error:
            raise ValueError(f"{path}: not a whole .tar, .tar.gz or .zip archive ({error})") from error


def _read_member(where: str, member: IO[bytes], size: int) -> bytes:
    try:
        data = member.read(size)
    except _DAMAGED as error:
        raise ValueError(f"{where} is damaged ({error})") from error
    if len(data) != size:
        raise ValueError(f"{where} ends after {len(data)} of {size} bytes")
    return data


class _Bounded:
    """A stream that gives at most MAX_ARCHIVE bytes, so that no small archive can swell without end."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile) -> None:
        self.stream, self.left = stream, MAX_ARCHIVE

    def read(self, size: int) -> bytes:
        data = self.stream.read(size)
        self.left -= len(data)
        if self.left < 0:
            raise tarfile.ReadError(f"more than {MAX_ARCHIVE} bytes when decompressed")
        return data


def _tar_members(file: IO[bytes], gzipped: bool) -> Iterator[tuple[str, int, str, Any]]:
    stream = _Bounded(gzip.GzipFile(fileobj=file) if gzipped else file)
    # The streaming mode reads everything, the headers too, through `stream` in pieces of one chunk.
    with tarfile.open(fileobj=stream, mode="r|", bufsize=_CHUNK) as archive:  # type: ignore[call-overload]
        for member in archive:
            if member.isdir():
                kind = "folder"
            elif member.isreg() and not member.issparse():
                kind = "file"
            else:
                kind = "a link" if member.issym() or member.islnk() else f"of type {member.type!r}"
            data = archive.extractfile(member) if kind == "file" else None
            yield member.name, member.size, kind, data
    while stream.read(_CHUNK):  # what follows the last member: gzip compares its checksum at the very end
        pass


def _zip_members(file: IO[bytes]) -> Iterator[tuple[str, int, str, Any]]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            mode = member.external_attr >> 16  # the Unix mode, zero where another system wrote the archive
            if member.flag_bits & 1:
                kind = "encrypted"
            elif member.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
                kind = f"of compression type {member.compress_type}"
            elif member.is_dir():
                kind = "folder"
            elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
                kind = "file"
            else:
                kind = "a link" if stat.S_ISLNK(mode) else f"of mode {mode:o}"
            if kind == "file":
                with archive.open(member) as data:
                    yield member.filename, member.file_size, kind, data
            else:
                yield member.filename, member.file_size, kind, None
