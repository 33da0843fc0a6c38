"""The registry: all interchangeable parts, by kind and name.

A part is a class or a function with a decorator::

    from qsattn_plugin.registry import register

    @register("generator", "my_unet", tags=("unet",))
    class MyUnet(torch.nn.Module):
        '''One line that ``qsattn list`` shows.'''

Recipes name it (``generator: {type: my_unet, depth: 5}``) and :func:`create` builds it. The modules of built-in parts
are listed in :data:`BUILTIN`; ``parts.json`` beside this file describes what they register, so that parts are listed
and recipes checked without importing them: a module is imported when one of its parts is built.

An installed package provides parts by an entry point that names the module that registers them::

    [options.entry_points]
    qsattn_plugin.parts =
        my_parts = my_package.parts

Such modules are imported when parts are listed, or when a name is looked up that no built-in part has: using a built-in
part does not import them. One that fails is named in a :class:`PartsWarning` and left out.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Iterable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.parts import IndexedPart, Nested, Part, PartError, fits

__all__ = [
    "BUILTIN",
    "GROUP",
    "KINDS",
    "Nested",
    "Part",
    "PartError",
    "PartsWarning",
    "Registry",
    "create",
    "create_nested",
    "find",
    "import_builtin",
    "list_parts",
    "register",
]

#: The kinds of parts and what each does, in the order of ``qsattn list``.
KINDS = {
    "method": "a way to train: which networks, which losses, in which order",
    "generator": "translates an image; its layers are the taps that the contrastive loss looks at",
    "discriminator": "tells real images of the target domain from translated ones",
    "encoder": "gives the features that the contrastive loss compares",
    "sampler": "chooses where the contrastive loss looks, and how features are routed there",
    "significance": "ranks the positions of a feature map for a query-selecting sampler",
    "objective": "a loss",
    "augmentation": "changes training images on the training device",
    "dataset": "gives the images of both domains",
    "metric": "scores pictures; its signature says what it needs",
}

#: Modules whose import registers the built-in parts of a kind.
BUILTIN: dict[str, tuple[str, ...]] = {
    "method": (
        "qsattn_plugin.training.methods.cut",
        "qsattn_plugin.training.methods.cyclegan",
        "qsattn_plugin.training.methods.dclgan",
    ),
    "generator": (
        "qsattn_plugin.registry.generators",
        "qsattn_plugin.registry.generators.unet",
        "qsattn_plugin.registry.generators.mobile",
        "qsattn_plugin.registry.generators.swift",
    ),
    "discriminator": (
        "qsattn_plugin.registry.discriminators",
        "qsattn_plugin.registry.discriminators.ensemble",
        "qsattn_plugin.registry.discriminators.projected",
    ),
    "encoder": ("qsattn_plugin.registry.encoders",),
    "sampler": ("qsattn_plugin.samplers",),
    "significance": ("qsattn_plugin.samplers",),
    "objective": (
        "qsattn_plugin.losses",
        "qsattn_plugin.losses.semantic",
        "qsattn_plugin.losses.monce",
        "qsattn_plugin.losses.negcut",
        "qsattn_plugin.losses.lsesim",
        "qsattn_plugin.losses.srunit",
        "qsattn_plugin.losses.enco",
    ),
    "augmentation": (
        "qsattn_plugin.registry.augmentations",
        "qsattn_plugin.registry.augmentations.colour",
        "qsattn_plugin.registry.augmentations.diffaugment",
    ),
    "dataset": ("qsattn_plugin.data.folders", "qsattn_plugin.data.toy"),
    "metric": ("qsattn_plugin.evaluation.metrics",),
}


#: The entry-point group of installed packages with parts.
GROUP = "qsattn_plugin.parts"


class PartsWarning(UserWarning):
    """The parts of an installed package cannot be used."""


class Registry:
    """Parts by kind and name. The functions of this module are the methods of :data:`REGISTRY`."""

    def __init__(
        self, builtin: dict[str, tuple[str, ...]] | None = None, group: str | None = None, index: Path | None = None
    ):
        self._parts: dict[tuple[str, str], Part] = {}
        self._builtin = builtin if builtin is not None else {}
        self._group = group
        self._index = index
        self._loaded: set[str] = set()
        self._importing_others = False

    def _check_kind(self, kind: str) -> str:
        if kind in KINDS:
            return kind
        if kind.endswith("s") and kind[:-1] in KINDS:  # "generators": people list in the plural
            return kind[:-1]
        raise PartError(f"there is no kind {kind!r}{nearest(kind, KINDS)} (kinds: {', '.join(KINDS)})")

    def _load(self, kind: str) -> None:
        if kind in self._loaded:
            return
        self._loaded.add(kind)  # first, because a part's module may create parts of its own kind
        index = self._indexed if kind in self._builtin else ()
        for entry in index:
            if entry["kind"] == kind:
                key = kind, entry["name"]
                self._parts.setdefault(key, IndexedPart(entry, partial(self._imported, *key)))
        if not index:
            self._import(kind)

    @cached_property
    def _indexed(self) -> list[dict[str, Any]]:
        """Return the entries of the index; none where there is no index."""
        return json.loads(self._index.read_text(encoding="utf-8")) if self._index and self._index.is_file() else []

    def _imported(self, kind: str, name: str) -> Part:
        """Return a built-in part after importing its kind; raise PartError if there is none any more."""
        self._import(kind)
        if isinstance(part := self._parts[kind, name], IndexedPart):
            raise PartError(f"{kind} {name!r} is in {self._index}, but not in the code")
        return part

    def _import(self, kind: str) -> None:
        """Import the modules of a kind's built-in parts, which register them."""
        try:
            for module in self._builtin.get(kind, ()):
                importlib.import_module(module)
        except BaseException:
            self._loaded.discard(kind)  # an import that failed is tried again, and fails again with its cause
            raise

    def import_builtin(self) -> bool:
        """Import the built-in parts that only the index has described so far; return whether there were any.

        The index can be behind the code while that is worked on: ask the code before refusing a name.
        """
        kinds = {part.kind for part in self._parts.values() if isinstance(part, IndexedPart)}
        for kind in kinds:
            self._import(kind)
        return bool(kinds)

    def _load_others(self) -> None:
        """Import the parts of installed packages; where that fails, remove what was registered before, and warn."""
        if self._group is None or self._group in self._loaded:
            return
        self._loaded.add(self._group)
        from importlib.metadata import entry_points  # slow to import, and rarely needed

        for entry in entry_points(group=self._group):
            before = set(self._parts)
            self._importing_others = True
            try:
                entry.load()
            except (Exception, SystemExit) as error:  # noqa: BLE001 - somebody else's module may raise anything
                # Only its own parts: it may have imported built-in ones, or those of another package.
                package = entry.value.split(":")[0].split(".")[0]
                for key in self._parts.keys() - before:
                    if self._parts[key].origin[0].split(".")[0] == package:
                        del self._parts[key]
                name = f"{entry.dist.name} {entry.dist.version}" if entry.dist else entry.name
                why = f"{type(error).__name__}: {error}".replace("\n", " ")
                text = f"the parts of {name} are left out, importing {entry.value} failed: {why}"
                warnings.warn(text, PartsWarning, stacklevel=2)
            finally:
                self._importing_others = False

    def register(self, kind: str, name: str, *, tags: Iterable[str] = ()) -> Callable[[Callable], Callable]:
        """Return a decorator that registers a class or function and returns it unchanged.

        Raises:
            PartError: the kind does not exist, or the name is registered already.
        """
        kind = self._check_kind(kind)

        def add(target: Callable) -> Callable:
            if self._importing_others and target.__module__.split(".")[0] != __name__.split(".")[0]:
                self._load(kind)  # so that a clash of names is reported for their part, not for ours
            known = self._parts.get((kind, name))
            # A reloaded module registers the same definition again.
            part = Part(kind, name, target, tuple(tags))
            # The index gives way to the code that it describes, wherever that lies now.
            described = isinstance(known, IndexedPart) and part.origin[0].startswith(f"{__name__.split('.')[0]}.")
            if known and known.origin != part.origin and not described:
                raise PartError(f"{kind} {name!r} is already registered by {known.origin[0]}; choose another name")
            self._parts[kind, name] = part
            return target

        return add

    def find(self, kind: str, name: str) -> Part:
        """Return a part.

        Raises:
            PartError: there is no such kind or name; the message suggests the nearest one.
        """
        kind = self._check_kind(kind)
        self._load(kind)
        if (kind, name) not in self._parts:
            self._load_others()
        if (kind, name) not in self._parts:
            self._import(kind)
        if (kind, name) not in self._parts:
            names = sorted(n for k, n in self._parts if k == kind)
            known = f"{nearest(name, names)} ({kind}s: {', '.join(names) or 'none'})"
            raise PartError(f"there is no {kind} {name!r}{known}")
        return self._parts[kind, name]

    def create(self, kind: str, name: str, /, *args: Any, **arguments: Any) -> Any:
        """Build a part, after checking the names of its arguments against its signature.

        Raises:
            PartError: the kind, the name or an argument is unknown, or an argument is missing.
        """
        target = self.find(kind, name).target
        self.find(kind, name).check(arguments, complete=not args)  # what its module has registered meanwhile
        return target(*args, **arguments)

    def list_parts(self, pattern: str = "*") -> list[Part]:
        """Return the parts of a kind (``"generators"``), or those whose name, ``kind/name`` or tag matches a pattern.

        Raises:
            PartError: the pattern has no wildcard, and no kind, part or tag has this name.
        """
        singular = pattern[:-1] if pattern.endswith("s") else pattern
        kinds = [k for k in KINDS if k in (pattern, singular)] or list(KINDS)
        for kind in kinds:
            self._load(kind)
        self._load_others()
        of_kind = [part for part in self._parts.values() if part.kind in kinds]
        if len(kinds) > 1:
            fitting = [part for part in of_kind if fits(pattern, part.kind, part.name, part.tags)]
            if not fitting and not any(c in pattern for c in "*?["):
                known = [*KINDS, *(part.name for part in of_kind)]
                raise PartError(f"no kind, part or tag is called {pattern!r}{nearest(pattern, known)}")
            of_kind = fitting
        return sorted(of_kind, key=lambda part: (list(KINDS).index(part.kind), part.name))


