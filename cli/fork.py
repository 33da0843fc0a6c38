"""``qsattn fork``: runs a CUT fork's script with a registered sampler."""

from __future__ import annotations

import atexit
import contextlib
import importlib
import os
import re
import signal
import sys
import types
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsattn_plugin.cli.types import Place

if TYPE_CHECKING:
    from qsattn_plugin.forks.check import Check
    from qsattn_plugin.forks.run import SamplerImportHook
    from qsattn_plugin.forks.swap import Swap


@click.command(
    "fork",
    short_help="Run a CUT fork's script with its sampler swapped.",
    context_settings={"allow_interspersed_args": False},
)
@click.option("--sampler", help="A registered sampler.  [default: qsattn_global; with --check, what the fork's is]")
@click.option("--module", help="The fork's module with the sampler's class, e.g. models.networks.")
@click.option("--class", "kind", help="The class's name.  [default: PatchSample... with the call signature of CUT's]")
@click.option("-s", "settings", multiple=True, metavar="KEY=VALUE", help="An argument of the sampler: -s taps=all.")
@click.option("--inside", is_flag=True, help="The class does all of its own work; only where it looks is replaced.")
@click.option("--log", type=Place(dir_okay=False), help="Keep what the sampler sees, as JSON lines.")
@click.option("--report", is_flag=True, help="Draw the log as a page beside it, with the losses that the fork prints.")
@click.option(
    "--check", is_flag=True, help="Leave the fork unchanged for a few steps, and compare its sampler with ours."
)
@click.option("--steps", type=click.IntRange(min=1), default=3, show_default=True, help="Number of steps for --check.")
@click.argument("script", type=Place())
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def command(
    sampler: str | None,
    module: str | None,
    kind: str | None,
    settings: tuple[str, ...],
    inside: bool,
    log: Path | None,
    report: bool,
    check: bool,
    steps: int,
    script: Path,
    arguments: tuple[str, ...],
) -> None:
    """Run SCRIPT, a CUT fork's train.py, with its ARGUMENTS, with a registered sampler in place of the fork's own. No
    file of the fork is changed, and its options keep their names (--netF mlp_sample).

    \b
    qsattn fork -- train.py --dataroot datasets/horse2zebra --name zebra
    qsattn fork --sampler qsattn_local -s window=5 -- train.py ...
    qsattn fork --log sampler.jsonl --report -- train.py ...
    qsattn fork --check -- train.py ...     accuracy and speed of the fork's own QS-Attn
    """
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.forks.check import Check, guess_sampler
    from qsattn_plugin.forks.log import SamplerLog
    from qsattn_plugin.forks.run import SamplerImportHook
    from qsattn_plugin.forks.swap import Swap
    from qsattn_plugin.registry.recipe.checking import check_settings

    if report and log is None:
        raise UserError("--report draws a log: name its file, --log sampler.jsonl")
    if report:  # packages that it needs and a fork's environment lacks are named now, not after the training
        importlib.import_module("qsattn_plugin.training.report")
    if log is not None and check:
        raise UserError("--check leaves the fork as it is, so there is nothing to log: leave --check or --log out")
    guessed = guess_sampler(_modes(arguments)) if check and sampler is None else None
    name, word = guessed or (sampler or "qsattn_global", "")
    swap = Swap(name, inside=inside, **check_settings("sampler", name, settings, "taps=all", {"queries"}))
    if not script.is_file():
        known = [p.name for p in script.parent.glob("*.py")] if script.parent.is_dir() else []
        raise UserError(f"there is no script {script}{nearest(script.name, known)}")
    script = script.resolve()
    watch = Check(swap, steps, f"guessed from {word}" if guessed else "" if sampler else None) if check else None
    does = "is watched" if check else f"samples by {name} from here on"
    here = Path.cwd()
    # A script may lie below its fork's folder, which is then the current one, but not all that a person has.
    folder = here if here in script.parents and here not in (Path.home(), *here.parents[-1:]) else script.parent
    hook = SamplerImportHook(watch or swap, folder, module, kind, lambda name: _tell(f"{name} {does}"))
    record = contextlib.ExitStack()
    if log is not None:
        log = log.resolve()
        if report:
            record.callback(_report, log)  # after the log is closed
        about = {"sampler": name, "arguments": swap.arguments, "script": f"{script.parent.name}/{script.name}"}
        swap.observe = record.enter_context(SamplerLog(log, **about)).observe
    _run(script, arguments, hook, swap, watch, record)


