"""The command line, ``qsattn``: one command a file, imported when it is called.

``qsattn --help`` needs neither torch nor any part: the one-line helps stand in a table here.
"""

from __future__ import annotations

import importlib
from typing import Any

import click

from qsattn_plugin import __version__
from qsattn_plugin.errors import UserError, nearest

#: Command -> (module, one-line help).
COMMANDS = {
    "build": ("qsattn_plugin.cli.build", "Check a recipe, build its parts once, and make the run's folder."),
    "fit": ("qsattn_plugin.cli.fit", "Train the run built last, or the one named; carry on where it stopped."),
    "translate": ("qsattn_plugin.cli.translate", "Translate pictures and folders with a trained model."),
    "map": ("qsattn_plugin.cli.map", "Draw where an image says most: entropy maps and the selected queries."),
    "data": ("qsattn_plugin.cli.data", "Write a data set's pictures into folders."),
    "list": ("qsattn_plugin.cli.list", "Show the parts that recipes can name, and the shipped recipes."),
    "show": ("qsattn_plugin.cli.show", "Show one part: its arguments, and a network's size and taps."),
    "schema": ("qsattn_plugin.cli.schema", "Print the JSON Schema of recipes, for editors."),
}


class Lazy(click.Group):
    """A group whose commands are imported when they are called, and whose users' mistakes end in one line."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name not in COMMANDS:
            return None
        return importlib.import_module(COMMANDS[name][0]).command

    def resolve_command(self, ctx: click.Context, args: list[str]) -> Any:
        if args and args[0] not in COMMANDS:
            ctx.fail(f"there is no command {args[0]!r}{nearest(args[0], COMMANDS)}")
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(str(error)) from error
        except OSError as error:
            if error.strerror is None:  # not the system's word on a file
                raise
            place = f" ({error.filename})" if error.filename else ""
            raise click.ClickException(f"{error.strerror}{place}") from error


@click.group(cls=Lazy, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="qsattn")
def main() -> None:
    """Unpaired image-to-image translation with query-selected attention.

    \b
    qsattn build toy && qsattn fit                 train the toy model in five minutes
    qsattn translate photos/ -m toy -o out/        translate with it
    """


def run() -> None:
    """The console script."""
    main(prog_name="qsattn")
