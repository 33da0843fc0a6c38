"""``qsattn export``: writes a trained generator as a file for other programs."""

from __future__ import annotations

from pathlib import Path

import click


@click.command("export", short_help="Write a generator as ONNX, TorchScript, pt2 or for CUT.")
@click.argument("model")
@click.option(
    "--format",
    "format",
    required=True,
    type=click.Choice(["onnx", "torchscript", "pt2", "cut"]),
    help="onnx needs the extra: pip install 'qsattn-plugin[onnx]'.",
)
@click.option("-o", "--out", required=True, type=click.Path(path_type=Path), help="The file, or a folder for it.")
@click.option("--generator", help="Which one, where a method trains several: CycleGAN's `backward`.")
@click.option("--overwrite", is_flag=True, help="Replace the file if it exists.")
def command(model: str, format: str, out: Path, generator: str | None, overwrite: bool) -> None:
    """Write the generator of MODEL (a run's folder or name, RUN@best, a checkpoint or weights file, a published name)
    as a file for other programs, read it again, and compare it with the original on random images of three sizes and
    batch sizes. A difference of more than 1e-3 is an error.

    Height, width and batch size are free; sides must be multiples of the generator's downsampling (4 pixels for
    ResNets, 256 for unet_256, ...; the file states it). Inputs and outputs are images with values in [-1, 1].

    `cut` writes latest_net_G.pth as CUT's and CycleGAN's test scripts read it.
    """
    from qsattn_plugin.translation.export import export, place_of, subject_of
    from qsattn_plugin.translation.export.formats import cut_options
    from qsattn_plugin.translation.load import load

    translator = load(model, "cpu", generator)
    assert translator.weights is not None  # it was loaded
    # A published model's file gets the name that was asked for, not that of its recipe.
    kind, _, published = translator.weights.name.partition("pretrained/")
    subject = subject_of(translator, generator, published if not kind and published else None)
    path = place_of(subject, format, out)
    if path.exists() and path.samefile(translator.weights.path):
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
