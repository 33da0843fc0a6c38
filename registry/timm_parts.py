"""Parts on top of timm: an encoder for the contrastive loss, and a discriminator that looks at frozen features."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.nn.utils.parametrizations import spectral_norm

from qsattn_plugin.registry import register
from qsattn_plugin.registry.layers import initialise
from qsattn_plugin.registry.timm_features import TimmFeatures


@register("encoder", "timm", tags=("frozen",))
class TimmEncoder(TimmFeatures):
    """Any timm model with feature maps, with its own mean and deviation, frozen or trained.

    Args:
        model: a timm name such as "convnext_tiny" or "swin_tiny_patch4_window7_224".
        taps: levels of the model, as timm's ``out_indices``; without them those with a stride up to 16.
        pretrained: download the weights that timm names, or take them from its cache; else they are random.
        weights: a file with weights instead, ``.safetensors`` or a state_dict that ``torch.save`` wrote.
        trained: train the model together with the generator; else it is frozen.
        size: the side of the images in pixels; a recipe takes it from ``data.crop``.
        in_channels: channels of the images, 3 or 1; a recipe takes them from ``data.channels``.
    """

    def translate(self, generator: nn.Module, source: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the translation of ``source`` (B, C, H, W) and the features of ``source``."""
        return generator(source), self(source)

    def features(self, generator: nn.Module, image: Tensor) -> list[Tensor]:
        """Return the features of ``image`` at each tap: maps (B, C, H, W). The generator is not asked."""
        return self(image)


@register("discriminator", "timm", tags=("frozen",))
class TimmDiscriminator(nn.Module):
    """Small trained heads on the frozen features of a timm model, after Sauer et al. 2021 (projected GANs).

    Returns a list of score maps, one a tap. Heads have spectral norm; features are used as they are, without the
    paper's random mixing across levels.

    Args:
        model: a timm name such as "efficientnet_lite0".
        taps: levels of the model, as timm's ``out_indices``; without them those with a stride up to 16.
        pretrained: download the weights that timm names, or take them from its cache; else they are random.
        weights: a file with weights instead, ``.safetensors`` or a state_dict that ``torch.save`` wrote.
        width: channels inside each head.
        size: the side of the images in pixels; a recipe takes it from ``data.crop``.
        in_channels: channels of the images, 3 or 1; a recipe takes them from ``data.channels``.
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
        super().__init__()
        if width < 1:
            raise ValueError(f"width: must be at least 1, got {width}")
        self.features = TimmFeatures(model, taps, pretrained, weights, False, size, in_channels)
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
        for head in self.heads:
            for layer in head:
                if isinstance(layer, nn.Conv2d):
                    spectral_norm(layer)

    def forward(self, x: Tensor) -> list[Tensor]:
        return [head(features) for head, features in zip(self.heads, self.features(x), strict=True)]
