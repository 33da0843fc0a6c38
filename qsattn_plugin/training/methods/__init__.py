"""Training methods: CUT and its variants, CycleGAN, and their common base."""

from qsattn_plugin.training.methods.base import Method, Parts

__all__ = ["Method", "Parts"]
