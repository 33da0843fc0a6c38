"""Check values against types, with readable messages.

pydantic checks strictly and as for JSON: a list may become a tuple, an integer a float, but text never becomes a
number and ``true`` never becomes 1. Two common spellings are corrected and checked again: ``1e5`` where an integer is
expected, and unquoted ``001`` where text is expected.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, NamedTuple, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError
from pydantic_core import ErrorDetails, SchemaError

from qsattn_plugin import registry
from qsattn_plugin.errors import nearest
from qsattn_plugin.registry.recipe.schema import INJECTED, PartSpec, absolute
from qsattn_plugin.registry.yaml_lines import Node, Place, Problem, RecipeError, parse_assignment

__all__ = ["WEIGHT", "adapter", "check", "check_arguments", "check_part", "check_settings", "nested", "unknown_key"]


#: The weight of a part in a weighted list.
WEIGHT = Annotated[float, Field(ge=0, default=1.0, description="its weight in the sum")]

_EMPTY = inspect.Parameter.empty
_Keys = tuple[str, ...]

#: pydantic's error type -> what the value must be; ``{ge}`` and the like come from the error's context.
_MUST = {
    "int_type": "an integer",
    "int_from_float": "an integer",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "path_type": "a path",
    "list_type": "a list",
    "tuple_type": "a list",
    "set_type": "a list",
    "dict_type": "a mapping",
    "model_type": "a mapping",
    "none_required": "null",
    "literal_error": "{expected}",
    "needs_python_object": "left out (the method gives it)",
    "greater_than": "greater than {gt}",
    "greater_than_equal": "at least {ge}",
    "less_than": "less than {lt}",
    "less_than_equal": "at most {le}",
}


def adapter(annotation: Any) -> TypeAdapter:
    """Return pydantic's checker for an annotation; it accepts anything if pydantic does not know the type."""
    if annotation is _EMPTY or isinstance(annotation, str):  # text: a name that only type checkers import
        return TypeAdapter(Any)
    try:
        if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
            return TypeAdapter(annotation)
        return TypeAdapter(annotation, config=ConfigDict(arbitrary_types_allowed=True, allow_inf_nan=False))
    except (PydanticUserError, SchemaError, TypeError):
        return TypeAdapter(Any)


def check(annotation: Any, node: Node, key: str, problems: list[Problem]) -> Any:
    """Return the node's value as the type that ``annotation`` names, or add to ``problems`` and return None.

    Relative paths are made absolute against the current directory.
    """
    checker = adapter(annotation)
    corrections: dict[_Keys, Any] = {}
    while True:
        try:
            text = json.dumps(node.to_plain(corrections))
            return _absolute_paths(checker.validate_json(text, strict=True))
        except ValidationError as error:
            wrong = _by_place(node, error)
        found = {path: _correction(_below(node, path), errors) for path, errors in wrong.items()}
        fresh = {path: value for path, value in found.items() if value is not None and path not in corrections}
        if not fresh:
            known = getattr(annotation, "model_fields", ())
            problems += [_explain(node, path, errors, key, known) for path, errors in wrong.items()]
            return None
        corrections |= fresh


