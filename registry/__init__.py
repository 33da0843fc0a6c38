"""The registry: all interchangeable parts, by kind and name.

A part is a class or a function with a decorator::

    from qsattn_plugin.registry import register

    @register("generator", "my_unet", tags=("unet",))
    class MyUnet(torch.nn.Module):
        '''One line that ``qsattn list`` shows.'''

Recipes name it (``generator: {type: my_unet, depth: 5}``) and :func:`create` builds it. The modules of built-in parts
are listed in :data:`BUILTIN` and imported when their kind is first used, so that importing the registry is fast and
needs only the standard library.

An installed package provides parts by an entry point that names the module that registers them::

    [options.entry_points]
    qsattn_plugin.parts =
        my_parts = my_package.parts

Such modules are imported when parts are listed, or when a name is looked up that no built-in part has: using a built-in
part does not import them. One that fails is named in a :class:`PartsWarning` and left out.
"""

from __future__ import annotations

import fnmatch
import importlib
import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from qsattn_plugin.errors import UserError, nearest

__all__ = [
    *("BUILTIN", "GROUP", "KINDS", "Nested", "Part", "PartError", "PartsWarning", "Registry"),
    *("create", "create_nested", "find", "list_parts", "register"),
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
    """One registered part: ``target`` is the class or function that :func:`create` calls."""

    kind: str
    name: str
    target: Callable[..., Any]
    tags: tuple[str, ...] = ()

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        # Not inspect.getdoc: it would show a base class's docstring for a part without one.
        return inspect.cleandoc(self.target.__doc__ or "").split("\n", 1)[0]

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


class Registry:
    """Parts by kind and name. The functions of this module are the methods of :data:`REGISTRY`."""

    def __init__(self, builtin: dict[str, tuple[str, ...]] | None = None, group: str | None = None):
        self._parts: dict[tuple[str, str], Part] = {}
        self._builtin = builtin if builtin is not None else {}
        self._group = group
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
        try:
            for module in self._builtin.get(kind, ()):
                importlib.import_module(module)
        except BaseException:
            self._loaded.discard(kind)  # an import that failed is tried again, and fails again with its cause
            raise

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
                    if self._parts[key].target.__module__.split(".")[0] == package:
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
            if known and any(getattr(known.target, a) != getattr(target, a) for a in ("__module__", "__qualname__")):
                by = known.target.__module__
                raise PartError(f"{kind} {name!r} is already registered by {by}; choose another name")
            self._parts[kind, name] = Part(kind, name, target, tuple(tags))
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
            names = sorted(n for k, n in self._parts if k == kind)
            known = f"{nearest(name, names)} ({kind}s: {', '.join(names) or 'none'})"
            raise PartError(f"there is no {kind} {name!r}{known}")
        return self._parts[kind, name]

    def create(self, kind: str, name: str, /, *args: Any, **arguments: Any) -> Any:
        """Build a part, after checking the names of its arguments against its signature.

        Raises:
            PartError: the kind, the name or an argument is unknown, or an argument is missing.
        """
        part = self.find(kind, name)
        part.check(arguments, complete=not args)
        return part.target(*args, **arguments)

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
            names = [(part, (part.name, f"{part.kind}/{part.name}", *part.tags)) for part in of_kind]
            fits = [part for part, called in names if any(fnmatch.fnmatch(name, pattern) for name in called)]
            if not fits and not any(c in pattern for c in "*?["):
                known = [*KINDS, *(part.name for part in of_kind)]
                raise PartError(f"no kind, part or tag is called {pattern!r}{nearest(pattern, known)}")
            of_kind = fits
        return sorted(of_kind, key=lambda part: (list(KINDS).index(part.kind), part.name))


#: The registry that recipes and the command line use.
REGISTRY = Registry(BUILTIN, GROUP)


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
