"""The error for a picture that cannot be read, and paths as text."""

from __future__ import annotations

import os

from qsattn_plugin.errors import UserError


class UnreadableImage(UserError):
    """A picture cannot be read. ``reason`` is a phrase for the user; ``path`` is the file, if there is one."""

    def __init__(self, reason: str, path: str | os.PathLike | None = None):
        super().__init__(f"{show(path)}: {reason}" if path is not None else reason)
        self.reason = reason
        self.path = path


def show(path: str | os.PathLike) -> str:
    """Return a path as printable text; bytes that are not UTF-8 become question marks."""
    return os.fspath(path).encode("utf-8", "replace").decode("utf-8")
