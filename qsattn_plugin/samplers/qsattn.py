"""Where the contrastive loss looks: random positions (CUT), query-selected attention (QS-Attn), a grid, a mixture.

A sampler looks at the source's features and chooses one route a layer::

    routes = sampler.choose(source_features, taps=[0, 4, 8, 12, 16])
    anchors = [route(f) for route, f in zip(routes, fake_features)]          # (B, N, C) each
    positives = [route(f) for route, f in zip(routes, source_features)]

Samplers have no parameters and keep no state.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from qsattn_plugin.attention import GlobalAttention, LocalAttention, select_queries
from qsattn_plugin.attention.routes import OwnRoute, PointRoute, Route
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import PartError, find, register
from qsattn_plugin.samplers.points import GridSampler, RandomSampler, Sampler
from qsattn_plugin.samplers.significance import uniform

__all__ = ["AttendsNowhere", "GridSampler", "MixtureSampler", "QSAttnSampler", "RandomSampler", "Sampler"]

#: Without ``taps``, maps of at most this many positions are attended to: the reference's two deepest at 256 x 256.
POSITIONS = 64 * 64

Taps = tuple[int | str, ...] | Literal["all"] | None


class AttendsNowhere(UserWarning):
    """Query-selected attention that looks at no layer, as all are larger than it was told to look at."""


class QSAttnSampler(Sampler):
    """Query-selected attention: the most significant positions, routed by the source's attention.

    Args:
        attention: "global", "local" (within a window), or "local_global" (the window selects, the global row routes).
        significance: registered name of what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross" (the source's rows route both domains), "own" (each domain's features make their own rows at
            the source's queries), or "select" (the queries' own places are gathered).
        taps: names of the layers with attention; "all"; None: those of at most ``positions`` positions. The others'
            queries are random.
        queries: N, how many positions of each map.
        window: the local window's side, odd.
        scale: factor on the dot products; the paper's is 1.
        detach: no gradient flows through the rows into the source's features.
        tile: rows of global attention at a time; None adapts it to the device.
        positions: how large a map may be that is attended to where no taps are named; the default takes the two deepest
            taps at 256 pixels, as the reference does.

    Raises:
        ValueError: an argument out of its range; the message begins with the argument's name.
    """

    def __init__(
        self,
        attention: Literal["global", "local", "local_global"] = "global",
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        taps: Taps = None,
        queries: int = 256,
        window: int = 7,
        scale: float = 1.0,
        detach: bool = False,
        tile: int | None = None,
        positions: int = POSITIONS,
    ):
        super().__init__(queries)
        if positions < 1:
            raise ValueError(f"positions: must be at least 1, got {positions}")
        for name, value, known in (
            ("attention", attention, ("global", "local", "local_global")),
            ("routing", routing, ("cross", "own", "select")),
        ):
            if value not in known:
                raise ValueError(f"{name}: must be one of {', '.join(known)}, got {value!r}{nearest(value, known)}")
        if isinstance(taps, str) and taps != "all":
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
            found = [f.shape[-2] * f.shape[-1] <= self.positions for f in features]
            if features and not any(found):
                smallest = min(f.shape[-2] * f.shape[-1] for f in features)
                warnings.warn(
                    f"no feature map has at most {self.positions} positions (the smallest has {smallest}): all queries "
                    f"are random, which is CUT. Name the sampler's taps, or set its positions",
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
                    f"taps: the sampler is to attend to tap {name}, but the encoder gives the taps "
                    f"{', '.join(taps)}{'' if name.isdigit() else nearest(name, taps)}"
                )
        return [name in wanted for name in taps]

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        with torch.no_grad():
            significance = self._significance(features, self.selector, generator=generator)
            queries = self.select(significance, features, generator)
        shape = features.shape[-2:]
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


@register("sampler", "mixture", tags=("qsattn",))
class MixtureSampler(QSAttnSampler):
    """Significant positions and random ones side by side, all routed by attention.

    Args:
        share: the significant positions' part of the queries, 0 to 1.
        attention: see QSAttnSampler: "global", "local" or "local_global".
        significance: what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross", "own" or "select".
        taps: names of the layers with attention; "all"; None: those of at most ``positions`` positions.
        positions: how large a map may be that is attended to where no taps are named.
        queries: how many positions of each map, significant and random.
        window: the local window's side, odd.
        scale: factor on the dot products.
        detach: no gradient flows through the rows into the source's features.
        tile: rows of global attention at a time; None adapts it to the device.
    """

    def __init__(
        self,
        share: float = 0.5,
        attention: Literal["global", "local", "local_global"] = "global",
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        taps: Taps = None,
        positions: int = POSITIONS,
        queries: int = 256,
        window: int = 7,
        scale: float = 1.0,
        detach: bool = False,
        tile: int | None = None,
    ):
        if not 0 <= share <= 1:
            raise ValueError(f"share: must lie between 0 and 1, got {share}")
        super().__init__(attention, significance, routing, taps, queries, window, scale, detach, tile, positions)
        self.share = share

    def select(self, significance: Tensor, features: Tensor, generator: torch.Generator | None) -> Tensor:
        n = min(self.queries, significance.shape[1])
        order = uniform(features, generator)
        if significant := round(self.share * n):
            # Ranks above every random number keep the significant ones first and in their order.
            ranks = torch.arange(significant + 1, 1, -1, device=order.device, dtype=order.dtype)
            chosen = select_queries(significance, significant)
            order = order.scatter(1, chosen, ranks.expand(order.shape[0], -1))
        return select_queries(order, n)


@register("sampler", "qsattn_global", tags=("qsattn", "paper"))
class GlobalSampler(QSAttnSampler):
    """QS-Attn with global attention: entropy of the whole row selects, and the row routes.

    Args:
        queries: how many positions of each map.
        taps: names of the layers with attention; "all"; None: those of at most ``positions`` positions.
        positions: how large a map may be that is attended to where no taps are named.
        significance: what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross" (the source's rows route both domains), "own" or "select".
        scale: factor on the dot products; the paper's is 1.
        detach: no gradient flows through the rows into the source's features.
        tile: rows at a time; None adapts it to the device.
    """

    def __init__(
        self,
        queries: int = 256,
        taps: Taps = None,
        positions: int = POSITIONS,
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        scale: float = 1.0,
        detach: bool = False,
        tile: int | None = None,
    ):
        super().__init__("global", significance, routing, taps, queries, 7, scale, detach, tile, positions)


@register("sampler", "qsattn_local", tags=("qsattn", "paper"))
class LocalSampler(QSAttnSampler):
    """QS-Attn with local attention: entropy within a window selects, and the window routes.

    Args:
        queries: how many positions of each map.
        taps: names of the layers with attention; "all"; None: those of at most ``positions`` positions.
        positions: how large a map may be that is attended to where no taps are named.
        window: the window's side, odd.
        significance: what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross" (the source's rows route both domains), "own" or "select".
        scale: factor on the dot products; the paper's is 1.
        detach: no gradient flows through the rows into the source's features.
    """

    def __init__(
        self,
        queries: int = 256,
        taps: Taps = None,
        positions: int = POSITIONS,
        window: int = 7,
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        scale: float = 1.0,
        detach: bool = False,
    ):
        super().__init__("local", significance, routing, taps, queries, window, scale, detach, None, positions)


@register("sampler", "qsattn_local_global", tags=("qsattn", "paper"))
class LocalGlobalSampler(QSAttnSampler):
    """QS-Attn with both: entropy within a window selects, and the global row routes.

    Args:
        queries: how many positions of each map.
        taps: names of the layers with attention; "all"; None: those of at most ``positions`` positions.
        positions: how large a map may be that is attended to where no taps are named.
        window: the window's side, odd.
        significance: what ranks positions: "entropy", "max_probability", "norm", "random".
        routing: "cross" (the source's rows route both domains), "own" or "select".
        scale: factor on the dot products; the paper's is 1.
        detach: no gradient flows through the rows into the source's features.
        tile: rows at a time; None adapts it to the device.
    """

    def __init__(
        self,
        queries: int = 256,
        taps: Taps = None,
        positions: int = POSITIONS,
        window: int = 7,
        significance: str = "entropy",
        routing: Literal["cross", "own", "select"] = "cross",
        scale: float = 1.0,
        detach: bool = False,
        tile: int | None = None,
    ):
        super().__init__("local_global", significance, routing, taps, queries, window, scale, detach, tile, positions)
