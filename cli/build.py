"""``qsattn build``: checks a recipe and creates its run folder."""

from __future__ import annotations

import textwrap
from pathlib import Path

import click


@click.command("build", short_help="Check a recipe and create its run.")
@click.argument("recipe")
@click.option("--run", "folder", type=click.Path(path_type=Path), help="The run's folder.  [default: runs/<name>]")
@click.option(
    "-s", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the recipe: -s train.steps=100."
)
@click.option("--overwrite", is_flag=True, help="Delete the training in the folder.")
def command(recipe: str, folder: Path | None, overrides: tuple[str, ...], overwrite: bool) -> None:
    """Check RECIPE, build every part of it once, and write the resolved recipe into a run folder.

    RECIPE is a YAML file or a shipped recipe's name (`qsattn list recipes`). Nothing is trained yet: that is
    `qsattn fit`.
    """
    from qsattn_plugin.registry.recipe import load_recipe
    from qsattn_plugin.text import text_table
    from qsattn_plugin.training.describe import part_table
    from qsattn_plugin.training.run import Run

    loaded = load_recipe(recipe, overrides)
    table = part_table(loaded)
    run = Run.create(loaded, folder, overwrite)
    click.echo(textwrap.indent(text_table(table, "<<>"), "  "))
    name = "" if folder is None else f" {folder}"
    click.echo(f"\nThe run is {run.folder}. Train it with: qsattn fit{name}")
