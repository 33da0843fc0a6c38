"""A ResNet generator of depthwise separable convolutions, for processors without an accelerator.

Most of its arithmetic is 1 x 1 convolutions at a quarter of the image's side, which are matrix products; at full size,
where memory bandwidth limits the speed, it has only few channels.
"""

from __future__ import annotations

import torch
from torch import nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import ResidualBlock, TappedGenerator, adds, chained
from qsattn_plugin.registry.layers import Downsample, Init, Norm, Upsample, normalisation


def _depthwise(channels: int, stride: int = 1) -> list[nn.Module]:
    """Return a depthwise 3 x 3 convolution with padding; no bias, because the norm after it would cancel it."""
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, stride=stride, groups=channels, bias=False)]


class MobileBlock(ResidualBlock):
    """Two depthwise separable convolutions and a skip connection."""

    def __init__(self, channels: int, norm: Norm):
        def half() -> list[nn.Module]:
            pointwise = nn.Conv2d(channels, channels, 1, bias=norm == "none")
            return [*_depthwise(channels), pointwise, normalisation(norm)(channels)]

        super().__init__(nn.Sequential(*half(), nn.ReLU(), *half()))


@register("generator", "mobile_resnet_9blocks", tags=("resnet", "mobile", "small"))
class MobileResnet9Blocks(TappedGenerator):
    """ResNet generator with nine depthwise separable blocks: a twelfth of the papers' arithmetic, for CPUs.

    The idea of separable residual blocks is that of Li et al. 2020 (GAN Compression). The stem takes 2 x 2 pixels as
    twelve channels. Layer indices are the taps: 0 image, 1 stem, 2 down_1, 3 to 11 block_1 to block_9, 12 up_1,
    13 up_2, 14 output.

    Args:
        width: channels of the stem; the blocks have four times as many.
        antialias: downsample by a fixed blur; without it by learned filters.
        antialias_up: upsample by interpolation; without it by pixel shuffling.
        residual: add the output of the last layer to the input image; without, that output is the translation.
        init: distribution of the initial weights: "xavier" (CUT), "normal" (CycleGAN), "kaiming" or "orthogonal".
            Depthwise filters always keep the scale of their input: with the others' scale their output would vanish.
        init_gain: scale of that distribution. The last layer of a residual generator has 0.3 of it.
    """

    blocks: int = 9
    default_taps = ("image", "stem", "down_1", "block_1", "block_5")

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "instance",
        antialias: bool = True,
        antialias_up: bool = True,
        residual: bool = False,
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
        out_channels: int = 3,
    ):
        super().__init__()
        at_least(4, width=width)
        self.residual = adds(residual, in_channels, out_channels)
        make_norm = normalisation(norm)
        bias = norm == "none"

        def pointwise(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 1, bias=bias)

        def double(before: int, after: int) -> list[nn.Module]:
            # Interpolating after the convolution, with fewer channels, is cheaper and gives the same result.
            if antialias_up:
                return [pointwise(before, after), Upsample(after)]
            return [pointwise(before, 4 * after), nn.PixelShuffle(2)]

        deep, thin = 4 * width, width // 4
        stem = nn.Conv2d(4 * in_channels, width, 3, bias=bias)
        halve = [Downsample(width)] if antialias else _depthwise(width, stride=2)
        paint = nn.Conv2d(thin, out_channels, 5)
        layers: dict[str, list[nn.Module]] = {
            "image": [nn.PixelUnshuffle(2)],
            "stem": [nn.ReflectionPad2d(1), stem, make_norm(width), nn.ReLU()],
            "down_1": [*halve, pointwise(width, deep), make_norm(deep), nn.ReLU()],
            **{f"block_{i + 1}": [MobileBlock(deep, norm)] for i in range(self.blocks)},
            "up_1": [*double(deep, width), *_depthwise(width), make_norm(width), nn.ReLU()],
            "up_2": [*double(width, thin), make_norm(thin), nn.ReLU()],
            "output": [nn.ReflectionPad2d(2), paint, *([] if residual else [nn.Tanh()])],
        }
        self.finish(*chained(layers), in_channels, init, init_gain)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    layer.weight.normal_(0.0, 1 / 3)  # nine weights keep the variance of the input
            if residual:  # small at first
                paint.weight *= 0.3
