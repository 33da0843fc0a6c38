"""Layers that compute what PyTorch's do and save fewer tensors for the backward pass.

PyTorch saves the input of a reflection padding and of a fixed blur, though the gradients of both depend only on the
shapes, and the output of a ReLU that follows a norm, though the norm's input tells where it was positive. PyTorch's own
operators are used without gradients, and under torch.compile, which decides by itself what to save.
"""

from __future__ import annotations

import itertools
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_input

from qsattn_plugin.devices import is_compiling
from qsattn_plugin.registry.layers.norms import InstanceNorm

__all__ = ["FusedSequential", "ReflectionPad", "blur_down", "channel_norm"]


def builtin_operators() -> bool:
    """Return whether PyTorch's own operators are used now."""
    return is_compiling() or not torch.is_grad_enabled()


def _pad_backward(grad: Tensor, shape: torch.Size, padding: tuple[int, int, int, int]) -> Tensor:
    # The operator reads only the shape of the padded image.
    return torch.ops.aten.reflection_pad2d_backward(grad, grad.new_empty(1).expand(shape), list(padding))


class _Pad(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, padding: tuple[int, int, int, int]) -> Tensor:
        ctx.shape, ctx.padding = x.shape, padding
        return F.pad(x, padding, mode="reflect")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return _pad_backward(grad, ctx.shape, ctx.padding), None


class ReflectionPad(nn.ReflectionPad2d):
    """Reflection padding that saves nothing for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if builtin_operators() or x.ndim != 4 else _Pad.apply(x, tuple(self.padding))


class _Blur(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, filt: Tensor) -> Tensor:
        ctx.save_for_backward(filt)
        ctx.shape, ctx.dtype = x.shape, x.dtype
        return _blur(x, filt)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (filt,) = ctx.saved_tensors
        return _BlurBack.apply(grad, filt, ctx.shape).to(ctx.dtype), None


class _BlurBack(torch.autograd.Function):
    """The gradient of the blur. It is linear, and its own gradient is the blur."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, filt: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(filt)
        filt = filt.to(grad.dtype)
        if grad.device.type != "cpu":  # PyTorch's own way: other devices' kernels were not measured
            size = (*shape[:2], shape[2] + 2, shape[3] + 2)
            padded = conv2d_input(size, filt, grad, stride=2, groups=shape[1])
            return _pad_backward(padded, shape, (1, 1, 1, 1))
        if grad.dtype in (torch.bfloat16, torch.float16):
            return _spread(grad, filt, shape)
        # Written as a transposed convolution it is up to twenty times as fast as conv2d's input gradient.
        rest = (1 - shape[2] % 2, 1 - shape[3] % 2)
        padded = F.conv_transpose2d(grad, filt, stride=2, groups=shape[1], output_padding=rest)
        return _pad_backward(padded, shape, (1, 1, 1, 1))

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor, None, None]:
        (filt,) = ctx.saved_tensors
        return _Blur.apply(upstream, filt.to(upstream.dtype)), None, None


def _spread(grad: Tensor, filt: Tensor, shape: torch.Size) -> Tensor:
    """Return the gradient of the blur in half precision on a CPU, for images of ``shape``.

    It is computed as a blur of the gradient with zeros between its positions: PyTorch's depthwise transposed
    convolution takes about ten times as long in half precision.
    """
    b, c, h, w = shape
    apart = grad.new_zeros(b, c, h + 4, w + 4)
    apart[..., 2 : 2 + 2 * grad.shape[2] : 2, 2 : 2 + 2 * grad.shape[3] : 2] = grad
    padded = F.conv2d(apart, filt.flip(2, 3), groups=c)
    # The padded border mirrors the inside: its gradient is added to the mirrored positions.
    padded[..., 2, :] += padded[..., 0, :]
    padded[..., h - 1, :] += padded[..., h + 1, :]
    padded[..., 2] += padded[..., 0]
    padded[..., w - 1] += padded[..., w + 1]
    return padded[..., 1:-1, 1:-1].contiguous()


def _blur(x: Tensor, filt: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filt, stride=2, groups=x.shape[1])


def blur_down(x: Tensor, filt: Tensor) -> Tensor:
    """Blur (B, C, H, W) with a fixed filter (C, 1, 3, 3), borders reflected, and keep every second position."""
    return _blur(x, filt) if builtin_operators() else _Blur.apply(x, filt)


