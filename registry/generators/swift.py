"""A ResNet generator for fast training on CPUs: it works at an eighth of the side and predicts a residual.

All but the first and last layers run at an eighth of the image's side, where few dense convolutions have a large
receptive field and a CPU is used well; pixels are rearranged to channels and back (space to depth). The output is added
to the image, whose detail therefore need not be reproduced.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

import torch
from torch import Tensor, nn

from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import Tap, TappedGenerator, adds
from qsattn_plugin.registry.layers import Init, Norm, Upsample, initialise, normalisation
from qsattn_plugin.registry.layers.primitives import Primitive, Skip


class PlainBlock(nn.Module):
    """Two 3 x 3 convolutions with zero padding and a skip connection."""

    def __init__(self, channels: int, norm: Norm):
        super().__init__()
        make_norm = normalisation(norm)
        bias = norm == "none"
        self.conv_block = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
            make_norm(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, padding=1, bias=bias),
            make_norm(channels),
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)

    def primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`forward` runs."""
        return [Skip.FORK, *self.conv_block, Skip.ADD]


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
        init: distribution of the initial weights: "xavier" (CUT), "normal" (CycleGAN), "kaiming" or "orthogonal".
        init_gain: scale of that distribution. The last layer has a tenth of it, so that the initial residual is small.
        in_channels: channels of the input images; a recipe takes them from ``data.channels``.
        out_channels: channels of the output images; likewise.
    """

    blocks: int = 6
    multiple = 8
    default_taps = ("image", "stem", "down_1", "block_2", "block_4")

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "none",
        residual: bool | None = None,
        init: Init = "orthogonal",
        init_gain: float = 1.0,
        in_channels: int = 3,
        out_channels: int = 3,
    ):
        super().__init__()
        if width < 1:
            raise ValueError(f"width: must be at least 1, got {width}")
        equal = in_channels == out_channels
        self.residual = adds(equal if residual is None else residual, in_channels, out_channels)
        make_norm = normalisation(norm)
        bias = norm == "none"
        deep = 2 * width
        model: list[nn.Module] = []
        self.taps = []

        def add(*layers: nn.Module, name: str, channels: int, stride: int) -> None:
            self.taps.append(Tap(len(model), name, channels, stride))
            model.append(layers[0] if len(layers) == 1 else nn.Sequential(*layers))

        def conv(before: int, after: int, size: int = 3, stride: int = 1) -> list[nn.Module]:
            layer = nn.Conv2d(before, after, size, stride=stride, padding=size // 2, bias=bias)
            return [layer, make_norm(after), nn.ReLU()]

        add(nn.PixelUnshuffle(4), name="image", channels=16 * in_channels, stride=4)
        add(*conv(16 * in_channels, width), name="stem", channels=width, stride=4)
        add(*conv(width, deep, stride=2), name="down_1", channels=deep, stride=8)
        for block in range(1, self.blocks + 1):
            add(PlainBlock(deep, norm), name=f"block_{block}", channels=deep, stride=8)
        add(*conv(deep, width, size=1), Upsample(width), name="up_1", channels=width, stride=4)
        # Predicted at half the side and interpolated: rearranged to full size, it would show a grid pattern.
        paint = nn.Conv2d(width, 4 * out_channels, 3, padding=1)
        enlarge = [nn.PixelShuffle(2), Upsample(out_channels), *([] if self.residual else [nn.Tanh()])]
        add(*conv(width, width), paint, *enlarge, name="output", channels=out_channels, stride=1)
        self.model = nn.Sequential(*model)

        initialise(self, init, init_gain)
        with torch.no_grad():
            paint.weight *= 0.1

    def _layers(self, x: Tensor, wanted: Collection[int]) -> Iterator[tuple[int, Tensor]]:
        if x.shape[-2] % self.multiple or x.shape[-1] % self.multiple:
            height, width = x.shape[-2:]
            raise ValueError(
                f"this generator takes sides that are multiples of {self.multiple}, got {height} x {width}"
            )
        stem = x
        for index, layer in enumerate(self.model):
            x = layer(x)
            name = self.taps[index].name
            if name == "stem":
                stem = x
            elif name == "up_1":
                x = stem + x
            yield index, x

    def _primitives(self) -> list[Primitive]:
        unshuffle, stem, *inner, output = self.model
        return [unshuffle, stem, Skip.FORK, *inner, Skip.ADD, output]
