"""Text for people: tables, durations in words, and what a terminal can show."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Sequence


def text_table(rows: Iterable[Sequence[str]], align: str = "", rule: bool = False) -> str:
    """Return rows of cells as aligned lines.

    >>> from qsattn_plugin.text import text_table
    >>> print(text_table([("part", "parameters"), ("heads", "1,024")], "<>"))
    part   parameters
    heads       1,024

    Args:
        rows: with the same number of cells in each.
        align: "<" (left) or ">" (right) for each column; left where it is shorter.
        rule: draw a line below the first row.
    """
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    if rule:
        rows.insert(1, ["-" * width for width in widths])
    sides = align.ljust(len(widths), "<")
    return "\n".join("  ".join(map("{:{}{}}".format, row, sides, widths)).rstrip() for row in rows)


def duration(seconds: float) -> str:
    """Return a duration by its two largest units.

    >>> from qsattn_plugin.text import duration
    >>> duration(793_000), duration(61), duration(0.2)
    ('9 d 4 h', '1 min 1 s', '0 s')
    """
    left = round(seconds)
    parts: list[str] = []
    for unit, size in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        count, left = divmod(left, size)
        if count or (unit == "s" and not parts):
            parts.append(f"{count} {unit}")
    return " ".join(parts[:2])


def printable(text: str) -> str:
    r"""Return text that does nothing to a terminal: control characters and marks of direction become escapes.

    Line ends and tabs stay; bytes of names that are not UTF-8 become question marks.

    >>> from qsattn_plugin.text import printable
    >>> print(printable("a\x1b[2Jb\u202e.png"))
    a\x1b[2Jb\u202e.png
    """
    text = text.encode("utf-8", "replace").decode("utf-8")
    if text.isprintable():
        return text
    kept = (c.isprintable() or c in "\n\t" or unicodedata.category(c) == "Zs" for c in text)
    return "".join(c if keep else c.encode("unicode_escape").decode() for c, keep in zip(text, kept, strict=True))
