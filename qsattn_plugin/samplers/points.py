"""The base class of samplers, and those without attention: CUT's random positions and a regular grid."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from qsattn_plugin.attention import select_queries
from qsattn_plugin.attention.routes import PointRoute, Route
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import register
from qsattn_plugin.samplers.significance import uniform

__all__ = ["GridSampler", "RandomSampler", "Sampler"]


class Sampler:
    """Base class: calls :meth:`choose_one` for each layer.

    Args:
        queries: N, the number of positions of each feature map.
    """

    def __init__(self, queries: int = 256):
        if queries < 1:
            raise ValueError(f"queries: must be at least 1, got {queries}")
        self.queries = queries

    def choose(
        self,
        features: Sequence[Tensor],
        taps: Sequence[int | str] | None = None,
        generator: torch.Generator | None = None,
        observe: bool = False,
    ) -> list[Route]:
        """Return one route per layer.

        Args:
            features: the source's feature maps, (B, C, H, W) each, or with another number of spatial dimensions.
            taps: their names, in the same order; None numbers them 0, 1, ...
            generator: for random draws, on the features' device or the CPU; None is torch's global one.
            observe: also measure the attention, for the log: ``largest_probability`` and ``entropy_q00`` to
                ``entropy_q100`` in the ``stats`` of attentive routes.

        Returns:
            The routes. ``stats["nonfinite"]`` is true where a layer's source features hold an inf or a nan.

        Raises:
            UserError: the sampler names a tap that is not among ``taps``.
        """
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
