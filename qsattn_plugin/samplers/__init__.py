"""Samplers choose the queries of the contrastive loss: random (CUT), by attention (QS-Attn), a grid, a mixture."""

from qsattn_plugin.samplers.points import GridSampler, RandomSampler, Sampler
from qsattn_plugin.samplers.qsattn import AttendsNowhere, MixtureSampler, QSAttnSampler

__all__ = ["AttendsNowhere", "GridSampler", "MixtureSampler", "QSAttnSampler", "RandomSampler", "Sampler"]
