"""Options of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def _import(ctx: click.Context, param: click.Parameter, names: tuple[str, ...]) -> list[str]:
    from qsattn_plugin.registry.recipe.imports import import_named

    return [] if ctx.resilient_parsing else import_named(names)


def import_option(command: Callable[..., Any], expose: bool = False) -> Callable[..., Any]:
    """Add ``--import`` to a command; what it names is imported first, and is its argument ``imports`` if exposed."""
    text = "Import a Python file or module that registers parts first, or what a recipe (.yaml) imports."
    option = click.option(
        "--import", "imports", multiple=True, metavar="FILE", help=text, callback=_import, expose_value=expose
    )
    return option(command)
