"""``qsattn schema``: prints the JSON Schema of recipes, for editors."""

from __future__ import annotations

import json

import click


@click.command("schema", short_help="Print the JSON Schema of recipes.")
def command() -> None:
    """Print the JSON Schema of recipes, so that an editor completes and checks them.

    With the YAML extension of an editor: save it as recipe.schema.json and begin a recipe with

    \b
    # yaml-language-server: $schema=recipe.schema.json
    """
    from qsattn_plugin.registry.recipe.json_schema import json_schema

    click.echo(json.dumps(json_schema(), indent=2))
