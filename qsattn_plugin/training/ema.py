"""The exponential moving average of a network's weights."""

from __future__ import annotations

import copy

import torch
from torch import nn


class EMA:
    """Keeps the exponential moving average of a network; ``average`` is a copy of the network with these weights.

    Args:
        network: the network to average.
        decay: the weight of the past at every step, 0 to 1. At step k it is at most (1 + k) / (10 + k), so that the
            average forgets the random initialisation.
    """

    def __init__(self, network: nn.Module, decay: float):
        self.network = network
        self.decay = decay
        self.average = copy.deepcopy(network).requires_grad_(False).eval()

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average after ``step`` (counted from 0)."""
        decay = min(self.decay, (1 + step) / (10 + step))
        pairs = list(zip(self.average.parameters(), self.network.parameters(), strict=True))
        torch._foreach_lerp_([a for a, _ in pairs], [n.detach() for _, n in pairs], 1 - decay)
        for a, n in zip(self.average.buffers(), self.network.buffers(), strict=True):
            a.copy_(n)
