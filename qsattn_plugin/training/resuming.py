"""What a changed recipe means for a training that goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from qsattn_plugin.registry import PartError, find
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.registry.recipe.checking import nested
from qsattn_plugin.registry.recipe.schema import PARTS, Train
from qsattn_plugin.registry.recipe.sections import plain

#: Arguments that matter only before the first step, weigh losses, or say where frozen weights lie: those are compared
#: themselves.
_FREE = ("init", "init_gain", "pretrained", "weights", "r1")


def check_architecture(recipe: Recipe, document: Mapping[str, Any], path: Path) -> None:
    """Check that a recipe has the networks of a checkpoint.

    Networks of other settings may take the same weights and compute something else with them.

    Args:
        recipe: the run's recipe.
        document: of the checkpoint; holds the recipe that it was trained by.
        path: of the checkpoint.

    Raises:
        RecipeError: an argument of a network was changed.
    """
    for key, was, now in _changes(recipe, document["recipe"]):
        text = (
            f"is {now}, but {path} was trained with {was}; set it back, or build a new run, which can begin with these "
            "weights (train.init_from)"
        )
        raise recipe.error(key, text)


def _changes(recipe: Recipe, before: Mapping[str, Any]) -> Iterator[tuple[str, Any, Any]]:
    """Yield the key of each changed setting of a network, its value before and its value now."""
    after = recipe.to_dict()
    yield from ((key, before[key], after[key]) for key in ("method",) if before[key] != after[key])
    for key in ("channels", "direction", "range"):
        after_value = after["data"].get(key)
        was, now = before["data"].get(key, None if key == "range" else after_value), after_value
        if was != now:
            yield f"data.{key}", was, now
    for section in ("generator", "discriminator", "encoder"):
        was, now = before[section], after[section]
        if was["type"] != now["type"]:
            yield f"{section}.type", was["type"], now["type"]
            continue
        was, now = (_settings(PARTS[section], spec) for spec in (was, now))
        for key in dict.fromkeys((*was, *now)):
            if was.get(key) != now.get(key):
                yield f"{section}.{key}", was.get(key), now.get(key)


def _settings(kind: str, spec: str | Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a part that a training cannot change, defaults too, and those of the parts inside it."""
    given = {"type": spec} if isinstance(spec, str) else dict(spec)
    try:
        takes = find(kind, given["type"]).signature.parameters
    except PartError:  # of a checkpoint whose part is not at hand
        return given
    found = {key: plain(taken.default) for key, taken in takes.items() if taken.default is not taken.empty} | given
    for key in found.keys() & takes.keys():
        if (inner := nested(takes[key].annotation)) and isinstance(found[key], list):
            found[key] = [_settings(inner.kind, one) for one in found[key]]
    return {key: value for key, value in found.items() if key not in _FREE}


def rate_note(train: Train, document: Mapping[str, Any], step: int) -> str | None:
    """Return a sentence if the learning rate at a step is not what the checkpoint's recipe made of it.

    Args:
        train: the run's section, whose ``steps`` may have been raised, say.
        document: of the checkpoint of that step.
        step: the step.
    """
    try:
        before = Train.model_validate_json(json.dumps(document["recipe"]["train"]))
    except ValidationError:  # of another version of the package: not to be compared
        return None
    was, now = (t.lr * t.rate_factor(step) for t in (before, train))
    if math.isclose(was, now, rel_tol=1e-6, abs_tol=1e-12):
        return None
    falls = f"falls to 0 from step {train.decay_step} to step {train.steps}"
    return f"the learning rate would have been {was:.3g} from step {step} on, and is {now:.3g} now: it {falls}"
