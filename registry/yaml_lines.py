"""YAML to nodes, which are plain data with the line of each value, and plain data to YAML.

PyYAML follows YAML 1.1, where ``2e-4`` is text, ``no`` is a boolean, ``12:30`` is 750 and the last of two equal keys
wins silently. Only its parser is used here. Values are resolved as in YAML 1.2: ``true`` and ``false`` are booleans,
numbers may be written ``2e-4`` or ``533_600``, everything else is text. A :class:`Node` keeps the characters of a
value, which replace a number where text is expected.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, NamedTuple

import yaml

from qsattn_plugin.errors import UserError

__all__ = ["Node", "Place", "Problem", "RecipeError", "from_plain", "parse", "parse_assignment", "resolve", "write"]

#: Limits on the values of a document (aliases of aliases can expand to billions), and on levels of nesting.
MOST_VALUES, MOST_LEVELS = 20_000, 32


class Place(NamedTuple):
    """Where something was written: a file and its line, or a command-line option."""

    source: str
    line: int | None = None

    def __str__(self) -> str:
        return self.source if self.line is None else f"{self.source}:{self.line}"


class Problem(NamedTuple):
    """One mistake: its place, its dotted key and a description."""

    place: Place
    key: str
    text: str

    def __str__(self) -> str:
        return ": ".join(part for part in (str(self.place), self.key, self.text) if part)


class RecipeError(UserError):
    """A recipe is not valid. The message has one line per problem: file, line, key and what is wrong."""

    def __init__(self, *problems: Problem):
        order = {p: (p.place.source, p.place.line or 0, p.key) for p in problems}
        self.problems = tuple(sorted(order, key=order.__getitem__))
        super().__init__("\n".join(map(str, self.problems)))

    def __reduce__(self) -> tuple:
        return type(self), self.problems  # pickled with its problems, from which it can be rebuilt


@dataclass(frozen=True)
class Node:
    """A value and the place of its key (or of itself, in a list).

    ``value`` is a dict of nodes, a list of nodes, or a str, int, float, bool or None. ``text`` is an unquoted value as
    it was written.
    """

    value: Any
    place: Place
    text: str | None = field(default=None, compare=False)

    def get(self, key: str) -> Node | None:
        """Return the node below ``key`` (an index, written in digits, in a list), or None."""
        if isinstance(self.value, dict):
            return self.value.get(key)
        if isinstance(self.value, list) and key.isdecimal() and int(key) < len(self.value):
            return self.value[int(key)]
        return None

    def to_plain(self, corrections: Mapping[tuple[str, ...], Any] | None = None, path: tuple[str, ...] = ()) -> Any:
        """Return the value as plain data; ``corrections`` replace the values at their paths."""
        if isinstance(self.value, dict):
            return {key: node.to_plain(corrections, (*path, key)) for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.to_plain(corrections, (*path, str(i))) for i, node in enumerate(self.value)]
        return (corrections or {}).get(path, self.value)

    def __str__(self) -> str:
        """The value as a message shows it."""
        if isinstance(self.value, dict | list):
            return "a mapping" if isinstance(self.value, dict) else "a list"
        if self.value is None:
            return "nothing"
        return self.text if self.text is not None and not isinstance(self.value, str) else repr(self.value)


def from_plain(value: Any, place: Place) -> Node:
    """Return plain data as nodes that all have the same ``place``."""
    if isinstance(value, dict):
        return Node({str(k): from_plain(v, place) for k, v in value.items()}, place)
    if isinstance(value, list | tuple):
        return Node([from_plain(v, place) for v in value], place)
    return Node(value, place)


_DIGITS = "[0-9]+(?:_[0-9]+)*"
_RESOLVERS: tuple[tuple[re.Pattern, Callable[[str], Any]], ...] = tuple(
    (re.compile(pattern), convert)
    for pattern, convert in (
        ("|null|Null|NULL|~", lambda text: None),
        ("true|True|TRUE|false|False|FALSE", lambda text: text.lower() == "true"),
        (f"[-+]?{_DIGITS}", int),
        ("0x[0-9a-fA-F]+|0o[0-7]+", lambda text: int(text, 0)),
        (rf"[-+]?(?:{_DIGITS}\.?(?:{_DIGITS})?|\.{_DIGITS})(?:[eE][-+]?[0-9]+)?", float),
        (r"[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)", lambda text: float(text.replace(".", ""))),
    )
)


def resolve(text: str) -> Any:
    """Return the null, boolean or number that an unquoted YAML value means, or the text itself."""
    if len(text) <= 100:  # longer than any number; Python refuses to convert very long ones
        for pattern, convert in _RESOLVERS:
            if pattern.fullmatch(text):
                return convert(text)
    return text


class _Loader(yaml.SafeLoader):
    """PyYAML's parser without its resolvers: every untagged scalar arrives as text, and ``resolve`` decides."""

    yaml_implicit_resolvers: dict = {}  # noqa: RUF012 - PyYAML's own class attribute


def parse(text: str, place: Place, lines: bool = True) -> Node:
    """Return the nodes of a YAML text, with its lines; without ``lines`` they all have the same ``place``.

    Raises:
        RecipeError: not YAML, a duplicate key, a tag, a key that is not text, an endless alias.
    """
    try:
        root = yaml.compose(text, Loader=_Loader)
        return _Reader(place, lines).convert(root, None, "") if root else Node(None, place, "")
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        at = Place(place.source, mark.line + 1) if lines and mark else place
        line = text.splitlines()[mark.line] if mark and mark.line < len(text.splitlines()) else ""
        if "\t" in line[: len(line) - len(line.lstrip())]:
            raise RecipeError(Problem(at, "", "a tab indents this line; YAML takes spaces only")) from None
        raise RecipeError(Problem(at, "", f"this is not YAML: {error.problem or error.context}")) from None
    except yaml.YAMLError as error:
        what = str(error).splitlines()[0]
        raise RecipeError(Problem(place, "", f"this is not YAML: {what}")) from None
    except RecursionError:
        raise RecipeError(Problem(place, "", "this is nested too deeply for a recipe")) from None


