"""``qsattn map``: draws entropy maps of images and the selected queries."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place, parsed_by
from qsattn_plugin.text import printable

if TYPE_CHECKING:
    from qsattn_plugin.translation.sizes import At


@click.command("map", short_help="Draw entropy maps.")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "-m",
    "--model",
    required=True,
    shell_complete=completion.models,
    help="A run, file, published name, hf:OWNER/NAME or timm:NAME.",
)
@click.option(
    "--weights",
    type=Place(exists=True, dir_okay=False),
    help="For timm:NAME: its weights, instead of a download.",
)
@click.option("-o", "--out", required=True, type=Place(file_okay=False), help="The output folder.")
@click.option("--tap", "taps", multiple=True, help="A layer, by index or name; repeat it for several.")
@click.option("--sampler", help="A registered sampler instead of the model's own.")
@click.option("--queries", type=click.IntRange(min=1), help="How many queries, instead of the sampler's number.")
@click.option("--significance", help="A registered significance to rank positions by, instead of the sampler's.")
@click.option(
    "--scale",
    type=click.Choice(["rank", "log", "linear"]),
    default="rank",
    show_default=True,
    help="How entropies map to colours.",
)
@click.option("--size", type=click.IntRange(min=16), help="Resize the shorter side to this many pixels first.")
@click.option(
    "--at",
    metavar="SIDE|trained|full",
    callback=parsed_by("sizes", "parse_at"),
    help="The size at which the model sees pictures, as for `translate`; positions are given in their own pixels.",
)
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, ...")
@import_option
def command(
    images: tuple[str, ...],
    model: str,
    weights: Path | None,
    out: Path,
    taps: tuple[str, ...],
    sampler: str | None,
    queries: int | None,
    significance: str | None,
    scale: Literal["rank", "log", "linear"],
    size: int | None,
    at: At | None,
    device: str,
) -> None:
    """Draw for each IMAGE (file, folder or pattern) and tap, side by side as a PNG: the image, its entropy as a heat
    map (warm is low entropy), and the selected queries. The numbers are written to a JSON file of the same name.

    The default sampler is the model's own if it selects by attention, otherwise qsattn_global. Pictures that cannot be
    read are listed at the end; the exit code is then 1.
    """
    from qsattn_plugin.data.images import show
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.evaluation.mapping import draw_maps

    failed: list[tuple[Path, str]] = []
    written = draw_maps(
        images,
        model,
        out,
        taps=taps,
        sampler=sampler,
        options={k: v for k, v in {"queries": queries, "significance": significance}.items() if v is not None},
        scale=scale,
        size=size,
        at=at,
        device=pick_device(device),
        weights=weights,
        failed=failed,
    )
    for path, numbers in written:
        entropy = json.loads(numbers.read_text(encoding="utf-8"))["entropy_quantiles"]
        click.echo(
            f"{show(path)}  entropy {entropy['0%']:.3g} to {entropy['100%']:.3g} nats, median {entropy['50%']:.3g}"
        )
    for _, reason in failed:
        click.echo(printable(f"not drawn: {reason}"), err=True)
    if failed:
        sys.exit(1)
