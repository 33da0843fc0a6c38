"""Downloads: servers that answer anything, addresses that are none, notes about partial files that are damaged."""

from __future__ import annotations

import json
import random
import socket
import threading
from pathlib import Path

from qsattn_plugin.storage.download import download
from tests.fuzz import Case, damage, odd

_ADDRESSES = (
    "http://[::1/x",
    "http://a..b/x",
    "http://",
    "http://\x00/",
    "http://h:99999/x",
    "file:///etc/passwd",
    "http://%/",
)
_BODY = bytes(range(256)) * 8


class _Server:
    """Gives one answer to whoever asks, whatever they ask."""

    def __init__(self) -> None:
        self.answer = b""
        self.socket = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self.socket.getsockname()[1]}/file"
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            connection, _ = self.socket.accept()
            with connection:
                try:
                    connection.recv(1 << 16)
                    connection.sendall(self.answer)
                    connection.shutdown(socket.SHUT_WR)
                except OSError:
                    pass


_server: _Server | None = None


def make(draw: random.Random, folder: Path) -> Case:
    global _server
    _server = _server or _Server()
    status = draw.choice((200, 200, 206, 206, 301, 302, 404, 416, 500, 999, 100))
    headers = {
        "Content-Length": draw.choice((len(_BODY), 0, -1, 10**12, "x", "1, 2")),
        "Content-Range": draw.choice(
            ("bytes 0-9/10", "bytes 100-2047/2048", "bytes */100", "bytes 5-4/3", "x", "bytes 100-199/200")
        ),
        "Location": draw.choice(_ADDRESSES),
        "ETag": draw.choice(('"one"', "", "\xff")),
        "Transfer-Encoding": "chunked",
        "Content-Type": draw.choice(("text/html", "application/zip", "\xff")),
    }
    kept = draw.sample(list(headers), draw.randint(0, len(headers)))
    if status in (301, 302) and "Location" not in kept:
        kept.append("Location")
    lines = [f"HTTP/1.1 {status} X", *(f"{key}: {headers[key]}" for key in kept), "", ""]
    body = draw.choice((_BODY, b"", b"5\r\nhello\r\n0\r\n\r\n", b"FFFFFFFFFFFF\r\nx", bytes(100_000)))
    answer = "\r\n".join(lines).encode("latin-1") + body
    _server.answer = damage(draw, answer) if draw.random() < 0.3 else answer
    path, part = folder / "file", folder / "file.part"
    for old in (path, part, folder / "file.part.json"):
        old.unlink(missing_ok=True)
    if draw.random() < 0.5:
        part.write_bytes(_BODY[: draw.choice((0, 100, 3000))])
        note = {"url": _server.url, "validator": draw.choice(('"one"', "", "a\r\nX: y", odd(draw))), "size": odd(draw)}
        (folder / "file.part.json").write_text(json.dumps(note if draw.random() < 0.9 else odd(draw)))
    url = draw.choice(_ADDRESSES) if draw.random() < 0.1 else _server.url
    return lambda: download(url, path, attempts=2, wait=0.0, timeout=1.0, most=50_000)