def parse_assignment(text: str, example: str) -> tuple[str, Node]:
    """Return the key and the value, as YAML, of an option ``-s key=value``.

    Raises:
        RecipeError: there is no key or no "=" (the message gives ``example``), or the value is not YAML.
    """
    place = Place(f"-s {text}")
    key, equals, value = text.partition("=")
    if key.count(".") >= MOST_LEVELS:
        raise RecipeError(Problem(Place(f"-s {text[:40]}..."), "", "this is nested too deeply for a recipe"))
    if not equals or not all(part.strip() for part in key.split(".")):
        raise RecipeError(Problem(place, "", f"expected key=value, for example -s {example}"))
    node = parse(value, place, lines=False)
    if not isinstance(node.value, (dict, list)) and re.match(r"([^'\"|>].*\s)?#", value.lstrip()):
        raise RecipeError(Problem(place, "", "# begins a comment, which an option needs not: quote the value too"))
    return key.strip(), node


class _Reader:
    """Converts PyYAML's nodes to ours and refuses what recipes must not contain."""

    def __init__(self, place: Place, lines: bool):
        self.place, self.lines = place, lines
        self.values = 0
        self.open: list[yaml.Node] = []  # the ancestors of the current node; a repetition is a cycle

    def at(self, node: yaml.Node) -> Place:
        return Place(self.place.source, node.start_mark.line + 1) if self.lines else self.place

    def convert(self, node: yaml.Node, place: Place | None, key: str) -> Node:
        place = place or self.at(node)
        self.values += 1
        if self.values > MOST_VALUES:
            raise RecipeError(Problem(place, key, f"the aliases expand to more than {MOST_VALUES} values"))
        if any(node is above for above in self.open):
            raise RecipeError(Problem(place, key, "the alias is inside its own anchor, so it never ends"))
        if node.tag not in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:map", "tag:yaml.org,2002:seq"):
            tag = node.tag.replace("tag:yaml.org,2002:", "!!")
            raise RecipeError(Problem(place, key, f"the tag {tag} is not allowed in recipes; write the plain value"))
        if isinstance(node, yaml.ScalarNode):
            plain = node.style is None
            return Node(resolve(node.value) if plain else node.value, place, node.value if plain else None)
        if len(self.open) >= MOST_LEVELS:
            raise RecipeError(Problem(place, key, "this is nested too deeply for a recipe"))
        self.open.append(node)
        try:
            if isinstance(node, yaml.MappingNode):
                return Node(self.mapping(node, key), place)
            return Node([self.convert(n, None, f"{key}.{i}".lstrip(".")) for i, n in enumerate(node.value)], place)
        finally:
            self.open.pop()

    def mapping(self, node: yaml.MappingNode, key: str) -> dict[str, Node]:
        own: dict[str, Node] = {}
        merged: dict[str, Node] = {}
        for name, value in node.value:
            at = self.at(name)
            if not isinstance(name, yaml.ScalarNode):
                raise RecipeError(Problem(at, key, "a key must be text, not a list or a mapping"))
            path = f"{key}.{name.value}".lstrip(".")
            if name.value in own:
                line = "twice" if not self.lines else f"on line {own[name.value].place.line}"
                raise RecipeError(Problem(at, path, f"this key is given {line}; keep one of the two"))
            if name.value == "<<" and name.style is None:
                below = self.convert(value, None, path)
                for source in below.value if isinstance(below.value, list) else [below]:
                    if not isinstance(source.value, dict):
                        raise RecipeError(Problem(at, path, f"only mappings can be merged in, got {source}"))
                    merged = source.value | merged  # the first of several wins, as in YAML's merge type
            else:
                own[name.value] = self.convert(value, at, path)
        return merged | own


class _Dumper(yaml.SafeDumper):
    """Quotes text that :func:`resolve` would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _represent_text(dumper: _Dumper, text: str) -> yaml.ScalarNode:
    quoted = resolve(text) != text or not text.isprintable() or text == "<<"
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if quoted else None)


def _represent_other(dumper: _Dumper, value: Any) -> yaml.Node:
    if isinstance(value, str):
        return _represent_text(dumper, str.__str__(value))  # of an enumeration, what it stands for
    if isinstance(value, PurePath):
        return _represent_text(dumper, str(value))
    if isinstance(value, Mapping):
        return dumper.represent_dict(dict(value))
    if callable(plain := getattr(value, "tolist", None)):  # numbers and arrays of NumPy and PyTorch
        return dumper.represent_data(plain())
    raise UserError(f"must be a number, text, a list or a mapping, got {value!r}")


_Dumper.add_representer(str, _represent_text)
_Dumper.add_multi_representer(object, _represent_other)


def write(value: Any) -> str:
    """Return plain data as YAML on one line: mappings as ``{key: value}``, lists as ``[value]``, paths as text.

    Raises:
        UserError: a value is of another kind.
    """
    text = yaml.dump(
        [value], Dumper=_Dumper, default_flow_style=True, allow_unicode=True, width=float("inf"), sort_keys=False
    )
    return text.strip()[1:-1]  # a document of text alone would get an end mark
