"""``qsattn fork``: runs a CUT fork's script with a registered sampler."""

from __future__ import annotations

import atexit
import os
import signal
import sys
from pathlib import Path

import click


@click.command(
    "fork",
    short_help="Run a CUT fork's script with its sampler swapped.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--sampler", default="qsattn_global", show_default=True, help="A registered sampler.")
@click.option("--module", help="The fork's module with the sampler's class, e.g. models.networks.")
@click.option("--class", "kind", help="The class's name.  [default: PatchSample... with the call signature of CUT's]")
@click.option("-s", "settings", multiple=True, metavar="KEY=VALUE", help="An argument of the sampler: -s taps=all.")
@click.option(
    "--check", is_flag=True, help="Leave the fork unchanged for a few steps, and compare its sampler with ours."
)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Number of steps for --check.")
@click.argument("script", type=click.Path(path_type=Path))
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    sampler: str,
    module: str | None,
    kind: str | None,
    settings: tuple[str, ...],
    check: bool,
    steps: int,
    script: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT, a CUT fork's train.py, with its ARGUMENTS in its own folder, with a registered sampler in place of
    the fork's own. No file of the fork is changed, and its options keep their names (--netF mlp_sample).

    \b
    qsattn fork -- train.py --dataroot datasets/horse2zebra --name zebra
    qsattn fork --sampler qsattn_local -s window=5 -- train.py ...
    qsattn fork --check -- train.py ...     accuracy and speed of the fork's own QS-Attn
    """
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.forks.check import Check, CheckFinished
    from qsattn_plugin.forks.run import SamplerImportHook, run_script, summarise
    from qsattn_plugin.forks.swap import Swap
    from qsattn_plugin.registry.recipe.checking import check_settings

    swap = Swap(sampler, **check_settings("sampler", sampler, settings, "taps=all", {"queries"}))
    if not script.is_file():
        known = [p.name for p in script.parent.glob("*.py")] if script.parent.is_dir() else []
        raise UserError(f"there is no script {script}{nearest(script.name, known)}")
    script = script.resolve()
    watch = Check(swap, steps) if check else None
    does = "is watched" if check else f"samples by {sampler} from here on"
    hook = SamplerImportHook(watch or swap, script.parent, module, kind, lambda name: _tell(f"{name} {does}"))
    at_end = _PythonExit()
    try:
        run_script(script, arguments, hook, lambda: bool(check or swap.counts["chosen"]))
    except CheckFinished:
        assert watch is not None  # it alone raises this
        click.echo(watch.table())
        return
    except UserError:
        raise
    except SystemExit as end:
        if end.code or {"-h", "--help"} & set(arguments):
            raise
    except BaseException as error:  # noqa: BLE001 - whatever the script raises is shown as Python shows it
        at_end.show(error, script)
    if watch is not None:
        raise UserError(f"the script ended after {watch.done} of {steps} calls of its sampler; set --steps lower")
    _tell(summarise(swap, hook))


def _tell(line: str) -> None:
    click.echo(f"qsattn: {line}", err=True)


class _PythonExit:
    """Ends the program on the fork's own exceptions as Python does: with its traceback, and on Ctrl-C by SIGINT."""

    def __init__(self) -> None:
        self.interrupted = False
        atexit.register(self._end)  # registered first, runs last

    def show(self, error: BaseException, script: Path) -> None:
        """Print the traceback from the script on, and exit."""
        trace = error.__traceback__
        while trace is not None and trace.tb_frame.f_code.co_filename != str(script):
            trace = trace.tb_next
        error = error.with_traceback(trace or error.__traceback__)
        sys.excepthook(type(error), error, error.__traceback__)
        self.interrupted = isinstance(error, KeyboardInterrupt)
        sys.exit(130 if self.interrupted else 1)

    def _end(self) -> None:
        if self.interrupted:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)
