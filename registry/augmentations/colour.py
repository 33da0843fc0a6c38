"""Colour augmentation."""

from __future__ import annotations

import kornia.augmentation as K
import torch
from torch import Tensor

from qsattn_plugin.registry import register
from qsattn_plugin.registry.augmentations import Augmentation, check_share


@register("augmentation", "colour", tags=("colour", "diffaugment"))
class Colour(Augmentation):
    """Changes brightness, contrast, saturation and hue, in random order, for each image independently.

    Grey images only change in brightness and contrast, and an alpha channel, the last of two or four, stays unchanged.
    Images of more channels have no colours that this could change, and are refused. Values are clipped to [-1, 1].

    Args:
        brightness: factors from 1 - brightness to 1 + brightness.
        contrast: factors from 1 - contrast to 1 + contrast.
        saturation: factors from 1 - saturation to 1 + saturation.
        hue: largest rotation of the colour circle to either side; 0.5 is half of it.
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

    def _check(self, x: Tensor) -> None:
        if x.shape[1] > 4:
            raise ValueError(f"colour: changes grey and RGB, not {x.shape[1]} channels; use another, or none")

    def _apply_kornia(self, x: Tensor) -> Tensor:
        colours = 1 if x.shape[1] < 3 else 3
        unit = ((x[:, :colours] + 1) / 2).clamp(0, 1)
        out = super()._apply_kornia(unit.expand(-1, 3, -1, -1))
        return torch.cat([out[:, :colours].clamp(0, 1) * 2 - 1, x[:, colours:]], dim=1)
