"""Option types that click does not have, and an option of several commands."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import click

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Duration(click.ParamType):
    """Seconds from text such as ``90``, ``45s``, ``9m``, ``1h30m`` or ``2d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = value.strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        if not parts or "".join(n + u for n, u in parts) != text:
            self.fail(f"{value!r} is not a duration; write it like 90, 45s, 9m or 1h30m", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in parts)


def import_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--import`` to a command, as its argument ``imports``."""
    text = "Import a Python file or module that registers parts first, or what a recipe (.yaml) imports."
    return click.option("--import", "imports", multiple=True, metavar="FILE", help=text)(command)
