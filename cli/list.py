"""``qsattn list``: lists parts, recipes and published models."""

from __future__ import annotations

import click


@click.command("list", short_help="Show the parts that recipes can name, recipes, and published models.")
@click.argument("pattern", default="*")
def command(pattern: str) -> None:
    """Show the parts of a kind (`generators`), those whose name or tag matches PATTERN (`"*qsattn*"`), `recipes`, or
    the published models (`pretrained`)."""
    from qsattn_plugin.registry import list_parts
    from qsattn_plugin.registry.pretrained import entries
    from qsattn_plugin.registry.recipe import shipped_recipes
    from qsattn_plugin.text import text_table

    rows = []
    if pattern not in ("recipe", "recipes", "pretrained"):
        rows += [(f"{part.kind}/{part.name}", part.summary) for part in list_parts(pattern)]
    if pattern in ("*", "recipe", "recipes"):
        rows += [(f"recipe/{name}", summary) for name, summary in shipped_recipes().items()]
    if pattern in ("*", "pretrained"):
        for name, entry in entries().items():
            rows.append((f"pretrained/{name}", entry.summary + ("" if entry.has_weights else " (no weights yet)")))
    click.echo(text_table(rows))
