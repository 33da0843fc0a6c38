"""``qsattn show``: describes one part, key, recipe or published model."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option

if TYPE_CHECKING:
    from qsattn_plugin.registry import Part
    from qsattn_plugin.registry.recipe.page import Key


@click.command("show", short_help="Show one part, key, recipe or published model.")
@click.argument("what", metavar="NAME", shell_complete=completion.parts)
@click.option(
    "--size", type=click.IntRange(min=16), default=256, show_default=True, help="Image side for the multiply-adds."
)
@click.option(
    "--channels", type=click.IntRange(1, 64), default=3, show_default=True, help="Image channels for the same."
)
@import_option
def command(what: str, size: int, channels: int) -> None:
    """Show what NAME is: a part (generator/resnet_9blocks), a recipe (recipe/toy, recipe/PATH), a published model
    (pretrained/toy), or a key of a recipe (train, objective.r1).

    Parts come with their arguments, and networks with their parameters, multiply-adds and taps; recipes with all that
    they inherit. What stands before the slash can be left out where the name means one thing.
    """
    kind, slash, name = what.partition("/")
    if not slash or (kind != "recipe" and what.endswith((".yaml", ".yml"))):
        kind, name = _resolve(what)
    if kind == "pretrained":
        _published(name)
    elif kind == "recipe":
        from qsattn_plugin.registry.recipe import load_recipe

        click.echo(load_recipe(name).to_yaml(), nl=False)
    elif kind == "key":
        _key(name)
    else:
        _part(kind, name, size, channels)


def _resolve(name: str) -> tuple[str, str]:
    """Return the kind and the name of the one thing of this name; a path is a recipe's.

    Raises:
        UserError: there is none, or more than one."""
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.registry import list_parts
    from qsattn_plugin.registry.pretrained import entries
    from qsattn_plugin.registry.recipe import shipped_recipes
    from qsattn_plugin.registry.recipe.schema import KEYS

    if name.endswith((".yaml", ".yml")):
        return "recipe", name
    known = [(part.kind, part.name) for part in list_parts()]
    known += [("recipe", recipe) for recipe in shipped_recipes()]
    known += [("pretrained", model) for model in entries()]
    known += [("key", key) for key in KEYS]
    found = [each for each in known if each[1] == name]
    if not found and name.partition(".")[0] in KEYS:
        return "key", name
    if len(found) == 1:
        return found[0]
    if found:
        raise UserError(f"{name} is several things; ask for {' or '.join('/'.join(each) for each in found)}")
    raise UserError(f"nothing is called {name!r}{nearest(name, [each[1] for each in known])}")


def _key(name: str) -> None:
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.registry import list_parts
    from qsattn_plugin.registry.recipe.checking import takers
    from qsattn_plugin.registry.recipe.page import find_keys
    from qsattn_plugin.registry.recipe.schema import KEYS, PARTS
    from qsattn_plugin.text import text_table

    section = name.partition(".")[0]
    keys = find_keys(name)
    if name not in KEYS and not keys:
        if others := takers(PARTS[section], name.partition(".")[2]) if section in PARTS else []:
            shown = " and ".join(f"qsattn show {PARTS[section]}/{other}" for other in others)
            raise UserError(f"{name} is an argument of parts; see {shown}")
        near = nearest(name, (*KEYS, *(key.name for key in find_keys(section))))
        raise UserError(f"a recipe has no key {name!r}{near}")
    if name in KEYS:
        click.echo(f"{name}: {KEYS[name]}")
    _echo_keys(keys)
    kind = PARTS.get(name, name)
    if name in PARTS or name == "method":
        rows = [(f"{kind}/{part.name}", part.summary) for part in list_parts(kind)]
        click.echo(f"\nparts, each with its own arguments:\n{text_table(rows)}")


def _echo_keys(keys: Iterable[Key]) -> None:
    for key in keys:
        click.echo(f"  {key.name}: {key.type}{'' if key.default is None else f' = {key.default}'}")
        if key.text:
            click.echo(click.wrap_text(key.text, 96, "      ", "      "))


def _part(kind: str, name: str, size: int, channels: int) -> None:
    from qsattn_plugin.registry import find
    from qsattn_plugin.registry.recipe.page import argument_keys

    part = find(kind, name)
    click.echo(f"{part.kind}/{part.name}: {part.summary}")
    if part.tags:
        click.echo(f"tags: {', '.join(part.tags)}")
    click.echo("\narguments:")
    _echo_keys(argument_keys(part))
    if part.kind in ("generator", "discriminator"):
        _network(part, size, channels)


def _published(name: str) -> None:
    from qsattn_plugin.registry.pretrained import published_model
    from qsattn_plugin.registry.yaml_lines import write

    entry = published_model(name)
    card: dict[str, Any] = {"summary": entry.summary, "generator": {"type": entry.generator, **entry.arguments}}
    card |= {"weights": entry.file or entry.url or "not published yet", "sha256": entry.sha256, **entry.card}
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


def _network(part: Part, size: int, channels: int) -> None:
    from qsattn_plugin.registry import create
    from qsattn_plugin.registry.describe import describe
    from qsattn_plugin.text import text_table

    given = {name: channels for name in ("in_channels", "out_channels") if name in part.signature.parameters}
    try:
        network = create(part.kind, part.name, **given)
    except ValueError:
        return  # its size depends on an argument that only a recipe can give
    try:
        counts = describe(network, size, channels)
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from None
    click.echo(f"\nparameters: {counts.parameters:,}")
    click.echo(f"multiply-adds at {size} x {size}: {counts.multiply_adds / 1e9:.2f} G")
    if counts.taps:
        default = set(network.default_taps)
        rows = [("", "index", "name", "channels", "stride")]
        for tap in counts.taps:
            star = "*" if {tap.index, tap.name} & default else ""
            rows.append((star, str(tap.index), tap.name, str(tap.channels), str(tap.stride)))
        click.echo(f"taps (* is used by default):\n{text_table(rows, '<><>>')}")
