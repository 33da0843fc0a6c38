"""Layers that the networks share: antialiased resampling, normalisation by name, initialisation.

Their names and structure are those of CUT and CycleGAN, so that `state_dict` keys and shapes agree with checkpoints of
both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.errors import at_least, one_of
from qsattn_plugin.registry.layers.memory_saving import blur_down
from qsattn_plugin.registry.layers.norms import BatchNorm, InstanceNorm

__all__ = ["BatchNorm", "Downsample", "InstanceNorm", "Upsample", "bound", "initialise", "normalisation"]

Norm = Literal["instance", "batch", "none"]
Init = Literal["xavier", "normal", "kaiming", "orthogonal"]


def _blur_kernel(row: tuple[float, ...], gain: float, channels: int) -> Tensor:
    """Return the outer product of ``row`` with itself, scaled to sum to ``gain``, once per channel: (C, 1, k, k)."""
    scale = gain / sum(row) ** 2  # not by torch, which on the meta device imports its compiler to divide
    return torch.tensor([[a * b * scale for b in row] for a in row]).expand(channels, 1, -1, -1).contiguous()


class Downsample(nn.Module):
    """Blur with [1, 2, 1] and keep every second position (Zhang 2019, antialiased convolutional networks).

    (B, C, H, W) to (B, C, ceil(H / 2), ceil(W / 2)).
    """

    filt: Tensor

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _blur_kernel((1.0, 2.0, 1.0), 1.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return blur_down(x, self.filt.type_as(x))


class Upsample(nn.Module):
    """Double the size with the [1, 3, 3, 1] filter: (B, C, H, W) to (B, C, 2H, 2W).

    That filter with a repeated border *is* bilinear interpolation between pixel centres, for which every backend has a
    fast kernel; CUT computes it as a grouped transposed convolution. The buffer is kept for CUT's checkpoints, which
    hold it.
    """

    def __init__(self, channels: int):
        super().__init__()
        self.register_buffer("filt", _blur_kernel((1.0, 3.0, 3.0, 1.0), 4.0, channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)


class _Bound(torch.autograd.Function):
    """Values clamped to [-1, 1], whose gradient is kept where descent leads back into the range."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return F.hardtanh(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad.masked_fill((x.abs() > 1) & (x * grad < 0), 0)


def bound(x: Tensor) -> Tensor:
    """Clamp to [-1, 1]; the gradient is 0 only outside it, and only where descent would lead further out.

    With the clamp's own gradient, 0 everywhere outside, a pixel that was painted too dark or too bright would never
    learn to come back.
    """
    return _Bound.apply(x) if torch.is_grad_enabled() else F.hardtanh(x)


def normalisation(name: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor of a normalisation layer; it takes the number of channels."""
    one_of(get_args(Norm), norm=name)
    return {
        "instance": lambda channels: InstanceNorm(channels, affine=False, track_running_stats=False),
        "batch": lambda channels: BatchNorm(channels),
        "none": lambda channels: nn.Identity(),
    }[name]


def initialise(network: nn.Module, init: Init = "xavier", gain: float = 0.02) -> None:
    """Draw the weights of all convolutions and linear layers from torch's CPU generator; biases become 0.

    Args:
        network: changed in place.
        init: "xavier" is CUT's default, "normal" CycleGAN's (with ``gain`` as the standard deviation).
        gain: the scale of the draw.
    """
    at_least(0, init_gain=gain)
    one_of(get_args(Init), init=init)
    if any(weight.is_meta for weight in network.parameters()):
        return  # shapes only: there is nothing to draw, and torch would import its compiler to find that out
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
