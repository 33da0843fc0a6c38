"""What a file holds, looked at before it is believed: its first bytes, the depth and size of its data, its types."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from qsattn_plugin.registry.parts import accepts

#: Limits on the data in a file: levels of nesting, and containers and values in all, aliases counted each time.
MOST_LEVELS, MOST_VALUES = 64, 1_000_000
#: The largest integer that a document may hold where a count is expected: beyond it JSON's readers disagree.
_LARGEST = 2**53

_COUNT = int | None
_TEXT = str | None
_DATA = {
    **dict.fromkeys(("crop", "resize"), _COUNT),
    "channels": int | dict | None,
    **dict.fromkeys(("preprocess", "random_crop", "direction"), _TEXT),
}
_PART = {"type!": str}
_RECIPE = {
    "name": _TEXT,
    "method": _TEXT,
    "import": list[str] | None,
    "data": _DATA,
    "train": {},
    "evaluate": {"bands": list[int] | None},
    **dict.fromkeys(("generator", "discriminator", "encoder", "sampler"), _PART),
}
_GENERATOR = {"type!": str, "arguments!": dict, "prefix!": str, "ranges": list | None}
_GENERATORS = {"*": {**_GENERATOR, **dict.fromkeys(("channels", "out_channels", "trained"), _COUNT)}}
#: The types of what is read from documents; other keys may hold anything. "!" marks a key that must be there.
_DOCUMENT = {
    "kind": _TEXT,
    "step": _COUNT,
    "precision": _TEXT,
    "recipe": _RECIPE,
    "generators": _GENERATORS,
    "scaler": {},
    "scores": {"*": float},
    "best": {"score": str, "value": float, "step": int, "evaluations": int},
    **{key: {"*": int} for key in ("tensors", "sides", "frozen")},
}


def pretence(path: Path) -> str | None:
    """Return what a file is that only stands for another one, as a phrase: a Git LFS pointer, a web page, nothing."""
    with open(path, "rb") as file:
        head = file.read(512).lstrip().lower()
    if head.startswith(b"version https://git-lfs."):
        return "is a Git LFS pointer, not the file itself; `git lfs pull` in its repository fetches that"
    if head.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "is a web page, not a file of weights; the address that it was downloaded from may need a login"
    return None if head else "is empty"


def containers(content: Any) -> list[Any] | None:
    """Return the mappings, lists and tuples in plain data, itself included; None if it is endless, deep or too large.

    Data may hold itself, or one list many times: it is walked level by level, each container once a level.
    """
    found: dict[int, Any] = {}
    level: dict[int, tuple[Any, int]] = {id(content): (content, 1)}
    total = 0
    for _ in range(MOST_LEVELS):
        below: dict[int, tuple[Any, int]] = {}
        for one, times in level.values():
            inside = one.values() if isinstance(one, Mapping) else one if isinstance(one, (list, tuple, set)) else ()
            total += times * (1 + len(inside))
            if total > MOST_VALUES:
                return None
            if inside:
                found[id(one)] = one
            for value in inside:
                if isinstance(value, (Mapping, list, tuple, set)):
                    below[id(value)] = value, times + below.get(id(value), (None, 0))[1]
        if not below:
            return list(found.values())
        level = below
    return None


def wrong_key(document: Any, types: Any = None, at: str = "") -> str | None:
    """Return the dotted key of a document's first value that is not of the type that reading relies on, or None."""
    types = _DOCUMENT if types is None else types
    if isinstance(types, dict):
        if not isinstance(document, dict):
            return at or "document"
        for name, kind in types.items():
            key = name.removesuffix("!")
            for inner in document if key == "*" else [key] if key in document or key != name else ():
                value = document.get(inner)
                if value is None and isinstance(kind, dict) and key != "*":
                    continue  # a section that is null is none
                if wrong := wrong_key(value, kind, f"{at}.{inner}".lstrip(".")):
                    return wrong
        return None
    counted = type(document) is not int or 0 <= document <= _LARGEST
    return None if counted and accepts(types, document) else at


#: The types of what is read from the events of a log; other keys may hold anything.
_EVENT = {
    "event!": str,
    "step!": int,
    "losses": {},
    "environment": {},
    "scores": {"*": float},
    "images": {"*": int},
    "best": {"score!": str, "value!": float, "step!": int, "evaluations!": int},
    "pictures": list[str] | None,
    "skipped": list | None,
    "damaged": list[str] | None,
    "arguments": {},
    "processes": int | None,
}


def read_events(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield the lines of a log of events, as text and parsed, without those that are damaged; no file has none."""
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else ():
        try:
            event = json.loads(line)
        except (ValueError, RecursionError):
            continue
        whole = containers(event) is not None and wrong_key(event, _EVENT) is None
        if whole and (event["event"] != "evaluate" or event.get("scores") is not None):
            yield line, event
