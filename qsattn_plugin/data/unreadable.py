"""The error for a picture that cannot be read, and paths as text."""

from __future__ import annotations

import os

from qsattn_plugin.errors import UserError
from qsattn_plugin.text import printable


class UnreadableImage(UserError):
    """A picture cannot be read. ``reason`` is a phrase for the user; ``path`` is the file, if there is one."""

    def __init__(self, reason: str, path: str | os.PathLike | None = None):
        super().__init__(f"{show(path)}: {reason}" if path is not None else reason)
        self.reason = reason
        self.path = path


def show(path: str | os.PathLike) -> str:
    """Return a path as printable text in one line, see :func:`~qsattn_plugin.text.printable`."""
    return printable(os.fspath(path)).replace("\n", "\\n").replace("\t", "\\t")
