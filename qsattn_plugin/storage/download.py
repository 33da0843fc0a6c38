"""Download files from the web: interrupted transfers are resumed, checksums compared.

The partial file is ``NAME.part``; ``NAME.part.json`` says which version of the file it belongs to. Only a complete file
with the right checksum is renamed to ``NAME``.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import http.client
import json
import os
import re
import socket
import ssl
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from qsattn_plugin.errors import UserError

__all__ = ["DownloadFailed", "ProgressCallback", "checksum", "download", "download_bar"]

#: Called with the bytes that have arrived and the size of the file, or None where the server does not tell it.
ProgressCallback = Callable[[int, int | None], None]

#: The most bytes of a file, if nothing else is said: an answer without a length may have no end.
MOST = 8 << 30
_CHUNK = 1 << 18
#: Seconds between two checks whether another process has finished the same download.
_POLL = 0.2
#: Status codes after which a retry may succeed: the server or a proxy is busy.
_TRANSIENT = (408, 425, 429, 500, 502, 503, 504)


class DownloadFailed(UserError):
    """A file could not be downloaded."""


class _Interrupted(Exception):
    """The transfer failed, and a retry may succeed. ``connected``: the server was reached."""

    def __init__(self, reason: str, connected: bool = True):
        super().__init__(reason)
        self.connected = connected


@contextmanager
def download_bar(name: str, disable: bool | None = None) -> Iterator[ProgressCallback]:
    """Yield the progress callback of a bar on stderr; where ``disable`` is None, it is drawn on a terminal only."""
    from torch.hub import tqdm  # a simple one where tqdm is not installed

    with tqdm(desc=f"downloading {name}", unit="B", unit_scale=True, disable=disable) as bar:

        def show(done: int, total: int | None) -> None:
            bar.total = total
            bar.update(done - bar.n)

        yield show


def checksum(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def download(
    url: str,
    path: Path,
    sha256: str | None = None,
    progress: ProgressCallback = lambda done, total: None,
    attempts: int = 6,
    wait: float = 1.0,
    timeout: float = 30.0,
    most: int = MOST,
) -> str:
    """Download ``url`` to ``path`` and return its SHA-256.

    An interrupted transfer is retried from the byte where it stopped, or from the start where the server does not
    support that or has another version of the file. The partial file is kept for the next call. While another process
    downloads the same file, this one waits: it uses the other's result, or resumes if the other gave up.

    Args:
        url: http or https; a redirection may not leave these two, nor go from https to http.
        path: target; folders are created, an existing file is replaced at the end.
        sha256: the expected checksum; None accepts any file.
        progress: called as bytes arrive.
        attempts: maximum number of requests; ``wait`` seconds before the second, then each time twice as long.
        timeout: seconds without a byte after which a connection counts as interrupted.
        most: the most bytes that are accepted, whatever the server says.

    Raises:
        DownloadFailed: no connection, no such file, too many bytes, a checksum that differs, or ``attempts``
            interruptions.
        OSError: the disk is full, or the folder cannot be written.
    """
    if _scheme(url) not in ("http", "https"):
        raise DownloadFailed(f"{url}: only http and https addresses can be downloaded")
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.part")
    with _alone(part, path, progress) as (file, is_new):
        if is_new:
            found = checksum(path)
            if sha256 in (None, found):
                return found
        reached = False
        for attempt in range(1, attempts + 1):
            try:
                _transfer(url, file, _Note(part), sha256 is not None, progress, timeout, most)
                break
            except _Interrupted as error:
                reached = reached or error.connected
                # Without any connection so far there is no network, and waiting would look like a hang.
                if attempt == attempts or not reached:
                    kept = file.seek(0, os.SEEK_END)
                    more = f"; {kept:,} bytes have arrived, and the same command resumes from there" if kept else ""
                    raise DownloadFailed(f"{url} could not be downloaded: {error}{more}") from error
                time.sleep(min(wait * 2 ** (attempt - 1), 30))
        found = checksum(part)
        if sha256 is not None and found != sha256:
            _Note(part).forget()
            part.unlink()  # nothing to resume from
            what = f"{url} has the wrong checksum: its SHA-256 should be {sha256} and is {found}"
            why = "the file there has changed, or it was changed on the way"
            raise DownloadFailed(f"{what}. Either {why}; the download was deleted")
        os.fsync(file.fileno())
        os.replace(part, path)
        _Note(part).forget()
    return found


@contextmanager
def _alone(part: Path, path: Path, progress: ProgressCallback) -> Iterator[tuple[IO[bytes], bool]]:
    """Yield the partial file, locked, and whether another process completed the file while this one waited."""
    before = _version(path)
    while (file := _locked(part)) is None:
        with contextlib.suppress(FileNotFoundError):  # the other process has just finished
            progress(part.stat().st_size, None)
        time.sleep(_POLL)
    with file:
        try:
            yield file, _version(path) not in (None, before)
        finally:
            if file.seek(0, os.SEEK_END) == 0:
                part.unlink(missing_ok=True)
                _Note(part).forget()


def _locked(part: Path) -> IO[bytes] | None:
    """Return the partial file, locked; None while another process holds it, or if it was renamed in between."""
    with contextlib.ExitStack() as closing:
        file = closing.enter_context(open(part, "ab"))
        with contextlib.suppress(BlockingIOError, FileNotFoundError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.samestat(os.fstat(file.fileno()), os.stat(part)):
                closing.pop_all()
                return file
    return None


def _version(path: Path) -> tuple[int, int] | None:
    """Return inode and modification time, which change when a file is replaced; None if there is no file."""
    try:
        found = os.stat(path)
    except FileNotFoundError:
        return None
    return found.st_ino, found.st_mtime_ns


class _Note:
    """The version of a file that a partial copy belongs to: the address, the server's ETag or date, and the size."""

    def __init__(self, part: Path):
        self.path = part.with_name(f"{part.name}.json")

    def known(self, url: str) -> tuple[str | None, int | None]:
        """Return the ETag or date ("": there is none; None: the copy may be of another address), and the size."""
        try:
            known = json.loads(self.path.read_text(encoding="utf-8"))
            text, size = known["validator"], known.get("size")
            valid = known["url"] == url and isinstance(text, str) and text.isascii() and text.isprintable()
            return (text, size if isinstance(size, int) else None) if valid else (None, None)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
            return None, None

    def keep(self, url: str, headers: Any, size: int | None) -> None:
        etag = headers.get("ETag") or ""
        strong = "" if etag.startswith("W/") else etag  # a weak ETag does not guarantee equal bytes
        validator = strong or headers.get("Last-Modified") or ""
        self.path.write_text(json.dumps({"url": url, "validator": validator, "size": size}), encoding="utf-8")

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)


