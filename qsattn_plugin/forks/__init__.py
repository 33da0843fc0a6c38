"""QS-Attn, or any registered sampler, inside somebody else's CUT fork, without an edit of the fork.

One line, where the fork has its networks::

    from qsattn_plugin import swap_sampler
    swap_sampler(model, "qsattn_global")     # netF, netF1, netF2, ... of a model; or one module, or the class itself

Nothing is replaced: the fork's modules and classes stay the objects that they are, with their MLPs, optimizers,
wrappers and aliases. Where one of them would choose and gather positions, the registered sampler does. Without touching
any file ``qsattn fork -- train.py ...`` does the same (:mod:`qsattn_plugin.forks.run`).
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from typing import Any

from torch import nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import CallForm
from qsattn_plugin.forks.module import PatchSampler
from qsattn_plugin.forks.swap import ForkWarning, Swap

__all__ = ["ForkWarning", "PatchSampler", "Swap", "looks_like_sampler", "swap_sampler", "take_over"]

#: The attribute, of a class or of one module, that holds what is called in place of the fork's own forward.
INSTEAD = "_qsattn_instead"


def swap_sampler(target: Any, sampler: str | None = "qsattn_global", **arguments: Any) -> dict[str, Any]:
    """Let a registered sampler choose and gather where a CUT fork's own sampler does, in every call from now on.

    Args:
        target: A module like CUT's ``PatchSampleF`` (also in ``DataParallel``); or an object that has some, for example
            a model with ``netF`` or with ``netF1`` and ``netF2``; or the class, before the fork makes its modules.
        sampler: Registered name (``qsattn list samplers``); None gives the fork its own back.
        arguments: Of the sampler, for example ``taps="all"``. ``queries`` is best left out: it is the number that the
            fork asks for.

    Returns:
        The swapped modules (or the class) by the name under which they were found; "" for ``target`` itself.

    Raises:
        UserError: the sampler is not registered or takes no such arguments; nothing in ``target`` is called as CUT's
            sampler is.
    """
    found = _find(target)
    swap = None if sampler is None else Swap(sampler, **arguments)
    for one in found.values():
        if isinstance(one, PatchSampler):
            if swap is None:
                raise UserError("PatchSampler has no sampling of its own to go back to")
            one.swap = swap
        else:
            take_over(one, swap)
    return found


def take_over(target: nn.Module | type, instead: Callable | None) -> None:
    """Have ``instead(module, call)`` answer the calls of a sampler's class, or of one module of it.

    The class's ``forward`` is wrapped once, in place: names that were imported from the fork, ``super()`` and pickles
    go on to mean the same class. ``instead`` of None gives the calls back to the fork's own ``forward``.

    Raises:
        UserError: the class is not called as CUT's sampler is.
    """
    owner = target if isinstance(target, type) else type(target)
    own = owner.forward
    if not hasattr(own, "_qsattn_form"):
        form = CallForm(own, owner.__name__)

        @functools.wraps(own)
        def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
            other = getattr(self, INSTEAD, None)
            return own(self, *args, **kwargs) if other is None else other(self, form.read(own, self, *args, **kwargs))

        forward._qsattn_form = form
        owner.forward = forward
    setattr(target, INSTEAD, instead)


def looks_like_sampler(kind: type) -> bool:
    """Return whether a class is called as CUT's sampler is, and has an MLP to project with."""
    if not issubclass(kind, nn.Module):
        return False
    try:
        CallForm(kind.forward, kind.__name__)
        return hasattr(kind, "create_mlp") or "use_mlp" in inspect.signature(kind).parameters
    except (UserError, ValueError, TypeError):  # the last two: something without a Python signature
        return False


def _find(target: Any) -> dict[str, Any]:
    if isinstance(target, type):
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
            f"(feats, num_patches, patch_ids){has}; give swap_sampler the module itself, or its class"
        )
    return modules


def _samplers(name: str, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the samplers in a module by their dotted names, aliases too, without the names that wrappers add."""
    for path, sub in module.named_modules(prefix=name, remove_duplicate=False):
        if looks_like_sampler(type(sub)):
            yield ".".join(p for p in path.split(".") if p not in ("module", "_orig_mod")), sub


def _unwrapped(module: nn.Module) -> nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel or what torch.compile returned."""
    while True:
        inner = getattr(module, "_orig_mod", None)
        if inner is None and type(module).__name__.endswith("DataParallel"):
            inner = module.module
        if inner is None:
            return module
        module = inner
