"""Option types that click does not have, and options that functions of the package parse."""

from __future__ import annotations

import importlib
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


def parsed_by(room: str, name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that parses an option with a function of a module of ``translation``."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        parse = getattr(importlib.import_module(f"qsattn_plugin.translation.{room}"), name)
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read
