"""Negatives modulated by optimal transport: MoNCE (Zhan et al., CVPR 2022)."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qsattn_plugin.errors import above, one_of
from qsattn_plugin.losses.contrastive import PatchObjective, without_diagonal
from qsattn_plugin.registry import register

#: Of Sinkhorn's algorithm, as in the authors' code.
ITERATIONS = 50


@register("objective", "monce", tags=("contrastive",))
class MoNCE(PatchObjective):
    """PatchNCE with negatives weighed by optimal transport from anchors to positives (MoNCE, Zhan et al. 2022).

    The transport plan has rows and columns that sum to 1, and nothing between an anchor and its own positive; a
    negative's exponential is multiplied by its share times N - 1 times ``strength``.

    Args:
        temperature: divides the similarities.
        negatives: "internal" takes negatives from the same image (the paper's), "batch" from all images of the batch.
        detach_positives: no gradient flows through the positives, as in CUT.
        cost: "hard" weighs similar negatives more (the paper's for unpaired images), "easy" dissimilar ones (for paired
            images), "mixed" in between.
        mix: share of the easy cost where ``cost`` is mixed; at 0.5 all negatives weigh the same.
        eps: the transport's entropic regularisation; small is sharp. The authors' code has 1.0, on horse2zebra 0.1.
        strength: factor on the negatives, Q in the paper.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
        cost: Literal["hard", "easy", "mixed"] = "hard",
        mix: float = 0.25,
        eps: float = 1.0,
        strength: float = 1.0,
    ):
        super().__init__(temperature, negatives, detach_positives)
        if not 0 <= mix <= 1:
            raise ValueError(f"mix: must lie between 0 and 1, got {mix}")
        if eps < 0.03:  # exp(-2 / eps) must stay above float32's smallest number
            raise ValueError(f"eps: must be at least 0.03, got {eps}")
        above(0, strength=strength)
        one_of(("hard", "easy", "mixed"), cost=cost)
        self.easy = {"hard": 0.0, "easy": 1.0, "mixed": mix}[cost]
        self.eps, self.strength = eps, strength

    def each(self, anchors: Tensor, positives: Tensor) -> Tensor:
        similarities = torch.bmm(anchors, positives.transpose(1, 2))
        # The positives' side of the transport is fixed; the anchors get its gradient too, as in the authors' code.
        cost = similarities if self.detach_positives else torch.bmm(anchors, positives.detach().transpose(1, 2))
        plan = transport(without_diagonal((1 - 2 * self.easy) * cost / self.eps))
        weights = plan * ((plan.shape[-1] - 1) * self.strength) + 1e-8
        diagonal = torch.eye(plan.shape[-1], dtype=torch.bool, device=plan.device)
        logits = similarities / self.temperature + weights.log().masked_fill(diagonal, 0.0)
        return logits.logsumexp(-1) - logits.diagonal(dim1=1, dim2=2)


def transport(logits: Tensor) -> Tensor:
    """Return exp(logits), (b, n, n), scaled so that rows and columns sum to 1 (Sinkhorn's algorithm)."""
    kernel = (logits - logits.detach().amax(-1, keepdim=True)).exp()  # a factor on a row changes nothing
    columns = torch.ones_like(kernel[:, 0])
    rows = columns
    for _ in range(ITERATIONS):
        rows = 1 / (kernel @ columns.unsqueeze(-1)).squeeze(-1)
        columns = 1 / (rows.unsqueeze(1) @ kernel).squeeze(1)
    return rows.unsqueeze(-1) * kernel * columns.unsqueeze(1)
