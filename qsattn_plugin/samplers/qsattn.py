"""Samplers with query-selected attention: the paper's three, and a mixture with random positions.

A sampler reads the source's features and chooses one route per layer::

    routes = sampler.choose(source_features, taps=[0, 4, 8, 12, 16])
    anchors = [route(f) for route, f in zip(routes, fake_features)]          # (B, N, C) each
    positives = [route(f) for route, f in zip(routes, source_features)]

Samplers have no parameters and keep no state.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from qsattn_plugin.attention import GlobalAttention, LocalAttention, select_queries
from qsattn_plugin.attention.routes import OwnRoute, PointRoute, Route
from qsattn_plugin.errors import UserError, at_least, nearest, one_of
from qsattn_plugin.registry import PartError, find, register
from qsattn_plugin.samplers.points import Sampler, first_these
from qsattn_plugin.samplers.significance import uniform

__all__ = ["AttendsNowhere", "MixtureSampler", "QSAttnSampler"]

#: Without ``taps``, maps of at most this many positions get attention: the reference's two deepest at 256 x 256.
POSITIONS = 64 * 64


class AttendsNowhere(UserWarning):
    """Query-selected attention is used on no layer: every feature map is larger than ``positions``."""


class QSAttnSampler(Sampler):
    """Query-selected attention: the most significant positions, routed by the source's attention.

    Args:
        attention: "global", "local" (within a window), or "local_global" (the window selects, the global row routes).
        queries: N, the number of positions of each feature map.
        taps: which of the encoder's taps have attention, by their numbers; "all"; None: those of at most ``positions``
            positions. The queries of the other layers are random.
        positions: size of the largest feature map with attention where no taps are named; the default selects the two
            deepest taps at 256 pixels, as the reference does.
        window: side of the local window, odd.
        significance: registered name of what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross" (the source's rows route both domains), "own" (each domain's features make their own rows at
            the source's queries), or "select" (the features at the queries are gathered, without attention).
        scale: factor on the dot products; the paper's is 1.
        detach: no gradient flows through the rows into the source's features.
        tile: rows of global attention at a time; None adapts it to the device.

    Raises:
        ValueError: an argument is out of its range; the message begins with the argument's name.
    """

    #: Whether to warn where no feature map has attention.
    warns = True

    def __init__(
        self,
        *,
        attention: Literal["global", "local", "local_global"] = "global",
        queries: int = 256,
        taps: tuple[int | str, ...] | Literal["all"] | None = None,
        positions: int = POSITIONS,
        window: int = 7,
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        scale: float = 1.0,
        detach: bool = False,
        tile: int | None = None,
    ):
        super().__init__(queries)
        at_least(1, positions=positions)
        one_of(("global", "local", "local_global"), attention=attention)
        one_of(("cross", "own", "select"), routing=routing)
        if taps != "all" if isinstance(taps, str) else not (taps is None or isinstance(taps, Iterable)):
            raise ValueError(f'taps: must be a list of tap names, "all" or nothing, got {taps!r}')
        try:
            self._significance = find("significance", significance).target
        except PartError as error:
            raise PartError(f"significance: {error}", "significance") from None
        self.significance = significance
        self.attention = attention
        self.routing = routing
        self.taps = taps
        self.positions = positions
        self.detach = detach
        over_all = GlobalAttention(scale, tile)
        in_window = LocalAttention(window, scale)
        self.selector = over_all if attention == "global" else in_window
        self.router = in_window if attention == "local" else over_all

    def attentive(self, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]:
        if self.taps is None:
            sizes = [f.shape[2:].numel() for f in features]
            found = [size <= self.positions for size in sizes]
            if self.warns and features and not any(found):
                warnings.warn(
                    f"no feature map has at most {self.positions} positions (the smallest has {min(sizes)}): all "
                    f"queries are random, as in CUT. Name the sampler's taps, or set its positions",
                    AttendsNowhere,
                    stacklevel=2,
                )
            return found
        if self.taps == "all":
            return [True] * len(features)
        wanted = [str(t) for t in self.taps]
        for name in wanted:
            if name not in taps:
                raise UserError(
                    f"taps: the sampler names tap {name}, but the encoder has the taps "
                    f"{', '.join(taps)}{'' if name.isdigit() else nearest(name, taps)}"
                )
        return [name in wanted for name in taps]

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        with torch.no_grad():
            significance = self._significance(features, self.selector, generator=generator)
            queries = self.select(significance, features, generator)
        shape = features.shape[2:]
        if self.routing == "cross":
            route = self.router.route(features, queries, self.detach)
        elif self.routing == "own":
            route = OwnRoute(self.router, queries, shape, self.detach)
        else:
            route = PointRoute(queries, shape)
        if observe:
            route.stats.update(self._observe(features, queries, significance))
        return route

    def select(self, significance: Tensor, features: Tensor, generator: torch.Generator | None) -> Tensor:
        """Return the queries (B, N) by their significance (B, HW)."""
        return select_queries(significance, self.queries)

    @torch.no_grad()
    def _observe(self, features: Tensor, queries: Tensor, significance: Tensor) -> dict[str, Tensor]:
        rows = self.router.rows(features, queries)
        log_entropy = -significance if self.significance == "entropy" else self.selector.log_entropy(features)
        ordered = log_entropy.exp().flatten().sort().values  # torch.quantile refuses large maps
        last = ordered.numel() - 1
        stats = {f"entropy_q{q:02d}": ordered[(last * q + 50) // 100] for q in (0, 25, 50, 75, 100)}
        return {"largest_probability": rows.amax(dim=-1).mean(), **stats}


def _with_arguments_of_base(*fixed: str) -> Callable[[type[QSAttnSampler]], type[QSAttnSampler]]:
    """Return a class decorator that gives a subclass the arguments of QSAttnSampler, except those it fixes.

    They take the place of ``**arguments`` in its signature.
    """

    def complete(subclass: type[QSAttnSampler]) -> type[QSAttnSampler]:
        constructor: Any = subclass.__init__
        own = inspect.signature(constructor, eval_str=True)
        base = inspect.signature(QSAttnSampler, eval_str=True)
        parameters = [p for p in own.parameters.values() if p.kind is not p.VAR_KEYWORD]
        parameters += [p for name, p in base.parameters.items() if name not in fixed]
        constructor.__signature__ = own.replace(parameters=parameters)
        return subclass

    return complete


@register("sampler", "mixture", tags=("qsattn",))
@_with_arguments_of_base()
class MixtureSampler(QSAttnSampler):
    """Significant positions and random ones side by side, all routed by attention.

    Args:
        share: share of the significant positions in the queries, 0 to 1.
    """

    def __init__(self, *, share: float = 0.5, **arguments: Any):
        if not 0 <= share <= 1:
            raise ValueError(f"share: must lie between 0 and 1, got {share}")
        super().__init__(**arguments)
        self.share = share

    def select(self, significance: Tensor, features: Tensor, generator: torch.Generator | None) -> Tensor:
        n = min(self.queries, significance.shape[1])
        order, significant = uniform(features, generator), round(self.share * n)
        return first_these(select_queries(significance, max(1, significant))[:, :significant], order, n)


@register("sampler", "qsattn_global", tags=("qsattn", "paper"))
@_with_arguments_of_base("attention", "window")
class GlobalSampler(QSAttnSampler):
    """QS-Attn with global attention: entropy of the whole row selects, and the row routes."""

    def __init__(self, **arguments: Any):
        super().__init__(attention="global", window=7, **arguments)


@register("sampler", "qsattn_local", tags=("qsattn", "paper"))
@_with_arguments_of_base("attention", "tile")
class LocalSampler(QSAttnSampler):
    """QS-Attn with local attention: entropy within a window selects, and the window routes."""

    def __init__(self, **arguments: Any):
        super().__init__(attention="local", tile=None, **arguments)


@register("sampler", "qsattn_local_global", tags=("qsattn", "paper"))
@_with_arguments_of_base("attention")
class LocalGlobalSampler(QSAttnSampler):
    """QS-Attn with both: entropy within a window selects, and the global row routes."""

    def __init__(self, **arguments: Any):
        super().__init__(attention="local_global", **arguments)
