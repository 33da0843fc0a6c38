"""``qsattn publish``: a trained generator as a small file for others."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("publish", short_help="Write a generator in half precision, for others.")
@click.argument("model")
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file, or a folder for it.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def command(model: str, out: Path, generator: str | None, overwrite: bool) -> None:
    """Write the generator of MODEL (a run's folder or name, RUN@best, a checkpoint or weights file, a published name)
    in half precision as a safetensors file, without the rest of its training, and print what an index of published
    models says about the file.

    In a folder the file is called by the name of the recipe: NAME.safetensors. Absolute paths in the recipe that goes
    along are cut to their last part.
    """
    from qsattn_plugin.translation.publish import publish

    done = publish(model, out, generator, overwrite)
    click.echo(f'file: {done.path.name}\nsha256: "{done.sha256}"\nbytes: {done.size:,}')
    click.echo(f"half precision changes random images by {done.mean:.2g} on average, {done.largest:.2g} at most, of 2")
    click.echo(f"written to {done.path}")
