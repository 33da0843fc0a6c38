"""One registered part, and the index of the built-in parts, which describes them without importing them."""

from __future__ import annotations

import ast
import collections.abc
import contextlib
import fnmatch
import functools
import inspect
import pathlib
import re
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qsattn_plugin.errors import UserError, nearest

__all__ = ["IndexedPart", "Nested", "Part", "PartError", "accepts", "argument_docs", "describe_part", "fits"]


class PartError(UserError, ValueError):
    """A part does not exist, is registered twice, or does not take the given arguments.

    ``argument`` is the name of the wrong argument, if there is one, so that a recipe can give its line.
    """

    def __init__(self, message: str, argument: str | None = None):
        super().__init__(message)
        self.argument = argument


@dataclass(frozen=True)
class Nested:
    """Marks an argument that names parts: ``judges: Annotated[list[str | dict], Nested("discriminator")]``.

    Each is a registered name, or ``{"type": name, argument: value}``; a recipe checks them like a section. The
    annotation says whether it names one, a list of them, or either. With ``weighted``, the mappings may have a
    ``weight`` beside the part's arguments.
    """

    kind: str
    weighted: bool = False


@dataclass(frozen=True)
class Part:
    """One registered part: ``target`` is the class or function that :func:`qsattn_plugin.registry.create` calls."""

    kind: str
    name: str
    target: Callable[..., Any]
    tags: tuple[str, ...] = ()

    @property
    def origin(self) -> tuple[str, str]:
        """The module and the qualified name of the target."""
        return self.target.__module__, self.target.__qualname__

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        # Not inspect.getdoc: it would show a base class's docstring for a part without one.
        return inspect.cleandoc(self.target.__doc__ or "").split("\n", 1)[0]

    @property
    def docs(self) -> dict[str, str]:
        """The documentation of the arguments, see :func:`argument_docs`."""
        return argument_docs(self.target)

    @property
    def defaults(self) -> Mapping[str, Any]:
        """The partial recipe that a method brings; empty for other parts."""
        return getattr(self.target, "defaults", {}) if self.kind == "method" else {}

    @property
    def signature(self) -> inspect.Signature:
        """The arguments with their defaults; annotations that are text are resolved to types.

        They stay text where they name something that only type checkers import.
        """
        try:
            return inspect.signature(self.target, eval_str=True)
        except NameError:
            return inspect.signature(self.target)

    def check(self, arguments: Iterable[str], complete: bool = True) -> None:
        """Raise :class:`PartError` for an argument that the part does not take, or (``complete``) for one it lacks."""
        parameters, given = self.signature.parameters, list(arguments)
        takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        for name in given:
            if name not in parameters and not takes_any:
                what = f"{self.kind} {self.name!r} takes no argument {name!r}{nearest(name, parameters)}"
                raise PartError(f"{what} (it takes {', '.join(parameters) or 'no arguments'})", name)
        named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
        missing = [n for n, p in parameters.items() if p.default is p.empty and p.kind in named and n not in given]
        if complete and missing:
            raise PartError(f"{self.kind} {self.name!r} needs the argument {missing[0]!r}", missing[0])

    def check_values(self, arguments: Mapping[str, Any]) -> None:
        """Raise :class:`PartError` for an argument from a document whose value is not of the type in the signature."""
        self.check(arguments, complete=False)
        for name, value in arguments.items():
            parameter = self.signature.parameters.get(name)
            if parameter is not None and not accepts(parameter.annotation, value):
                kind = getattr(parameter.annotation, "__name__", "") or str(parameter.annotation)
                what = f"must be {kind.replace('typing.', '')}, got {value!r:.60}"
                raise PartError(f"{self.kind} {self.name!r}: {name}: {what}", name)


class IndexedPart(Part):
    """A built-in part as the index describes it; ``load`` imports the part itself when ``target`` is asked for."""

    entry: Mapping[str, Any]
    load: Callable[[], Part]

    def __init__(self, entry: Mapping[str, Any], load: Callable[[], Part]):
        self.__dict__.update(entry=entry, load=load, kind=entry["kind"], name=entry["name"], tags=tuple(entry["tags"]))

    @functools.cached_property
    def target(self) -> Callable[..., Any]:  # type: ignore[override]
        return self.load().target

    @property
    def origin(self) -> tuple[str, str]:
        return self.entry["module"], self.entry["qualname"]

    @property
    def summary(self) -> str:
        return self.entry["summary"]

    @property
    def docs(self) -> dict[str, str]:
        return self.entry["docs"]

    @property
    def defaults(self) -> Mapping[str, Any]:
        return self.entry["defaults"]

    @functools.cached_property
    def signature(self) -> inspect.Signature:
        """The arguments; a type that lies in a module is a stand-in with that type's name."""
        parameters = []
        for name, (kind, annotation, *default) in self.entry["arguments"].items():
            given = ast.literal_eval(default[0]) if default else inspect.Parameter.empty
            annotated = eval(annotation, {}, _Types()) if annotation else inspect.Parameter.empty  # from this package
            parameters.append(
                inspect.Parameter(name, inspect._ParameterKind[kind], default=given, annotation=annotated)
            )
        return inspect.Signature(parameters)


