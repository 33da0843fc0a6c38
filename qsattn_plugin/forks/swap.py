"""A registered sampler inside a fork's module: it chooses and gathers, the module's own layers project.

Everything in the fork's sampler except the sampling itself is kept: its constructor, how it makes its MLPs
(:func:`make_heads`), the MLPs, a second head, its normalisation.
"""

from __future__ import annotations

import contextlib
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.routes import AttentionRoute, PointRoute, Route
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import Call
from qsattn_plugin.forks.ids import positions, route_of, with_route
from qsattn_plugin.registry import create, find
from qsattn_plugin.registry.interfaces import attentive_layers

#: The layers of CUT's own head, and those of a second one that some forks have.
_USUAL_HEAD = re.compile(r"(mlp|prj)_\d+")

__all__ = ["ForkWarning", "Swap", "make_heads"]


class ForkWarning(UserWarning):
    """The swap does less in this fork than it should."""


class Swap:
    """A registered sampler in place of a fork's own.

    Args:
        sampler: Its registered name.
        arguments: Its arguments. Leave ``queries`` out: it is the number that the fork asks for.

    Attributes:
        counts: How often positions were "chosen" and "given", and how many were given but had "lost" their route.
        layers: For the call with the most feature maps: (C, H, W) of each, and whether attention chose its positions.

    Raises:
        UserError: there is no such sampler, or it does not take these arguments.
    """

    def __init__(self, sampler: str = "qsattn_global", **arguments: Any):
        self.name = sampler
        self.arguments = arguments
        self.counts: Counter[str] = Counter()
        self.layers: list[tuple[tuple[int, ...], bool]] = []
        self._samplers: dict[Any, Any] = {}
        self.sampler(256)

    def __deepcopy__(self, memo: dict) -> Swap:
        return self  # copies of a module share their counts

    def sampler(self, count: int, layer: int | None = None) -> Any:
        """Return the sampler for ``count`` positions, or for the ``queries`` that were set.

        ``layer`` is the index of the feature map where the fork passes only one of several.
        """
        if (count, layer) not in self._samplers:
            takes = find("sampler", self.name).signature.parameters
            arguments = ({"queries": count} if "queries" in takes else {}) | self.arguments
            if layer is not None and isinstance(arguments.get("taps"), list | tuple):
                arguments["taps"] = (0,) if str(layer) in map(str, arguments["taps"]) else ()
            try:
                self._samplers[count, layer] = create("sampler", self.name, **arguments)
            except UserError:
                raise
            except (ValueError, TypeError) as error:
                raise UserError(f"sampler {self.name!r}: {error}") from None
            if getattr(self._samplers[count, layer], "guided", False):
                raise UserError(f"sampler {self.name!r} needs the discriminator's scores, which forks do not give it")
        return self._samplers[count, layer]

    def __call__(self, module: nn.Module, call: Call) -> tuple:
        """Return the result of the call in place of the fork's sampler ``module``."""
        if call.count < 0:
            return call.own(call.features)
        make_heads(module, call.features)
        own_head = _has_own_head(module, call)
        if call.count == 0 and own_head:
            return call.own(call.features)
        if call.count == 0:
            routes: list[Any] = [None] * len(call.features)
            ids: list[Any] = [[] for _ in routes]
            pooled = _maps(module, call)
        else:
            routes = self._choose(call) if call.ids is None else self._given(call, call.ids)
            given = call.ids if call.ids is not None else routes
            ids = [with_route(r) if route_of(g) is None else g for r, g in zip(routes, given, strict=True)]
            routed = [route(f) for route, f in zip(routes, call.features, strict=True)]
            if own_head:
                pooled = call.project([r.to(f.dtype) for r, f in zip(routed, call.features, strict=True)])
            else:
                both = zip(routed, call.features, strict=True)
                pooled = [_head(module, call, i, r, f) for i, (r, f) in enumerate(both)]
        if call.return_all:
            return pooled, pooled if call.count == 0 else _maps(module, call), ids
        if call.wants_rows:
            return pooled, ids, [getattr(r, "rows", f.new_zeros(1)) for r, f in zip(routes, call.features, strict=True)]
        return pooled, ids

    def _choose(self, call: Call) -> list[Route]:
        asked = self.arguments.get("queries", call.count)
        if asked != call.count:
            raise UserError(
                f"the fork asks for {call.count} positions (its --num_patches) and queries={asked} was set: "
                f"leave queries out, or give the fork --num_patches {asked}"
            )
        sampler = self.sampler(call.count, call.choice)
        routes = sampler.choose(call.features)
        for index, (route, feature) in enumerate(zip(routes, call.features, strict=True)):
            want = min(call.count, feature.shape[-2] * feature.shape[-1])
            if route.queries.shape[1] != want:
                raise UserError(
                    f"sampler {self.name!r} chose {route.queries.shape[1]} positions of feature map {index}, but the "
                    f"fork's loss needs exactly {want}: use another sampler, or another --num_patches"
                )
        self.counts["chosen"] += 1
        if len(routes) >= len(self.layers):  # a fork may also ask for a single layer
            flags = attentive_layers(sampler, call.features, [str(i) for i in range(len(routes))])
            self.layers = [(tuple(f.shape[1:]), flag) for f, flag in zip(call.features, flags, strict=True)]
        return routes

    def _given(self, call: Call, given: Sequence[Any]) -> list[Route]:
        """Return the routes that ids carry; without one, a route made of the rows, or of the positions alone."""
        self.counts["given"] += 1
        routes: list[Route] = []
        for index, (ids, feature) in enumerate(zip(given, call.features, strict=True)):
            route = route_of(ids)
            rows = call.rows[index] if call.rows is not None else None
            shape = feature.shape[-2:]
            if route is not None:
                routes.append(route if route.queries.device == feature.device else route.to(feature.device))
            elif rows is not None and rows.ndim == 3 and rows.shape[-1] == shape.numel():
                queries = positions(ids, feature) if ids is not None and len(ids) else rows.argmax(-1)
                routes.append(AttentionRoute(rows, queries, shape))
            else:
                routes.append(PointRoute(positions(ids, feature), shape))
                self._warn_lost()
        return routes

    def _warn_lost(self) -> None:
        self.counts["lost"] += 1
        if self.counts["lost"] == 1:
            warnings.warn(
                "patch ids came without their route (they are not ours, or were copied between devices): the features "
                "are gathered at these positions, without attention; this warning is shown once",
                ForkWarning,
                stacklevel=2,
            )


