"""``qsattn translate``: pictures in, pictures out."""

from __future__ import annotations

import sys
from pathlib import Path

import click


@click.command("translate", short_help="Translate pictures with a trained model.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-m",
    "--model",
    required=True,
    help="A run's folder or name (RUN@best: with its best score), or a checkpoint or weights file.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The output folder.")
@click.option("--overwrite", is_flag=True, help="Translate again what is in the output folder already.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, ...")
def command(
    inputs: tuple[str, ...], model: str, out: Path, overwrite: bool, generator: str | None, device: str
) -> None:
    """Translate pictures, folders of pictures (structure kept) and patterns, each to its own size.

    Pictures that cannot be read are listed at the end; the exit code is then 1.
    """
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.translation.files import plan, translate_files
    from qsattn_plugin.translation.load import load

    pairs = plan(inputs, out)
    translator = load(model, pick_device(device), generator)
    with click.progressbar(length=len(pairs), label="translating", file=sys.stderr) as bar:
        report = translate_files(translator, pairs, overwrite, bar.update)
    skipped = f", {len(report.skipped)} were there already" if report.skipped else ""
    click.echo(f"{len(report.written)} pictures written to {out}{skipped}")
    for _, reason in report.failed:
        click.echo(f"not translated: {reason}", err=True)
    if report.failed:
        sys.exit(1)
