"""Every key of a recipe in words, from the JSON Schema: for ``qsattn show``, and as the page docs/recipes.md."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from qsattn_plugin.registry import Part, list_parts
from qsattn_plugin.registry.recipe.json_schema import argument_schemas, json_schema
from qsattn_plugin.registry.recipe.reading import shipped_recipes
from qsattn_plugin.registry.recipe.schema import DEFAULTS, INJECTED, KEYS, PARTS, PIPELINE
from qsattn_plugin.registry.recipe.sections import objective_parameters
from qsattn_plugin.registry.yaml_lines import write

__all__ = ["Key", "argument_keys", "find_keys", "recipe_page"]


class Key(NamedTuple):
    """A key of a recipe, or an argument of a part: its type and default as a recipe writes them, and its meaning."""

    name: str
    type: str
    default: str | None
    text: str


def argument_keys(part: Part, parameters: Mapping[str, inspect.Parameter] | None = None) -> list[Key]:
    """Return the arguments of a part, or those among ``parameters``."""
    defs: dict[str, Any] = {}
    takes = part.signature.parameters if parameters is None else parameters
    schemas = argument_schemas(part, takes, defs)
    found = {key.name: key for key in _keys(schemas, defs)}
    return [found.get(name) or Key(name, "anything", None, part.docs.get(name, "")) for name in takes]


def find_keys(name: str) -> list[Key]:
    """Return the keys of a section (``train``), or one key (``train.steps``, ``objective.r1``), by dotted name.

    Keys of parts are not among them: a part has its own arguments, see :func:`argument_keys`.
    """
    section, dot, _ = name.partition(".")
    if section not in KEYS:
        return []
    keys = [key._replace(name=f"{section}.{key.name}") for key in _section(section)]
    return [key for key in keys if not dot or key.name == name]


def _section(section: str) -> list[Key]:
    """Return the keys of a section, without the arguments of its part."""
    if section == "objective":
        return [
            key._replace(text=f"of {', '.join(names)}: {key.text}") for names, keys in _objectives() for key in keys
        ]
    schema = json_schema()
    known = schema["properties"][section].get("then", schema["properties"][section]).get("properties", {})
    return _keys({name: known[name] for name in known if name != "type"}, schema.get("$defs", {}))


def _objectives() -> list[tuple[list[str], list[Key]]]:
    """Return the names of methods with equal keys, and their ``objective``; defaults that differ are told apart."""
    groups: dict[tuple[str, ...], list[Part]] = {}
    for method in list_parts("method"):
        groups.setdefault(tuple(objective_parameters(method)), []).append(method)
    found = []
    for methods in groups.values():
        keys = []
        for key in argument_keys(methods[0], objective_parameters(methods[0])):
            own = {m.name: m.defaults.get("objective", {}) for m in methods}
            others = [f"{name}: {write(values[key.name])}" for name, values in own.items() if key.name in values]
            default = key.default if not others else f"{key.default} ({', '.join(others)})"
            keys.append(key._replace(default=default))
        found.append(([m.name for m in methods], keys))
    return found


def _keys(schemas: Mapping[str, dict[str, Any]], defs: Mapping[str, Any]) -> list[Key]:
    return [
        Key(
            name,
            _type(schema, defs),
            write(schema["default"]) if "default" in schema else None,
            _markdown(schema.get("description", "")),
        )
        for name, schema in schemas.items()
    ]


def _markdown(text: str) -> str:
    return text.replace("``", "`")


def _type(schema: Mapping[str, Any], defs: Mapping[str, Any]) -> str:
    """Return what a schema asks for, in words."""
    if "$ref" in schema:
        return f"mapping of {', '.join(defs[schema['$ref'].rpartition('/')[2]]['properties'])}"
    if "then" in schema:
        return schema["title"]
    if choices := schema.get("enum") or [schema[key] for key in ("const",) if key in schema]:
        return " | ".join(map(write, choices))
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(branch, defs) for branch in schema["anyOf"]))
    kind = schema.get("type", "anything")
    if kind == "array":
        if "prefixItems" in schema:
            return f"[{', '.join(_type(item, defs) for item in schema['prefixItems'])}]"
        item = _type(schema.get("items", {}), defs)
        if item.startswith("["):
            return f"list of {item}"
        return f"list of ({item})" if " | " in item else f"list of {item}s"
    names = {"string": "path" if schema.get("format") == "path" else "text", "boolean": "true | false"}
    words = {"minimum": ">=", "exclusiveMinimum": ">", "maximum": "<=", "exclusiveMaximum": "<"}
    # The largest seed is no news.
    bounds = [f"{sign} {schema[word]:g}" for word, sign in words.items() if word in schema and schema[word] < 1e9]
    return " ".join([names.get(kind, {"object": "mapping"}.get(kind, kind)), *bounds])


def recipe_page() -> str:
    """Return the page with every key of a recipe and every part that one can name, in Markdown."""
    return "\n".join(_lines()).rstrip() + "\n"


def _lines() -> Iterator[str]:
    yield "# Recipes: every key"
    yield ""
    yield "Written from the code by `qsattn schema --markdown`; `qsattn show NAME` says the same of one key or part."
    yield "A key that has no default must be given, or is given by the recipe that is extended or by the training."
    yield ""
    yield from _table(
        ("key", "default", "what it says"),
        ((f"[`{key}`](#{key})", _code(DEFAULTS.get(key)), text) for key, text in KEYS.items()),
    )
    for section, text in KEYS.items():
        yield from ("", f"## {section}", "", f"{text[:1].upper()}{text[1:]}.")
        if section == "extends":
            yield from ("", "Shipped are:", "")
            yield from _table(("recipe", ""), ((f"`{name}`", line) for name, line in shipped_recipes().items()))
        elif section == "method":
            rows = ((f"`{m.name}`", _code(m.defaults), m.summary) for m in list_parts("method"))
            yield from ("", *_table(("method", "sets", ""), rows))
        elif section == "objective":
            for names, keys in _objectives():
                yield from ("", f"Of {', '.join(f'`{name}`' for name in names)}:", "", *_key_table(keys))
            yield from _parts("objective", "Losses that `gan` and others name")
        elif keys := _section(section):
            yield from ("", *_key_table(keys))
        if section == "discriminator_augmentations":
            yield from ("", "The parts are those of [`augmentations`](#augmentations).")
        elif section in PARTS:
            yield from _parts(PARTS[section], "")
        if section == "sampler":
            yield from _parts("significance", "What `significance` names")


def _parts(kind: str, title: str) -> Iterator[str]:
    """Yield the parts of a kind with their arguments."""
    if title:
        yield from ("", f"### {title}")
    for part in list_parts(kind):
        yield from ("", f"**`{part.name}`**: {_markdown(part.summary)}")
        given = (*INJECTED.get(kind, ()), *(PIPELINE if kind == "dataset" else ()))
        if kind != "significance" and (keys := [key for key in argument_keys(part) if key.name not in given]):
            yield from ("", *_key_table(keys))


def _key_table(keys: Iterable[Key]) -> Iterator[str]:
    rows = ((f"`{key.name}`", key.type, f"`{key.default}`" if key.default else "", key.text) for key in keys)
    return _table(("key", "type", "default", "meaning"), rows)


def _code(value: Any) -> str:
    return f"`{write(value)}`" if value else ""


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' * len(head)}"
    for row in rows:
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |"
