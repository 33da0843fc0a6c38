"""A web server of the tests' own, archives to serve, and the fixture ``site``."""

from __future__ import annotations

import gzip
import hashlib
import http.server
import io
import re
import stat
import tarfile
import threading
import time
import zipfile

import pytest


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


class Site:
    """A web server on this machine. ``files`` are its paths; ``requests`` the (path, Range) that were asked for."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}
        self.requests: list[tuple[str, str | None]] = []
        self.ranges = True  # whether it knows partial requests
        self.etag = '"one"'
        self.cuts: list[int] = []  # how many bytes each coming answer sends before it breaks off; then whole ones
        self.stall = 0.0  # seconds that an answer with a cut stays silent before it does
        self.statuses: list[int] = []  # the failures of coming answers
        self.redirect: dict[str, str] = {}
        self.kind = "application/zip"
        site = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                site.answer(self)

            def log_message(self, *args: object) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True)
        self.thread.start()

    def close(self) -> None:
        self.server.shutdown()
        self.thread.join(5)
        self.server.server_close()

    def answer(self, request: http.server.BaseHTTPRequestHandler) -> None:
        asked = request.headers.get("Range")
        self.requests.append((request.path, asked))
        if self.statuses:
            request.send_error(self.statuses.pop(0))
            return
        if request.path in self.redirect:
            request.send_response(302)
            request.send_header("Location", self.redirect[request.path])
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        if request.path not in self.files:
            request.send_error(404)
            return
        content, begin = self.files[request.path], 0
        if asked and self.ranges and request.headers.get("If-Range", "") == self.etag:
            begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1])
        if begin >= len(content) > 0:
            request.send_response(416)
            request.send_header("Content-Range", f"bytes */{len(content)}")
            request.send_header("Content-Length", "0")
            request.end_headers()
            return
        request.send_response(206 if begin else 200)
        if begin:
            request.send_header("Content-Range", f"bytes {begin}-{len(content) - 1}/{len(content)}")
        request.send_header("Content-Type", self.kind)
        request.send_header("Content-Length", str(len(content) - begin))
        if self.etag:
            request.send_header("ETag", self.etag)
        request.end_headers()
        silent = self.stall if self.cuts else 0
        end = begin + self.cuts.pop(0) if self.cuts else len(content)
        request.wfile.write(content[begin:end])
        request.wfile.flush()
        time.sleep(silent)
        request.close_connection = True


@pytest.fixture
def site(monkeypatch):
    for name in ("http_proxy", "HTTP_PROXY"):
        monkeypatch.delenv(name, raising=False)
    made = Site()
    yield made
    made.close()


def zipped(members: dict[str, bytes], **attributes: int) -> bytes:
    """A zip archive; ``mode`` is the Unix mode of its members."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in members.items():
            info = zipfile.ZipInfo(name)
            info.compress_type = zipfile.ZIP_DEFLATED
            info.external_attr = attributes.get("mode", stat.S_IFREG | 0o644) << 16
            file.writestr(info, content)
    return out.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo], mode: str = "w:gz") -> bytes:
    """A tar archive, compressed or not; the same bytes whenever it is made (gzip would write the time into them)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=mode.removesuffix(":gz")) as file:
        for name, content in members.items():
            if isinstance(content, tarfile.TarInfo):
                file.addfile(content)
            else:
                info = tarfile.TarInfo(name)
                info.size = len(content)
                file.addfile(info, io.BytesIO(content))
    return gzip.compress(out.getvalue(), mtime=0) if mode.endswith(":gz") else out.getvalue()
