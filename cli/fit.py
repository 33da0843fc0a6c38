"""``qsattn fit``: trains a run."""

from __future__ import annotations

import contextlib
import os
import re
import sys
from collections.abc import Callable
from typing import Any

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.errors import UserError

_UNITS = {"d": 86400, "h": 3600, "m": 60, "s": 1}


class Duration(click.ParamType):
    """Seconds from text such as ``90``, ``45s``, ``9m``, ``1h30m`` or ``2d``."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        if isinstance(value, (int, float)):
            return float(value)
        text = value.strip().lower()
        if re.fullmatch(r"\d+(\.\d+)?", text):
            return float(text)
        parts = re.findall(r"(\d+(?:\.\d+)?)([dhms])", text)
        if not parts or "".join(n + u for n, u in parts) != text:
            self.fail(f"{value!r} is not a duration; write it like 90, 45s, 9m or 1h30m", param, ctx)
        return sum(float(number) * _UNITS[unit] for number, unit in parts)


def _refuse_settings(ctx: click.Context, param: click.Parameter, settings: tuple[str, ...]) -> None:
    if settings:
        raise click.UsageError("settings are build's: qsattn build RECIPE -s ...; those of a run are its recipe.yaml's")


@click.command("fit", short_help="Train a run.")
@click.argument("run", required=False, shell_complete=completion.runs)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after this many steps.")
@click.option("--time-limit", type=Duration(), help="Stop after this time, e.g. 9m; the next call continues.")
@click.option(
    "--nproc",
    type=click.IntRange(min=1),
    default=1,
    help="Train with this many processes on this machine, each with its own GPU or its share of the CPU cores, and "
    "each with its own batch in a step. For several machines use torchrun ... -m qsattn_plugin.cli fit RUN.",
)
@click.option("-s", multiple=True, hidden=True, expose_value=False, callback=_refuse_settings)
@click.option("--tensorboard", is_flag=True, help="Also write the log for TensorBoard, into the run's folder.")
def command(run: str | None, max_steps: int | None, time_limit: float | None, nproc: int, tensorboard: bool) -> None:
    """Train RUN, a folder or a name below runs/; by default the run built last.

    Continues from the newest checkpoint. The run's folder holds the log (metrics.jsonl), pictures (grids/) and a report
    of both (report.html).
    """
    if nproc > 1:
        sys.exit(_launch(run, nproc, max_steps, time_limit, tensorboard))

    from qsattn_plugin.cli.progress import TrainingDisplay
    from qsattn_plugin.training.distributed import PeerLostError, RemoteError
    from qsattn_plugin.training.distributed.launch import PEER_FAILED, follow_launcher, is_launched
    from qsattn_plugin.training.interrupts import Interrupted
    from qsattn_plugin.training.loop import TrainingEvent, fit
    from qsattn_plugin.training.run import Run
    from qsattn_plugin.training.tensorboard import TensorBoard

    opened = Run.open(run)
    main = os.environ.get("RANK", "0") == "0"  # only this process writes
    display = TrainingDisplay()
    listeners: list[Callable[[TrainingEvent], None]] = [display]
    if tensorboard and main:
        listeners.append(TensorBoard(opened.folder / "tensorboard"))
    if is_launched():
        follow_launcher()

    def tell(progress: TrainingEvent) -> None:
        for listen in listeners:
            listen(progress)

    try:
        fit(opened, max_steps=max_steps, time_limit=time_limit, on_event=tell)
    except RemoteError:  # the failing process prints the error
        sys.exit(PEER_FAILED if is_launched() else 1)
    except PeerLostError:  # a launcher reports the reason
        if not is_launched():
            raise
        sys.exit(PEER_FAILED)
    except Interrupted as stop:
        if main:
            raise
        sys.exit(stop.exit_code)
    finally:
        display.close()
    if main and opened.report.is_file():
        with contextlib.suppress(OSError):  # nobody reads any more
            click.echo(f"report: {opened.report}", err=True)


def _launch(run: str | None, nproc: int, max_steps: int | None, time_limit: float | None, tensorboard: bool) -> int:
    """Run this command in several processes, and return their common exit code."""
    if os.environ.get("WORLD_SIZE", "") not in ("", "1"):
        raise UserError("--nproc starts processes, but this process is one of several already; leave it out")
    if nproc > max(2, cores := os.cpu_count() or 1):
        what = f"this machine has {cores} cores; start at most one process for each GPU or core"
        raise UserError(f"--nproc {nproc}: {what}")
    from qsattn_plugin.training.distributed.launch import launch

    command = [sys.executable, "-m", "qsattn_plugin.cli", "fit"]
    command += [] if max_steps is None else ["--max-steps", str(max_steps)]
    command += [] if time_limit is None else ["--time-limit", str(time_limit)]
    command += ["--tensorboard"] if tensorboard else []
    return launch([*command, *([] if run is None else ["--", run])], nproc)
