"""Negatives made by a network that is trained against the loss: NEGCUT (Wang et al., ICCV 2021)."""

from __future__ import annotations

import copy

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import no_autocast, send
from qsattn_plugin.errors import above, at_least
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair, check_positions
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import register


@register("objective", "negcut", tags=("contrastive",))
class NEGCUT(ContrastiveObjective):
    """Contrast against negatives that a small network makes to be hard and diverse (NEGCUT, Wang et al. 2021).

    For each tap a two-layer MLP maps noise and the mean of the source's projections, by a moving average of the heads,
    to as many negatives as there are anchors. It is trained to raise the loss, and to spread its negatives apart.

    Args:
        temperature: divides the similarities.
        diversity: weight of the mean distance between two halves of the negatives, for the network that makes them.
        noise: numbers of noise that each negative is made from.
        momentum: share of the past in the moving average of the heads, a step.
        init_gain: scale of the network's Xavier initialisation.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        diversity: float = 1.0,
        noise: int = 64,
        momentum: float = 0.9,
        init_gain: float = 0.02,
    ):
        super().__init__()
        above(0, temperature=temperature)
        at_least(1, noise=noise)
        at_least(0, diversity=diversity, init_gain=init_gain)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum: must be at least 0 and below 1, got {momentum}")
        self.temperature, self.diversity, self.noise, self.momentum = temperature, diversity, noise, momentum
        self.init_gain = init_gain

    def build(self, generator: nn.Module, encoder: object, heads: nn.Module) -> None:
        assert isinstance(heads, ProjectionHeads)
        self.followed = [heads]  # in a list, so that it is not a module of this one
        self.slow = copy.deepcopy(heads).requires_grad_(False)
        self.makers = ProjectionHeads([heads.width + self.noise] * heads.count, heads.width, self.init_gain)

    def compare(self, pair: Pair) -> Tensor:
        losses, against, spread = [], [], []
        for anchors, positives, negatives in zip(pair.anchors, pair.positives, self.negatives(pair), strict=True):
            losses.append(self.cross_entropy(anchors, positives, negatives.detach()))
            against.append(self.cross_entropy(anchors.detach(), positives, negatives))
            check_positions(negatives.shape[1], 2)
            half = negatives.shape[1] // 2
            spread.append((negatives[:, :half] - negatives[:, half : 2 * half]).abs().mean())
        pair.own["negatives"] = -torch.stack(against).mean() - self.diversity * torch.stack(spread).mean()
        return torch.stack(losses).mean()

    def negatives(self, pair: Pair) -> list[Tensor]:
        """Return as many negatives as anchors, unit vectors (B, N, width), one tensor a tap."""
        with torch.no_grad():
            every = self.slow([f.flatten(2).transpose(1, 2) for f in pair.source])
            inputs = []
            for features, anchors in zip(every, pair.anchors, strict=True):
                batch, count = anchors.shape[:2]
                noise = torch.randn(batch, count, self.noise, generator=pair.draws, device=pair.draws.device)
                mean = features.mean(1, keepdim=True).expand(-1, count, -1)
                inputs.append(torch.cat([mean, send(noise, mean.device).to(mean.dtype)], -1))
        return self.makers(inputs)

    def cross_entropy(self, anchors: Tensor, positives: Tensor, negatives: Tensor) -> Tensor:
        """Return the mean loss of anchors and positives (B, N, C) against negatives (B, M, C)."""
        with no_autocast(anchors.device.type):
            anchors, positives, negatives = map(at_least_float32, (anchors, positives.detach(), negatives))
            positive = (anchors * positives).sum(-1, keepdim=True)
            logits = torch.cat([positive, torch.bmm(anchors, negatives.transpose(1, 2))], -1) / self.temperature
            return F.cross_entropy(logits.flatten(0, 1), logits.new_zeros(logits.shape[:2], dtype=torch.long).flatten())

    @torch.no_grad()
    def after_step(self) -> None:
        for slow, heads in zip(self.slow.parameters(), self.followed[0].parameters(), strict=True):
            slow.lerp_(heads, 1 - self.momentum)
