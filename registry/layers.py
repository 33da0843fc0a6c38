"""Layers that the networks share: antialiased resampling, normalisation by name, initialisation.

They are called and laid out as CUT's and CycleGAN's are, so that `state_dict` keys and shapes agree with checkpoints of
both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Norm = Literal["instance", "batch", "none"]
Init = Literal["xavier", "normal", "kaiming", "orthogonal"]


def _blur_kernel(row: tuple[float, ...], gain: float, channels: int) -> Tensor:
    """The outer product of ``row`` with itself, normalised to sum to ``gain``, once a channel: (C, 1, k, k)."""
    line = torch.tensor(row)
    kernel = line[:, None] * line[None, :]
    return (kernel * (gain / kernel.sum())).expand(channels, 1, -1, -1).contiguous()


class Downsample(nn.Module):
    """Blur with [1, 2, 1] and keep every second place (Zhang 2019, antialiased convolutional networks).

    (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2)).
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _blur_kernel((1.0, 2.0, 1.0), 1.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), self.filt.to(x.dtype), stride=2, groups=x.shape[1])


class Upsample(nn.Module):
    """Double the size with the [1, 3, 3, 1] filter: (B, C, H, W) to (B, C, 2H, 2W).

    That filter with a repeated border *is* bilinear interpolation between pixel centres, which every backend has as one
    fast kernel; CUT computes it as a grouped transposed convolution. The buffer stays because its checkpoints hold it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _blur_kernel((1.0, 3.0, 3.0, 1.0), 4.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


def normalisation(name: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor of a normalisation layer, from the number of channels."""
    return {
        "instance": lambda channels: nn.InstanceNorm2d(channels, affine=False, track_running_stats=False),
        "batch": lambda channels: nn.BatchNorm2d(channels),
        "none": lambda channels: nn.Identity(),
    }[name]


def initialise(network: nn.Module, init: Init = "xavier", gain: float = 0.02) -> None:
    """Draw the weights of all convolutions and linear layers anew, from torch's CPU generator; biases become 0.

    Args:
        network: changed in place.
        init: "xavier" is CUT's default, "normal" CycleGAN's (with ``gain`` as the deviation).
        gain: the scale of the draw.
    """
    draw = {
        "xavier": lambda w: nn.init.xavier_normal_(w, gain=gain),
        "normal": lambda w: nn.init.normal_(w, 0.0, gain),
        "kaiming": lambda w: nn.init.kaiming_normal_(w, a=0, mode="fan_in"),
        "orthogonal": lambda w: nn.init.orthogonal_(w, gain=gain),
    }[init]
    for layer in network.modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d, nn.Linear)):
            draw(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
        elif isinstance(layer, nn.BatchNorm2d):
            nn.init.normal_(layer.weight, 1.0, gain)
            nn.init.zeros_(layer.bias)
