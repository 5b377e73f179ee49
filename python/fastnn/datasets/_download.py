"""Download one known file with pooch: its size and checksum are checked, a broken download is continued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ._files import require

_CHUNK = 1 << 16
_TIMEOUT = 60  # seconds without a single byte


def fetch(url: str, path: Path, *, sha256: str, size: int, progress: bool = True) -> None:
    """Bring `url` to `path`, unless it already lies there whole.

    The bytes gather in ``path.part``, where a later call continues. Only a file of this size and checksum
    gets the name `path`, by an atomic rename. Raises OSError where the connection fails and ValueError where
    the server has another file; what has the wrong checksum is removed.
    """

    def download(url: str, temporary: str, _pooch: Any) -> None:
        part = path.with_name(path.name + ".part")
        _complete(url, part, size, progress)
        part.replace(temporary)  # pooch compares the checksum of this one and renames it

    pooch = require("pooch", "pooch")
    pooch.retrieve(url, f"sha256:{sha256}", fname=path.name, path=path.parent, downloader=download)


def _complete(url: str, part: Path, size: int, progress: bool) -> None:
    """Download what `part` lacks of `size` bytes; after a break go on while each try brings some."""
    requests, exceptions = require("requests", "requests"), require("urllib3.exceptions", "urllib3")
    tqdm = require("tqdm", "tqdm").tqdm
    if _length(part) > size:
        part.unlink()
    most = _length(part)
    hidden = None if progress else True  # None: shown on a terminal only
    with tqdm(total=size, unit="B", unit_scale=True, desc=part.stem, disable=hidden) as bar:
        while (have := _length(part)) < size:
            reason = "the connection was closed"
            try:
                _continue(requests, url, part, have, size, bar)
            except requests.HTTPError as error:
                raise OSError(f"{url}: the server answers {error.response.status_code}") from error
            except (requests.RequestException, exceptions.HTTPError, TimeoutError, ConnectionError) as error:
                reason = str(error)
            have = _length(part)
            if have < size and have <= most:
                raise OSError(
                    f"{url}: stopped after {have} of {size} bytes ({reason}). What has come is kept; "
                    "the same command continues there"
                )
            most = have


def _continue(requests: Any, url: str, part: Path, have: int, size: int, bar: Any) -> None:
    """One request for the bytes of `url` from `have` on, written behind those in `part`."""
    headers = {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with requests.get(url, headers=headers, stream=True, timeout=_TIMEOUT) as response:
        response.raise_for_status()
        # A server that knows no ranges answers 200 and sends everything from the start.
        start = have if response.status_code == 206 else 0
        announced = response.headers.get("Content-Length")
        if announced is not None and start + int(announced) != size:
            raise ValueError(f"{url}: the server offers {start + int(announced)} bytes, not the known {size}")
        bar.reset()
        bar.n = bar.initial = start
        with part.open("ab" if start else "wb") as file:
            for chunk in response.raw.stream(_CHUNK, decode_content=False):  # as stored, not gunzipped
                file.write(chunk)
                bar.update(len(chunk))
                start += len(chunk)
                if start > size:
                    break
    if start > size:
        part.unlink()
        raise ValueError(f"{url}: the server sends more than the known {size} bytes; removed")


def _length(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
