"""``qsattn import``: converts another project's checkpoint to a weights file of this package."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from qsattn_plugin.cli.types import Place

_SHOWN = 6


@click.command("import", short_help="Convert a generator that CUT, CycleGAN or QS-Attn trained.")
@click.argument("file", type=Place())
@click.option("-o", "--out", required=True, type=Place(dir_okay=False), help="The weights file.")
@click.option("--arch", help="The generator's registered name.  [default: recognised from the keys]")
@click.option("-s", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the generator: -s width=64.")
@click.option("--key", help="The key of the weights in the file, if it holds several networks: netG_A.")
@click.option("--trained", type=click.IntRange(min=16), metavar="SIDE", help="Shorter side of its training pictures.")
@click.option("--overwrite", is_flag=True, help="Replace the weights file if it exists.")
def command(
    file: Path,
    out: Path,
    arch: str | None,
    settings: tuple[str, ...],
    key: str | None,
    trained: int | None,
    overwrite: bool,
) -> None:
    """Turn FILE (latest_net_G.pth of CUT, CycleGAN, pix2pix or QS-Attn, or a checkpoint that holds such weights) into a
    weights file that `qsattn translate -m`, `qsattn export` and a recipe's train.init_from take.

    The architecture is recognised from the keys. No code in FILE is run: a file of more than tensors is an error.
    """
    from qsattn_plugin.translation.importing import import_weights

    done = import_weights(file, out, arch, settings, key, overwrite, trained)
    where = f" at {done.place!r}" if done.place else ""
    click.echo(f"{file}{where}: {done.type} with {', '.join(f'{k}={v}' for k, v in done.arguments.items())}")
    click.echo(f"{done.loaded.loaded} tensors loaded")
    for keys, what in (
        (done.loaded.left_out, "left out, not used"),
        (done.loaded.filled_in, "constants missing in the file, filled in"),
    ):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            click.echo(f"{what}: {', '.join(keys[:_SHOWN])}{more}")
    if done.arguments.get("norm") == "batch":
        statistics = "as with test.py --eval, not those of each picture"
        click.echo(f"its batch norms use their running statistics here, {statistics}")
    click.echo(f"written to {out}; translate with: qsattn translate PICTURES -m {shlex.quote(str(out))} -o FOLDER")
