"""What only a discriminator should see: shifts and holes (Zhao et al. 2020, differentiable augmentation).

Applied to real and translated images alike, they keep a discriminator from learning few images by heart, and gradients
reach the generator through them.
"""

from __future__ import annotations

import kornia.augmentation as K

from qsattn_plugin.registry import register
from qsattn_plugin.registry.augmentations import Augmentation, check_share


@register("augmentation", "translation", tags=("diffaugment",))
class Translation(Augmentation):
    """Shifts images by whole pixels and fills up with mid-grey.

    Args:
        share: shift to either side at most, as a share of the image's side.
        p: the probability, for each image by itself.
    """

    def __init__(self, share: float = 0.125, p: float = 1.0):
        check_share("share", share)
        # Nearest, because interpolated shifts blur, and a generator would learn to make up for the blur.
        part = K.RandomTranslate((-share, share), (-share, share), resample="nearest", p=check_share("p", p))
        super().__init__(part)


@register("augmentation", "cutout", tags=("diffaugment",))
class Cutout(Augmentation):
    """Covers a square in a random place with mid-grey.

    Args:
        share: the square's side as a share of the image's.
        p: the probability, for each image by itself.
    """

    def __init__(self, share: float = 0.5, p: float = 1.0):
        area = check_share("share", share) ** 2
        p = check_share("p", p) if area else 0.0  # kornia would still cover one pixel
        super().__init__(K.RandomErasing(scale=(area, area), ratio=(1.0, 1.0), value=0.0, p=p))
