"""The exception for mistakes of the user."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """A mistake of the user, not of the program.

    The message says what is wrong, where (file, line, key) and what to do; the command line prints it without a
    traceback. Any other exception is a defect of this package, and its traceback is shown.
    """


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    by_text = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), by_text, n=1, cutoff=0.5)
    return f"; did you mean {by_text[close[0]]!r}?" if close else ""
