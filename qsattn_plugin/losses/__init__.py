"""Objectives: adversarial losses, and the contrastive ones of the CUT line."""

from qsattn_plugin.losses.adversarial import LSGAN, WGANGP, AdversarialLoss, HingeGAN, VanillaGAN
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair, PatchNCE

__all__ = [
    "LSGAN",
    "WGANGP",
    "AdversarialLoss",
    "ContrastiveObjective",
    "HingeGAN",
    "Pair",
    "PatchNCE",
    "VanillaGAN",
]
