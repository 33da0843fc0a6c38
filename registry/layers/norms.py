"""Instance and batch norm whose gradients are right whatever the memory layout of the incoming one."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.devices import is_compiling

__all__ = ["BatchNorm", "InstanceNorm"]


class _LayOutGradient(torch.autograd.Function):
    """The identity, whose gradient has the memory layout of its output."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        rows_first = x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last)
        ctx.memory_format = torch.contiguous_format if rows_first else torch.channels_last
        return x.view_as(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad.contiguous(memory_format=ctx.memory_format)


class InstanceNorm(nn.InstanceNorm2d):
    """Instance norm whose gradient is right for every memory layout of the incoming gradient.

    PyTorch's CPU kernel for the backward pass of batch norm, which instance norm uses, assumes that the incoming
    gradient has the memory layout of the input. For one with channels side by side (from a product with a transposed
    map) the result is silently wrong, in 2.15 for instance norm at batch size 1. The forward pass is also slow, see
    :func:`~qsattn_plugin.registry.layers.memory_saving.channel_norm`.
    """

    def forward(self, x: Tensor) -> Tensor:
        if is_compiling() or x.device.type != "cpu" or self.affine or self.track_running_stats:
            return _laid_out(super().forward(x))
        if x.ndim != 4 or x.shape[-2:].numel() == 1:
            return _laid_out(super().forward(x))
        return _laid_out(F.group_norm(x, x.shape[1], eps=self.eps))


class BatchNorm(nn.BatchNorm2d):
    """Batch norm whose gradient is right for every memory layout of the incoming gradient (see InstanceNorm)."""

    def forward(self, x: Tensor) -> Tensor:
        return _laid_out(super().forward(x))


def _laid_out(x: Tensor) -> Tensor:
    # torch.compile generates kernels of its own, which respect the layout; without gradients, exports need standard
    # operators.
    return _LayOutGradient.apply(x) if torch.is_grad_enabled() and not is_compiling() else x
