"""A registered sampler inside a fork's module: it chooses and gathers, the module's own layers project.

Everything in the fork's sampler except the sampling itself is kept: its constructor, how it makes its MLPs
(:func:`make_heads`), the MLPs, a second head, its normalisation. The first calls are compared with the fork's own
function (:mod:`qsattn_plugin.forks.guard`); with ``inside`` that function does all of its work
(:mod:`qsattn_plugin.forks.inside`).
"""

from __future__ import annotations

import contextlib
import re
import warnings
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.routes import AttentionRoute, PointRoute, Route
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks.calls import Call, shown
from qsattn_plugin.forks.guard import ForkWarning, Guard
from qsattn_plugin.forks.ids import positions, route_of, with_route
from qsattn_plugin.forks.inside import Gathering, Place, place_of
from qsattn_plugin.registry import create, find
from qsattn_plugin.registry.interfaces import attentive_layers

#: The layers of CUT's own head, and those of a second one that some forks have.
_USUAL_HEAD = re.compile(r"(mlp|prj)_\d+")

__all__ = ["ForkWarning", "Swap", "make_heads"]


class Swap:
    """A registered sampler in place of a fork's own.

    Args:
        sampler: Its registered name.
        inside: The fork's own function does all of its work; only where it gathers features at positions, the sampler
            chooses these, and its route gathers.
        arguments: Of the sampler. Leave ``queries`` out: it is the number that the fork asks for.

    Attributes:
        counts: How often positions were "chosen" and "given", and how many were given but had "lost" their route.
        layers: For the call with the most feature maps: (C, H, W) of each, and whether attention chose its positions.
        observe: Called with the sampler of each call that chooses positions, and the features.

    Raises:
        UserError: there is no such sampler, or it does not take these arguments.
    """

    def __init__(self, sampler: str = "qsattn_global", *, inside: bool = False, **arguments: Any):
        self.name = sampler
        self.inside = inside
        self.arguments = arguments
        self.counts: Counter[str] = Counter()
        self.layers: list[tuple[tuple[int, ...], bool]] = []
        self.observe: Callable[[Swap, list[Tensor], int], None] | None = None
        self._samplers: dict[Any, Any] = {}
        self._guard = Guard(self.at_own_positions)
        self._ready: weakref.WeakSet[nn.Module] = weakref.WeakSet()
        self.sampler(256)

    def __deepcopy__(self, memo: dict) -> Swap:
        return self  # copies of a module share their counts

    def __reduce__(self) -> tuple:
        # Where it is loaded, the module's class would sample as the fork's does.
        raise UserError("a swapped module cannot be pickled: save its state_dict, or swap_sampler(module, None) first")

    def sampler(self, count: int, layer: int | None = None) -> Any:
        """Return the sampler for ``count`` positions, or for the ``queries`` that were set.

        ``layer`` is the index of the feature map where only one of several is passed.
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
            self._samplers[count, layer].warns = layer is None  # a map alone may well be too large
        return self._samplers[count, layer]

    def __call__(self, module: nn.Module, call: Call) -> tuple:
        """Return the result of the call in place of the fork's sampler ``module``."""
        if call.own is not None and (call.count < 0 or (call.count == 0 and self.inside)):
            return call.own(call.features)
        if module not in self._ready:
            make_heads(module, call)
            self._ready.add(module)
        for name, value in ({} if self.inside else call.unknown).items():
            raise UserError(
                f"the fork calls {type(module).__name__} with {name}={shown(value)}, which only its own sampler "
                "understands; switch that option of the fork off, or let its own function do its work: inside=True, "
                "--inside"
            )
        if not self.inside:
            self._guard(module, call, choose=call.ids is None)
        return self.swapped(module, call)

    def swapped(self, module: nn.Module, call: Call) -> tuple:
        """Return the result of a call that is not compared with the fork's own."""
        if self.inside:
            return self._inside(module, call)
        if call.count == 0:
            return self._answer(module, call, [])
        if call.ids is None:
            routes = self._choose(call.features, call.count, call.choice)
            self._note(call.features, call.count, call.choice)
        else:
            routes = self._given(call, call.ids)
        return self._answer(module, call, routes)

    def _answer(self, module: nn.Module, call: Call, routes: list[Route]) -> tuple:
        """Return the result of a call by routes; without them, the maps of a call for no positions."""
        own_head = _has_own_head(module, call)
        if not routes and own_head:
            assert call.own is not None
            return call.own(call.features)
        if not routes:
            ids: list[Any] = [[] for _ in call.features]
            pooled = _maps(module, call)
        else:
            given = call.ids if call.ids is not None else routes
            ids = [with_route(r) if route_of(g) is None else g for r, g in zip(routes, given, strict=True)]
            routed = [route(f) for route, f in zip(routes, call.features, strict=True)]
            if own_head:
                pooled = call.project([r.to(f.dtype) for r, f in zip(routed, call.features, strict=True)])
            else:
                both = zip(routed, call.features, strict=True)
                pooled = [_head(module, call, i, r, f) for i, (r, f) in enumerate(both)]
        if call.return_all:
            return pooled, _maps(module, call) if routes else pooled, ids
        if call.wants_rows:
            rows: Sequence[Route | None] = routes or [None] * len(ids)
            return pooled, ids, [getattr(r, "rows", f.new_zeros(1)) for r, f in zip(rows, call.features, strict=True)]
        return pooled, ids

    def at_own_positions(self, module: nn.Module, call: Call) -> tuple[tuple, list[bool]]:
        """Return the result of a call by the ids and rows that the fork's own function returned.

        The second value tells for which feature maps they were known; the others are gathered at position 0.
        """
        assert call.ids is not None
        rows = call.rows if call.rows is not None else [None] * len(call.features)
        found = [_route(i, r, f) for i, r, f in zip(call.ids, rows, call.features, strict=True)]
        routes = [
            PointRoute(torch.zeros(f.shape[0], 1, dtype=torch.long, device=f.device), f.shape[2:]) if r is None else r
            for r, f in zip(found, call.features, strict=True)
        ]
        return self._answer(module, call, routes), [r is not None for r in found]

    def _choose(self, features: list[Tensor], count: int, layer: int | None) -> list[Route]:
        asked = self.arguments.get("queries", count)
        if asked != count:
            raise UserError(
                f"the fork asks for {count} positions (its --num_patches) and queries={asked} was set: "
                f"leave queries out, or give the fork --num_patches {asked}"
            )
        routes = self.sampler(count, layer).choose(features)
        for index, (route, feature) in enumerate(zip(routes, features, strict=True)):
            want = min(count, feature.shape[2:].numel())
            if route.queries.shape[1] != want:
                raise UserError(
                    f"sampler {self.name!r} chose {route.queries.shape[1]} positions of feature map {index}, but the "
                    f"fork's loss needs exactly {want}: use another sampler, or another --num_patches"
                )
        return routes

    def _note(self, features: list[Tensor], count: int, layer: int | None) -> None:
        """Count a call that chose positions of these features, and keep what the account at the end needs."""
        self.counts["chosen"] += 1
        if len(features) >= len(self.layers):  # a fork may also ask for a single layer
            flags = attentive_layers(self.sampler(count, layer), features, [str(i) for i in range(len(features))])
            self.layers = [(tuple(f.shape[1:]), flag) for f, flag in zip(features, flags, strict=True)]
        if self.observe is not None and len(features) == len(self.layers):
            self.observe(self, features, count)

    def _given(self, call: Call, given: Sequence[Any]) -> list[Route]:
        """Return the routes that ids carry; without one, a route made of the rows, or of the positions alone."""
        self.counts["given"] += 1
        routes: list[Route] = []
        for index, (ids, feature) in enumerate(zip(given, call.features, strict=True)):
            route = route_of(ids)
            if route is not None:
                routes.append(route if route.queries.device == feature.device else route.to(feature.device))
                continue
            rows = call.rows[index] if call.rows is not None else None
            made = _route(ids, rows, feature) or PointRoute(positions(ids, feature), feature.shape[2:])
            routes.append(made)
            if isinstance(made, PointRoute):
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

    def _inside(self, module: nn.Module, call: Call) -> tuple:
        """Return what the fork's own function returns, with the positions chosen, and features gathered, by routes."""
        assert call.own is not None
        kind = type(module).__name__
        places: list[Place] = []
        ids: list[Any] = []
        for index, feature in enumerate(call.features):
            given = None if call.ids is None else call.ids[index]
            place = Place(index, route_of(given))
            places.append(place)
            if given is None:
                ids.append(place.mark(torch.arange(min(call.count, feature.shape[2:].numel()), device=feature.device)))
            elif place.route is None:
                ids.append(given)  # the function gathers by itself
            else:
                ids.append(place.mark(given.clone()))

        def choose(index: int, features: Tensor) -> Route:
            return self._choose([features], call.count, index if call.choice is None else call.choice)[0]

        with Gathering(call.features, choose):
            result = call.own(call.features, ids=ids)
        marked = [place for place, one in zip(places, ids, strict=True) if place_of(one) is not None]
        if missed := [str(place.index) for place in marked if place.features is None]:
            raise UserError(
                f"inside=True: {kind} does not gather feature map {', '.join(missed)} at the ids that it is given (by "
                "an index, gather, index_select or take_along_dim), so nothing of it can be replaced"
            )
        if call.ids is not None:
            self.counts["given"] += 1
            for _ in range(len(places) - len(marked)):
                self._warn_lost()
            ids = list(call.ids)
        else:
            self._note([place.features for place in places if place.features is not None], call.count, call.choice)
            ids = [with_route(place.route) for place in places if place.route is not None]
        if call.ids is None and not any(_are_ids(value, len(ids)) for value in result):
            raise UserError(f"inside=True: {kind} does not return the ids that it gathers at")
        return tuple(ids if _are_ids(value, len(ids)) else value for value in result)