def _transfer(
    url: str, file: IO[bytes], note: _Note, is_checked: bool, progress: ProgressCallback, timeout: float, most: int
) -> None:
    """Fetch the missing bytes of ``file`` from ``url``. ``is_checked``: a checksum is compared afterwards."""
    have = file.seek(0, os.SEEK_END)
    validator, size = note.known(url)
    headers = {"User-Agent": "qsattn-plugin", "Accept-Encoding": "identity"}
    # Without an ETag or date the rest may belong to another version, which only a checksum would detect.
    if have and (validator or (validator == "" and is_checked)):
        headers |= {"Range": f"bytes={have}-"} | ({"If-Range": validator} if validator else {})
    answer = _open(urllib.request.Request(url, headers=headers), timeout)
    begins, whole = _content_range(answer.headers.get("Content-Range", ""))
    same = size is None or whole == size
    if answer.status == 416 and have and whole == have and same:
        return  # already complete: interrupted between the last byte and the renaming
    if answer.status != 200 and (answer.status != 206 or begins != have or not same):
        answer.close()
        file.truncate(0)
        raise _Interrupted(f"the server's answer to a partial request is not valid (status {answer.status})")
    with answer:
        length = answer.headers.get("Content-Length", "")
        total = int(length) if length.isdigit() else None
        if answer.status == 206:
            total = whole
        else:  # a request from the start, a changed version, or a server without ranges
            if answer.headers.get_content_type() == "text/html":
                raise DownloadFailed(f"{url} answers with a web page instead of the file; it may have moved")
            have = 0
            file.truncate(0)
            note.keep(url, answer.headers, total)
        progress(have, total)
        for chunk in _chunks(answer):
            have += len(chunk)
            if have > (most if total is None else min(most, total)):
                file.truncate(0)
                raise DownloadFailed(f"{url} sends more than {most if total is None else min(most, total):,} bytes")
            file.write(chunk)
            progress(have, total)
        file.flush()
    if total is not None and have != total:
        raise _Interrupted(f"the connection broke off at byte {have:,} of {total:,}")