class _StandIn(type):
    """Stands for a module, or for a class in one, that is not imported."""

    def __getattr__(cls, name: str) -> _StandIn:
        if name.startswith("__"):
            raise AttributeError(name)
        module = f"{cls.__module__}.{cls.__name__}".lstrip(".")
        return _StandIn(name, (), {"__module__": module, "__qualname__": name})


class _Types(dict):
    """The names in an annotation's text."""

    def __init__(self) -> None:
        known = {"collections": collections, "contextlib": contextlib, "pathlib": pathlib, "typing": typing}
        super().__init__({**known, "Nested": Nested, "NoneType": type(None)})

    def __missing__(self, name: str) -> Any:
        if name in ("int", "float", "str", "bool", "tuple", "list", "dict", "set", "object"):
            raise KeyError(name)  # looked up among the builtins
        return _StandIn(name, (), {"__module__": "", "__qualname__": name})


def describe_part(part: Part) -> dict[str, Any]:
    """Return a part's entry in the index, JSON-serialisable: what :class:`IndexedPart` is made of."""

    def argument(parameter: inspect.Parameter) -> list[str]:
        annotation = parameter.annotation
        text = "" if annotation is parameter.empty else str(annotation)
        if inspect.isclass(annotation) and not typing.get_args(annotation):
            text = f"{annotation.__module__}.{annotation.__qualname__}".removeprefix("builtins.")
        default = [] if parameter.default is parameter.empty else [repr(parameter.default)]
        return [parameter.kind.name, text, *default]

    module, qualname = part.origin
    return {
        "kind": part.kind,
        "name": part.name,
        "tags": list(part.tags),
        "summary": part.summary,
        "module": module,
        "qualname": qualname,
        "defaults": dict(part.defaults),
        "arguments": {name: argument(parameter) for name, parameter in part.signature.parameters.items()},
        "docs": part.docs,
    }


def accepts(annotation: Any, value: Any) -> bool:
    """Return whether a value from JSON is of a type; a type that JSON has no values of accepts anything.

    Stricter than Python: ``true`` is no integer, nor an integer beyond the largest float a float. A list may become a
    tuple, an integer a float, text a path. For files of weights, which are read where pydantic is not installed;
    recipes are checked by ``registry.recipe.checking``.
    """
    origin, inner = typing.get_origin(annotation) or annotation, typing.get_args(annotation)
    if origin is typing.Annotated:
        return accepts(inner[0], value)
    if origin in (typing.Union, types.UnionType):
        return any(accepts(one, value) for one in inner)
    if origin is typing.Literal:
        return any(type(value) is type(one) and value == one for one in inner)
    if origin in _JSON_TYPES:
        given = _JSON_TYPES[origin]
        if not isinstance(value, given) or (isinstance(value, bool) and bool not in given):
            return False
        if origin is float and isinstance(value, int) and abs(value) > sys.float_info.max:
            return False
        # Of mappings and mixed tuples only the container is checked.
        items: Any = value if given == (list, tuple) and len({*inner} - {...}) == 1 else ()
        return all(accepts(inner[0], item) for item in items)
    return True


#: A type in a signature -> the types of JSON's values for it.
_JSON_TYPES: dict[Any, tuple[type, ...]] = {
    **dict.fromkeys((None, type(None)), (type(None),)),
    bool: (bool,),
    int: (int,),
    float: (int, float),
    str: (str,),
    pathlib.Path: (str,),
    **dict.fromkeys((list, tuple, set, collections.abc.Sequence, collections.abc.Collection), (list, tuple)),
    **dict.fromkeys((dict, collections.abc.Mapping), (dict,)),
}


def fits(pattern: str, kind: str, name: str, tags: Iterable[str] = (), text: str = "") -> bool:
    """Return whether a name, ``kind/name`` or a tag matches a pattern, or a text contains it in any case."""
    return pattern.lower() in text.lower() or any(fnmatch.fnmatch(t, pattern) for t in (name, f"{kind}/{name}", *tags))


_BLOCK = re.compile(r"^( *)Arg(?:ument)?s:\n((?:\1 .*\n|\n)+)", re.M)
_ITEM = re.compile(r"^\*{0,2}(\w+)(?:\s*\([^)]*\))?:\s*(.*(?:\n +.*)*)", re.M)


def argument_docs(target: Callable[..., Any]) -> dict[str, str]:
    """Return the text of each argument in the Google-style ``Args:`` blocks of a class or function.

    Docstrings of a class, of its ``__init__`` and of its base classes are read; the nearest one wins.
    Continuation lines are joined with spaces.
    """
    if not inspect.isclass(target):
        return _parse(target.__doc__)
    docs: dict[str, str] = {}
    for owner in reversed(target.__mro__[:-1]):  # without object
        docs |= _parse(getattr(owner.__dict__.get("__init__"), "__doc__", None))
        docs |= _parse(owner.__dict__.get("__doc__"))
    return docs


def _parse(docstring: str | None) -> dict[str, str]:
    block = _BLOCK.search(inspect.cleandoc(docstring or "") + "\n")
    items = _ITEM.findall(textwrap.dedent(block[2])) if block else ()
    return {name: " ".join(text.split()) for name, text in items}
