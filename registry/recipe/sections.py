"""Check the sections of a merged recipe, and convert their values to plain data."""

from __future__ import annotations

import inspect
import re
from dataclasses import replace
from enum import Enum
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from qsattn_plugin import registry
from qsattn_plugin.registry.interfaces import of_domain
from qsattn_plugin.registry.recipe.checking import check, check_arguments, check_part, unknown_key
from qsattn_plugin.registry.recipe.schema import (
    KEYS,
    LENGTH,
    LISTS,
    PARTS,
    PIPELINE,
    Checkpoint,
    Data,
    Evaluate,
    PartSpec,
    Pipeline,
    Train,
)
from qsattn_plugin.registry.yaml_lines import Node, Problem, from_plain

__all__ = ["NAME", "objective_parameters", "plain", "read_sections", "train_in_steps"]

#: The characters of a recipe's name, which becomes the name of a folder.
NAME = "[A-Za-z0-9][A-Za-z0-9._-]*"


def read_sections(tree: Node, name: str, problems: list[Problem]) -> dict[str, Any]:
    """Return the value of every key of a complete tree, of merged layers and defaults; ``name`` is the default name.

    Mistakes are added to ``problems``; the values are valid only if there are none.
    """
    at = tree.value
    problems += [unknown_key(node, key, KEYS, "a recipe takes") for key, node in at.items() if key not in KEYS]
    values: dict[str, Any] = {
        "name": _name(tree, name, problems),
        "method": check(str, at["method"], "method", problems),
        "data": _data(at["data"], problems),
        **{
            key: [check_part(PARTS[key], node, f"{key}.{i}", problems) for i, node in enumerate(at[key].value)]
            for key in LISTS
        },
        "objective": _objective(tree, problems),
    }
    for key in ("generator", "discriminator", "encoder", "sampler"):
        values[key] = check_part(PARTS[key], at[key], key, problems)
    values["train"] = _train(at["train"], problems)
    for key, model in (("checkpoint", Checkpoint), ("evaluate", Evaluate)):
        values[key] = check(model, at[key], key, problems)
    _check_bands(at["evaluate"], values, problems)
    return values


def _check_bands(node: Node, values: dict[str, Any], problems: list[Problem]) -> None:
    """Add to ``problems`` where a domain's images, of more than three channels, lack a band to show."""
    data, evaluate = values["data"], values["evaluate"]
    if data is None or evaluate is None or evaluate.bands is None:
        return
    for domain in "AB":
        count = of_domain(data.channels, domain)
        if 3 < count < max(evaluate.bands):
            place = (node.get("bands") or node).place
            what = f"band {max(evaluate.bands)} is shown, but images of {domain} have {count} channels"
            problems.append(Problem(place, "evaluate.bands", what))


def objective_parameters(method: registry.Part) -> dict[str, inspect.Parameter]:
    """Return the keys of ``objective``: the method's keyword-only parameters."""
    return {name: p for name, p in method.signature.parameters.items() if p.kind is p.KEYWORD_ONLY}


def plain(value: Any) -> Any:
    """Return a section's value as plain data (JSON-serialisable), in the form of a recipe."""
    if isinstance(value, PartSpec):
        return {"type": value.type, **plain(value.arguments)}
    if isinstance(value, Data):
        fields = value.model_dump()
        return {"type": value.type, **plain(value.arguments), **{key: plain(fields[key]) for key in PIPELINE}}
    if isinstance(value, BaseModel):
        return plain(value.model_dump())
    if isinstance(value, dict):
        return {key: plain(below) for key, below in value.items()}
    if isinstance(value, list | tuple | set):
        return [plain(below) for below in value]
    if isinstance(value, Enum):
        return plain(value.value)
    return str(value) if isinstance(value, Path) else value


def _name(tree: Node, name: str, problems: list[Problem]) -> str:
    node = tree.get("name") or Node(name, tree.place)
    name = check(str, node, "name", problems)
    if name is not None and not re.fullmatch(NAME, name):
        whose = "" if tree.get("name") else " from the file's name; give the recipe a 'name'"
        text = f"must be letters, digits, '.', '_' and '-', and begin with a letter or digit, got {name!r}{whose}"
        problems.append(Problem(node.place, "name", text))
    return name


def _data(node: Node, problems: list[Problem]) -> Data | None:
    part = check_part("dataset", node, "data", problems, without=PIPELINE)
    keys = {key: below for key, below in node.value.items() if key in PIPELINE}
    pipeline = check(Pipeline, replace(node, value=keys), "data", problems)
    if part is None or pipeline is None:
        return None
    takes = registry.find("dataset", part.type).signature.parameters
    if pipeline.range is not None and "range" not in takes:
        what = f"dataset {part.type!r} gives pictures of 8 bits, which have no other range; leave it out"
        problems.append(Problem((node.get("range") or node).place, "data.range", what))
    channels = node.get("channels")
    if channels is not None and "channels" in takes:
        found = len(problems)
        check(takes["channels"].annotation, channels, "data.channels", problems)
        problems[found:] = [p._replace(text=f"{p.text} (dataset {part.type!r})") for p in problems[found:]]
    return Data(**pipeline.model_dump(), type=part.type, arguments=part.arguments)


def _train(node: Node, problems: list[Problem]) -> Train | None:
    """Return the section. Where its length is in epochs, ``steps`` is 1 until :func:`train_in_steps`."""
    epochs = node.get("epochs")
    if epochs is None or epochs.value is None:
        train = check(Train, _without(node, "epochs"), "train", problems)
        return train and train.model_copy(update={"images": None})  # of epochs alone
    if "steps" in node.value:
        problems.append(Problem(epochs.place, "train.epochs", "give the length as steps or as epochs, not as both"))
    given = _without(node, "decay_from")
    return check(Train, replace(given, value={**given.value, "steps": Node(1, epochs.place)}), "train", problems)


def train_in_steps(node: Node, train: Train, images: int, problems: list[Problem]) -> Train | None:
    """Return a section ``train`` with its length in steps instead of epochs of so many images."""
    steps = max(1, round((train.epochs or 0) * images / train.step_images))
    given = {**_without(node, *LENGTH).value, "steps": Node(steps, node.value["epochs"].place)}
    return check(Train, replace(node, value=given), "train", problems)


def _without(node: Node, *keys: str) -> Node:
    return replace(node, value={key: below for key, below in node.value.items() if key not in keys})


def _objective(tree: Node, problems: list[Problem]) -> dict[str, Any]:
    """Return the method's settings; those that are not set have the default of its signature."""
    name = tree.value["method"]
    method = registry.find("method", str(name.value if name.text is None else name.text))
    takes = objective_parameters(method)
    values = check_arguments(takes, tree.value["objective"], "objective", f"method {method.name!r}", problems)
    for key, parameter in takes.items():
        if key not in values and isinstance(parameter.default, bool | int | float | str | list | tuple | dict | None):
            ignored: list[Problem] = []
            default = check(parameter.annotation, from_plain(parameter.default, tree.place), key, ignored)
            if not ignored:  # else a recipe cannot express the default
                values[key] = default
    return values