def _content_range(text: str) -> tuple[int | None, int | None]:
    """Return the first byte and the whole length from ``bytes 10-19/20`` or ``bytes */20``, None if absent."""
    found = re.fullmatch(r"bytes (?:(\d+)-\d+|\*)/(?:(\d+)|\*)", text.strip())
    first, whole = found.groups() if found else (None, None)
    return (int(first) if first else None, int(whole) if whole else None)


def _open(request: urllib.request.Request, timeout: float) -> Any:
    """Send the request; failures become :class:`DownloadFailed` or, if a retry may help, :class:`_Interrupted`."""
    url = request.full_url
    try:
        # Local files and ftp, which urllib reads too, were refused with the address and are with redirections.
        return urllib.request.build_opener(_SafeRedirects).open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:
            return error  # handled by the caller
        if error.code in _TRANSIENT:
            raise _Interrupted(f"the server answers {error.code} {error.reason}") from error
        what = f"the server answers {error.code} {error.reason}"
        raise DownloadFailed(f"{url} could not be downloaded: {what}") from error
    except urllib.error.URLError as error:
        reason = error.reason
        if isinstance(reason, ssl.SSLError):
            raise DownloadFailed(f"{url} could not be downloaded: no safe connection ({reason})") from error
        if isinstance(reason, socket.gaierror):
            host = urllib.parse.urlsplit(url).hostname
            raise _Interrupted(f"there is no network, or no host {host}", connected=False) from error
        text = getattr(reason, "strerror", None) or str(reason)
        raise _Interrupted(f"no connection ({text})", connected=False) from error
    except (http.client.InvalidURL, ValueError) as error:
        raise DownloadFailed(f"{url} cannot be asked, or leads to an address that cannot ({error})") from error
    except (http.client.HTTPException, OSError) as error:
        raise _Interrupted(f"the connection broke off ({error or type(error).__name__})") from error


def _scheme(url: str) -> str:
    try:
        return urllib.parse.urlsplit(url).scheme.lower()
    except ValueError as error:
        raise DownloadFailed(f"{url} is not a valid address ({error})") from error


def _chunks(answer: Any) -> Iterator[bytes]:
    while True:
        try:
            chunk = answer.read1(_CHUNK)  # returns what has arrived; read() would lose it at a timeout
        except (http.client.HTTPException, OSError) as error:
            raise _Interrupted(f"the connection broke off ({error or type(error).__name__})") from error
        if not chunk:
            return
        yield chunk


class _SafeRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, request, fp, code, message, headers, newurl):
        old, new = _scheme(request.full_url), _scheme(newurl)
        if new not in ("http", "https") or (old, new) == ("https", "http"):
            raise DownloadFailed(f"{request.full_url} redirects to {newurl}, which is not followed: it is not https")
        if fp is not None:
            fp.close()  # urllib would read all of its body, which may have no end
        return super().redirect_request(request, fp, code, message, headers, newurl)
