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
"""

from __future__ import annotations

import dis
import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError

__all__ = ["Call", "CallForm"]

_KNOWN = ("return_all", "attn_mats", "choice", "use_mlp", "prj", "cams")


@dataclass(frozen=True)
class Call:
    """One call: what is to be sampled, and in which form it is to be returned.

    ``own(features)`` returns what the fork's own function returns for the same call with these features, and
    ``project(routed)`` its projection of routed features (B, N, C) of each map: its head and its normalisation. A
    ``count`` below 0 has a meaning of the fork's own: nothing is sampled.
    """

    features: list[Tensor]
    count: int
    ids: Sequence[Any] | None
    own: Callable[[list[Tensor]], tuple]
    project: Callable[[list[Tensor]], list[Tensor]]
    return_all: bool = False
    wants_rows: bool = False
    rows: Sequence[Tensor] | None = None
    choice: int | None = None
    use_mlp: bool = True
    prj: bool = False

    def __post_init__(self) -> None:
        for index, feature in enumerate(self.features):
            if not isinstance(feature, Tensor) or feature.ndim != 4:
                shape = tuple(feature.shape) if isinstance(feature, Tensor) else type(feature).__name__
                raise UserError(f"the sampler takes feature maps (B, C, H, W), but feature map {index} is {shape}")
        if self.ids is not None and self.count > 0 and len(self.ids) != len(self.features):
            raise UserError(
                f"the sampler was given {len(self.features)} feature maps with the ids of {len(self.ids)}: "
                "the fork must sample the same layers in both calls"
            )


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

    def read(self, own: Callable, *args: Any, **kwargs: Any) -> Call:
        """Return the call of ``own`` with these arguments (the module first).

        Raises:
            TypeError: the fork's own function does not take these arguments either.
            UserError: an argument has a value that the swap does not support.
        """
        bound = self.signature.bind(*args, **kwargs)
        bound.apply_defaults()
        values = dict(list(bound.arguments.items())[1:])

        def again(features: list[Tensor]) -> tuple:
            bound.arguments[self._features] = features
            return own(*bound.args, **bound.kwargs)

        def project(routed: list[Tensor]) -> list[Tensor]:
            # As maps of one column, sampled at every position, in order.
            every = [torch.arange(r.shape[1], device=r.device) for r in routed]
            bound.arguments[self._features] = [r.transpose(1, 2)[..., None] for r in routed]
            bound.arguments[self._count] = max(map(len, every))
            bound.arguments[self._ids] = every
            return own(*bound.args, **bound.kwargs)[0]

        features, count, ids = (values.pop(name) for name in (self._features, self._count, self._ids))
        rows = values.pop("attn_mats", None)
        values.pop("cams", None)
        known = {name: values.pop(name) for name in _KNOWN if name in values}
        for name, value in values.items():
            default = self.signature.parameters[name].default
            comparable = isinstance(value, bool | int | float | str)
            if self._reads is not None and name not in self._reads:
                continue  # the fork's own function ignores it
            if value is not default and not (comparable and value == default) and value not in ((), {}):
                raise UserError(
                    f"the fork calls {self.owner} with {name}={_shown(value)}, which only its own sampler understands; "
                    "switch that option of the fork off"
                )
        return Call(list(features), int(count), ids, again, project, wants_rows=self.wants_rows, rows=rows, **known)


def _names_read(function: Callable) -> set[str] | None:
    """Return the local names that a function and its inner functions read; None where that cannot be determined."""
    code = getattr(inspect.unwrap(function), "__code__", None)
    if code is None or "locals" in code.co_names:
        return None
    inner = {name for step in code.co_consts if inspect.iscode(step) for name in step.co_freevars}
    steps = dis.get_instructions(code)
    read = {s.argval for s in steps if any(kind in s.opname for kind in ("LOAD_FAST", "LOAD_DEREF", "LOAD_CLOSURE"))}
    return inner | {name for names in read for name in (names if isinstance(names, tuple) else (names,))}


def _shown(value: Any) -> str:
    return f"a tensor of {' x '.join(map(str, value.shape))}" if isinstance(value, Tensor) else f"{value!r:.60}"
