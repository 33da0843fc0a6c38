"""The size of a network: parameters, multiply-adds, taps."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


class Description(NamedTuple):
    """Parameters (trained or not), multiply-adds, and the ``taps`` of a network that has any."""

    parameters: int
    multiply_adds: int
    taps: list[Any]


def describe(module: nn.Module, size: int = 256, channels: int = 3) -> Description:
    """Count the parameters of a network and its multiply-adds for one image.

    The network runs on the meta device, without values, so that large networks take no time. Convolutions (fixed blurs
    included), matrix products and attention are counted; norms and activations are not.

    >>> from torch import nn
    >>> from qsattn_plugin.registry.describe import describe
    >>> describe(nn.Conv2d(3, 8, 3, padding=1, bias=False), size=10)[:2]  # 8 * 3 * 3 * 3, once a pixel
    (216, 21600)

    Args:
        module: takes images (1, C, H, W); not changed.
        size: side of the image in pixels.
        channels: of the image.
    """
    ghost = copy.deepcopy(module).to("meta")
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        ghost(torch.empty(1, channels, size, size, device="meta"))
    parameters = sum(p.numel() for p in module.parameters())
    return Description(parameters, counter.get_total_flops() // 2, list(getattr(module, "taps", [])))
