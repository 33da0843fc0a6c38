"""Robustness of translations against noise in the generator's features: SRUNIT (Jia et al., ICCV 2021)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import no_autocast, send
from qsattn_plugin.errors import UserError
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair
from qsattn_plugin.registry import register


@register("objective", "srunit", tags=("contrastive", "regulariser"))
class SRUNIT(ContrastiveObjective):
    """Change of the translation's projections over the noise in the source's features that caused it (Jia et al. 2021).

    At one tap, drawn each time, noise of a random direction and length is added at every position of the source's
    features; the generator goes on from there, and the translation is encoded again. The loss is the mean distance of
    its projections to the source's, over the noise's length. A regulariser, beside another objective: alone it has the
    heads forget everything.

    Args:
        noise: the largest length of the noise.
        start: share of the training before which it is not used.
    """

    identity = False
    detach_positives = False

    def __init__(self, noise: float = 1e-3, start: float = 0.25):
        super().__init__()
        if noise <= 0:
            raise ValueError(f"noise: must be above 0, got {noise}")
        if not 0 <= start <= 1:
            raise ValueError(f"start: must lie between 0 and 1, got {start}")
        self.noise, self.start = noise, start

    def build(self, generator: object, encoder: Any, heads: nn.Module) -> None:
        if not getattr(encoder, "of_generator", False):
            raise UserError("srunit changes the generator's layers: use encoder: {type: generator}")

    def compare(self, pair: Pair) -> Tensor:
        if self.progress < self.start:
            return pair.image.new_zeros((), dtype=torch.float32)
        tap = int(torch.randint(len(pair.taps), (), generator=pair.draws))
        # Noise of a thousandth drowns in half precision.
        with no_autocast(pair.input.device.type):
            clean = pair.source[tap]
            if clean.dtype in (torch.float16, torch.bfloat16):
                clean = pair.generator(pair.input, taps=[pair.taps[tap]], encode_only=True)[0]
            direction, length = self._draw(clean, pair.draws)
            moved = pair.generator(pair.input, change={pair.taps[tap]: direction * length})
            anchors = pair.translation_heads.project(tap, pair.routes[tap](pair.encode(moved)[tap]))
            positives = pair.heads.project(tap, pair.routes[tap](clean))
            distance = ((anchors - positives).square().sum(-1) + 1e-12).sqrt()
            return (distance / pair.routes[tap](length).squeeze(-1)).mean()

    def _draw(self, features: Tensor, draws: torch.Generator) -> tuple[Tensor, Tensor]:
        """Return a unit vector and a length for every position of features (B, C, H, W)."""
        batch, _, height, width = features.shape
        direction = send(torch.randn(features.shape, generator=draws, device=draws.device), features.device)
        direction = direction / (direction.norm(dim=1, keepdim=True) + 1e-12)
        share = send(torch.rand(batch, 1, height, width, generator=draws, device=draws.device), features.device)
        return direction.to(features.dtype), at_least_float32(1e-7 + (self.noise - 1e-7) * share).to(features.dtype)
