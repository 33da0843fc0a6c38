"""The same layers, keeping less in memory for the backward pass.

PyTorch keeps the input of a reflection padding and of a fixed blur, though the gradients of both hang on sizes alone,
and the output of a ReLU that follows a norm, though the norm's input tells where it was positive. The plain operators
are used where nothing is kept, and under torch.compile, which decides by itself what to keep.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["ReflectionPad", "blur_down", "channel_norm", "in_a_row", "norm_act"]


def _plain() -> bool:
    return torch.compiler.is_compiling() or not torch.is_grad_enabled()


def _pad_backward(grad: Tensor, shape: torch.Size, padding: tuple[int, int, int, int]) -> Tensor:
    # The operator asks the padded image for nothing but its shape.
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
    """Reflection padding that keeps nothing for the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) if _plain() or x.ndim != 4 else _Pad.apply(x, tuple(self.padding))


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
    """The blur's gradient; being linear, its own gradient is the blur."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, filt: Tensor, shape: torch.Size) -> Tensor:
        ctx.save_for_backward(filt)
        filt = filt.to(grad.dtype)
        if grad.device.type != "cpu":  # whose kernels were not measured: PyTorch's own way
            padded = (*shape[:2], shape[2] + 2, shape[3] + 2)
            padded = torch.nn.grad.conv2d_input(padded, filt, grad, stride=2, groups=shape[1])
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
    """The blur's gradient in half precision on a CPU, for images of ``shape``.

    A blur of the gradient with zeros between its places: PyTorch's transposed convolutions, a channel at a time, take
    about ten times as long in half precision.
    """
    b, c, h, w = shape
    apart = grad.new_zeros(b, c, h + 4, w + 4)
    apart[..., 2 : 2 + 2 * grad.shape[2] : 2, 2 : 2 + 2 * grad.shape[3] : 2] = grad
    padded = F.conv2d(apart, filt.flip(2, 3), groups=c)
    # What lies on the border was mirrored there.
    padded[..., 2, :] += padded[..., 0, :]
    padded[..., h - 1, :] += padded[..., h + 1, :]
    padded[..., 2] += padded[..., 0]
    padded[..., w - 1] += padded[..., w + 1]
    return padded[..., 1:-1, 1:-1].contiguous()


def _blur(x: Tensor, filt: Tensor) -> Tensor:
    return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), filt, stride=2, groups=x.shape[1])


def blur_down(x: Tensor, filt: Tensor) -> Tensor:
    """Blur (B, C, H, W) with a fixed filter (C, 1, 3, 3), borders reflected, and keep every second place."""
    return _blur(x, filt) if _plain() else _Blur.apply(x, filt)


def channel_norm(x: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return the instance norm of (B, C, H, W), with each channel's mean and 1 / deviation, both (B * C,).

    By group norm's kernel with one channel a group: on the CPU it sums in vectors, where batch norm's takes four to six
    times as long for the same numbers, up to rounding.
    """
    b, c, h, w = x.shape
    out, mean, inverse = torch.native_group_norm(x, None, None, b, c, h * w, c, eps)
    return out, mean.view(-1), inverse.view(-1)


def _act_backward(grad: Tensor, centred: Tensor, slope: float) -> Tensor:
    """The gradient of a ReLU, plain or leaky, of what ``centred`` has the sign of; overwrites it if it may."""
    ops = torch.ops.aten
    if torch.is_grad_enabled():  # for the slope of a slope
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
        # Laid out as the norm's input: on the CPU, batch norm's backward pass takes that for granted.
        inner = _act_backward(grad.reshape(maps.shape).contiguous(), maps - mean[:, None, None], ctx.slope)
        wanted = [True, False, False]
        found = torch.ops.aten.native_batch_norm_backward(
            inner, maps, None, None, None, mean, inverse, True, ctx.eps, wanted
        )[0]
        return found.view(x.shape), None, None


def norm_act(norm: nn.Module, act: nn.Module, x: Tensor) -> Tensor:
    """Apply a norm and a ReLU, plain or leaky, to (B, C, H, W); an instance norm keeps its input for both."""
    # In half precision the mean is rounded too far to tell where the output was positive.
    fits = isinstance(norm, nn.InstanceNorm2d) and not norm.affine and not norm.track_running_stats
    if _plain() or not fits or x.dtype not in (torch.float32, torch.float64) or x.shape[-2:].numel() == 1:
        return act(norm(x))
    return _NormAct.apply(x, norm.eps, getattr(act, "negative_slope", 0.0))


def in_a_row(layers: Iterable[nn.Module], wanted: Iterable[int] = ()) -> list[tuple[int, Any]]:
    """Return callables for layers in a row, each with the index of the last layer that it stands for.

    A norm and the ReLU after it become one, unless the norm's index is ``wanted``, because its own output is.
    """
    layers, wanted = list(layers), set(wanted)
    steps: list[tuple[int, Any]] = []
    for index, layer in enumerate(layers):
        if type(layer) in (nn.ReLU, nn.LeakyReLU) and index and index - 1 not in wanted:
            before = layers[index - 1]
            if isinstance(before, nn.InstanceNorm2d):
                steps[-1] = (index, partial(norm_act, before, layer))
                continue
        steps.append((index, layer))
    return steps
