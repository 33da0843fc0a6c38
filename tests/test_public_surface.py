"""The names that users import, with their signatures, are those of ``public_surface.json``.

A change to the surface is a change to that file, to be seen in a review; write it anew with

    python -m tests.test_public_surface
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import typing
from pathlib import Path
from typing import Any

LIST = Path(__file__).with_name("public_surface.json")

MODULES = (
    "qsattn_plugin",
    "qsattn_plugin.attention",
    "qsattn_plugin.attention.routes",
    "qsattn_plugin.distances",
    "qsattn_plugin.errors",
    "qsattn_plugin.evaluation.scoring",
    "qsattn_plugin.forks",
    "qsattn_plugin.losses",
    "qsattn_plugin.projection",
    "qsattn_plugin.registry",
    "qsattn_plugin.registry.augmentations",
    "qsattn_plugin.registry.discriminators",
    "qsattn_plugin.registry.encoders",
    "qsattn_plugin.registry.generators",
    "qsattn_plugin.registry.layers",
    "qsattn_plugin.registry.recipe",
    "qsattn_plugin.samplers",
    "qsattn_plugin.storage",
    "qsattn_plugin.training.loop",
    "qsattn_plugin.training.methods",
    "qsattn_plugin.training.run",
    "qsattn_plugin.translation.export",
    "qsattn_plugin.translation.load",
    "qsattn_plugin.translation.translator",
)


def surface() -> dict[str, dict[str, Any]]:
    """Return, by module, each public name with its signature; of a class also its public methods' signatures."""
    return {name: dict(sorted(_names(importlib.import_module(name)))) for name in MODULES}


def _names(module: Any):
    names = getattr(module, "__all__", None) or [
        n for n, value in vars(module).items() if getattr(value, "__module__", None) == module.__name__
    ]
    for name in names:
        value = getattr(module, name)
        if name.startswith("_") or not (inspect.isclass(value) or inspect.isroutine(value)):
            continue
        if typing.get_origin(value):  # Python 3.10 takes Callable[...] for a class
            continue
        yield name, _described(value)


def _described(value: Any) -> Any:
    if not inspect.isclass(value):
        return _signature(value)
    methods = {
        n: _signature(m.__func__ if isinstance(m, classmethod | staticmethod) else m)
        for n, m in vars(value).items()
        if not n.startswith("_") and (inspect.isfunction(m) or isinstance(m, classmethod | staticmethod))
    }
    made = getattr(value.__init__, "__module__", None) or ""  # a signature of PyTorch's differs between its versions
    called = "as PyTorch's" if made.partition(".")[0] == "torch" else _signature(value)
    return {"": called, **dict(sorted(methods.items()))}


def _signature(value: Any) -> str:
    try:
        signature = inspect.signature(value)
    except ValueError:  # of a class that is written in C
        return "(...)"
    text = str(signature.replace(return_annotation=inspect.Signature.empty))
    return re.sub(r" at 0x[0-9a-f]+", "", text)  # a default that is an object of its own, or a function


def test_the_surface_is_the_listed_one():
    assert surface() == json.loads(LIST.read_text(encoding="utf-8"))


if __name__ == "__main__":
    LIST.write_text(json.dumps(surface(), indent=1) + "\n", encoding="utf-8")
