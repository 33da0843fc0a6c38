"""Recipes: shipped ones with odd values, missing keys, damaged text; and odd ``-s`` options."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import Any

import yaml

from qsattn_plugin.registry.recipe import load_recipe, shipped_recipes
from qsattn_plugin.registry.recipe.schema import KEYS
from tests.fuzz import Case, damage, meddle, odd, places

_NAMES = list(shipped_recipes())
_KEYS = ["train.steps", "train.lr", "data.crop", "data.train", "generator.width", "sampler.queries", "evaluate.kid"]


@functools.cache
def _whole(name: str) -> dict[str, Any]:
    return load_recipe(name, ["train.steps=10"]).to_dict()


def make(draw: random.Random, folder: Path) -> Case:
    path = folder / "recipe.yaml"
    whole = copy.deepcopy(_whole(draw.choice(_NAMES)))
    options = []
    if draw.random() < 0.5:
        meddle(draw, whole)
    content = yaml.safe_dump(whole, allow_unicode=True, sort_keys=False).encode("utf-8", "surrogateescape")
    path.write_bytes(damage(draw, content) if draw.random() < 0.3 else content)
    for _ in range(draw.choice((0, 1, 2))):
        found = [str(key) for _, key in places(whole)]
        key = draw.choice((draw.choice(_KEYS), f"{draw.choice(list(KEYS))}.{draw.choice(found or ['x'])}", "x." * 700))
        options.append(f"{key}={odd(draw)}")

    def run() -> None:
        found = load_recipe(path, options)
        assert found.from_yaml(found.to_yaml()) == found

    return run
