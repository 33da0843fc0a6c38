"""``qsattn translate``: pictures in, pictures out."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click


def _parsed(name: str) -> Callable[[click.Context, click.Parameter, str | None], Any]:
    """Return a callback that reads an option's text with a function of ``translation.files``."""

    def read(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
        from qsattn_plugin.translation import files

        try:
            return None if text is None else getattr(files, name)(text)
        except ValueError as error:
            raise click.BadParameter(str(error)) from None

    return read


@click.command("translate", short_help="Translate pictures with a trained model.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-m",
    "--model",
    required=True,
    help="A run's folder or name (RUN@best: with its best score), a checkpoint or weights file, or a published name.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The output folder.")
@click.option("--overwrite", is_flag=True, help="Translate again what is in the output folder already.")
@click.option("--size", metavar="N|WxH", callback=_parsed("parse_size"), help="Resize first: shorter side, or both.")
@click.option(
    "--tile",
    type=click.IntRange(min=0),
    metavar="N",
    help="Translate pictures of more than N x N pixels in tiles of N, with the same result, in memory that N bounds; "
    "0 never does.  [default: tiles of 512 for more than 1024 x 1024]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most pictures of equal size to translate together.  [default: 1 on the CPU, 8 elsewhere]",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=_parsed("parse_shard"),
    help="Translate every N-th picture only, from the I-th: 1/4 to 4/4 on four machines.",
)
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, ...")
def command(
    inputs: tuple[str, ...],
    model: str,
    out: Path,
    overwrite: bool,
    size: int | tuple[int, int] | None,
    tile: int | None,
    batch: int | None,
    shard: tuple[int, int] | None,
    generator: str | None,
    device: str,
) -> None:
    """Translate pictures, folders of pictures (structure kept) and patterns, each to its own size.

    What is in the output folder already is left alone, so that the same command carries on where it was stopped.
    Pictures that cannot be read are listed at the end; the exit code is then 1. Feature maps of large pictures lie in
    the folder for temporary files (TMPDIR), up to 300 bytes a pixel.
    """
    from qsattn_plugin.cli.progress import Bar
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.translation.files import plan
    from qsattn_plugin.translation.job import Report, translate_files
    from qsattn_plugin.translation.load import load

    pairs = plan(inputs, out)
    if shard is not None:
        pairs = pairs[shard[0] - 1 :: shard[1]]
    translator = load(model, pick_device(device), generator)
    report = Report()
    # Large pictures come in parts, so the count is no whole number.
    counted = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
    try:
        with Bar(len(pairs), "translating", bar_format=counted) as bar:
            translate_files(translator, pairs, overwrite, bar.update, tile=tile, batch=batch, size=size, report=report)
    finally:
        skipped = f", {len(report.skipped)} were there already (--overwrite replaces them)" if report.skipped else ""
        click.echo(f"{len(report.written)} pictures written to {out}{skipped}")
        for _, reason in report.failed:
            click.echo(f"not translated: {reason}", err=True)
    if report.failed:
        sys.exit(1)
