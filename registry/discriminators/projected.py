"""Discriminators with a frozen pretrained network: small trained heads on its features."""

from __future__ import annotations

import itertools
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register
from qsattn_plugin.registry.discriminators import Discriminator
from qsattn_plugin.registry.layers import initialise
from qsattn_plugin.registry.timm_features import TimmFeatures


class OnTimmFeatures(Discriminator):
    """Small trained heads on the frozen features of a timm model; a subclass adds the heads. It returns a list of maps.

    Args:
        model: a timm name such as "efficientnet_lite0".
        taps: levels of the model, as timm's ``out_indices``; without them those with a stride up to 16.
        pretrained: load timm's weights, downloaded or from its cache; otherwise they are random.
        weights: a file with weights instead, ``.safetensors`` or a state_dict that ``torch.save`` wrote.
        width: channels of each head.
        in_channels: channels of the images; a recipe takes them from ``data.channels``.
    """

    def __init__(
        self,
        model: str,
        taps: tuple[int, ...] | None,
        pretrained: bool,
        weights: Path | None,
        width: int,
        size: int | None,
        in_channels: int,
        deepest: int | None = None,
    ):
        super().__init__()
        at_least(1, width=width)
        self.features = TimmFeatures(
            model, taps, pretrained, weights, size=size, in_channels=in_channels, deepest=deepest
        )


@register("discriminator", "projected", tags=("frozen", "timm"))
class Projected(OnTimmFeatures):
    """Scores frozen timm features, mixed at random across channels and scales (Sauer et al. 2021, Projected GANs).

    Features of each level go through a fixed random 1 x 1 convolution; from coarse to fine, each level is then added
    to the next one after a fixed random 3 x 3 convolution and bilinear enlargement. Only one small head with spectral
    norm per level is trained. The random convolutions follow from the run's seed and are saved in its checkpoints.
    Returns a list of score maps, one per level, the finest first. The paper's loss is ``objective: {gan: hinge}``.

    Args:
        taps: levels of the model, as timm's ``out_indices``; without them its four coarsest.
        pretrained: load timm's weights, downloaded or from its cache; ``false`` asks for random ones.
        weights: a file with weights instead, whatever ``pretrained`` says: ``.safetensors``, or a state_dict that
            ``torch.save`` wrote.
        width: channels of each head, and of the finest mixed level; coarser levels have up to four times as many.
    """

    def __init__(
        self,
        model: str = "tf_efficientnet_lite0",
        taps: tuple[int, ...] | None = None,
        pretrained: bool | None = None,
        weights: Path | None = None,
        width: int = 64,
        size: int | None = None,
        in_channels: int = 3,
    ):
        if pretrained is None and weights is None:
            raise ValueError(
                "pretrained: the features must be those of a trained network: set pretrained: true to download timm's "
                f"weights of {model}, or weights: FILE to load them from a file"
            )
        # A recipe that downloads is extended where there is no network: the file alone has to be said there.
        download = bool(pretrained) and weights is None
        super().__init__(model, taps, download, weights, width, size, in_channels, deepest=4)
        levels = [width * min(2**i, 4) for i in range(len(self.features.channels))]
        self.across_channels = nn.ModuleList(
            nn.Conv2d(before, after, 1) for before, after in zip(self.features.channels, levels, strict=True)
        )
        self.across_scales = nn.ModuleList(
            nn.Conv2d(coarse, fine, 3, padding=1) for fine, coarse in itertools.pairwise(levels)
        )
        for mixing in (*self.across_channels, *self.across_scales):
            nn.init.kaiming_normal_(mixing.weight, a=1)  # keeps the variance: no activation follows
            nn.init.zeros_(mixing.bias)
            mixing.requires_grad_(False)
        self.heads = nn.ModuleList(
            nn.Sequential(
                spectral_norm(nn.Conv2d(channels, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, width, 3, padding=1)),
                nn.LeakyReLU(0.2),
                spectral_norm(nn.Conv2d(width, 1, 1)),
            )
            for channels in levels
        )

    def forward(self, x: Tensor) -> list[Tensor]:
        if min(x.shape[-2:]) < (least := max(self.features.strides)) and not self.features.fixed_size:
            raise ValueError(
                f"taps: level {self.features.taps[-1]} of the network needs images of at least {least} pixels a side, "
                f"got {tuple(x.shape[-2:])}; use finer levels"
            )
        mixed = [mix(level) for mix, level in zip(self.across_channels, self.features(x), strict=True)]
        for fine in range(len(mixed) - 2, -1, -1):
            coarse = self.across_scales[fine](mixed[fine + 1])
            coarse = F.interpolate(coarse, mixed[fine].shape[-2:], mode="bilinear")
            mixed[fine] = (mixed[fine] + coarse) * 0.5**0.5
        return [head(level) for head, level in zip(self.heads, mixed, strict=True)]


@register("discriminator", "timm", tags=("frozen",))
class TimmDiscriminator(OnTimmFeatures):
    """Small trained heads on the frozen features of a timm model, after Sauer et al. 2021 (projected GANs).

    Returns a list of score maps, one per tap. Heads have spectral norm; features are used directly, without the paper's
    random mixing across levels.
    """

    def __init__(
        self,
        model: str,
        taps: tuple[int, ...] | None = None,
        pretrained: bool = False,
        weights: Path | None = None,
        width: int = 64,
        size: int | None = None,
        in_channels: int = 3,
    ):
        super().__init__(model, taps, pretrained, weights, width, size, in_channels)
        self.heads = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(channels, width, 1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, width, 3, padding=1),
                nn.LeakyReLU(0.2),
                nn.Conv2d(width, 1, 1),
            )
            for channels in self.features.channels
        )
        initialise(self.heads, gain=1.0)  # spectral norm sets the scale
        for layer in list(self.heads.modules()):
            if isinstance(layer, nn.Conv2d):
                spectral_norm(layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(features) for head, features in zip(self.heads, self.features(x), strict=True)]
