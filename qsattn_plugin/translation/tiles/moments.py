"""Mean and variance of a map that comes tile by tile."""

from __future__ import annotations

import torch
from torch import Tensor

#: Positions that are averaged in the map's own precision, float32 at least; the averages are combined in float64.
_CHUNK = 4096


class Moments:
    """Mean and variance of every channel over all positions added so far (Chan, Golub and LeVeque 1983).

    ``mean`` and ``variance`` (biased, as norms use it) are float64 on the CPU, each (C,).
    """

    def __init__(self, channels: int):
        self.count = 0
        self.mean = torch.zeros(channels, dtype=torch.float64, device="cpu")
        self._squares = torch.zeros(channels, dtype=torch.float64, device="cpu")

    @property
    def variance(self) -> Tensor:
        return self._squares / self.count

    def add(self, x: Tensor) -> None:
        """Add the positions of (1, C, h, w)."""
        lines = x[0].permute(1, 2, 0).reshape(-1, x.shape[1])
        whole = len(lines) // _CHUNK * _CHUNK
        for part in (lines[:whole].view(-1, _CHUNK, x.shape[1]), lines[None, whole:]):
            if part.numel():
                self._add_chunks(part)

    def _add_chunks(self, chunks: Tensor) -> None:
        """Add (K, n, C): K chunks of n positions."""
        chunks = chunks if chunks.dtype == torch.float64 else chunks.float()
        means = chunks.mean(1)
        squares = torch.stack([(c - m).square_().sum(0) for c, m in zip(chunks, means, strict=True)])
        means, squares = means.cpu().double(), squares.cpu().double()
        n = chunks.shape[1] * len(chunks)
        mean = means.mean(0)
        inside = squares.sum(0) + chunks.shape[1] * (means - mean).square().sum(0)
        difference, total = mean - self.mean, self.count + n
        self.mean += difference * n / total
        self._squares += inside + difference.square() * self.count * n / total
        self.count = total
