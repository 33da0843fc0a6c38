"""Augmentations for discriminators: shifts and holes (Zhao et al. 2020, differentiable augmentation).

Applied to real and translated images alike, they keep a discriminator from memorising a small data set; gradients flow
through them to the generator.
"""

from __future__ import annotations

import kornia.augmentation as K

from qsattn_plugin.registry import register
from qsattn_plugin.registry.augmentations import Augmentation, check_share


@register("augmentation", "translation", tags=("diffaugment",))
class Translation(Augmentation):
    """Shifts images by whole pixels; the area outside is mid-grey.

    Args:
        share: largest shift to either side, as a share of the image's side.
    """

    def __init__(self, share: float = 0.125, p: float = 1.0):
        check_share("share", share)
        # Nearest, because interpolation blurs, and a generator would learn to compensate for the blur.
        part = K.RandomTranslate((-share, share), (-share, share), resample="nearest", p=check_share("p", p))
        super().__init__(part)


@register("augmentation", "cutout", tags=("diffaugment",))
class Cutout(Augmentation):
    """Covers a square at a random position with mid-grey.

    Args:
        share: the square's side as a share of the image's.
    """

    def __init__(self, share: float = 0.5, p: float = 1.0):
        area = check_share("share", share) ** 2
        p = check_share("p", p) if area else 0.0  # kornia would still cover one pixel
        super().__init__(K.RandomErasing(scale=(area, area), ratio=(1.0, 1.0), value=0.0, p=p))
