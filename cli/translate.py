"""``qsattn translate``: translates pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click


def _parsed(ctx: click.Context, param: click.Parameter, text: str | None) -> Any:
    """Parse an option with the function of ``translation.files`` that is called after it."""
    from qsattn_plugin.translation import files

    try:
        return None if text is None else getattr(files, f"parse_{param.name}")(text)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None


@click.command("translate", short_help="Translate pictures with a trained model.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-m",
    "--model",
    required=True,
    help="A run's folder or name (RUN@best: its best score), a checkpoint or weights file, or a published name.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, file_okay=False), help="The output folder.")
@click.option("--overwrite", is_flag=True, help="Replace translations that exist in the output folder.")
@click.option("--size", metavar="N|WxH", callback=_parsed, help="Resize first: shorter side, or both.")
@click.option(
    "--tile",
    type=click.IntRange(min=0),
    metavar="N",
    help="Translate pictures of more than N x N pixels in tiles of N, with the same result in memory bounded by N; "
    "0: never.  [default: tiles of 512 for more than 1024 x 1024]",
)
@click.option(
    "--batch",
    type=click.IntRange(min=1),
    metavar="N",
    help="The most pictures of the same size in a batch.  [default: 1 on the CPU, 8 elsewhere]",
)
@click.option(
    "--shard",
    metavar="I/N",
    callback=_parsed,
    help="Translate only every N-th picture, from the I-th: 1/4 to 4/4 on four machines.",
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
    """Translate pictures, folders of pictures (their structure is kept) and patterns, each at its own size.

    Pictures that exist in the output folder are skipped, so that the same command continues where it was stopped.
    Pictures that cannot be read are listed at the end; the exit code is then 1. Feature maps of large pictures are
    stored in the folder for temporary files (TMPDIR), up to 300 bytes a pixel.
    """
    from qsattn_plugin.cli.progress import Bar
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.translation.files import plan
    from qsattn_plugin.translation.job import Outcome, translate_files
    from qsattn_plugin.translation.load import load

    pairs = plan(inputs, out)
    if shard is not None:
        pairs = pairs[shard[0] - 1 :: shard[1]]
    translator = load(model, pick_device(device), generator)
    outcome = Outcome()
    # The count is fractional: large pictures are counted in parts.
    counted = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
    try:
        with Bar(len(pairs), "translating", bar_format=counted) as bar:
            translate_files(
                translator, pairs, overwrite, bar.update, tile=tile, batch=batch, size=size, outcome=outcome
            )
    finally:
        skipped = f", {len(outcome.skipped)} existing skipped (--overwrite replaces them)" if outcome.skipped else ""
        click.echo(f"{len(outcome.written)} pictures written to {out}{skipped}")
        for _, reason in outcome.failed:
            click.echo(f"not translated: {reason}", err=True)
    if outcome.failed:
        sys.exit(1)
