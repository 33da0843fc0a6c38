"""Options of several commands."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click


def import_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add ``--import`` to a command, as its argument ``imports``."""
    text = "Import a Python file or module that registers parts first, or what a recipe (.yaml) imports."
    return click.option("--import", "imports", multiple=True, metavar="FILE", help=text)(command)
