"""JSON Schema of recipes, from the models of the sections and the signatures and docstrings of registered parts.

Editors with a YAML language server use it to complete and check recipes. It describes a single file, without what
``extends`` adds, so that only the ``type`` of a part in a list, or of one without a default, is required.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.errors import PydanticUserError

from qsattn_plugin import registry
from qsattn_plugin.registry.parts import argument_docs
from qsattn_plugin.registry.recipe.checking import WEIGHT, adapter, nested
from qsattn_plugin.registry.recipe.reading import shipped_recipes
from qsattn_plugin.registry.recipe.schema import KEYS, LISTS, PARTS, Checkpoint, Evaluate, Pipeline, Train
from qsattn_plugin.registry.recipe.sections import NAME, objective_parameters, plain

__all__ = ["argument_schemas", "json_schema"]


def json_schema() -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of recipes with the parts that are registered now."""
    parts = {kind: registry.list_parts(kind) for kind in ("method", *PARTS.values())}
    defs: dict[str, Any] = {}
    methods = parts["method"]
    properties: dict[str, Any] = {
        "extends": {"type": "string", "examples": list(shipped_recipes())},
        "import": {"type": "array", "items": {"type": "string"}},
        "name": {"type": "string", "pattern": f"^{NAME}$"},
        "method": {"type": "string", "oneOf": [{"const": m.name, "description": m.summary} for m in methods]},
        "objective": {"type": "object"},
    }
    for key, kind in PARTS.items():
        shared = _model_properties(Pipeline, defs) if key == "data" else {}
        if key in LISTS:
            # Items of the list below, by their numbers.
            items = {"^[0-9]+$": _part(parts[kind], shared, defs)}
            changed: dict[str, Any] = {"patternProperties": items, "additionalProperties": False}
            whole = {"items": _part(parts[kind], shared, defs, required=True)}
            properties[key] = {"type": ["array", "object"], **_if_type("array", whole, changed)}
        else:
            properties[key] = _part(parts[kind], shared, defs)
    for model in (Train, Checkpoint, Evaluate):
        properties[model.__name__.lower()] = _object(_model_properties(model, defs))
    settings = {m.name: _object(argument_schemas(m, objective_parameters(m), defs)) for m in methods}
    schema = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "qsattn-plugin recipe",
        **_object({key: {"description": text, **properties[key]} for key, text in KEYS.items()}),
        "allOf": [_if({"method": m.name}, {"properties": {"objective": settings[m.name]}}) for m in methods],
    }
    return {**schema, "$defs": defs} if defs else schema


def _part(parts: list[registry.Part], shared: dict, defs: dict, required: bool = False) -> dict[str, Any]:
    """Return the schema of a part's section: a name, or a mapping whose ``type`` determines the arguments."""
    names = {"type": "string", "oneOf": [{"const": part.name, "description": part.summary} for part in parts]}
    cases = []
    for part in parts:
        parameters = part.signature.parameters
        own = {"type": names, **argument_schemas(part, parameters, defs), **shared}
        any_key = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        cases.append(_if({"type": part.name}, {"properties": own} if any_key else _object(own)))
    mapping = {"properties": {"type": names, **shared}, "allOf": cases}
    # Not oneOf: with that an editor would say that no case fits, and not which key is wrong.
    mapping = {**mapping, "required": ["type"]} if required else mapping
    return {"type": ["string", "object"], **_if_type("object", mapping, names)}


def argument_schemas(
    part: registry.Part, parameters: Mapping[str, inspect.Parameter], defs: dict[str, Any]
) -> dict[str, Any]:
    """Return the schema of each parameter that YAML can set; networks, for example, come from the method."""
    docs = part.docs
    found = {}
    for name, parameter in parameters.items():
        if parameter.kind not in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            continue
        if inner := nested(parameter.annotation):
            shared = {"weight": adapter(WEIGHT).json_schema()} if inner.weighted else {}
            others = [other for other in registry.list_parts(inner.kind) if other is not part]
            own = not isinstance(parameter.default, str)
            schema = _part(others, shared, defs, required=own) | {"title": inner.kind}
            if inner.several:
                item = _part(others, shared, defs, required=True) | {"title": inner.kind}
                several = {"type": "array", "items": item}
                either = {"title": f"{inner.kind} | list of {inner.kind}s"}
                schema = _if_type("array", several, schema) | either if inner.one else several
            if inner.none:
                schema = _if_type("null", {}, schema) | {"title": f"{schema.get('title', inner.kind)} | null"}
        else:
            try:
                schema = adapter(parameter.annotation).json_schema()
            except PydanticUserError:
                continue
            defs.update(schema.pop("$defs", {}))
        if name in docs:
            schema["description"] = docs[name]
        if isinstance(parameter.default, bool | int | float | str | list | tuple | dict | None):
            schema["default"] = plain(parameter.default)
        found[name] = schema
    return found


def _model_properties(model: type[BaseModel], defs: dict) -> dict[str, Any]:
    schema, docs = model.model_json_schema(), argument_docs(model)
    defs.update(schema.pop("$defs", {}))
    return {name: {**field, "description": docs[name]} for name, field in schema["properties"].items()}


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "additionalProperties": False}


def _if_type(kind: str, then: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"if": {"type": kind}, "then": then, "else": other}


def _if(condition: dict[str, str], then: dict[str, Any]) -> dict[str, Any]:
    (key, value) = next(iter(condition.items()))
    return {"if": {"properties": {key: {"const": value}}, "required": [key]}, "then": then}
