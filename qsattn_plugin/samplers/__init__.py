"""Where the contrastive loss looks: random positions (CUT), query-selected attention (QS-Attn), a grid, a mixture."""

from qsattn_plugin.samplers.points import GridSampler, RandomSampler, Sampler
from qsattn_plugin.samplers.qsattn import AttendsNowhere, MixtureSampler, QSAttnSampler

__all__ = ["AttendsNowhere", "GridSampler", "MixtureSampler", "QSAttnSampler", "RandomSampler", "Sampler"]
