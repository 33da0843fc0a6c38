"""The documentation of arguments in the docstrings of parts."""

from __future__ import annotations

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

__all__ = ["argument_docs"]

_BLOCK = re.compile(r"^( *)Arg(?:ument)?s:\n((?:\1 .*\n|\n)+)", re.M)
_ITEM = re.compile(r"^\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*(?:\n +.*)*)", re.M)


def argument_docs(target: Callable[..., Any]) -> dict[str, str]:
    """Return the text of each argument in the Google-style ``Args:`` blocks of a class or function.

    Docstrings of a class, of its ``__init__`` and of its base classes are read; the nearest one wins.
    Continuation lines are joined with spaces.
    """
    if not inspect.isclass(target):
        return _parse(target.__doc__)
    docs: dict[str, str] = {}
    for owner in reversed(target.__mro__[:-1]):  # without object
        docs |= _parse(getattr(owner.__dict__.get("__init__"), "__doc__", None))
        docs |= _parse(owner.__dict__.get("__doc__"))
    return docs


def _parse(docstring: str | None) -> dict[str, str]:
    block = _BLOCK.search(inspect.cleandoc(docstring or "") + "\n")
    items = _ITEM.findall(textwrap.dedent(block[2])) if block else ()
    return {name: " ".join(text.split()) for name, text in items}
