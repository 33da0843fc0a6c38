"""``qsattn export``: writes a trained generator as a file for other programs, or as a page."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option
from qsattn_plugin.cli.types import Place

if TYPE_CHECKING:
    from qsattn_plugin.translation.translator import Translator


@click.command("export", short_help="Write a generator as ONNX, TorchScript, pt2, for CUT, or as a page.")
@click.argument("models", nargs=-1, required=True, metavar="MODEL...", shell_complete=completion.models)
@click.option(
    "--format",
    "format",
    required=True,
    type=click.Choice(["onnx", "torchscript", "pt2", "cut", "web"]),
    help="onnx and web need the packages onnxscript and onnxruntime.",
)
@click.option("-o", "--out", required=True, type=Place(), help="The file, or a folder for it.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option(
    "--runtime",
    type=Place(exists=True, file_okay=False),
    help="For web: copy the runtime from this installed npm package (node_modules/onnxruntime-web); otherwise linked.",
)
@click.option(
    "--example",
    "examples",
    multiple=True,
    type=Place(exists=True, dir_okay=False),
    help="For web: a picture that the page offers; can be repeated.",
)
@click.option("--overwrite", is_flag=True, help="Replace the file or the page if it exists.")
@import_option
def command(
    models: tuple[str, ...],
    format: str,
    out: Path,
    generator: str | None,
    runtime: Path | None,
    examples: tuple[Path, ...],
    overwrite: bool,
) -> None:
    """Write the generator of MODEL (a run's folder or name, RUN@best, a checkpoint or weights file, a published name)
    as a file for other programs, read it again, and compare it with the original on random images of three sizes and
    batch sizes. A difference of more than 1e-3 is an error.

    Height, width and batch size are free; sides must be multiples of the generator's downsampling (4 pixels for
    ResNets, 256 for unet_256, ...; the file states it). Inputs and outputs are images with values in [-1, 1].

    `cut` writes latest_net_G.pth as CUT's and CycleGAN's test scripts read it. `web` writes a folder for any web
    server: a page that translates a visitor's pictures in the visitor's own browser, with one MODEL or several.
    """
    from qsattn_plugin.translation.load import load

    if format != "web":
        if runtime or examples:
            raise click.UsageError("--runtime and --example are for --format web")
        if len(models) > 1:
            raise click.UsageError(f"several models are for --format web; export them as {format} one by one")
    loaded = []
    for model in models:
        translator = load(model, "cpu", generator)
        assert translator.weights is not None  # it was loaded
        # A published model's file gets the name that was asked for, not that of its recipe.
        kind, _, published = translator.weights.name.partition("pretrained/")
        loaded.append((published if not kind and published else None, translator))
    if format == "web":
        _page(loaded, out, generator, runtime, examples, overwrite)
    else:
        _file(*loaded[0], format, out, generator, overwrite)


def _file(
    name: str | None, translator: Translator, format: str, out: Path, generator: str | None, overwrite: bool
) -> None:
    from qsattn_plugin.translation.export import export, place_of, subject_of
    from qsattn_plugin.translation.export.formats import cut_options

    subject = subject_of(translator, generator, name)
    path = place_of(subject, format, out)
    if translator.weights and path.exists() and path.samefile(translator.weights.path):
        raise click.BadParameter(f"{path} is the model itself; choose another name", param_hint="-o")
    done = export(subject, format, out, overwrite)
    shapes = ", ".join(" x ".join(map(str, shape)) for shape in done.shapes)
    size = done.path.stat().st_size / 1e6
    click.echo(f"{done.path}: {subject.type} as {format}, {size:.1f} MB; {subject.document['about']}")
    click.echo(f"equal to the original within {done.difference:.1g} on random images of {shapes}")
    if format == "cut":
        options = cut_options(subject)
        for project, line in options.items():
            click.echo(f"{project} builds this network with: {line}")
        if not options:
            click.echo("no options of CUT's or CycleGAN's test.py build this network; load it by their networks.py")


def _page(
    models: list[tuple[str | None, Translator]],
    out: Path,
    generator: str | None,
    runtime: Path | None,
    examples: tuple[Path, ...],
    overwrite: bool,
) -> None:
    from qsattn_plugin.web import write_site
    from qsattn_plugin.web.runtime import VERSION

    site = write_site(models, out, runtime, examples, generator, overwrite)
    sizes = {"models": 0, "runtime": 0}
    for name, size in site.files.items():
        room = name.partition("/")[0]
        sizes[room] = sizes.get(room, 0) + size
    total = sum(site.files.values()) / 1e6
    parts = ", ".join(f"{room} {size / 1e6:.1f} MB" for room, size in sizes.items() if size > 1e5)
    click.echo(f"{out}: a page of {len(models)} models, {total:.1f} MB ({parts})")
    click.echo(f"equal to the originals within {site.difference:.1g} on random images")
    if runtime is None:
        click.echo(f"its runtime is linked: onnxruntime-web {VERSION}, with its hashes; --runtime copies it")
    click.echo(f"look at it: python -m http.server -d {shlex.quote(str(out))} 8000, then http://localhost:8000")
