"""Colour augmentation."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor

from qsattn_plugin.registry import register
from qsattn_plugin.registry.augmentations import Augmentation, check_share


@register("augmentation", "colour", tags=("colour", "diffaugment"))
class Colour(Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order, each image by itself.

    Grey images have brightness and contrast alone, and a channel of transparency stays as it is. Values that leave
    [-1, 1] are cut off.

    Args:
        brightness: factors from 1 - brightness to 1 + brightness.
        contrast: factors from 1 - contrast to 1 + contrast.
        saturation: factors from 1 - saturation to 1 + saturation.
        hue: turn of the colour circle to either side at most; 0.5 is half of it.
        p: the probability, for each image by itself.
    """

    def __init__(
        self,
        brightness: float = 0.2,
        contrast: float = 0.2,
        saturation: float = 0.2,
        hue: float = 0.0,
        p: float = 1.0,
    ):
        for name, value in (("brightness", brightness), ("contrast", contrast), ("saturation", saturation)):
            check_share(name, value)
        check_share("hue", hue, 0, 0.5)
        super().__init__(K.ColorJitter(brightness, contrast, saturation, hue, p=check_share("p", p)))

    def _apply_kornia(self, x: Tensor, params: dict[str, Tensor] | None) -> Tensor:
        colours = 1 if x.shape[1] < 3 else 3
        unit = ((x[:, :colours] + 1) / 2).clamp(0, 1)
        out = super()._apply_kornia(unit.expand(-1, 3, -1, -1), params)
        return torch.cat([out[:, :colours].clamp(0, 1) * 2 - 1, x[:, colours:]], dim=1)
