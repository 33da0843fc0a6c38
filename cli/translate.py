"""``qsattn translate``: translates pictures."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place, parsed_by
from qsattn_plugin.text import printable

if TYPE_CHECKING:
    from qsattn_plugin.data.pixels import Pages
    from qsattn_plugin.translation.sizes import At


@click.command("translate", short_help="Translate pictures with a trained model.")
@click.argument("inputs", nargs=-1, required=True, metavar="INPUT...")
@click.option(
    "-m",
    "--model",
    required=True,
    shell_complete=completion.models,
    help="A run's folder or name (RUN@best: its best score), a checkpoint or weights file, a published name, or "
    "hf:OWNER/NAME[@REVISION].",
)
@click.option("-o", "--out", required=True, type=Place(), help="The folder, or one picture's file.")
@click.option("--overwrite", is_flag=True, help="Replace translations that exist in the output folder.")
@click.option(
    "--at",
    "sizes",
    metavar="SIDE|trained|full",
    callback=parsed_by("sizes", "parse_sizes"),
    help="The size at which pictures are translated, before the change is carried back to their own: pixels of the "
    "shorter side, that of the model's training, or their own. Several with commas for --sheet.  [default: trained for "
    "pictures of more than 1.5 times that size or of less than two thirds of it, otherwise full]",
)
@click.option("--sheet", is_flag=True, help="Put the picture and its translations at the sizes of --at side by side.")
@click.option(
    "--size", metavar="N|WxH", callback=parsed_by("files", "parse_size"), help="Resize first: shorter side, or both."
)
@click.option(
    "--pages",
    metavar="first|all|N",
    default="first",
    show_default=True,
    callback=parsed_by("files", "parse_pages"),
    help="Of files with several pages or frames: the first, the N-th, or each, into a file of its own.",
)
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
    callback=parsed_by("files", "parse_shard"),
    help="Translate only every N-th picture, from the I-th: 1/4 to 4/4 on four machines.",
)
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, ...")
@import_option
def command(
    inputs: tuple[str, ...],
    model: str,
    out: Path,
    overwrite: bool,
    sizes: list[At] | None,
    sheet: bool,
    size: int | tuple[int, int] | None,
    pages: Pages,
    tile: int | None,
    batch: int | None,
    shard: tuple[int, int] | None,
    generator: str | None,
    device: str,
) -> None:
    """Translate pictures, folders of pictures (their structure is kept) and patterns. Each keeps its size: where that
    is not what the model knows, it is translated at another (--at), and the change is carried back; where a translation
    has other bands or values than its picture, it is enlarged instead.

    Pictures that exist in the output folder are skipped, so that the same command continues where it was stopped.
    Pictures that cannot be read are listed at the end; the exit code is then 1. Feature maps of large pictures are
    stored in the folder for temporary files (TMPDIR), up to 300 bytes a pixel.
    """
    from qsattn_plugin.cli.progress import Bar
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.translation.files import check_output, each_page, is_file, plan
    from qsattn_plugin.translation.job import Outcome, translate_files
    from qsattn_plugin.translation.load import load

    if sheet and not sizes:
        raise click.UsageError("--sheet needs the sizes to compare: --at 192,256,384,512")
    if len(sizes or ()) > 1 and not sheet:
        raise click.UsageError("several sizes are for --sheet, which puts them side by side")

    def place(target: Path) -> Path:
        return target.with_stem(f"{target.stem}-sizes") if sheet and not is_file(out) else target

    if is_file(out):
        check_output(out, overwrite)
    translator = load(model, pick_device(device), generator)
    kept, other = translator.kept
    planned = plan(inputs, out, kept, lambda target: (place(target),), other)
    pairs = each_page(((source, place(target)) for source, target in planned), pages)
    if shard is not None:
        pairs = pairs[shard[0] - 1 :: shard[1]]
    outcome = Outcome()
    # The count is fractional: large pictures are counted in parts.
    counted = "{l_bar}{bar}| {n:.0f}/{total} [{elapsed}<{remaining}, {rate_fmt}]"
    try:
        with Bar(len(pairs), "translating", bar_format=counted) as bar:
            translate_files(
                translator,
                pairs,
                overwrite,
                bar.update,
                tile=tile,
                batch=batch,
                size=size,
                at=sizes if sheet or not sizes else sizes[0],
                outcome=outcome,
            )
    finally:
        skipped = f", {len(outcome.skipped)} existing skipped (--overwrite replaces them)" if outcome.skipped else ""
        click.echo(printable(f"{len(outcome.written)} pictures written to {out}{skipped}"))
        for side, count in sorted(outcome.carried.items()):
            how = "carried back" if translator.carries else "enlarged"
            click.echo(f"{count} of them translated at {side} px and {how} to their size; --at full: at their own")
        if outcome.frames:
            (first, count), several = outcome.frames[0], len(outcome.frames)
            what = "file has several pages or frames" if several == 1 else "files have several pages or frames each"
            click.echo(f"{several} {what}, of which the first was translated ({first}: {count}); --pages all: each")
        for _, reason in outcome.failed:
            click.echo(printable(f"not translated: {reason}"), err=True)
    if outcome.failed:
        sys.exit(1)
