"""``qsattn report``: rewrites a run's report."""

from __future__ import annotations

from pathlib import Path

import click

from qsattn_plugin.cli import completion


@click.command("report", short_help="Write a run's report.")
@click.argument("run", required=False, shell_complete=completion.runs)
@click.option("--open", "show", is_flag=True, help="Open it in the browser.")
def command(run: str | None, show: bool) -> None:
    """Write report.html into the folder of RUN, a folder or a name below runs/; by default the run built last.

    Training writes it at every evaluation; this command writes it at any time, from the files in the folder. Of a log
    that `qsattn fork --log FILE.jsonl` wrote, it draws the page beside it.
    """
    from qsattn_plugin.training.report import write_fork_report, write_report

    if run is not None and run.endswith(".jsonl"):
        path = write_fork_report(Path(run))
    else:
        from qsattn_plugin.training.run import Run

        path = write_report(Run.open(run))
    click.echo(path)
    if show:
        click.launch(path.resolve().as_uri())
