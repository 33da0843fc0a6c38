"""What a shell completes: models, recipes, runs and parts, by their names here. Only the index of parts is read."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import click
from click.shell_completion import CompletionItem

Complete = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def _completes(names: Callable[[], Iterable[str]], files: bool) -> Complete:
    """Return a completion of names; with ``files``, the shell completes paths where no name begins so."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(name) for name in names() if name.startswith(incomplete)]
        return [CompletionItem(incomplete, type="file"), *found] if files else found

    return complete


def _runs() -> list[str]:
    return sorted(path.parent.name for path in Path("runs").glob("*/recipe.yaml"))


def _models() -> list[str]:
    from qsattn_plugin.registry.pretrained import list_models

    published, here = list_models(), _runs()
    both = {*published} & {*here}  # such a name alone means neither
    found = [f"runs/{name}" if name in both else name for name in here]
    return [*found, *(f"pretrained/{name}" if name in both else name for name in published)]


def _recipes() -> list[str]:
    from qsattn_plugin.registry.recipe.reading import shipped_recipes

    return list(shipped_recipes())


def _parts() -> list[str]:
    from qsattn_plugin.registry import list_parts
    from qsattn_plugin.registry.pretrained import list_models

    named = [f"{part.kind}/{part.name}" for part in list_parts()]
    return [*named, *(f"recipe/{name}" for name in _recipes()), *(f"pretrained/{name}" for name in list_models())]


models, recipes, runs = _completes(_models, True), _completes(_recipes, True), _completes(_runs, True)
parts = _completes(_parts, False)
