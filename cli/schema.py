"""``qsattn schema``: prints the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json

import click

from qsattn_plugin.cli.options import import_option


@click.command("schema", short_help="Print the JSON Schema of recipes.")
@import_option
@click.option("--markdown", is_flag=True, help="Print a page for people with every key instead.")
def command(markdown: bool) -> None:
    """Print the JSON Schema of recipes, so that an editor completes and checks them.

    With the YAML extension of an editor: save it as recipe.schema.json and begin a recipe with

    \b
    # yaml-language-server: $schema=recipe.schema.json
    """
    from qsattn_plugin.registry.recipe.json_schema import json_schema
    from qsattn_plugin.registry.recipe.page import recipe_page

    click.echo(recipe_page() if markdown else json.dumps(json_schema(), indent=2), nl=not markdown)
