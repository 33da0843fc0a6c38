"""Robustness of translations against noise in the generator's features: SRUNIT (Jia et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import no_autocast, send
from qsattn_plugin.errors import UserError, above
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair
from qsattn_plugin.registry import register


@register("objective", "srunit", tags=("contrastive", "regulariser"))
class SRUNIT(ContrastiveObjective):
    """Distance to the source of its translation with noise in its features, a regulariser (SRUNIT, Jia et al. 2021).

    At one tap, drawn each time, noise of a random direction and length is added at every position of the source's
    features; the generator goes on from there, and the translation is encoded again. The loss is the mean distance of
    its projections to the source's, each over the noise's length. It belongs beside another objective: alone, heads
    that forget everything would be its minimum.

    Args:
        noise: the largest length of the noise.
        start: share of the training before which it is not used.
    """

    identity = False

    def __init__(self, noise: float = 1e-3, start: float = 0.25):
        super().__init__()
        above(0, noise=noise)
        if not 0 <= start <= 1:
            raise ValueError(f"start: must lie between 0 and 1, got {start}")
        self.noise, self.start = noise, start

    def build(self, generator: object, encoder: Any, heads: nn.Module) -> None:
        if not getattr(encoder, "of_generator", False):
            raise UserError("srunit changes the generator's layers: use encoder: {type: generator}")

    def compare(self, pair: Pair) -> Tensor:
        if self.progress < self.start:
            return pair.image.float().sum() * 0  # of the graph: it may be the only loss
        tap = int(torch.randint(len(pair.taps), (), generator=pair.draws))
        route, source = pair.routes[tap], pair.source[tap]
        direction, length = self.draw(source, pair.draws)
        with no_autocast(source.device.type):  # noise of a thousandth drowns in half precision
            moved = pair.generator(pair.input, change={pair.taps[tap]: direction * length})
            anchors = pair.translation_heads.project(tap, route(pair.encode(moved)[tap]))
            positives = pair.heads.project(tap, route(source))
            distance = ((anchors - positives).square().sum(-1) + 1e-12).sqrt()
            return (distance / route.detach()(length).squeeze(-1)).mean()

    def draw(self, features: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a unit vector and a length for every position of features (B, C, H, W), in float32 at least."""
        dtype = at_least_float32(features).dtype
        direction = torch.randn(features.shape, generator=draws, device=draws.device, dtype=dtype)
        share = torch.rand(*features[:, :1].shape, generator=draws, device=draws.device, dtype=dtype)
        direction, share = send(direction, features.device), send(share, features.device)
        return direction / (direction.norm(dim=1, keepdim=True) + 1e-12), 1e-7 + (self.noise - 1e-7) * share
