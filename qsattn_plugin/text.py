"""Text tables."""

from __future__ import annotations

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
