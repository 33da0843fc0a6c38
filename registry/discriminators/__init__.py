"""Discriminators: images (B, C, H, W) in [-1, 1] to a map with a score per patch, or to a list of such maps."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register
from qsattn_plugin.registry.layers import Downsample, Init, Norm, initialise, normalisation
from qsattn_plugin.registry.layers.memory_saving import FusedSequential


class Discriminator(nn.Module):
    """Base class of these discriminators. Arguments that they share:

    Args:
        width: channels of the first layer.
        norm: "instance" (the papers'), "batch" or "none".
        init: distribution of the initial weights: "xavier" (CUT), "normal" (CycleGAN), "kaiming" or "orthogonal".
        init_gain: scale of that distribution.
        size: the side of the images in pixels; a recipe takes it from ``data.crop``.
        in_channels: channels of the images; a recipe takes them from ``data.channels``.
    """


@register("discriminator", "patchgan", tags=("cut", "cyclegan", "pix2pix"))
class PatchGAN(Discriminator):
    """Scores overlapping patches, 70 x 70 pixels with the default three layers (Isola et al. 2017).

    ``state_dict`` keys are those of CUT's and CycleGAN's ``NLayerDiscriminator``.

    Args:
        layers: downsampling steps; each doubles the patch size and the channels (up to eight times ``width``).
        antialias: blur when downsampling, as CUT does; CycleGAN uses strides only.
        shrink: factor by which images are downsampled first (means over squares of pixels): patches are larger by this
            factor, the arithmetic is less, and the finest detail is not seen.
    """

    def __init__(
        self,
        layers: int = 3,
        width: int = 64,
        norm: Norm = "instance",
        antialias: bool = True,
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
        shrink: int = 1,
    ):
        super().__init__()
        at_least(1, layers=layers, width=width, shrink=shrink)
        self.shrink = shrink
        # The last two convolutions remove a pixel each, and the score map needs at least one.
        self.smallest = 3 * 2**layers * shrink
        make_norm = normalisation(norm)
        bias = norm != "batch"
        model: list[nn.Module] = []
        channels = in_channels
        for level in range(layers):
            out = width * min(2**level, 8)
            first = level == 0  # without normalisation, as in the papers, and so with a bias
            model.append(nn.Conv2d(channels, out, 4, stride=1 if antialias else 2, padding=1, bias=bias or first))
            model += [] if first else [make_norm(out)]
            model.append(nn.LeakyReLU(0.2))
            model += [Downsample(out)] if antialias else []
            channels = out
        out = width * min(2**layers, 8)
        model += [nn.Conv2d(channels, out, 4, padding=1, bias=bias), make_norm(out), nn.LeakyReLU(0.2)]
        model.append(nn.Conv2d(out, 1, 4, padding=1))
        self.model = FusedSequential(*model)
        initialise(self, init, init_gain)

    def forward(self, x: Tensor) -> Tensor:
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"layers: this PatchGAN needs images of at least {self.smallest} pixels a side, "
                f"got {tuple(x.shape[-2:])}; set fewer layers, or a smaller shrink"
            )
        x = F.avg_pool2d(x, self.shrink) if self.shrink > 1 else x
        return self.model(x)


@register("discriminator", "pixel", tags=("pix2pix", "cyclegan", "cut"))
class PixelGAN(Discriminator):
    """Scores each pixel by its colour alone (Isola et al. 2017).

    ``state_dict`` keys are those of pix2pix's and CUT's ``PixelDiscriminator``.

    Args:
        width: channels of the first layer; the second has twice as many.
    """

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "instance",
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
    ):
        super().__init__()
        at_least(1, width=width)
        bias = norm == "instance"
        self.net = nn.Sequential(
            nn.Conv2d(in_channels, width, 1),
            nn.LeakyReLU(0.2),
            nn.Conv2d(width, 2 * width, 1, bias=bias),
            normalisation(norm)(2 * width),
            nn.LeakyReLU(0.2),
            nn.Conv2d(2 * width, 1, 1, bias=bias),
        )
        initialise(self, init, init_gain)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


@register("discriminator", "multi_scale", tags=("pix2pixhd",))
class MultiScale(Discriminator):
    """Several patch discriminators, each on the image at half the size of the last (Wang et al. 2018).

    Returns a list of score maps, the finest first.

    Args:
        scales: number of discriminators.
        layers: downsampling steps in each, as in ``patchgan``.
        antialias: blur when downsampling, as in ``patchgan``.
    """

    def __init__(
        self,
        scales: int = 3,
        layers: int = 3,
        width: int = 64,
        norm: Norm = "instance",
        antialias: bool = True,
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
    ):
        super().__init__()
        at_least(1, scales=scales)
        self.scales = nn.ModuleList(
            PatchGAN(layers, width, norm, antialias, init, init_gain, in_channels) for _ in range(scales)
        )
        # The last two convolutions of a PatchGAN remove a pixel each, and the score map needs at least one.
        self.smallest = 3 * 2 ** (layers + scales - 1)

    def forward(self, x: Tensor) -> list[Tensor]:
        if min(x.shape[-2:]) < self.smallest:
            raise ValueError(
                f"scales: {len(self.scales)} scales need images of at least {self.smallest} pixels a side, "
                f"got {tuple(x.shape[-2:])}"
            )
        scores = []
        for index, patchgan in enumerate(self.scales):
            if index:
                # The padding is not part of the means: it would darken the border.
                x = F.avg_pool2d(x, 3, stride=2, padding=1, count_include_pad=False)
            scores.append(patchgan(x))
        return scores
