"""``qsattn fit``: train a run."""

from __future__ import annotations

import click

from qsattn_plugin.cli.types import Duration


@click.command("fit", short_help="Train a run.")
@click.argument("run", required=False)
@click.option("--max-steps", type=click.IntRange(min=1), help="Stop after this many steps of this call.")
@click.option("--time-limit", type=Duration(), help="Stop after this time, e.g. 9m; the run can be carried on.")
def command(run: str | None, max_steps: int | None, time_limit: float | None) -> None:
    """Train RUN, a folder or a name below runs/; the run built last without it.

    Carries on from the newest checkpoint. The log is metrics.jsonl in the run's folder, pictures are in grids/.
    """
    from qsattn_plugin.cli.progress import Screen
    from qsattn_plugin.training.loop import fit
    from qsattn_plugin.training.run import Run

    fit(Run.open(run), max_steps=max_steps, time_limit=time_limit, report=Screen())
