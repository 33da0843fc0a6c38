"""``qsattn build``: checks a recipe and creates its run folder."""

from __future__ import annotations

import shlex
import textwrap
from functools import partial
from pathlib import Path

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place


@click.command("build", short_help="Check a recipe and create its run.")
@click.argument("recipe", shell_complete=completion.recipes)
@click.option("--run", "folder", type=Place(), help="The run's folder.  [default: runs/<name>]")
@click.option(
    "-s", "overrides", multiple=True, metavar="KEY=VALUE", help="Set a key of the recipe: -s train.steps=100."
)
@click.option("--overwrite", is_flag=True, help="Delete the training in the folder.")
@partial(import_option, expose=True)
@click.option("--no-trial", is_flag=True, help="Do not try two steps and an evaluation.")
def command(
    recipe: str,
    folder: Path | None,
    overrides: tuple[str, ...],
    overwrite: bool,
    imports: list[str],
    no_trial: bool,
) -> None:
    """Check RECIPE, try it, and write the resolved recipe into a run folder.

    RECIPE is a YAML file or a shipped recipe's name (`qsattn list recipes`). Every part is built once, and two steps
    and an evaluation are tried on a few of the pictures, which finds what does not fit together and says how long the
    training takes on this machine, and in how much memory. Nothing is kept of it: training is `qsattn fit`.
    """
    from qsattn_plugin.data.values import describe_range, with_measured_range
    from qsattn_plugin.registry.recipe import load_recipe
    from qsattn_plugin.text import text_table
    from qsattn_plugin.training.describe import part_table
    from qsattn_plugin.training.run import Run
    from qsattn_plugin.training.session import Session

    asked = load_recipe(recipe, overrides, imports)
    Run.at(asked, folder).check(overwrite)
    loaded = with_measured_range(asked)
    if loaded != asked:
        click.echo(describe_range(loaded))
    session = Session(loaded)
    click.echo(textwrap.indent(text_table(part_table(session), "<<>"), "  "))
    if not no_trial:
        from qsattn_plugin.training.trial import describe_trial, try_recipe

        trial = try_recipe(session)
        click.echo("\n" + describe_trial(session, trial))
        for note in trial.notes:
            click.echo(note)
    run = Run.create(loaded, folder, overwrite)
    name = "" if folder is None else f" {shlex.quote(str(folder))}"
    click.echo(f"\nThe run is {run.folder}. Train it with: qsattn fit{name}")
