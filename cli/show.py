"""``qsattn show``: describes one part."""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from qsattn_plugin.registry import Part


@click.command("show", short_help="Show one part's arguments and size, or a published model's card.")
@click.argument("part", metavar="KIND/NAME")
@click.option(
    "--size", type=click.IntRange(min=16), default=256, show_default=True, help="Image side for the multiply-adds."
)
def command(part: str, size: int) -> None:
    """Show what the part KIND/NAME is, its arguments, and for networks the parameters, multiply-adds and taps.

    pretrained/NAME shows a published model: its training, data and scores. recipe/NAME shows a shipped recipe,
    including what it inherits.
    """
    from qsattn_plugin.errors import UserError
    from qsattn_plugin.registry import find
    from qsattn_plugin.registry.parts import argument_docs

    kind, slash, name = part.partition("/")
    if not slash:
        raise UserError(f"write KIND/NAME, for example generator/resnet_9blocks; got {part!r}")
    if kind == "pretrained":
        _published(name)
        return
    if kind == "recipe":
        from qsattn_plugin.registry.recipe import load_recipe

        click.echo(load_recipe(name).to_yaml(), nl=False)
        return
    found = find(kind, name)
    click.echo(f"{found.kind}/{found.name}: {found.summary}")
    if found.tags:
        click.echo(f"tags: {', '.join(found.tags)}")
    docs = argument_docs(found.target)
    click.echo("\narguments:")
    for argument in found.signature.parameters.values():
        default = "" if argument.default is argument.empty else f" = {_as_yaml(argument.default)}"
        click.echo(f"  {argument.name}: {_type(argument.annotation)}{default}")
        if argument.name in docs:
            click.echo(click.wrap_text(docs[argument.name], 96, "      ", "      "))
    if found.kind in ("generator", "discriminator"):
        _network(found, size)


def _published(name: str) -> None:
    from qsattn_plugin.registry.pretrained import published_model
    from qsattn_plugin.registry.yaml_lines import write

    entry = published_model(name)
    weights = entry.file or entry.url or "not published yet"
    generator = {"type": entry.generator, **entry.arguments}
    card = {"summary": entry.summary, "generator": generator, "weights": weights, "sha256": entry.sha256, **entry.card}
    click.echo(f"pretrained/{name}")
    _echo_yaml(card, write)


def _echo_yaml(mapping: dict[str, Any], write: Callable[[Any], str], indent: str = "") -> None:
    """Print a mapping as YAML, one line a key; mappings that do not fit on their line are indented below it."""
    for key, value in mapping.items():
        line = f"{indent}{key}: {write(value)}"
        if isinstance(value, dict) and len(line) > 100:
            click.echo(f"{indent}{key}:")
            _echo_yaml(value, write, indent + "  ")
        else:
            click.echo(line)


def _network(part: Part, size: int) -> None:
    from qsattn_plugin.registry.describe import describe
    from qsattn_plugin.text import text_table

    takes = part.signature.parameters.values()
    if any(p.default is p.empty for p in takes):
        return  # its size depends on an argument that only a recipe can give
    counts = describe(part.target(), size)
    click.echo(f"\nparameters: {counts.parameters:,}")
    click.echo(f"multiply-adds at {size} x {size}: {counts.multiply_adds / 1e9:.2f} G")
    if counts.taps:
        default = set(part.target().default_taps)
        rows = [("", "index", "name", "channels", "stride")]
        for tap in counts.taps:
            star = "*" if {tap.index, tap.name} & default else ""
            rows.append((star, str(tap.index), tap.name, str(tap.channels), str(tap.stride)))
        click.echo(f"taps (* is used by default):\n{text_table(rows, '<><>>')}")


def _type(annotation: object) -> str:
    from qsattn_plugin.registry.recipe.checking import nested

    if annotation is inspect.Parameter.empty:
        return "anything"
    if inner := nested(annotation):
        kind, several = inner
        return f"list of {kind}s" if several else kind
    if typing.get_origin(annotation) is typing.Literal:
        return " | ".join(map(_as_yaml, typing.get_args(annotation)))
    if isinstance(annotation, type) and not typing.get_args(annotation):
        return annotation.__name__
    return str(annotation).replace("typing.", "")


def _as_yaml(value: object) -> str:
    """Return a value as a recipe writes it."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(list(value)) if isinstance(value, tuple) else str(value)
