"""The U-Net generators of pix2pix and CycleGAN: downsampling to one pixel, and upsampling with skip connections.

Taps of a U-Net with n levels, in order:

    0           image       the input itself
    k = 1 .. n  down_k      the output of the k-th downsampling step, before its activation: the skip connection's value
    n + j       up_j        the output of the j-th upsampling step, at the size of down_(n - j), before concatenation
    2 n         output      the translation
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import Tap, TappedGenerator
from qsattn_plugin.registry.layers import Init, Norm, initialise, normalisation
from qsattn_plugin.registry.layers.primitives import Primitive, Skip


class UnetBlock(nn.Module):
    """One downsampling step, the blocks below it, one upsampling step.

    Blocks are nested as in the layer names of pix2pix's checkpoints (``model.1.model.3.model. ...``); by :meth:`down`
    and :meth:`up` the generator runs them in sequence.
    """

    def __init__(self, down: list[nn.Module], inner: UnetBlock | None, up: list[nn.Module]):
        super().__init__()
        self.steps_down = len(down)
        self.model = nn.Sequential(*down, *([inner] if inner is not None else []), *up)

    @property
    def inner(self) -> UnetBlock | None:
        """The next block inwards, None in the innermost."""
        layer = self.model[self.steps_down]
        return layer if isinstance(layer, UnetBlock) else None

    def down(self, x: Tensor) -> Tensor:
        """Return (B, C', H / 2, W / 2) for (B, C, H, W)."""
        return self.model[: self.steps_down](x)

    def up(self, x: Tensor) -> Tensor:
        """Return (B, C', 2 H, 2 W) for (B, C, H, W)."""
        return self.model[self.steps_down + (self.inner is not None) :](x)

    def primitives(self) -> list[Primitive]:
        """Return the layers of this block and of those inside it, in the order in which the generator runs them."""
        layers = list(self.model)
        down, up = layers[: self.steps_down], layers[self.steps_down + (self.inner is not None) :]
        if self.inner is None:
            return [*down, *up]
        return [*down, Skip.FORK, *self.inner.primitives(), Skip.CONCATENATE, *up]


class UnetGenerator(TappedGenerator):
    """A U-Net that halves the image ``levels`` times.

    ``state_dict`` keys are those of pix2pix's and CycleGAN's ``UnetGenerator`` without dropout.

    Args:
        width: channels of the first level; they double up to eight times as many.
        norm: "instance", "batch" (pix2pix's) or "none".
    """

    levels: int = 8
    #: At 256 pixels: 256, 128, 64 and 32 positions a side.
    default_taps = (0, 1, 2, 3)

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "instance",
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
        out_channels: int = 3,
    ):
        super().__init__()
        at_least(1, width=width)
        make_norm = normalisation(norm)
        bias = norm == "instance"
        channels = [width * min(2**level, 8) for level in range(self.levels)]
        block: UnetBlock | None = None
        for level in reversed(range(self.levels)):
            first, innermost = level == 0, level == self.levels - 1
            outside = in_channels if first else channels[level - 1]
            down: list[nn.Module] = [] if first else [nn.LeakyReLU(0.2)]
            down.append(nn.Conv2d(outside, channels[level], 4, stride=2, padding=1, bias=bias))
            # The innermost level has a single position at the intended size, and so no variance to normalise.
            down += [] if first or innermost else [make_norm(channels[level])]
            gathered = channels[level] * (1 if innermost else 2)  # concatenated with the skip connection
            if first:
                up = [nn.ReLU(), nn.ConvTranspose2d(gathered, out_channels, 4, stride=2, padding=1), nn.Tanh()]
            else:
                conv = nn.ConvTranspose2d(gathered, outside, 4, stride=2, padding=1, bias=bias)
                up = [nn.ReLU(), conv, make_norm(outside)]
            block = UnetBlock(down, block, up)
        self.model = block
        initialise(self, init, init_gain)

        self.multiple = 2**self.levels
        self.taps = [Tap(0, "image", in_channels, 1)]
        self.taps += [Tap(k + 1, f"down_{k + 1}", channels[k], 2 ** (k + 1)) for k in range(self.levels)]
        for j, k in enumerate(reversed(range(self.levels)), start=1):
            name = f"up_{j}" if k else "output"
            self.taps.append(Tap(self.levels + j, name, channels[k - 1] if k else out_channels, 2**k))

    def _layers(
        self, x: Tensor, wanted: Collection[int], change: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        self.check_sides(x)
        index = 0
        x = x + change[index] if change and index in change else x
        yield index, x
        blocks, skips = [], []
        block: UnetBlock | None = self.model
        while block is not None:
            index += 1
            x = block.down(x) + change[index] if change and index in change else block.down(x)
            yield index, x
            blocks.append(block)
            skips.append(x)
            block = block.inner
        skips.pop()
        for block in reversed(blocks):
            index += 1
            x = block.up(x) + change[index] if change and index in change else block.up(x)
            yield index, x
            if skips:
                x = torch.cat([skips.pop(), x], 1)

    def _primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`forward` runs."""
        return self.model.primitives()


@register("generator", "unet_256", tags=("unet", "pix2pix", "cyclegan"))
class Unet256(UnetGenerator):
    """U-Net with eight levels, for images whose sides are multiples of 256 pixels."""


@register("generator", "unet_128", tags=("unet", "pix2pix", "cyclegan"))
class Unet128(UnetGenerator):
    """U-Net with seven levels, for images whose sides are multiples of 128 pixels."""

    levels = 7


@register("generator", "unet_64", tags=("unet", "small"))
class Unet64(UnetGenerator):
    """U-Net with six levels, for small pictures whose sides are multiples of 64 pixels."""

    levels = 6
