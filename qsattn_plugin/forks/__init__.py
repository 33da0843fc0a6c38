"""QS-Attn, or any registered sampler, inside a CUT fork, without an edit of the fork.

One line, where the fork has its networks::

    from qsattn_plugin import swap_sampler
    swap_sampler(model, "qsattn_global")     # netF, netF1, netF2, ... of a model; or one module, or the class itself

No object is replaced: the fork keeps its modules and classes, with their MLPs, optimizers, wrappers and aliases. Only
where one of them would choose and gather positions, the registered sampler does so. ``qsattn fork -- train.py ...``
does the same without any change of a file (:mod:`qsattn_plugin.forks.run`), and a block of code does it for a while::

    with qsattn_plugin.swapped("models.networks"):
        trainer.fit(model)
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import sys
import warnings
from collections.abc import Iterator
from types import ModuleType
from typing import Any

from torch import nn

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.forks.calls import CallForm, runs_own
from qsattn_plugin.forks.module import PatchSampler
from qsattn_plugin.forks.swap import ForkWarning, Swap

__all__ = [
    "CLASS_PREFIX",
    "ForkWarning",
    "PatchSampler",
    "Swap",
    "looks_like_sampler",
    "sampler_classes",
    "swap_sampler",
    "swapped",
    "take_over",
]

#: Without a given name, classes whose names begin so and that have the call interface of CUT's are taken over.
CLASS_PREFIX = "PatchSample"

#: Stands for what answers where nothing was ever taken over.
_NOTHING = object()

#: The attribute, of a class or of one module, that holds the function called in place of the fork's own forward.
OVERRIDE = "_qsattn_instead"


def swap_sampler(
    target: Any, sampler: str | None = "qsattn_global", *, inside: bool = False, **arguments: Any
) -> dict[str, Any]:
    """Let a registered sampler choose and gather where a CUT fork's own sampler does, in every call from now on.

    Args:
        target: A module like CUT's ``PatchSampleF`` (also in ``DataParallel``); or an object that has some, for example
            a model with ``netF`` or with ``netF1`` and ``netF2``; or the class, before the fork makes its modules.
        sampler: Registered name (``qsattn list samplers``); None restores the fork's own sampling.
        inside: The class does all of its own work, for example on the features before it samples; only where it looks,
            and how features are gathered, is replaced. The first calls are compared with the class's own function, and
            an error says where this is needed.
        arguments: Of the sampler, for example ``taps="all"``. Leave ``queries`` out: it is the number that the fork
            asks for.

    Returns:
        The swapped modules (or the class) by their names in ``target``; "" for ``target`` itself.

    Raises:
        UserError: the sampler is not registered or does not take these arguments; nothing in ``target`` has the call
            interface of CUT's sampler.
    """
    found = _find(target)
    swap = None if sampler is None else Swap(sampler, inside=inside, **arguments)
    for one in found.values():
        take_over(one, swap)
    return found


@contextlib.contextmanager
def swapped(target: Any, sampler: str = "qsattn_global", *, inside: bool = False, **arguments: Any) -> Iterator[Swap]:
    """Within a ``with`` block, let a registered sampler choose and gather where a CUT fork's own sampler does.

    For notebooks, and for trainings that a runner starts (Lightning, accelerate). Modules that exist and those that are
    made within the block are swapped; after it, all sample as before.

    Args:
        target: Name of the module of the fork that defines its sampler's class, for example "models.networks" (imported
            here if it was not before); or what :func:`swap_sampler` takes.
        sampler: Registered name.
        inside: See :func:`swap_sampler`.
        arguments: Of the sampler.

    Yields:
        The swap; its ``counts`` and ``layers`` say what happened.

    Raises:
        UserError: as :func:`swap_sampler`; there is no such module, or it defines no such class.
    """
    found = _in_module(target) if isinstance(target, str) else _find(target)
    swap = Swap(sampler, inside=inside, **arguments)
    before = [(one, take_over(one, swap)) for one in found.values()]
    try:
        yield swap
    finally:
        for one, instead in reversed(before):
            take_over(one, instead)
    if not swap.counts["chosen"]:
        names = ", ".join(name or type(target).__name__ for name in found)
        warnings.warn(f"{names} was swapped, but never called to choose positions", ForkWarning, stacklevel=3)


def take_over(target: nn.Module | type, instead: Any) -> Any:
    """Let ``instead(module, call)`` answer the calls of a sampler class, or of one module of that class.

    The ``forward`` of the class is wrapped once, in place: imported names, ``super()`` and pickles still refer to the
    same class. With ``instead`` None the fork's own ``forward`` answers again.

    Returns:
        What has answered until now.

    Raises:
        UserError: the class does not have the call interface of CUT's sampler.
    """
    if isinstance(target, PatchSampler):
        if instead is None:
            raise UserError("PatchSampler has no sampling of its own to restore")
        before, target.swap = target.swap, instead
        return before
    owner: type[Any] = target if isinstance(target, type) else type(target)
    own = owner.forward
    if not hasattr(own, "_qsattn_form"):
        form = CallForm(own, owner.__name__)

        @functools.wraps(own)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            other = None if runs_own() else getattr(self, OVERRIDE, None)
            return own(self, *args, **kwargs) if other is None else other(self, form.read(own, self, *args, **kwargs))

        owner.forward = forward
        owner.forward._qsattn_form = form
    before = vars(target).get(OVERRIDE, _NOTHING)
    if instead is _NOTHING:
        delattr(target, OVERRIDE)  # a module then does as its class does
    else:
        setattr(target, OVERRIDE, instead)
    return before


def sampler_classes(module: ModuleType) -> dict[str, type[nn.Module]]:
    """Return the classes that a module defines, and that have the call interface of CUT's sampler, by name."""
    return {
        name: value
        for name, value in vars(module).items()
        if isinstance(value, type) and value.__module__ == module.__name__ and looks_like_sampler(value)
    }


