"""A running average of a network's weights: steadier than any single step's."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """The exponential moving average of a network; ``average`` is a network of its own, for evaluation.

    Args:
        network: what is averaged.
        decay: the weight of the past at every step, 0 to 1. Early on, less of it, (1 + k) / (10 + k) at step k, so that
            the average does not hang on to the random start.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = network
        self.decay = decay
        self.average = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the network's weights after ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.average.parameters(), self.network.parameters(), strict=True))
        torch._foreach_lerp_([a for a, _ in pairs], [n.detach() for _, n in pairs], 1 - decay)
        for a, n in zip(self.average.buffers(), self.network.buffers(), strict=True):
            a.copy_(n)
