"""Hard negatives and semantic relations between patches: hDCE and SRC (Jung, Kwon and Ye, CVPR 2022)."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from qsattn_plugin.errors import above, one_of
from qsattn_plugin.losses.contrastive import PatchObjective, without_diagonal
from qsattn_plugin.registry import register


@register("objective", "hdce", tags=("contrastive", "hneg-src"))
class HDCE(PatchObjective):
    """Contrast without the positive in the denominator, hard negatives weighing more (hDCE, Jung et al. 2022).

    A negative's weight is the softmax of its similarity to the positive over ``gamma``, the largest of each row 1. The
    loss is log sum exp(negatives / temperature) - positive / temperature.

    Args:
        temperature: divides the similarities.
        negatives: "internal" takes negatives from the same image (the paper's), "batch" from all images of the batch.
        detach_positives: no gradient flows through the positives, as in CUT.
        gamma: temperature of the weights at the first step: large is uniform.
        gamma_end: at the last step; in between it changes linearly. The paper's curriculum on horse2zebra is 50 to 10.
        release: share of the training after which ``gamma`` is 1 (the authors' code on Cityscapes: 0.5); null is never.
        weighting: "similarity" multiplies the negatives' similarities with the weights, as the authors' code does;
            "density" multiplies their exponentials, normalised to a mean of 1: the paper's equation 9.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
        gamma: float = 50.0,
        gamma_end: float = 10.0,
        release: float | None = None,
        weighting: Literal["similarity", "density"] = "similarity",
    ):
        super().__init__(temperature, negatives, detach_positives)
        above(0, gamma=gamma, gamma_end=gamma_end)
        if release is not None and not 0 <= release <= 1:
            raise ValueError(f"release: must lie between 0 and 1, got {release}")
        one_of(("similarity", "density"), weighting=weighting)
        self.gamma, self.gamma_end, self.release, self.weighting = gamma, gamma_end, release, weighting

    def each(self, anchors: Tensor, positives: Tensor) -> Tensor:
        similarities = torch.bmm(anchors, positives.transpose(1, 2))
        gamma = self.gamma + (self.gamma_end - self.gamma) * self.progress
        if self.release is not None and self.progress > self.release:
            gamma = 1.0
        with torch.no_grad():
            relations = without_diagonal(torch.bmm(positives, positives.transpose(1, 2)) / gamma)
            weights = (relations - relations.amax(-1, keepdim=True)).exp()
            density = relations.log_softmax(-1) + math.log(relations.shape[-1] - 1)
        scores = similarities / self.temperature
        scores = scores * weights if self.weighting == "similarity" else scores + density
        negatives = without_diagonal(scores).logsumexp(-1)
        return negatives - similarities.diagonal(dim1=1, dim2=2) / self.temperature


@register("objective", "src", tags=("contrastive", "hneg-src"))
class SRC(PatchObjective):
    """Jensen-Shannon divergence between the patches' relations in source and translation (SRC, Jung et al. 2022).

    The relations of a patch are the softmax of its similarities to all patches of its own image. The divergences are
    summed over the patches, as in the paper's equation 4; a recipe weighs the sum (0.05 on horse2zebra).

    Args:
        negatives: "internal" relates the patches of the same image, "batch" those of all images of the batch.
        detach_positives: no gradient flows through the source's relations, as in the authors' code.
    """

    identity = False

    def __init__(self, negatives: Literal["internal", "batch"] = "internal", detach_positives: bool = True):
        super().__init__(1.0, negatives, detach_positives)

    def each(self, anchors: Tensor, positives: Tensor) -> Tensor:
        p, q = (torch.bmm(x, x.transpose(1, 2)).log_softmax(-1) for x in (anchors, positives))
        middle = torch.logaddexp(p, q) - math.log(2)
        divergence = 0.5 * (p.exp() * (p - middle) + q.exp() * (q - middle)).sum(-1)
        return divergence * divergence.shape[-1]  # so that the mean over the anchors is the sum
