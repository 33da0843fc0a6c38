"""The documentation of arguments in the docstrings of parts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from typing import Any

__all__ = ["argument_docs"]

_ITEM = re.compile(r"\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*)")


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
    lines = iter(inspect.cleandoc(docstring or "").splitlines())
    block = 0
    for line in lines:
        if line.strip() in ("Args:", "Arguments:"):
            block = len(line) - len(line.lstrip())
            break
    found: dict[str, list[str]] = {}
    name, item = "", None
    for line in lines:
        if not line.strip():
            continue
        indent = len(line) - len(line.lstrip())
        if indent <= block:
            break
        item = indent if item is None else item
        match = _ITEM.fullmatch(line.strip())
        if indent <= item and match:
            name = match[1]
            found[name] = [match[2]]
        elif name:
            found[name].append(line.strip())
    return {name: " ".join(filter(None, text)) for name, text in found.items()}
