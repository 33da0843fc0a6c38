"""Samplers choose the queries of the contrastive loss: random (CUT), by attention (QS-Attn), a grid, and others."""

from qsattn_plugin.samplers.points import GridSampler, GuidedSampler, RandomSampler, Sampler
from qsattn_plugin.samplers.qsattn import AttendsNowhere, MixtureSampler, QSAttnSampler

__all__ = [
    "AttendsNowhere",
    "GridSampler",
    "GuidedSampler",
    "MixtureSampler",
    "QSAttnSampler",
    "RandomSampler",
    "Sampler",
]
