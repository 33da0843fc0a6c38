"""The base class of samplers, and those without attention: CUT's random positions and a regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.attention import select_queries
from qsattn_plugin.attention.routes import PointRoute, Route
from qsattn_plugin.errors import UserError, at_least
from qsattn_plugin.registry import register
from qsattn_plugin.samplers.significance import uniform

__all__ = ["GridSampler", "GuidedSampler", "RandomSampler", "Sampler"]


class Sampler:
    """Base class: calls :meth:`choose_one` for each layer.

    Args:
        queries: N, the number of positions of each feature map.
    """

    #: Whether it needs the discriminator's scores of the translation.
    guided: bool = False

    def __init__(self, queries: int = 256):
        at_least(1, queries=queries)
        self.queries = queries

    def choose(
        self,
        features: Sequence[Tensor],
        taps: Sequence[int | str] | None = None,
        generator: torch.Generator | None = None,
        observe: bool = False,
        scores: Tensor | None = None,
    ) -> list[Route]:
        """Return one route per layer.

        Args:
            features: the source's feature maps, (B, C, H, W) each, or with another number of spatial dimensions.
            taps: their names, in the same order; None numbers them 0, 1, ...
            generator: for random draws, on the features' device or the CPU; None is torch's global one.
            observe: also measure the attention, for the log: ``largest_probability`` and ``entropy_q00`` to
                ``entropy_q100`` in the ``stats`` of attentive routes.
            scores: the discriminator's scores of the translation, (B, 1, h, w), larger is more real; only ``guided``
                samplers look at them.

        Returns:
            The routes. ``stats["nonfinite"]`` is true where a layer's source features hold an inf or a nan.

        Raises:
            UserError: the features are no list, the sampler names a tap that is not among ``taps``, or it is guided and
                gets no scores.
        """
        if isinstance(features, Tensor):
            what = f"features: must be a list of feature maps, one a layer, got one tensor {tuple(features.shape)}"
            raise UserError(f"{what}; write [features]")
        if self.guided and scores is None:
            raise UserError(f"{type(self).__name__} needs the discriminator's scores, which only a training gives it")
        self.scores: Any = scores
        names = [str(t) for t in (range(len(features)) if taps is None else taps)]
        if len(names) != len(features):
            raise UserError(f"got {len(features)} feature maps, but {len(names)} tap names: {', '.join(names)}")
        attentive = self.attentive(features, names)
        routes = []
        for one, attends in zip(features, attentive, strict=True):
            route = self.choose_one(one, generator, observe) if attends else self.random_route(one, generator)
            low, high = one.detach().aminmax()
            route.stats["nonfinite"] = ~(low.isfinite() & high.isfinite())
            routes.append(route)
        return routes

    def attentive(self, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]:
        """Return for each layer whether :meth:`choose_one` chooses its route; the others get random positions.

        Raises:
            UserError: the sampler names a tap that is not among ``taps``.
        """
        return [True] * len(features)

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        """Return the route of one layer with features (B, C, H, W)."""
        raise NotImplementedError

    def random_route(self, features: Tensor, generator: torch.Generator | None) -> Route:
        """Return a route of random positions of the features (B, C, H, W): different for each image, none twice."""
        return PointRoute(select_queries(uniform(features, generator), self.queries), features.shape[2:])


def first_these(chosen: Tensor, order: Tensor, n: int) -> Tensor:
    """Return n positions (B, n): the chosen ones (B, m) in their order, then those of largest ``order`` (B, HW) < 1."""
    # Ranks above every number of the order.
    ranks = torch.arange(chosen.shape[1] + 1, 1, -1, device=order.device, dtype=order.dtype)
    return select_queries(order.scatter(1, chosen, ranks.expand(len(order), -1)), n)


@register("sampler", "random", tags=("cut",))
class RandomSampler(Sampler):
    """Random positions, different for each image, none twice: what CUT does for batches of one.

    CUT draws one list for all images of a larger batch.
    """

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        return self.random_route(features, generator)


@register("sampler", "grid")
class GridSampler(Sampler):
    """A regular grid of positions, the same in every image and step: at most ``queries``, as fits rows and columns."""

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        sizes = features.shape[2:]
        queries = torch.zeros(1, dtype=torch.long, device=features.device)
        for n, size in zip(_grid(sizes, self.queries), sizes, strict=True):
            centres = (2 * torch.arange(n, device=features.device) + 1) * size // (2 * n)  # of n equal parts
            queries = (queries.unsqueeze(1) * size + centres).flatten()
        return PointRoute(queries.expand(features.shape[0], -1), sizes)


@register("sampler", "guided", tags=("enco", "dag"))
class GuidedSampler(Sampler):
    """Positions that the discriminator finds least real, and random ones: EnCo's DAG sampling (Cai et al. 2024).

    Of ``oversample`` times as many random positions as are wanted, those with the lowest scores of the translation are
    taken; the rest is random. No position is taken twice.

    Args:
        queries: number of positions of each feature map.
        oversample: random positions that are ranked, as a factor on ``queries``.
        random: share of random positions in the queries, 0 to 1.
    """

    guided = True

    def __init__(self, queries: int = 256, oversample: int = 4, random: float = 0.5):
        super().__init__(queries)
        at_least(1, oversample=oversample)
        if not 0 <= random <= 1:
            raise ValueError(f"random: must lie between 0 and 1, got {random}")
        self.oversample, self.random = oversample, random

    def choose_one(self, features: Tensor, generator: torch.Generator | None, observe: bool) -> Route:
        shape = features.shape[2:]
        drawn = uniform(features, generator)
        n = min(self.queries, drawn.shape[1])
        guided = n - int(n * self.random)
        linear = {1: "linear", 2: "bilinear", 3: "trilinear"}.get(len(shape))
        if linear is None:
            raise UserError(f"guided sampling takes maps of 1 to 3 spatial dimensions, got {len(shape)}")
        scores = F.interpolate(self.scores.float(), shape, mode=linear).flatten(1)
        seen = select_queries(drawn, n * self.oversample)
        lowest = seen.gather(1, select_queries(-scores.gather(1, seen), max(1, guided))[:, :guided])
        return PointRoute(first_these(lowest, uniform(features, generator), n), shape)


def _grid(sizes: Sequence[int], most: int) -> list[int]:
    """Return how many positions of a grid lie along each dimension: about equally far apart, ``most`` in all."""
    first, *others = sizes
    if not others:
        return [min(first, most)]
    fair = most * first ** len(others) // math.prod(others)  # to the power of the number of dimensions
    root = round(fair ** (1 / len(sizes)))
    count = min(first, max(1, root - (root ** len(sizes) > fair)), most)
    along = _grid(others, most // count)
    return [min(first, most // math.prod(along)), *along]
