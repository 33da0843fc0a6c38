"""``qsattn data``: a data set's pictures as folders."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

SPLITS = ("trainA", "trainB", "testA", "testB")


@click.command("data", short_help="Write a data set's pictures into folders.")
@click.argument("name")
@click.option("--root", required=True, type=click.Path(path_type=Path, file_okay=False), help="Where the folders go.")
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Only this one; can be repeated.")
@click.option("-s", "options", multiple=True, metavar="KEY=VALUE", help="The data set's arguments: -s size=128.")
def command(name: str, root: Path, splits: tuple[str, ...], options: tuple[str, ...]) -> None:
    """Write the pictures of the data set NAME, such as `toy`, into trainA, trainB, testA and testB below --root.

    These are the folders that CUT, CycleGAN and recipes with `data: {type: folders}` read.
    """
    from qsattn_plugin.data.export import write_dataset
    from qsattn_plugin.registry.recipe import Recipe

    text = f"name: data\ndata: {{type: {json.dumps(name)}}}\ntrain: {{steps: 1}}"
    recipe = Recipe.from_yaml(text, "data set", [f"data.{option}" for option in options])
    dataset = recipe.build("data")
    names = splits or SPLITS
    total = sum(len(dataset.split(split)) for split in names)
    with click.progressbar(length=total, label=f"writing {name}", file=sys.stderr) as bar:
        written = write_dataset(dataset, root, names, bar.update)
    for split, count in written.items():
        click.echo(f"{root / split}: {count} pictures")