def make_heads(module: nn.Module, features: list[Tensor]) -> None:
    """Let a module that makes its MLPs at the first call make them now, on the device of the features."""
    if not getattr(module, "use_mlp", False) or getattr(module, "mlp_init", hasattr(module, "mlp_0")):
        return
    for make in (getattr(module, name, None) for name in ("create_mlp", "create_prj")):
        if make is None:
            continue
        with _redirect_cuda(features[0].device):
            try:
                make(features)
            except (TypeError, AttributeError) as error:
                try:  # it may take the numbers of channels
                    make([f.shape[1] for f in features])
                except Exception:  # noqa: BLE001 - the first error is the one to show
                    raise error from None
    module.to(features[0].device)


@contextlib.contextmanager
def _redirect_cuda(device: torch.device) -> Iterator[None]:
    """Let ``module.cuda()``, which several forks call unconditionally, move modules to ``device``."""
    usual = nn.Module.cuda
    nn.Module.cuda = lambda self, *_: self.to(device)  # type: ignore[method-assign]  # what is meant here
    try:
        yield
    finally:
        nn.Module.cuda = usual  # type: ignore[method-assign]


def _maps(module: nn.Module, call: Call) -> list[Tensor]:
    """Return the output of the heads at every position, (B, C', H, W) each."""
    maps = []
    for index, feature in enumerate(call.features):
        batch, _, height, width = feature.shape
        # Gathered by a route, so that the gradient has the memory layout of the features (see AttentionRoute).
        every = torch.arange(height * width, device=feature.device).expand(batch, -1)
        out = _head(module, call, index, PointRoute(every, (height, width))(feature), feature)
        maps.append(out.unflatten(0, (batch, height, width)).permute(0, 3, 1, 2).contiguous())
    return maps


def _has_own_head(module: nn.Module, call: Call) -> bool:
    """Return whether the module projects, or may later project, by other layers than ``mlp_%d``.

    Its own function then projects the routed features, unless the call asks for more than features and ids.
    """
    if call.wants_rows or call.return_all or call.prj or call.choice is not None or not call.use_mlp:
        return False
    learned = {name.partition(".")[0] for name, _ in module.named_parameters()}
    return not getattr(module, "use_mlp", False) or any(not _USUAL_HEAD.fullmatch(name) for name in learned)


def _head(module: nn.Module, call: Call, index: int, routed: Tensor, feature: Tensor) -> Tensor:
    """Return routed features (B, N, C), projected by the module's own layers to unit rows (B * N, C')."""
    out = routed.flatten(0, 1).to(feature.dtype)
    number = index if call.choice is None else call.choice
    if getattr(module, "use_mlp", False) and call.use_mlp:
        out = _layer(module, f"mlp_{number}", call)(out)
    if call.prj:
        out = _layer(module, f"prj_{number}", call)(out)
    norm = getattr(module, "l2norm", None)
    return out / (out.norm(dim=1, keepdim=True) + 1e-7) if norm is None else norm(out)


def _layer(module: nn.Module, name: str, call: Call) -> nn.Module:
    layer = getattr(module, name, None)
    if layer is None:
        raise UserError(f"{type(module).__name__} has no {name}, but was called with {len(call.features)} feature maps")
    return layer
