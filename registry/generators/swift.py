"""A ResNet generator for fast training on CPUs: it works at an eighth of the side and predicts a residual.

All but the first and last layers run at an eighth of the image's side, where few dense convolutions have a large
receptive field and a CPU is used well; pixels are rearranged to channels and back (space to depth). The output is added
to the image, whose detail therefore need not be reproduced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import ResidualBlock, TappedGenerator, adds, chained
from qsattn_plugin.registry.layers import Init, Norm, Upsample, normalisation
from qsattn_plugin.registry.layers.primitives import Primitive, Skip


@register("generator", "swift_resnet_6blocks", tags=("resnet", "residual", "small"))
class SwiftResnet6Blocks(TappedGenerator):
    """ResNet generator with six blocks at an eighth of the side, which predicts a residual: for CPUs.

    Layer indices are the taps: 0 image (4 x 4 pixels as channels), 1 stem, 2 down_1, 3 to 8 block_1 to block_6, 9 up_1
    (joined by the stem), 10 output.

    Args:
        width: channels of the stem; the blocks have twice as many.
        norm: "instance" (the papers'), "batch" or "none". Without one, the network sees absolute colours,
            and a crop is translated like the image it was cut from.
        residual: add the output of the last layer to the input image; without, that output is the translation. By
            default it is added if the images have as many output as input channels.
        mask: predict a mask too, and mix image and output by it instead of adding them (as Mejjati et al. 2018): what
            lies in the image, such as stripes, can then be painted over, where a sum has to cancel it.
        init_gain: scale of the initial weights' distribution. The last layer has a tenth of it, so that the initial
            residual is small.
    """

    blocks: int = 6
    multiple = 8
    default_taps = ("image", "stem", "down_1", "block_2", "block_4")

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "none",
        residual: bool | None = None,
        mask: bool = False,
        init: Init = "orthogonal",
        init_gain: float = 1.0,
        in_channels: int = 3,
        out_channels: int = 3,
    ):
        super().__init__()
        at_least(1, width=width)
        if mask and residual is False:
            raise ValueError("mask: mixes the output with the image, so residual cannot be false")
        self.mask = mask
        wanted = mask or in_channels == out_channels if residual is None else residual
        self.residual = adds(wanted, in_channels, out_channels, "mask" if mask else "residual")
        make_norm = normalisation(norm)
        bias = norm == "none"
        deep = 2 * width

        def conv(before: int, after: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=bias)
            return [layer, make_norm(after), nn.ReLU()]

        def block() -> list[nn.Module]:
            first, (second, norm_after, _) = conv(deep, deep), conv(deep, deep)
            return [ResidualBlock(nn.Sequential(*first, second, norm_after))]

        # Predicted at half the side and interpolated: rearranged to full size, it would show a grid pattern.
        painted = out_channels + mask
        paint = nn.Conv2d(width, 4 * painted, 3, padding=1)
        bound = [] if self.residual else [nn.Tanh()]
        layers: dict[str, list[nn.Module]] = {
            "image": [nn.PixelUnshuffle(4)],
            "stem": conv(16 * in_channels, width),
            "down_1": conv(width, deep, stride=2),
            **{f"block_{i + 1}": block() for i in range(self.blocks)},
            "up_1": [*conv(deep, width, size=1), Upsample(width)],
            "output": [*conv(width, width), paint, nn.PixelShuffle(2), Upsample(painted), *bound],
        }
        self.finish(*chained(layers), in_channels, init, init_gain)
        self.taps[-1] = self.taps[-1]._replace(channels=out_channels)  # joined with the image, without the mask
        with torch.no_grad():
            paint.weight *= 0.1
            if mask:
                assert paint.bias is not None
                paint.bias[-4:] = -2.0  # sigmoid 0.12: the image nearly as it is, with a gradient

    def _layers(
        self, x: Tensor, wanted: Collection[int], change: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        self.check_sides(x)
        stem = x
        for index, layer in enumerate(self.model):
            x = layer(x) + change[index] if change and index in change else layer(x)
            name = self.taps[index].name
            if name == "stem":
                stem = x
            elif name == "up_1":
                x = stem + x
            yield index, x

    def _primitives(self) -> list[Primitive]:
        unshuffle, stem, *inner, output = self.model
        return [unshuffle, stem, Skip.FORK, *inner, Skip.ADD, output]