def _run(
    script: Path,
    arguments: tuple[str, ...],
    hook: SamplerImportHook,
    swap: Swap,
    watch: Check | None,
    record: contextlib.ExitStack,
) -> None:
    """Run the script, and say, however it ends, what there is to say."""
    from qsattn_plugin.errors import UserError
    from qsattn_plugin.forks.check import CheckFinished
    from qsattn_plugin.forks.run import run_script, summarise

    at_end = _PythonExit()

    def finish() -> None:
        record.close()
        if watch is not None and watch.done:
            click.echo(watch.table())
        elif swap.counts["chosen"]:
            _tell(summarise(swap, hook))

    try:
        run_script(script, arguments, hook)
    except CheckFinished:
        return finish()
    except UserError:
        record.close()
        raise
    except SystemExit as end:
        if end.code or {"-h", "--help"} & set(arguments):
            finish()
            raise
    except BaseException as error:  # noqa: BLE001 - whatever the script raises is shown as Python shows it
        finish()
        at_end.show(error)
    finish()
    if not (watch.done if watch is not None else swap.counts["chosen"]):
        raise hook.failure()
    if watch is not None:
        _tell(f"the script ended after {watch.done} of {watch.steps} calls of its sampler; the table is of these")


def _tell(line: str) -> None:
    click.echo(f"qsattn: {line}", err=True)


class _PythonExit:
    """Ends the program on the fork's own exceptions as Python does: with its traceback, and on Ctrl-C by SIGINT."""

    def __init__(self) -> None:
        self.interrupted = False
        atexit.register(self._end)  # registered first, runs last

    def show(self, error: BaseException) -> None:
        """Print the traceback without our frames, and exit."""
        _without_our_frames(error)
        sys.excepthook(type(error), error, error.__traceback__)
        self.interrupted = isinstance(error, KeyboardInterrupt)
        sys.exit(130 if self.interrupted else 1)

    def _end(self) -> None:
        if self.interrupted:
            for stream in (sys.stdout, sys.stderr):
                stream.flush()
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.kill(os.getpid(), signal.SIGINT)


def _without_our_frames(error: BaseException | None) -> None:
    """Take this package's frames, and those that run a script, out of tracebacks that end in somebody else's code."""
    if error is None:
        return
    steps = []
    step = error.__traceback__
    while step is not None:
        steps.append(step)
        step = step.tb_next
    rooms = [s.tb_frame.f_globals.get("__name__", "").partition(".")[0] for s in steps]
    if rooms and rooms[-1] != "qsattn_plugin":
        trace = None
        for step, room in reversed(list(zip(steps, rooms, strict=True))):
            if room not in ("qsattn_plugin", "runpy", "importlib"):
                trace = types.TracebackType(trace, step.tb_frame, step.tb_lasti, step.tb_lineno)
        error.__traceback__ = trace
    _without_our_frames(error.__cause__ or error.__context__)


def _modes(arguments: tuple[str, ...]) -> list[str]:
    """Return those values of a script's options, ``--mode local`` or ``--mode=local``, that are a mode of QS-Attn.

    A folder or a run's name says nothing: ``--dataroot /usr/local/horses``.
    """
    values = (a.partition("=")[2] if a.startswith("-") else a for a in arguments)
    return [v for v in values if re.fullmatch(r"local|global|local[-_+ ]?global", v, re.IGNORECASE)]


def _report(log: Path) -> None:
    """Draw a log as a page beside it."""
    from qsattn_plugin.training.report import write_fork_report

    _tell(f"{write_fork_report(log)} draws {log.name}")
