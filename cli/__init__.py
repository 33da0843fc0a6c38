"""The command line, ``qsattn``: one command a file, imported when it is called.

For ``qsattn --help``, which imports neither torch nor any part, the one-line helps are listed here.
"""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import platform
import sys
import warnings
from importlib import metadata
from typing import Any

import click

from qsattn_plugin import __version__
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.text import printable

# OpenMP threads that wait for work spin for milliseconds by default, which slows down other busy processes and this
# one: on two cores with one such process a training step took 2.8 s instead of 1.2 s. A short spin costs nothing on an
# idle machine (0.25 s either way). It must be set before torch is imported; a user's own setting is kept.
if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "10000")

#: Command -> (module, one-line help).
COMMANDS = {
    "build": ("qsattn_plugin.cli.build", "Check a recipe, build its parts once, and make the run's folder."),
    "fit": ("qsattn_plugin.cli.fit", "Train the run built last, or the one named; continue where it stopped."),
    "report": ("qsattn_plugin.cli.report", "Rewrite a run's report: one page with its curves and pictures."),
    "translate": ("qsattn_plugin.cli.translate", "Translate pictures and folders with a trained model."),
    "export": ("qsattn_plugin.cli.export", "Write a generator as ONNX, TorchScript, pt2, or as CUT's scripts read it."),
    "publish": ("qsattn_plugin.cli.publish", "Write a generator in half precision, as a small file for others."),
    "import": ("qsattn_plugin.cli.import_", "Convert a generator that CUT, CycleGAN or QS-Attn trained."),
    "evaluate": ("qsattn_plugin.cli.evaluate", "Score translations: FID, KID, SWD, LPIPS, background, label maps."),
    "map": ("qsattn_plugin.cli.map", "Draw entropy maps of images and the selected queries."),
    "data": ("qsattn_plugin.cli.data", "Download a public data set, or draw the toy one, into folders."),
    "fork": ("qsattn_plugin.cli.fork", "Run a CUT fork's own script with its patch sampler swapped."),
    "list": ("qsattn_plugin.cli.list", "Show the parts that recipes can name, and the shipped recipes."),
    "show": ("qsattn_plugin.cli.show", "Show one part, key, recipe or published model."),
    "schema": ("qsattn_plugin.cli.schema", "Print the JSON Schema of recipes, for editors."),
}

#: Packages that this one is installed with, module -> name on PyPI.
NEEDED = {
    **{name: name for name in ("torch", "torchvision", "numpy", "timm", "kornia", "safetensors", "tqdm", "jinja2")},
    "pydantic": "pydantic",
    "PIL": "pillow",
    "yaml": "pyyaml",
}


class LazyGroup(click.Group):
    """A group that imports a command when it is called, and prints a user's mistake without a traceback."""

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
        logger, notes = logging.getLogger("qsattn_plugin"), _Notes()
        logger.addHandler(notes)
        logger.setLevel(logging.INFO)
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return super().invoke(ctx)
        except UserError as error:
            raise click.ClickException(printable(str(error))) from error
        except ModuleNotFoundError as error:  # installed without what it needs, as for a fork
            if error.name not in NEEDED:
                raise
            text = f"this needs {error.name}, which is not installed: `pip install {NEEDED[error.name]}`"
            raise click.ClickException(text) from error
        except OSError as error:
            if error.strerror is None or isinstance(error, BrokenPipeError):  # not an error of the system about a file
                raise
            place = f" ({error.filename})" if error.filename else ""
            raise click.ClickException(printable(f"{error.strerror}{place}")) from error
        except KeyboardInterrupt as stop:  # click itself exits with 1, the code of a failure
            with contextlib.suppress(OSError):  # a pipe's reader got the signal, too
                click.echo(printable(f"\n{stop}") if stop.args else "\nAborted!", err=True)
            raise click.exceptions.Exit(getattr(stop, "exit_code", 130)) from stop
        finally:
            logger.removeHandler(notes)


class _Notes(logging.Handler):
    """Prints what the package logs, such as which file a model's name meant."""

    def emit(self, record: logging.LogRecord) -> None:
        click.echo(printable(self.format(record)), err=True)


_default_showwarning = warnings.showwarning


def _show_warning(message: Any, category: type[Warning], *where: Any, **more: Any) -> None:
    """Print this package's own warnings in one line, without the place in the code."""
    if category.__module__.partition(".")[0] == "qsattn_plugin":
        text, tqdm = printable(f"Warning: {message}"), sys.modules.get("tqdm")
        with contextlib.suppress(OSError):  # where nobody reads any more, a training goes on
            if tqdm is None:
                click.echo(text, err=True)
            else:
                tqdm.tqdm.write(text, file=sys.stderr)  # above a progress bar, if there is one
                sys.stderr.flush()
    else:
        _default_showwarning(message, category, *where, **more)


def _tell_versions(ctx: click.Context, param: click.Parameter, asked: bool) -> None:
    """Print the versions that matter in a report of a defect, without importing what they belong to."""
    if not asked or ctx.resilient_parsing:
        return
    click.echo(f"qsattn, version {__version__}")
    click.echo(f"Python {platform.python_version()}, {platform.platform()}")
    for package in ("torch", "torchvision", "timm", "kornia", "pillow", "numpy", "safetensors", "click"):
        try:
            click.echo(f"{package} {metadata.version(package)}")
        except metadata.PackageNotFoundError:
            click.echo(f"{package} is not installed")
    ctx.exit()


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.option(
    "--version", is_flag=True, expose_value=False, is_eager=True, callback=_tell_versions, help="Show versions."
)
def main() -> None:
    """Unpaired image-to-image translation with query-selected attention.

    \b
    qsattn build toy && qsattn fit                 train the toy model in about four minutes
    qsattn translate photos/ -m runs/toy -o out/   translate with it

    \b
    The shell completes models, recipes, runs and parts after
    eval "$(_QSATTN_COMPLETE=bash_source qsattn)"     in ~/.bashrc; for zsh: zsh_source, in ~/.zshrc
    _QSATTN_COMPLETE=fish_source qsattn | source      in ~/.config/fish/config.fish
    """


def run() -> None:
    """The console script."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # where a terminal's encoding lacks a letter of a name
    main(prog_name="qsattn")
