"""``qsattn import``: another project's checkpoint as a weights file of this package."""

from __future__ import annotations

from pathlib import Path

import click

_SHOWN = 6


@click.command("import", short_help="Take over a generator that CUT, CycleGAN or QS-Attn trained.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path, dir_okay=False), help="The weights file.")
@click.option("--arch", help="The generator's registered name, instead of the one that the keys tell.")
@click.option("-s", "settings", multiple=True, metavar="NAME=VALUE", help="An argument of the generator: -s width=64.")
@click.option("--key", help="Where in the file the weights lie, if it holds several networks: netG_A.")
@click.option("--overwrite", is_flag=True, help="Replace the weights file if it is there.")
def command(
    file: Path, out: Path, arch: str | None, settings: tuple[str, ...], key: str | None, overwrite: bool
) -> None:
    """Turn FILE (latest_net_G.pth of CUT, CycleGAN, pix2pix or QS-Attn, or a checkpoint that holds such weights) into a
    weights file that `qsattn translate -m`, `qsattn export` and a recipe's train.init_from take.

    The architecture is found from the keys. Nothing in FILE is run: one that holds more than tensors is refused.
    """
    from qsattn_plugin.translation.importing import import_weights

    done = import_weights(file, out, arch, settings, key, overwrite)
    where = f" at {done.place!r}" if done.place else ""
    click.echo(f"{file}{where}: {done.type} with {', '.join(f'{k}={v}' for k, v in done.arguments.items())}")
    click.echo(f"{done.loaded.loaded} tensors taken over")
    for keys, what in (
        (done.loaded.left_out, "left out, as nothing reads them"),
        (done.loaded.filled_in, "constants that the file does not hold, filled in"),
    ):
        if keys:
            more = f" and {len(keys) - _SHOWN} more" if len(keys) > _SHOWN else ""
            click.echo(f"{what}: {', '.join(keys[:_SHOWN])}{more}")
    if done.arguments.get("norm") == "batch":
        click.echo("its batch norms use their running statistics here, as with test.py --eval, not each picture's own")
    click.echo(f"written to {out}; translate with: qsattn translate PICTURES -m {out} -o FOLDER")
