"""``qsattn list``: lists parts, recipes and published models."""

from __future__ import annotations

import click

from qsattn_plugin.cli import completion
from qsattn_plugin.cli.options import import_option


@click.command("list", short_help="Show the parts that recipes can name, recipes, and published models.")
@click.argument("pattern", default="*", shell_complete=completion.parts)
@import_option
def command(pattern: str) -> None:
    """Show the parts of a kind (`generators`), `recipes`, or the published models (`pretrained`).

    Any other PATTERN is looked for in names and tags (`"*qsattn*"`), and as a word in what is said of them (`horse`).
    """
    from qsattn_plugin.errors import UserError, nearest
    from qsattn_plugin.registry import KINDS, list_parts
    from qsattn_plugin.registry.parts import fits
    from qsattn_plugin.registry.pretrained import entries
    from qsattn_plugin.registry.recipe import shipped_recipes
    from qsattn_plugin.text import text_table

    rows = [(part.kind, part.name, part.tags, part.summary) for part in list_parts()]
    rows += [("recipe", name, (), text) for name, text in shipped_recipes().items()]
    for name, entry in entries().items():
        rows.append(("pretrained", name, (), entry.summary + ("" if entry.has_weights else " (no weights yet)")))
    kinds = [kind for kind in (*KINDS, "recipe", "pretrained") if pattern in (kind, f"{kind}s")]
    found = [row for row in rows if (row[0] in kinds if kinds else fits(pattern, *row))]
    if not found:
        known = (*KINDS, *(row[1] for row in rows))
        raise UserError(f"nothing is called {pattern!r}, and nothing is said of it{nearest(pattern, known)}")
    click.echo(text_table((f"{kind}/{name}", text) for kind, name, _, text in found))
