"""The value range of a data set, where a recipe asks for it to be measured."""

from __future__ import annotations

from dataclasses import replace

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.interfaces import of_domain
from qsattn_plugin.registry.recipe import Recipe


def with_measured_range(recipe: Recipe) -> Recipe:
    """Return a recipe with numbers for ``data.range: auto``, measured on the training pictures of each domain.

    Raises:
        RecipeError: the data set cannot be built or measured, or no picture can be read.
    """
    asked = {domain: of_domain(recipe.data.range, domain) for domain in "AB"}
    if "auto" not in asked.values():
        return recipe
    dataset = recipe.build("data")
    if not hasattr(dataset, "measure"):
        raise recipe.error("data.range", f"dataset {recipe.data.type!r} cannot measure it: give two numbers")
    try:
        found = {domain: dataset.measure(domain) if one == "auto" else one for domain, one in asked.items()}
    except UserError as error:
        raise recipe.error("data.range", str(error)) from error
    return replace(recipe, data=recipe.data.model_copy(update={"range": found}))


def describe_range(recipe: Recipe) -> str:
    """Return the ranges of a recipe's domains in words."""
    texts = {domain: of_domain(recipe.data.range, domain) for domain in "AB"}
    shown = {d: f"{v[0]:g} to {v[1]:g}" if isinstance(v, tuple) else v or "8 bits" for d, v in texts.items()}
    return "data.range, measured: " + ", ".join(f"{domain} {text}" for domain, text in shown.items())
