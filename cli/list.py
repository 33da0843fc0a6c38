"""``qsattn list``: what there is."""

from __future__ import annotations

import click


@click.command("list", short_help="Show the parts that recipes can name.")
@click.argument("pattern", default="*")
def command(pattern: str) -> None:
    """Show the parts of a kind (`generators`), those whose name or tag fits PATTERN (`"*qsattn*"`), or `recipes`."""
    from qsattn_plugin.registry import list_parts
    from qsattn_plugin.registry.recipe import shipped_recipes, summary

    rows = []
    if pattern not in ("recipe", "recipes"):
        rows += [(f"{part.kind}/{part.name}", part.summary) for part in list_parts(pattern)]
    if pattern in ("*", "recipe", "recipes"):
        rows += [(f"recipe/{name}", summary(path)) for name, path in shipped_recipes().items()]
    width = max((len(name) for name, _ in rows), default=0)
    for name, text in rows:
        click.echo(f"{name:<{width}}  {text}".rstrip())
