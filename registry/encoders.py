"""Encoders: where the features that the contrastive loss compares come from.

An encoder is asked in two ways. :meth:`translate` makes the picture *and* the source's features, so that an encoder
that lives inside the generator pays for one pass, not two; :meth:`features` encodes any image.
"""

from __future__ import annotations

from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import register
from qsattn_plugin.registry.timm_features import TimmFeatures


@register("encoder", "generator", tags=("cut", "paper"))
class GeneratorEncoder(nn.Module):
    """The generator's own layers on the way in: the papers' encoder, without a parameter of its own.

    Args:
        taps: indices or names of the generator's layers; the generator's default ones without it.
        generator: the generator that is trained; given by the method.
    """

    def __init__(self, taps: tuple[int | str, ...] | None = None, generator: nn.Module | None = None):
        super().__init__()
        if taps is not None and not taps:
            raise ValueError("taps: must name at least one layer")
        if generator is not None and not hasattr(generator, "find_taps"):
            raise UserError(
                f"{type(generator).__name__} does not say which of its layers there are to look at: derive it from "
                "TappedGenerator (qsattn_plugin.registry.generators), or take another encoder, such as timm"
            )
        found = generator.find_taps(taps) if generator is not None else []
        #: Tap indices, shallow to deep: the names that a sampler's ``taps`` refer to.
        self.taps: list[int] = [tap.index for tap in found]
        #: Channels at each tap: the heads are built from them.
        self.channels: list[int] = [tap.channels for tap in found]
        #: Pixels that one position spans at each tap.
        self.strides: list[int] = [tap.stride for tap in found]
        #: Whether the encoder has weights of its own that belong into checkpoints.
        self.saved: bool = False

    def translate(self, generator: nn.Module, source: Tensor) -> tuple[Tensor, list[Tensor]]:
        """Return the translation of ``source`` (B, C, H, W) and the features of ``source``, from one pass."""
        return generator(source, taps=self.taps)

    def features(self, generator: nn.Module, image: Tensor) -> list[Tensor]:
        """Return the features of ``image`` at each tap: maps (B, C, H, W)."""
        return generator(image, taps=self.taps, encode_only=True)


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