#: The registry that recipes and the command line use.
REGISTRY = Registry(BUILTIN, GROUP, Path(__file__).with_name("parts.json"))


def create_nested(kind: str, spec: str | Mapping[str, Any], argument: str, **surroundings: Any) -> Any:
    """Build a part that another part's argument names.

    Args:
        kind: the kind of the part.
        spec: a registered name, or ``{"type": name, argument: value}``.
        argument: name of the argument that holds ``spec``, for messages: ``gan``, or ``of.0`` in a list.
        surroundings: values such as ``in_channels``; the part gets those that it takes and ``spec`` does not set.

    Raises:
        PartError: there is no such part, or it does not accept an argument.
    """
    arguments = {"type": spec} if isinstance(spec, str) else dict(spec)
    try:
        part = REGISTRY.find(kind, str(arguments.pop("type", "")))
        takes = part.signature.parameters
        given = {key: value for key, value in surroundings.items() if key in takes}
        return REGISTRY.create(kind, part.name, **given | arguments)
    except (UserError, ValueError) as error:
        at, _, text = str(error).partition(": ")
        where, text = (f"{argument}.{at}", text) if at in arguments else (argument, str(error))
        raise PartError(f"{where}: {text}", where) from error


register = REGISTRY.register
find = REGISTRY.find
create = REGISTRY.create
list_parts = REGISTRY.list_parts
import_builtin = REGISTRY.import_builtin
