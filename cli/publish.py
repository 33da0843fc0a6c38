"""``qsattn publish``: a trained generator as a small file for others, with a card, on a hub, in an index."""

from __future__ import annotations

from pathlib import Path

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place


@click.command("publish", short_help="Write a generator in half precision, for others.")
@click.argument("model", shell_complete=completion.models)
@click.option("-o", "--out", required=True, type=Place(), help="A folder, or a file *.safetensors.")
@click.option("--to", metavar="hf:OWNER/NAME", help="Upload the folder to the Hugging Face Hub.")
@click.option(
    "--index",
    type=Place(dir_okay=False),
    help="Add it to this index of published models: registry/pretrained.yaml of a checkout or fork.",
)
@click.option("--name", help="Its name in the index.  [default: that of its recipe]")
@click.option("--licence", help="SPDX identifier of its licence, for the card: Apache-2.0.")
@click.option("--summary", help="What it is, in a sentence, for the card.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--overwrite", is_flag=True, help="Replace the files if they exist.")
@import_option
def command(
    model: str,
    out: Path,
    to: str | None,
    index: Path | None,
    name: str | None,
    licence: str | None,
    summary: str | None,
    generator: str | None,
    overwrite: bool,
) -> None:
    """Write the generator of MODEL (a run's folder or name, RUN@best, a checkpoint or weights file, a published name)
    in half precision, without the rest of its training, and print what an index of published models says about it.

    A folder gets model.safetensors, config.json, and a card, README.md, with the metadata of model hubs; absolute paths
    in the recipe that goes along are cut to their last part. With --to it becomes the model hf:OWNER/NAME (log in with
    `hf auth login`). With --index it becomes an entry, by which torch.hub and every command know it: with the address
    on the hub, or else with the file in weights/ beside the index.
    """
    from qsattn_plugin.storage.hub import parse_hub_name
    from qsattn_plugin.translation.publish import add_to_index, publish, publish_to_hub

    if to is not None:
        parse_hub_name(to)
        if out.suffix == ".safetensors":
            raise click.UsageError("--to uploads a folder: give one with -o")
    done = publish(model, out, generator, overwrite, licence, summary, index, name)
    click.echo(f'file: {done.path.name}\nsha256: "{done.sha256}"\nbytes: {done.size:,}')
    click.echo(f"half precision changes random images by {done.mean:.2g} on average, {done.largest:.2g} at most, of 2")
    click.echo(f"written to {done.path if out.suffix == '.safetensors' else out}")
    url = None
    if to is not None:
        url = publish_to_hub(done, out, to)
        click.echo(f"uploaded to {to}: {url}")
    if index is not None:
        name = name or done.facts.get("recipe") or "model"
        copied = add_to_index(done, index, name, url)
        where = url if copied is None else copied
        click.echo(f'{name} is in {index} ({where}): torch.hub.load(..., "qsattn_{name}")')
