"""Options that functions of the package parse."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

import click


def parsed_by(room: str, name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that parses an option with a function of a module of ``translation``."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        parse = getattr(importlib.import_module(f"qsattn_plugin.translation.{room}"), name)
        try:
            return None if text is None else parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read