def _are_ids(value: Any, count: int) -> bool:
    """Return whether a fork's function returned marked ids here."""
    return isinstance(value, list | tuple) and len(value) == count and any(place_of(v) is not None for v in value)


def _route(ids: Any, rows: Tensor | None, feature: Tensor) -> Route | None:
    """Return the route that attention rows (B, N, M) make, or else positions; None where there are neither."""
    shape = feature.shape[2:]
    known = ids is not None and len(ids) > 0
    if rows is not None and rows.ndim == 3 and rows.shape[-1] == shape.numel():
        return AttentionRoute(rows, positions(ids, feature) if known else rows.argmax(-1), shape)
    return PointRoute(positions(ids, feature), shape) if known else None


def make_heads(module: nn.Module, call: Call) -> None:
    """Let a module that makes its MLPs at the first call make them now, on the device of the features."""
    with _redirect_cuda(call.features[0].device):
        if call.own is not None:
            with (
                contextlib.suppress(Exception),
                torch.no_grad(),
            ):  # its own sampling may fail where a swapped one does not
                call.own(call.features, ids=None)
        if not getattr(module, "use_mlp", False) or getattr(module, "mlp_init", hasattr(module, "mlp_0")):
            return
        for make in (getattr(module, name, None) for name in ("create_mlp", "create_prj")):
            if make is None:
                continue
            try:
                make(call.features)
            except (TypeError, AttributeError) as error:
                try:  # it may take the numbers of channels
                    make([f.shape[1] for f in call.features])
                except Exception:  # noqa: BLE001 - the first error is the one to show
                    raise error from None
        module.to(call.features[0].device)


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
        batch, sizes = feature.shape[0], feature.shape[2:]
        # Gathered by a route, so that the gradient has the memory layout of the features (see AttentionRoute).
        every = torch.arange(sizes.numel(), device=feature.device).expand(batch, -1)
        out = _head(module, call, index, PointRoute(every, sizes)(feature), feature)
        maps.append(out.unflatten(0, (batch, *sizes)).movedim(-1, 1).contiguous())
    return maps


def _has_own_head(module: nn.Module, call: Call) -> bool:
    """Return whether the module projects, or may later project, by other layers than ``mlp_%d``.

    Its own function then projects the routed features, unless the call asks for more than features and ids.
    """
    if call.own is None or call.wants_rows or call.return_all or call.prj or call.choice is not None:
        return False
    if not call.use_mlp:
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
