"""Layers that the networks share: antialiased resampling, normalisation by name, initialisation.

They are called and laid out as CUT's and CycleGAN's are, so that `state_dict` keys and shapes agree with checkpoints of
both.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.registry.layers.memory_saving import blur_down

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
        return blur_down(x, self.filt.type_as(x))


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


class _LayOutGradient(torch.autograd.Function):
    """The identity, whose gradient lies in memory as its output does."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows_first = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.contiguous_format if rows_first else torch.channels_last
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=ctx.memory_format)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm whose gradient is right however the gradient that comes in lies in memory.

    PyTorch's CPU kernel for the backward pass of batch norm, which instance norm is made of, reads a gradient with the
    channels side by side (what a product of a transposed map leaves) as if it lay like the input. 2.15 is silently and
    entirely wrong there, for instance norm at batch size 1. And on the CPU its forward pass is slow, see
    :func:`~qsattn_plugin.registry.layers.memory_saving.channel_norm`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_compiling() or x.device.type != "cpu" or self.affine or self.track_running_stats:
            return _laid_out(super().forward(x))
        if x.ndim != 4 or x.shape[-2:].numel() == 1:
            return _laid_out(super().forward(x))
        return _laid_out(F.group_norm(x, x.shape[1], eps=self.eps))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose gradient is right however the gradient that comes in lies in memory (see InstanceNorm)."""

    def forward(self, x: Tensor) -> Tensor:
        return _laid_out(super().forward(x))


def _laid_out(x: Tensor) -> Tensor:
    # torch.compile makes kernels of its own, which follow the layout; where there is no gradient, exports want plain
    # operators.
    return _LayOutGradient.apply(x) if torch.is_grad_enabled() and not torch.compiler.is_compiling() else x


def normalisation(name: Norm) -> Callable[[int], nn.Module]:
    """Return the constructor of a normalisation layer, from the number of channels."""
    return {
        "instance": lambda channels: InstanceNorm(channels, affine=False, track_running_stats=False),
        "batch": lambda channels: BatchNorm(channels),
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
