"""``qsattn data``: writes a data set's pictures into folders."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsattn_plugin.cli.types import Place
from qsattn_plugin.data import SPLITS

if TYPE_CHECKING:
    from qsattn_plugin.data.public.catalogue import PublicSet


@click.command("data", short_help="Write a data set's pictures into folders.")
@click.argument("name")
@click.option("--root", required=True, type=Place(file_okay=False), help="Where to write the folders.")
@click.option("--split", "splits", multiple=True, type=click.Choice(SPLITS), help="Only this split; can be repeated.")
@click.option("-s", "options", multiple=True, metavar="KEY=VALUE", help="The data set's arguments: -s size=128.")
@click.option("--from", "source", type=Place(), help="Read a public set from this archive or folder.")
@click.option("--url", help="Download a public set from this address instead of its own.")
def command(
    name: str, root: Path, splits: tuple[str, ...], options: tuple[str, ...], source: Path | None, url: str | None
) -> None:
    """Write the pictures of the data set NAME into trainA, trainB, testA and testB below --root.

    These are the folders that CUT, CycleGAN and recipes with `data: {type: folders}` read. NAME is `toy`, which is
    drawn (and takes --split and -s), or a public set: `horse2zebra` and `cat2dog` are downloaded, `cityscapes` is
    prepared from what its makers give you (`qsattn data cityscapes --root DIR` says how).
    """
    from qsattn_plugin.data.public.catalogue import CATALOGUE
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.registry import list_parts

    if name in CATALOGUE:
        if splits or options:
            raise click.UsageError(f"--split and -s are not for {name}: it is always the whole published set")
        _public(CATALOGUE[name], root, source, url)
        return
    drawn = [part.name for part in list_parts("dataset")]
    if name not in drawn:
        known = (*CATALOGUE, *drawn)
        raise UserError(f"there is no data set {name!r}{nearest(name, known)} (data sets: {', '.join(known)})")
    if source or url:
        raise click.UsageError(f"--from and --url are for the public sets: {', '.join(CATALOGUE)}")
    _drawn(name, root, splits or SPLITS, options)


def _drawn(name: str, root: Path, splits: tuple[str, ...], options: tuple[str, ...]) -> None:
    from qsattn_plugin.cli.progress import Bar
    from qsattn_plugin.data.export import write_dataset
    from qsattn_plugin.data.images import find_images
    from qsattn_plugin.errors import UserError
    from qsattn_plugin.registry import find
    from qsattn_plugin.registry.recipe import Recipe
    from qsattn_plugin.registry.recipe.schema import PIPELINE
    from qsattn_plugin.registry.yaml_lines import parse_assignment

    takes = find("dataset", name).signature.parameters
    for option in options:
        key = parse_assignment(option, "size=128")[0].partition(".")[0]
        if key == "type":
            raise UserError(f"-s {option}: the data set is {name}, as the command says")
        if key in PIPELINE and key not in takes:
            raise UserError(f"-s {option}: {key}: how a training prepares pictures; {name} takes {', '.join(takes)}")
    text = f"name: data\ndata: {{type: {json.dumps(name)}}}\ntrain: {{steps: 1}}"
    recipe = Recipe.from_yaml(text, "data set", [f"data.{option}" for option in options])
    dataset = recipe.build("data")
    total = sum(len(dataset.split(split)) for split in splits)
    with Bar(total, f"writing {name}") as bar:
        written = write_dataset(dataset, root, splits, bar.update)
    for split, count in written.items():
        others = len(find_images(root / split)) - count
        beside = f", beside {others} from before" if others > 0 else ""
        click.echo(f"{root / split}: {count} pictures{beside}")


def _public(one: PublicSet, root: Path, source: Path | None, url: str | None) -> None:
    from qsattn_plugin.cli.progress import StageBars
    from qsattn_plugin.data.public import get_public_set

    with contextlib.closing(StageBars(announce=True, unit_scale=True)) as bars:
        got = get_public_set(one, root, source, url, bars)
    for split, count in one.counts.items():
        click.echo(f"{root / split}: {count} pictures")
    if got.existed:
        click.echo(f"{one.name} exists already, nothing was done")
    if got.sha256:
        differs = "differs from the published one; all pictures can be read"
        agrees = "as published" if got.sha256 == one.sha256 else differs
        click.echo(f"SHA-256 of the archive: {got.sha256} ({agrees})")
    click.echo(f"domains: {one.domains}\nlicence: {one.licence}")
