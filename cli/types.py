"""Options that functions of the package parse."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


class Place(click.Path):
    """A path, which must not be empty: "" would be the current folder."""

    def __init__(self, **options: Any):
        super().__init__(path_type=Path, **options)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path; an empty one is a mistake of the command's."""
        if not str(value):
            self.fail("the path is empty; is a variable of the command not set?", param, ctx)
        return super().convert(value, param, ctx)


def parsed_by(room: str, name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that parses an option with a function of a module of ``translation``."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        if text is None or ctx.resilient_parsing:  # a shell completes, and does not wait for torch
            return None
        parse = getattr(importlib.import_module(f"qsattn_plugin.translation.{room}"), name)
        try:
            return parse(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read
