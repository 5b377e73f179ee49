"""Downloads, from a server on this machine: continued, checked, never half there."""

from __future__ import annotations

import hashlib
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from cifar10_files import assert_is_the_data, make_small_and_apart, random, write_tar
from fastnn.datasets import _download, cifar10


@pytest.fixture(autouse=True)
def small_and_apart(monkeypatch, tmp_path):
    make_small_and_apart(monkeypatch, tmp_path)


PAYLOAD = random.bytes(300_000)
SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(ThreadingHTTPServer):
    payload = PAYLOAD
    ranges = True  # whether it can continue
    length = True  # whether it announces the length
    encoding = ""
    status = 200
    hung_up_on = False  # whether a client left before it had everything
    daemon_threads = False  # server_close waits for the answers under way

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.cuts = []  # of each request to come: how many bytes until the connection breaks
        self.asked = []  # the Range header of each request so far

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_port}/file.tar.gz"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self):
        asked = self.headers["Range"]
        self.server.asked.append(asked)
        start = int(asked.removeprefix("bytes=").removesuffix("-")) if asked and self.server.ranges else 0
        body = self.server.payload[start:]
        self.send_response(206 if start else self.server.status)
        if self.server.length:
            self.send_header("Content-Length", str(len(body)))
        if self.server.encoding:
            self.send_header("Content-Encoding", self.server.encoding)
        self.end_headers()
        try:
            self.wfile.write(body[: self.server.cuts.pop(0)] if self.server.cuts else body)
        except OSError:
            self.server.hung_up_on = True

    def log_message(self, *args):
        pass


@pytest.fixture
def server(monkeypatch):
    pytest.importorskip("pooch")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server, tmp_path):
    def fetch(**changes):
        path = tmp_path / "down" / "file.tar.gz"
        known = {"sha256": SHA256, "size": len(PAYLOAD), "progress": False}
        _download.fetch(server.url, path, **(known | changes))
        assert path.read_bytes() == PAYLOAD
        assert sorted(path.parent.iterdir()) == [path]

    return fetch


def test_download_once(server, fetch):
    fetch()
    fetch()  # is there already
    assert server.asked == [None]


def test_download_continues_by_itself_while_it_gets_on(server, fetch):
    server.cuts = [100_000, 50_000]
    fetch()
    assert server.asked == [None, "bytes=100000-", "bytes=150000-"]


@pytest.mark.parametrize("length", [True, False])
def test_download_interrupted_then_continued(server, fetch, tmp_path, length):
    server.length = length
    server.cuts = [123_456, 0]
    with pytest.raises(OSError, match=r"stopped after 123456 of 300000 bytes .* continues there"):
        fetch()
    assert [path.name for path in (tmp_path / "down").iterdir()] == ["file.tar.gz.part"]
    fetch()
    assert server.asked == [None, "bytes=123456-", "bytes=123456-"]


def test_download_from_a_server_that_cannot_continue(server, fetch):
    server.ranges = False
    server.cuts = [200_000, 100_000]
    with pytest.raises(OSError, match="stopped after 100000 of 300000 bytes"):
        fetch()
    fetch()
    assert server.asked == [None, "bytes=200000-", "bytes=100000-"]


@pytest.mark.parametrize("encoding", ["gzip", "x-gzip"])
def test_download_keeps_the_file_as_stored(server, fetch, encoding):
    server.encoding = encoding  # as some servers label a .tar.gz
    fetch()


def test_download_with_wrong_checksum_is_removed(server, fetch, tmp_path):
    with pytest.raises(ValueError, match=r"SHA256 hash of downloaded file .* does not match"):
        fetch(sha256="0" * 64)
    assert list((tmp_path / "down").iterdir()) == []
    fetch()


def test_download_continued_with_other_bytes_is_removed(server, fetch, tmp_path):
    (tmp_path / "down").mkdir()
    part = tmp_path / "down" / "file.tar.gz.part"
    part.write_bytes(bytes(1000))
    with pytest.raises(ValueError, match="does not match"):
        fetch()
    assert not part.exists()
    part.write_bytes(bytes(len(PAYLOAD) + 1))  # more than the whole: begun anew
    fetch()


def test_download_of_wrong_size(server, fetch, tmp_path):
    with pytest.raises(ValueError, match="offers 300000 bytes, not the known 299999"):
        fetch(size=299_999)
    server.length = False
    with pytest.raises(ValueError, match="more than the known 299999 bytes; removed"):
        fetch(size=299_999)
    assert list((tmp_path / "down").iterdir()) == []


def test_download_without_end_is_left(server, fetch):
    server.length, server.payload = False, bytes(64 << 20)
    with pytest.raises(ValueError, match="more than the known 300000 bytes; removed"):
        fetch()
    server.shutdown()
    server.server_close()
    assert server.hung_up_on


def test_wrong_answer_spares_what_was_downloaded(server, fetch, tmp_path):
    server.cuts = [1000, 0]
    with pytest.raises(OSError, match="stopped after 1000"):
        fetch()
    server.ranges, server.payload = False, b"<html>log in first</html>"
    with pytest.raises(ValueError, match="offers 25 bytes"):
        fetch()
    assert (tmp_path / "down" / "file.tar.gz.part").read_bytes() == PAYLOAD[:1000]


def test_download_without_an_answer(server, fetch):
    server.status = 503
    with pytest.raises(OSError, match="answers 503"):
        fetch()
    server.shutdown()
    server.server_close()
    with pytest.raises(OSError, match="stopped after 0 of 300000 bytes"):
        fetch()


@pytest.mark.parametrize("progress", [True, False])
def test_cifar10_download_goes_to_the_cache(server, tmp_path, monkeypatch, capsys, progress):
    archive = write_tar(tmp_path / "source.tar.gz", mode="w:gz", layout="python2").read_bytes()
    server.payload = archive
    monkeypatch.setattr(cifar10, "SIZE", len(archive))
    monkeypatch.setattr(cifar10, "SHA256", hashlib.sha256(archive).hexdigest())
    assert not cifar10.is_cached()
    path = cifar10.download(server.url, progress=progress)
    assert path == tmp_path / "cache" / "cifar-10-python.tar.gz"
    assert cifar10.is_cached()
    assert_is_the_data(cifar10.load_data())
    assert "%|" not in capsys.readouterr().err  # no bar where there is no terminal
