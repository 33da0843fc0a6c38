"""Measures of significance: registered functions of a source feature map; larger is more significant.

A significance is ``fn(features (B, C, H, W), attention, generator=None) -> (B, HW)``; ``attention`` is the sampler's
:class:`~qsattn_plugin.attention.GlobalAttention` or :class:`~qsattn_plugin.attention.LocalAttention`, ``generator`` the
random generator of the run. It is called without gradient. A recipe can name a new one once it is registered::

    @register("significance", "variance")
    def variance(features, attention, generator=None):
        '''Channels differ most.'''
        return features.var(dim=1).flatten(1)
"""

from __future__ import annotations

import torch
from torch import Tensor

from qsattn_plugin.attention import GlobalAttention, LocalAttention
from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import send
from qsattn_plugin.registry import register

__all__ = ["entropy", "max_probability", "norm", "random", "uniform"]


@register("significance", "entropy", tags=("attention",))
def entropy(
    features: Tensor, attention: GlobalAttention | LocalAttention, generator: torch.Generator | None = None
) -> Tensor:
    """Small entropy of the attention row, the paper's choice; ranked by -log H, (B, HW)."""
    return -attention.log_entropy(features)


@register("significance", "max_probability", tags=("attention",))
def max_probability(
    features: Tensor, attention: GlobalAttention | LocalAttention, generator: torch.Generator | None = None
) -> Tensor:
    """Large largest probability of the attention row; ranked by its log-odds, (B, HW)."""
    return attention.log_odds(features)


@register("significance", "norm")
def norm(
    features: Tensor, attention: GlobalAttention | LocalAttention, generator: torch.Generator | None = None
) -> Tensor:
    """Large Euclidean norm of the features, (B, HW), without attention."""
    return at_least_float32(features).flatten(2).norm(dim=1)


@register("significance", "random")
def random(
    features: Tensor, attention: GlobalAttention | LocalAttention, generator: torch.Generator | None = None
) -> Tensor:
    """All positions equally likely, drawn anew for each image, (B, HW) in [0, 1)."""
    return uniform(features, generator)


def uniform(features: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """Return uniform random numbers in [0, 1), (B, HW), one for each position of the features (B, C, H, W).

    They are drawn on the generator's device, so that a CPU generator gives the same numbers for every device.
    """
    shape = (features.shape[0], features.shape[2:].numel())
    device = features.device if generator is None else generator.device
    return send(torch.rand(shape, generator=generator, device=device), features.device)
