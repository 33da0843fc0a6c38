"""Mistakes of the user: the exception for them, checks of numbers, and words that help."""

from __future__ import annotations

import difflib
import os
import traceback
from collections.abc import Iterable, Sequence


class UserError(Exception):
    """A mistake of the user, not of the program.

    The message says what is wrong, where (file, line, key) and what to do; the command line prints it without a
    traceback. Any other exception is a defect of this package, and its traceback is shown.
    """


class Misfit(UserError, ValueError):
    """A part cannot work on what it is given; ``key`` names the setting of a recipe that decides on that."""

    def __init__(self, message: str, key: str = "data"):
        super().__init__(message)
        self.key = key


def check_sizes(what: str, *images: Sequence[int]) -> None:
    """Raise :class:`Misfit` if images of these shapes (..., H, W) do not have one size."""
    sizes = dict.fromkeys(f"{shape[-1]} x {shape[-2]}" for shape in images)
    if len(sizes) > 1:
        raise Misfit(
            f"{what} needs images of one size in both domains, got {' and '.join(sizes)} pixels: use a mode that "
            "crops, such as resize_and_crop",
            "data.preprocess",
        )


def at_least(least: float, **values: float) -> None:
    """Raise ValueError if one of the named arguments is smaller."""
    for name, value in values.items():
        if not value >= least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")


def above(limit: float, **values: float) -> None:
    """Raise ValueError if one of the named arguments is not larger."""
    for name, value in values.items():
        if not value > limit:
            raise ValueError(f"{name}: must be above {limit}, got {value}")


def one_of(known: Iterable[str], **values: object) -> None:
    """Raise ValueError if one of the named arguments is none of the known words."""
    known = tuple(known)
    for name, value in values.items():
        if value not in known:
            raise ValueError(f"{name}: must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")


def nearest(name: object, known: Iterable[object]) -> str:
    """Return ``"; did you mean 'x'?"`` for the known name closest to ``name``, or an empty string."""
    by_text = {str(k).lower(): str(k) for k in known}
    close = difflib.get_close_matches(str(name).lower(), by_text, n=1, cutoff=0.5)
    return f"; did you mean {by_text[close[0]]!r}?" if close else ""


def describe_error(error: BaseException) -> str:
    """Return an error of somebody else's code in one line: its type, its text, and the file and line it came from."""
    last = traceback.extract_tb(error.__traceback__)[-1]
    place = os.path.relpath(last.filename) if last.filename.startswith(os.getcwd() + os.sep) else last.filename
    text = " ".join(str(error).split()) or "no message"
    return f"{type(error).__name__}: {text} ({place}, line {last.lineno})"
