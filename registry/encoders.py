"""Encoders: they give the features that the contrastive loss compares.

An encoder has two methods. :meth:`translate` returns the translation *and* the features of the source, so that an
encoder inside the generator needs one pass, not two; :meth:`features` encodes any image.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import register
from qsattn_plugin.registry.timm_features import TimmFeatures


@register("encoder", "generator", tags=("cut", "paper"))
class GeneratorEncoder(nn.Module):
    """The first layers of the generator: the papers' encoder, without parameters of its own.

    Where images of the target domain have other channels than the generator takes, they first go through a learned
    1 x 1 convolution, which begins as their mean in every channel.

    Args:
        taps: indices or names of the generator's layers; without it the generator's default taps.
        generator: the generator that is trained; the method gives it.
        in_channels: channels of the images of the source domain; a recipe takes them from ``data.channels``.
        target_channels: those of the target domain; likewise.
    """

    #: Whether its taps are layers of the generator that is trained.
    of_generator: bool = True

    def __init__(
        self,
        taps: tuple[int | str, ...] | None = None,
        generator: nn.Module | None = None,
        in_channels: int = 3,
        target_channels: int | None = None,
    ):
        super().__init__()
        if taps is not None and not taps:
            raise ValueError("taps: must name at least one layer")
        find_taps = getattr(generator, "find_taps", None)
        if generator is not None and find_taps is None:
            raise UserError(
                f"{type(generator).__name__} has no taps: derive it from TappedGenerator "
                "(qsattn_plugin.registry.generators), or use another encoder, such as timm"
            )
        found = find_taps(taps) if find_taps else []
        #: Tap indices, shallow to deep: the names that a sampler's ``taps`` refer to.
        self.taps: list[int] = [tap.index for tap in found]
        #: Channels at each tap: the heads are built from them.
        self.channels: list[int] = [tap.channels for tap in found]
        #: Pixels that one position spans at each tap.
        self.strides: list[int] = [tap.stride for tap in found]
        #: Whether the encoder has weights of its own, to be saved in checkpoints.
        self.saved: bool = target_channels not in (None, in_channels)
        self.in_channels, self.target_channels = in_channels, target_channels or in_channels
        if self.saved:
            self.entrance = nn.Conv2d(self.target_channels, in_channels, 1)
            with torch.no_grad():
                self.entrance.weight.fill_(1 / self.target_channels)
                self.entrance.bias.zero_()  # type: ignore[union-attr]  # it has one

    def translate(self, generator: nn.Module, source: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the translation of ``source`` (B, C, H, W) and the features of ``source``, from one pass."""
        return generator(source, taps=self.taps)

    def features(self, generator: nn.Module, image: Tensor) -> list[Tensor]:
        """Return the features of ``image`` at each tap: maps (B, C, H, W)."""
        if self.saved and image.shape[1] != self.in_channels:
            image = self.entrance(image)
        return generator(image, taps=self.taps, encode_only=True)


@register("encoder", "timm", tags=("frozen",))
class TimmEncoder(TimmFeatures):
    """A timm model with feature maps, which normalises images as it was trained to; frozen or trained."""

    def translate(self, generator: nn.Module, source: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the translation of ``source`` (B, C, H, W) and the features of ``source``."""
        return generator(source), self(source)

    def features(self, generator: nn.Module, image: Tensor) -> list[Tensor]:
        """Return the features of ``image`` at each tap: maps (B, C, H, W). The generator is not used."""
        return self(image)