def check_arguments(
    parameters: Mapping[str, inspect.Parameter],
    node: Node,
    key: str,
    owner: str,
    problems: list[Problem],
    also: Collection[str] = (),
) -> dict[str, Any]:
    """Return the values below ``node`` as arguments for a part's ``parameters``; mistakes are added to ``problems``.

    Messages name the section, ``key``, and the owner of the arguments (``sampler 'random'``); ``also`` are other keys
    of the section, for suggestions where a name is misspelt.
    """
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    named = {n: p for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    values = {}
    for name, value in node.value.items():
        inner = nested(named[name].annotation) if name in named else None
        if inner and isinstance(value.value, dict) and isinstance(named[name].default, str):
            value = replace(value, value={"type": Node(named[name].default, value.place), **value.value})
        if inner and inner.several and isinstance(value.value, list):
            items = enumerate(value.value)
            values[name] = [_check_nested(inner, item, f"{key}.{name}.{i}", problems) for i, item in items]
        elif inner and inner.one and not (inner.none and value.value is None):
            values[name] = _check_nested(inner, value, f"{key}.{name}", problems)
        elif name in named:
            values[name] = check(named[name].annotation, value, f"{key}.{name}", problems)
        elif takes_any:
            values[name] = check(Any, value, f"{key}.{name}", problems)
        else:
            problems.append(unknown_key(value, f"{key}.{name}", [*named, *also], f"{owner} takes"))
    for name, parameter in named.items():
        if parameter.default is _EMPTY and name not in node.value:
            problems.append(Problem(node.place, f"{key}.{name}", f"is missing; {owner} needs it"))
    return values


def check_settings(
    kind: str, name: str, settings: Iterable[str], example: str, known: Collection[str] = ()
) -> dict[str, Any]:
    """Return options ``key=value`` as arguments of a part.

    Raises:
        RecipeError: an option is not valid (the message gives ``example``), or an argument is missing that has no
            default and is not ``known``.
    """
    parameters = registry.find(kind, name).signature.parameters
    given = dict(parse_assignment(text.removeprefix(f"{kind}."), example) for text in settings)
    takes = {n: p for n, p in parameters.items() if n in given or (p.default is _EMPTY and n not in known)}
    also, problems = [n for n in parameters if n not in takes], list[Problem]()
    values = check_arguments(takes, Node(given, Place(f"{kind} {name}")), kind, f"{kind} {name!r}", problems, also)
    if problems:
        raise RecipeError(*problems)
    return values


def takers(kind: str, argument: str) -> list[str]:
    """Return the names of the parts of a kind that take an argument."""
    return [part.name for part in registry.list_parts(kind) if argument in part.signature.parameters]


def check_part(
    kind: str, node: Node, key: str, problems: list[Problem], without: Collection[str] = ()
) -> PartSpec | None:
    """Return the part that a section names, or add to ``problems``; ``without`` are keys of the section itself."""
    if "type" not in node.value:
        problems.append(Problem(node.place, f"{key}.type", f"is missing; it names the {kind}"))
        return None
    name = check(str, node.value["type"], f"{key}.type", problems)
    if name is None:
        return None
    try:
        parameters = registry.find(kind, name).signature.parameters
    except registry.PartError as error:
        problems.append(Problem(node.value["type"].place, f"{key}.type", str(error)))
        return None
    own = replace(node, value={k: n for k, n in node.value.items() if k != "type" and k not in without})
    injected = [n for n in INJECTED.get(kind, ()) if n not in own.value]
    takes = {n: p for n, p in parameters.items() if n not in (*without, *injected)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for at in [n for n in own.value if n not in takes and not takes_any]:
        if others := takers(kind, at):
            what = (
                f"{kind} {name!r} takes no such key, but {', '.join(others)} does: change {key}.type, or leave it out"
            )
            problems.append(Problem(own.value.pop(at).place, f"{key}.{at}", what))
    return PartSpec(name, check_arguments(takes, own, key, f"{kind} {name!r}", problems, also=without))


class NestedParts(NamedTuple):
    """What an argument that names parts may be: ``one``, a list of ``several``, ``none``; its parts may be weighted."""

    kind: str
    one: bool
    several: bool
    none: bool
    weighted: bool


def nested(annotation: Any) -> NestedParts | None:
    """Return which parts an argument names; None for an argument that names none."""
    marks = [mark for mark in getattr(annotation, "__metadata__", ()) if isinstance(mark, registry.Nested)]
    if not marks:
        return None
    named = annotation.__origin__
    kinds = {get_origin(a) or a for a in (get_args(named) if isinstance(named, UnionType) else (named,))}
    return NestedParts(marks[0].kind, str in kinds, list in kinds, NoneType in kinds, marks[0].weighted)


def _check_nested(inner: NestedParts, node: Node, key: str, problems: list[Problem]) -> Any:
    """Return a part inside the arguments of another, in the form in which it was written: its name, or a mapping."""
    if isinstance(node.value, dict):
        weight = node.value.get("weight") if inner.weighted else None
        spec = check_part(inner.kind, node, key, problems, without=("weight",) if inner.weighted else ())
        given = {} if weight is None else {"weight": check(WEIGHT, weight, f"{key}.weight", problems)}
        return spec and {"type": spec.type, **given, **spec.arguments}
    found: list[Problem] = []
    spec = check_part(inner.kind, replace(node, value={"type": node}), key, found)
    # What is wrong with a name that stands alone is said of the key that holds it.
    problems += [problem._replace(key=problem.key.removesuffix(".type")) for problem in found]
    return spec and spec.type


def unknown_key(node: Node, key: str, known: Collection[str], takes: str) -> Problem:
    """Return the problem of an unknown key, with the nearest known key and all of them."""
    name = key.rpartition(".")[2]
    every = ", ".join(known) or "no keys"
    return Problem(node.place, key, f"there is no such key{nearest(name, known)} ({takes} {every})")


def _absolute_paths(value: Any) -> Any:
    if isinstance(value, Path):
        return absolute(value)
    if type(value) in (list, tuple):
        return type(value)(map(_absolute_paths, value))
    if type(value) is dict:
        return {k: _absolute_paths(v) for k, v in value.items()}
    return value


def _below(node: Node, path: _Keys) -> Node:
    for key in path:
        node = node.get(key) or node
    return node


def _by_place(node: Node, error: ValidationError) -> dict[_Keys, list[ErrorDetails]]:
    """Return pydantic's errors by the path of their node, without the names of a union's branches."""
    found: dict[_Keys, list[ErrorDetails]] = {}
    for item in error.errors(include_url=False):
        path: list[str] = []
        at = node
        for key in map(str, item["loc"]):
            if below := at.get(key):
                path, at = [*path, key], below
        found.setdefault(tuple(path), []).append(item)
    # Where one branch of a union fails inside a list and another one expects no list, the first was meant.
    deeper = {path[:n] for path in found for n in range(len(path))}
    return {
        path: errors
        for path, errors in found.items()
        if path not in deeper or any(e["type"] == "missing" for e in errors)
    }


def _correction(node: Node, errors: list[ErrorDetails]) -> Any:
    types = {error["type"] for error in errors}
    whole = isinstance(node.value, float) and node.value.is_integer()
    if whole and types & {"int_type", "int_from_float"}:
        return int(node.value)
    return node.text if types & {"string_type", "path_type", "literal_error"} else None


def _explain(root: Node, path: _Keys, errors: list[ErrorDetails], key: str, known: Collection[str]) -> Problem:
    node = _below(root, path)
    where = ".".join((key, *path))
    types = {error["type"] for error in errors}
    if "extra_forbidden" in types:
        return unknown_key(node, where, known, f"{key} takes")
    if "missing" in types:
        name = errors[0]["loc"][-1]
        if isinstance(name, int):
            return Problem(node.place, where, f"must have at least {name + 1} values, got {len(node.value)}")
        return Problem(node.place, f"{where}.{name}", "is missing, and has no default")
    wanted, choices = [], []
    for error in errors:
        context = error.get("ctx", {})
        if error["type"] == "value_error":
            return Problem(node.place, where, str(context["error"]))
        if error["type"] in ("too_long", "too_short"):
            bound = "at most" if error["type"] == "too_long" else "at least"
            length = context.get("max_length", context.get("min_length"))
            return Problem(node.place, where, f"must have {bound} {length} values, got {len(node.value)}")
        if error["type"] not in _MUST:
            return Problem(node.place, where, f"{error['msg'][:1].lower()}{error['msg'][1:]}, got {node}")
        wanted.append(_MUST[error["type"]].format(**context))
        if error["type"] == "literal_error":
            choices += [part.strip("'\"") for part in context["expected"].replace(" or ", ", ").split(", ")]
    text = f"must be {' or '.join(dict.fromkeys(wanted))}, got {node}"
    return Problem(node.place, where, text + (nearest(node.value, choices) if isinstance(node.value, str) else ""))
