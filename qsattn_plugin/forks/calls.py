"""How CUT forks call their sampler, and what they expect it to return.

All of them call ``netF(features, num_patches, patch_ids)``; some add arguments. The names of the arguments of the
fork's own ``forward`` tell what a call means:

========== ============================================================== =====================================
argument   means                                                          returned
========== ============================================================== =====================================
(none)                                                                    features, ids
return_all also the MLP's output at every position                        features, maps, ids
attn_mats  the attention's rows that the first call returned (QS-Attn)    features, ids, rows
choice     the index of the MLP to use, for all features                  features, ids
use_mlp    false: without the MLP                                         features, ids
prj        true: through the second head ``prj_%d``, too                  features, ids
cams       what the fork's own sampler ranks positions by: ignored        features, ids
========== ============================================================== =====================================

A value of None leaves each of them as the module was built, whatever its ``forward`` calls the default. The features
are a sequence of maps, or a mapping of them by name; what is returned are lists.
"""

from __future__ import annotations

import contextlib
import dis
import inspect
import operator
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError

__all__ = ["Call", "CallForm", "runs_own", "shown"]

_KNOWN = ("return_all", "attn_mats", "choice", "use_mlp", "prj", "cams")


@dataclass(frozen=True)
class Call:
    """One call: what is to be sampled, and in which form it is to be returned.

    ``own(features, count=, ids=, rows=)`` returns what the fork's own function returns for the same call with these
    features, and with what else is given in place of the call's; it is None where there is no such function. A
    ``count`` below 0 has a meaning of the fork's own: nothing is sampled. ``unknown`` holds the arguments that only the
    fork's own function understands.
    """

    features: list[Tensor]
    count: int
    ids: Sequence[Any] | None
    own: Callable[..., tuple] | None
    return_all: bool = False
    wants_rows: bool = False
    rows: Sequence[Tensor] | None = None
    choice: int | None = None
    use_mlp: bool = True
    prj: bool = False
    unknown: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for index, feature in enumerate(self.features):
            if not isinstance(feature, Tensor) or feature.ndim < 3:
                shape = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
                raise UserError(f"the sampler takes feature maps (B, C, H, W), but feature map {index} is {shape}")
        if self.ids is not None and self.count > 0 and len(self.ids) != len(self.features):
            raise UserError(
                f"the sampler was given {len(self.features)} feature maps with the ids of {len(self.ids)}: "
                "the fork must sample the same layers in both calls"
            )

    def project(self, routed: list[Tensor]) -> list[Tensor]:
        """Return the fork's own projection of routed features (B, N, C) of each map: its head and normalisation."""
        assert self.own is not None
        # As maps of one column, sampled at every position, in order.
        every = [torch.arange(r.shape[1], device=r.device) for r in routed]
        columns = [
            r.transpose(1, 2).reshape(r.shape[0], r.shape[2], -1, *[1] * (f.ndim - 3))
            for r, f in zip(routed, self.features, strict=True)
        ]
        return self.own(columns, count=max(map(len, every)), ids=every)[0]


class CallForm:
    """The arguments of a fork's ``forward``.

    Args:
        forward: The function, with ``self`` as its first argument.
        owner: The class's name, for messages.

    Raises:
        UserError: not the call interface of CUT's sampler.
    """

    def __init__(self, forward: Callable, owner: str):
        self.signature = inspect.signature(forward)
        self._reads = _names_read(forward)
        self.owner = owner
        taken = list(self.signature.parameters.values())[1:]
        self._features = taken[0].name if taken else ""
        self._count = next((p.name for p in taken if p.name.startswith("num_p")), "")
        self._ids = next((p.name for p in taken if p.name.startswith(("patch_id", "sample_id", "ids"))), "")
        main = (self._features, self._count, self._ids)
        free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        others = [p for p in taken if p.name not in main and p.default is p.empty and p.kind not in free]
        if "" in main or len(set(main)) < 3 or others:
            arguments = ", ".join(str(p) for p in taken)
            raise UserError(
                f"{owner} is not called as CUT's sampler is: its forward takes ({arguments}), "
                "not (feats, num_patches, patch_ids)"
            )
        self.wants_rows = "attn_mats" in self.signature.parameters

    def read(self, own: Callable | None, module: Any, *args: Any, **kwargs: Any) -> Call:
        """Return the call of ``own`` with these arguments.

        Raises:
            TypeError: the fork's own function does not take these arguments either.
            UserError: these are no feature maps, not as many as there are ids, or there is no number of positions.
        """
        bound = self.signature.bind(module, *args, **kwargs)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])
        given, count, ids = (values.pop(name) for name in (self._features, self._count, self._ids))
        named = isinstance(given, Mapping)  # by layer

        def again(features: list[Tensor], **others: Any) -> tuple:
            assert own is not None
            names = {"count": self._count, "ids": self._ids, "rows": "attn_mats"}
            as_given = dict(zip(given, features, strict=True)) if named else features
            changed = {self._features: as_given, **{names[key]: value for key, value in others.items()}}
            call = inspect.BoundArguments(self.signature, OrderedDict(bound.arguments | changed))
            with _running_own():
                return own(*call.args, **call.kwargs)

        rows = values.pop("attn_mats", None)
        values.pop("cams", None)
        known = {name: values.pop(name) for name in _KNOWN if name in values}
        for name in [name for name, value in known.items() if value is None]:  # as the module was built
            # What use_mlp it was built with is looked up where its heads are.
            built = None if name == "use_mlp" else getattr(module, name, None)
            known[name] = built if isinstance(built, bool | int) else getattr(Call, name)
        if count is None:
            count = getattr(module, self._count, None)
        try:
            count = operator.index(count)  # also a number of numpy's, or a tensor of one
        except TypeError:
            raise UserError(
                f"the fork calls {self.owner} with {self._count}={shown(count)}: a swapped sampler must be told how "
                "many positions to choose"
            ) from None
        unknown = {name: value for name, value in values.items() if self._matters(name, value)}
        return Call(
            list(given.values() if named else given),
            count,
            ids,
            None if own is None else again,
            wants_rows=self.wants_rows,
            rows=rows,
            unknown=unknown,
            **known,
        )

    def _matters(self, name: str, value: Any) -> bool:
        """Return whether the fork's own function reads an argument, and it has another value than its default."""
        default = self.signature.parameters[name].default
        same = value is default or (isinstance(value, bool | int | float | str) and value == default)
        return (self._reads is None or name in self._reads) and not same and value not in ((), {})


_own = threading.local()


def runs_own() -> bool:
    """Return whether a fork's own function is running in this thread, at our call: what it calls is not answered."""
    return getattr(_own, "depth", 0) > 0


@contextlib.contextmanager
def _running_own() -> Iterator[None]:
    _own.depth = getattr(_own, "depth", 0) + 1
    try:
        yield
    finally:
        _own.depth -= 1


def _names_read(function: Callable) -> set[str] | None:
    """Return the local names that a function and its inner functions read; None where that cannot be determined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or "locals" in code.co_names:
        return None
    inner = {name for step in code.co_consts if inspect.iscode(step) for name in step.co_freevars}
    steps = dis.get_instructions(code)
    read = {s.argval for s in steps if any(kind in s.opname for kind in ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE"))}
    return inner | {name for names in read for name in (names if isinstance(names, tuple) else (names,))}


def shown(value: Any) -> str:
    """Return an argument's value in a few words."""
    return f"a tensor of {' x '.join(map(str, value.shape))}" if isinstance(value, Tensor) else f"{value!r:.60}"
