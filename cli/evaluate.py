"""``qsattn evaluate``: scores translations."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place

_FOLDER = Place()


def _comma_list(ctx: click.Context, param: click.Parameter, text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    if not (names := tuple(name.strip() for name in text.split(",") if name.strip())):
        raise click.BadParameter("expected a comma-separated list")
    return names


_NAMES: dict[str, Any] = {"callback": _comma_list, "metavar": "NAME,..."}


@click.command("evaluate", short_help="Score translations.")
@click.argument("scored", metavar="MODEL_OR_FOLDER", shell_complete=completion.models)
@click.option("--real", type=_FOLDER, help="Pictures of the target domain, for fid, kid and swd.")
@click.option("--source", type=_FOLDER, help="What MODEL translates, or what FOLDER was translated from.")
@click.option("--metrics", **_NAMES, help="fid, kid, swd, lpips, background, labels: `qsattn list metrics`.")
@click.option("--features", **_NAMES, help="Feature layers: 64, 192, 768, 2048; or those of --extractor.")
@click.option("--extractor", metavar="MODULE:CALLABLE", help="Your own network instead of Inception.")
@click.option("--extractor-weights", "weights", type=_FOLDER, help="The weights file of the extractor or of Inception.")
@click.option("--masks", type=_FOLDER, help="Masks, white where a change is wanted; same names as the pictures.")
@click.option("--labels", type=_FOLDER, help="Ground-truth label maps of Cityscapes.")
@click.option("--predicted", type=_FOLDER, help="Predicted label maps, if those scored are not label maps.")
@click.option("--label-kind", default="auto", show_default=True, help="--labels as auto, color, labelIds or trainIds.")
@click.option("--predicted-kind", default="auto", show_default=True, help="The same for --predicted.")
@click.option("--size", type=click.IntRange(min=16), help="Resize every picture to SIZE x SIZE first.")
@click.option("--first", type=click.IntRange(min=1), metavar="N", help="Score only the first N pictures, by name.")
@click.option("--subsets", type=click.IntRange(min=1), default=100, show_default=True, help="Random subsets for kid.")
@click.option("--subset-size", type=click.IntRange(min=2), default=1000, show_default=True, help="At most, for kid.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=2020, show_default=True, help="For kid and swd.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--keep", type=_FOLDER, help="Keep MODEL's translations in this folder.")
@click.option("--overwrite", is_flag=True, help="Replace pictures in the folder of --keep.")
@click.option("--json", "file", type=Place(dir_okay=False), help="Also write all results to this file.")
@click.option("--batch", type=click.IntRange(min=1), default=8, show_default=True, help="Batch size.")
@click.option("--device", default="auto", show_default=True, help="cpu, cuda, mps, ...")
@import_option
def command(device: str, file: Path | None, **options: Any) -> None:
    """Score MODEL's translations of --source, or the pictures in FOLDER, against --real.

    MODEL is a run folder, a weights file or a published name. By default, all metrics but lpips are computed for which
    the folders are given.

    \b
    qsattn evaluate horse2zebra --source testA --real testB
    qsattn evaluate out/ --real testB --metrics fid,kid --features 64,768
    qsattn evaluate out/ --source testA --masks masks/ --metrics background
    qsattn evaluate predicted/ --labels true/ --metrics labels
    """
    from qsattn_plugin.data.images import show
    from qsattn_plugin.devices import pick_device
    from qsattn_plugin.errors import UserError
    from qsattn_plugin.evaluation.scoring import Evaluation
    from qsattn_plugin.storage import may_write, write_text

    for place in (file and file.parent, options["keep"]):
        if place is not None and not may_write(place):
            raise UserError(f"nothing can be written to {show(place)}")
    if file is not None and file.exists() and not file.is_file():
        raise UserError(f"{show(file)} is a device or a pipe: give a file")
    scores = Evaluation(device=pick_device(device), **options).run(_stage)
    click.echo(scores.table())
    for warning in scores.warnings:
        click.echo(f"Warning: {warning}", err=True)
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(scores.document(), indent=2) + "\n")


@contextlib.contextmanager
def _stage(what: str, count: int) -> Iterator[Callable[[int], None]]:
    from qsattn_plugin.cli.progress import Bar

    with Bar(count, what) as bar:
        yield bar.update
