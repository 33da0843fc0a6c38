"""Ways to train: CUT and its family, CycleGAN, and what they have in common."""

from qsattn_plugin.training.methods.base import Method, Parts

__all__ = ["Method", "Parts"]