def looks_like_sampler(kind: type) -> bool:
    """Return whether a class has the call interface of CUT's sampler, and an MLP."""
    if not issubclass(kind, nn.Module):
        return False
    try:
        CallForm(kind.forward, kind.__name__)
        return hasattr(kind, "create_mlp") or "use_mlp" in inspect.signature(kind).parameters
    except (UserError, ValueError, TypeError):  # the last two: it has no Python signature
        return False


def _in_module(name: str) -> dict[str, Any]:
    """Return the sampler classes of a module that is named."""
    try:
        classes = sampler_classes(importlib.import_module(name))
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise  # what the module itself imports
        raise UserError(f"there is no module {name!r}{nearest(name, sys.modules)}") from None
    found = {f"{name}.{kind}": value for kind, value in classes.items() if kind.startswith(CLASS_PREFIX)}
    if not found:
        others = f"; pass one of those that are: {', '.join(classes)}" if classes else ""
        raise UserError(f"module {name} defines no class {CLASS_PREFIX}... that is called as CUT's sampler is{others}")
    return found


def _find(target: Any) -> dict[str, Any]:
    if isinstance(target, type):
        if not issubclass(target, nn.Module):
            raise UserError(f"{target.__name__} is not a torch.nn.Module; pass the class of the fork's sampler")
        CallForm(target.forward, target.__name__)
        return {"": target}
    if isinstance(target, nn.Module):
        inner = _unwrapped(target)
        if looks_like_sampler(type(inner)):
            return {"": inner}
        modules = dict(_samplers("", target))
    else:
        modules = {}
        for name, value in getattr(target, "__dict__", {}).items():
            if isinstance(value, nn.Module):
                modules |= dict(_samplers(name, value))
    if not modules:
        heads = [n for n, v in getattr(target, "__dict__", {}).items() if n.startswith("netF")]
        has = f" (its {', '.join(heads)} is not one)" if heads else ""
        raise UserError(
            f"{type(target).__name__} holds no module that is called as CUT's sampler is, "
            f"(feats, num_patches, patch_ids){has}; pass the module itself, or its class, to swap_sampler"
        )
    return modules


def _samplers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the samplers in a module by their dotted names, aliases included, without the names of wrappers."""
    for path, sub in module.named_modules(prefix=name, remove_duplicate=False):
        if looks_like_sampler(type(sub)):
            yield ".".join(p for p in path.split(".") if p not in ("module", "_orig_mod")), sub


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel or a module that torch.compile returned."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__.endswith("DataParallel"):
            inner = module.module
        if inner is None:
            return module
        module = inner
