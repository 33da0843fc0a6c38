"""A ResNet generator of depthwise separable convolutions, for processors without an accelerator.

Most of its arithmetic is 1 x 1 convolutions at a quarter of the image's side, which are matrix products; at full size,
where memory bandwidth limits the speed, it has only few channels.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import Tap, TappedGenerator, adds
from qsattn_plugin.registry.layers import Downsample, Init, Norm, Upsample, initialise, normalisation
from qsattn_plugin.registry.layers.memory_saving import FusedSequential
from qsattn_plugin.registry.layers.primitives import Primitive, Skip


def _depthwise(channels: int, stride: int = 1) -> list[nn.Module]:
    """Return a depthwise 3 x 3 convolution with padding; no bias, because the norm after it would cancel it."""
    return [nn.ReflectionPad2d(1), nn.Conv2d(channels, channels, 3, stride=stride, groups=channels, bias=False)]


class MobileBlock(nn.Module):
    """Two depthwise separable convolutions and a skip connection."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        make_norm = normalisation(norm)
        bias = norm == "none"
        self.conv_block = nn.Sequential(
            *_depthwise(channels),
            nn.Conv2d(channels, channels, 1, bias=bias),
            make_norm(channels),
            nn.ReLU(),
            *_depthwise(channels),
            nn.Conv2d(channels, channels, 1, bias=bias),
            make_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)

    def primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`forward` runs."""
        return [Skip.FORK, *self.conv_block, Skip.ADD]


@register("generator", "mobile_resnet_9blocks", tags=("resnet", "mobile", "small"))
class MobileResnet9Blocks(TappedGenerator):
    """ResNet generator with nine depthwise separable blocks: a twelfth of the papers' arithmetic, for CPUs.

    The idea of separable residual blocks is that of Li et al. 2020 (GAN Compression). The stem takes 2 x 2 pixels as
    twelve channels. Layer indices are the taps: 0 image, 1 stem, 2 down_1, 3 to 11 block_1 to block_9, 12 up_1,
    13 up_2, 14 output.

    Args:
        width: channels of the stem; the blocks have four times as many.
        norm: "instance" (the papers'), "batch" or "none".
        antialias: downsample by a fixed blur; without it by learned filters.
        antialias_up: upsample by interpolation; without it by pixel shuffling.
        residual: add the output of the last layer to the input image; without, that output is the translation.
        init: distribution of the initial weights: "xavier" (CUT), "normal" (CycleGAN), "kaiming" or "orthogonal".
            Depthwise filters always keep the scale of their input: with the others' scale their output would vanish.
        init_gain: scale of that distribution. The last layer of a residual generator has 0.3 of it.
        in_channels: channels of the input images; a recipe takes them from ``data.channels``.
        out_channels: channels of the output images; likewise.
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
        if width < 4:
            raise ValueError(f"width: must be at least 4, got {width}")
        self.residual = adds(residual, in_channels, out_channels)
        make_norm = normalisation(norm)
        bias = norm == "none"
        model: list[nn.Module] = []
        self.taps = []

        def add(*layers: nn.Module, name: str, channels: int, stride: int) -> None:
            self.taps.append(Tap(len(model), name, channels, stride))
            model.append(layers[0] if len(layers) == 1 else nn.Sequential(*layers))

        def pointwise(before: int, after: int) -> nn.Conv2d:
            return nn.Conv2d(before, after, 1, bias=bias)

        def double(before: int, after: int) -> list[nn.Module]:
            # Interpolating after the convolution, with fewer channels, is cheaper and gives the same result.
            if antialias_up:
                return [pointwise(before, after), Upsample(after)]
            return [pointwise(before, 4 * after), nn.PixelShuffle(2)]

        deep, thin = 4 * width, width // 4
        add(nn.PixelUnshuffle(2), name="image", channels=4 * in_channels, stride=2)
        stem = nn.Conv2d(4 * in_channels, width, 3, bias=bias)
        add(nn.ReflectionPad2d(1), stem, make_norm(width), nn.ReLU(), name="stem", channels=width, stride=2)
        halve = [Downsample(width)] if antialias else _depthwise(width, stride=2)
        add(*halve, pointwise(width, deep), make_norm(deep), nn.ReLU(), name="down_1", channels=deep, stride=4)
        for block in range(1, self.blocks + 1):
            add(MobileBlock(deep, norm), name=f"block_{block}", channels=deep, stride=4)
        sharpen = _depthwise(width)
        add(*double(deep, width), *sharpen, make_norm(width), nn.ReLU(), name="up_1", channels=width, stride=2)
        add(*double(width, thin), make_norm(thin), nn.ReLU(), name="up_2", channels=thin, stride=1)
        paint = nn.Conv2d(thin, out_channels, 5)
        bound = [] if residual else [nn.Tanh()]
        add(nn.ReflectionPad2d(2), paint, *bound, name="output", channels=out_channels, stride=1)
        self.model = FusedSequential(*model)

        initialise(self, init, init_gain)
        with torch.no_grad():
            for layer in self.modules():
                if isinstance(layer, nn.Conv2d) and layer.groups > 1:
                    layer.weight.normal_(0.0, 1 / 3)  # nine weights keep the variance of the input
            if residual:  # small at first
                paint.weight *= 0.3