def channel_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the instance norm of (B, C, H, W), with each channel's mean and 1 / deviation, both (B * C,).

    It uses group norm's kernel with one channel per group, which is vectorised on the CPU; batch norm's kernel takes
    four to six times as long and gives the same numbers up to rounding.
    """
    b, c, h, w = x.shape
    out, mean, inverse = torch.native_group_norm(x, None, None, b, c, h * w, c, eps)
    return out, mean.view(-1), inverse.view(-1)


def _act_backward(grad: Tensor, centred: Tensor, slope: float) -> Tensor:
    """Return the gradient of a ReLU (leaky with a ``slope``) whose input has the signs of ``centred``.

    ``centred`` is overwritten where no second derivative is needed.
    """
    ops = torch.ops.aten
    if torch.is_grad_enabled():  # for a second derivative
        return ops.leaky_relu_backward(grad, centred, slope, False)
    if slope:
        return ops.leaky_relu_backward.grad_input(grad, centred, slope, False, grad_input=centred)
    return ops.threshold_backward.grad_input(grad, centred, 0, grad_input=centred)


class _NormAct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, eps: float, slope: float) -> Tensor:
        if x.device.type == "cpu":
            out, mean, inverse = channel_norm(x, eps)
        else:
            maps = x.reshape(1, -1, *x.shape[2:])
            out, mean, inverse = torch.native_batch_norm(maps, None, None, None, None, True, 0.0, eps)
        ctx.save_for_backward(x, mean, inverse)
        ctx.eps, ctx.slope = eps, slope
        out = F.relu_(out) if slope == 0 else F.leaky_relu_(out, slope)
        return out.view(x.shape)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        x, mean, inverse = ctx.saved_tensors
        maps = x.reshape(1, -1, *x.shape[2:])
        # In the memory layout of the norm's input, which batch norm's backward pass on the CPU assumes.
        inner = _act_backward(grad.reshape(maps.shape).contiguous(), maps - mean[:, None, None], ctx.slope)
        wanted = [True, False, False]
        found = torch.ops.aten.native_batch_norm_backward(
            inner, maps, None, None, None, mean, inverse, True, ctx.eps, wanted
        )[0]
        return found.view(x.shape), None, None


def _fuse(norm: nn.Module, act: nn.Module) -> bool:
    """Return whether a layer and the next one are an instance norm and a ReLU, and nothing else happens there.

    A class derived from them, or a hook, may do anything.
    """
    if type(norm) not in (InstanceNorm, nn.InstanceNorm2d) or type(act) not in (nn.ReLU, nn.LeakyReLU):
        return False
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return not (norm.affine or norm.track_running_stats or any(getattr(m, h) for m in (norm, act) for h in hooks))


def _norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Apply an instance norm and a ReLU or leaky ReLU to (B, C, H, W), and save only the norm's input for both."""
    # In half precision the mean is rounded too coarsely to tell where the output was positive.
    if builtin_operators() or x.dtype not in (torch.float32, torch.float64) or x.shape[-2:].numel() == 1:
        return act(norm(x))
    return _NormAct.apply(x, norm.eps, getattr(act, "negative_slope", 0.0))


class FusedSequential(nn.Sequential):
    """An ``nn.Sequential`` that runs an instance norm and the ReLU after it as one step.

    ``state_dict`` keys are those of ``nn.Sequential``.
    """

    def walk(
        self, x: Tensor, taps: Collection[int] = (), change: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the index and the output of each layer in order; ``change`` is added to the outputs of its layers.

        A norm that is fused with its ReLU has no output of its own, unless its index is among ``taps``.
        """
        layers, norm = list(self), None
        for index, (layer, following) in enumerate(itertools.zip_longest(layers, layers[1:])):
            if norm is None and index not in taps and _fuse(layer, following):
                norm = layer
                continue
            x = layer(x) if norm is None else _norm_act(norm, layer, x)
            x = x + change[index] if change and index in change else x
            norm = None
            yield index, x

    def forward(self, x: Tensor) -> Tensor:
        out = x
        for _, out in self.walk(x):  # noqa: B007 - only the last output is used
            pass
        return out

    def primitives(self) -> list[nn.Module]:
        """Return the layers that :meth:`forward` runs."""
        return list(self)
