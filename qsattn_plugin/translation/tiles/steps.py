"""Primitive layers on a part of a picture: which part of its input a layer needs, and how it runs on that part alone.

Every :class:`Step` answers the same questions, for one axis at a time: how large its output is, and which span of its
input (in places of the whole map) a span of its output hangs on. Padding happens only at the picture's own borders.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Span(NamedTuple):
    """Places ``start`` to ``stop - 1`` of an axis."""

    start: int
    stop: int

    def hull(self, other: Span) -> Span:
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def within(self, length: int) -> Span:
        """The part that exists on an axis of this length; at least one place."""
        start = min(max(self.start, 0), length - 1)
        return Span(start, max(min(self.stop, length), start + 1))


#: Rows and columns.
Box = tuple[Span, Span]


def crop(x: Tensor, have: Box, want: Box) -> Tensor:
    """Cut ``want`` out of ``x``, which holds ``have``."""
    (top, left), (rows, columns) = (have[0].start, have[1].start), want
    return x[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def pad(x: Tensor, have: Box, want: Box) -> Tensor:
    """Surround ``x``, which holds ``have``, with zeros to ``want``; what ``want`` leaves out is cut off."""
    both = tuple(a.hull(b) for a, b in zip(have, want, strict=True))
    sides = [n for h, b in zip(have[::-1], both[::-1], strict=True) for n in (h.start - b.start, b.stop - h.stop)]
    return crop(F.pad(x, sides) if any(sides) else x, both, want)


class Step:
    """A layer that works place by place and keeps shapes; the base of the others."""

    #: Whether what comes out may lie in the memory of what came in.
    in_place = True
    #: Whether what comes out is worth keeping: not where it can be had again for nearly nothing.
    worth_storing = False

    def channels(self, given: int) -> int:
        return given

    def size(self, length: int, axis: int) -> int:
        """The output's length for an input's; axis 0 are rows."""
        return length

    def need(self, want: Span, length: int, axis: int) -> Span:
        """The span of an input of this length that a span of the output needs."""
        return want

    def work(self, given: int) -> float:
        """Multiply-adds for one place of the output, all channels of it, from so many channels."""
        return 2.0 * given

    def run(self, x: Tensor, have: Box, want: Box, size: tuple[int, int], owned: bool) -> Tensor:
        """Compute the part ``want`` of the output.

        Args:
            x: (1, C, h, w), the part ``have`` of an input of ``size``: exactly what :meth:`need` asked for.
            owned: whether nobody else needs ``x``, so that it may be overwritten.
        """
        return x


class Activation(Step):
    """ReLU, leaky ReLU, tanh or its straight form."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def run(self, x, have, want, size, owned):
        if isinstance(self.layer, nn.Tanh):
            return x.tanh_() if owned else x.tanh()
        if isinstance(self.layer, nn.Hardtanh):
            return F.hardtanh(x, self.layer.min_val, self.layer.max_val, inplace=owned)
        slope = getattr(self.layer, "negative_slope", 0.0)
        return F.leaky_relu(x, slope, inplace=owned) if slope else F.relu(x, inplace=owned)


class Normalise(Step):
    """A norm. Without statistics of its own it takes the whole map's, which somebody has to measure first."""

    def __init__(self, layer: nn.Module):
        self.measured = layer.training or layer.running_mean is None
        self.layer = layer

    def scale_and_shift(self, mean: Tensor | None = None, variance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what to multiply by and then to add: float64 on the CPU, each (C,)."""
        if not self.measured:
            mean, variance = self.layer.running_mean.cpu().double(), self.layer.running_var.cpu().double()
        scale = (variance + self.layer.eps).rsqrt()
        if self.layer.weight is not None:
            scale = scale * self.layer.weight.detach().cpu().double()
        shift = -mean * scale
        return scale, shift if self.layer.bias is None else shift + self.layer.bias.detach().cpu().double()


class Pad(Step):
    """Padding: (left, right, top, bottom) places of zeros ("constant"), "reflect" or "replicate"."""

    in_place = False

    def __init__(self, sides: tuple[int, int, int, int], mode: str):
        self.sides, self.mode = (sides[2:], sides[:2]), mode

    def size(self, length, axis):
        return length + sum(self.sides[axis])

    def work(self, given):
        return 0.0  # away from the borders there is nothing to do

    def need(self, want, length, axis):
        inside = Span(want.start - self.sides[axis][0], want.stop - self.sides[axis][0])
        if self.mode == "constant" or inside == inside.within(length):
            return inside.within(length)
        sources = self._sources(inside, length)
        return Span(min(sources), max(sources) + 1)

    def _sources(self, inside: Span, length: int) -> list[int]:
        """Which place of the input each place of the output repeats."""
        last = length - 1
        if self.mode == "reflect":
            return [last - abs(last - abs(i)) for i in range(*inside)]
        return [min(max(i, 0), last) for i in range(*inside)]

    def run(self, x, have, want, size, owned):
        inside = tuple(
            Span(span.start - before, span.stop - before) for span, (before, _) in zip(want, self.sides, strict=True)
        )
        if self.mode == "constant":
            return pad(x, have, inside)
        for axis in (0, 1):
            if inside[axis] != have[axis]:
                places = torch.tensor(self._sources(inside[axis], size[axis]), device=x.device)
                x = x.index_select(2 + axis, places - have[axis].start)
        return x


class Convolve(Step):
    """A convolution without padding."""

    in_place, worth_storing = False, True

    def __init__(self, weight: Tensor, bias: Tensor | None, stride=(1, 1), dilation=(1, 1), groups: int = 1):
        self.weight, self.bias = weight.contiguous(memory_format=torch.channels_last), bias
        self.stride, self.dilation, self.groups = stride, dilation, groups
        self.reach = tuple(d * (k - 1) + 1 for d, k in zip(dilation, weight.shape[2:], strict=True))

    def channels(self, given):
        return len(self.weight)

    def size(self, length, axis):
        return (length - self.reach[axis]) // self.stride[axis] + 1

    def work(self, given):
        return float(self.weight.numel())

    def need(self, want, length, axis):
        stride = self.stride[axis]
        return Span(want.start * stride, (want.stop - 1) * stride + self.reach[axis])

    def run(self, x, have, want, size, owned):
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class ConvolveUp(Step):
    """A transposed convolution."""

    in_place, worth_storing = False, True

    def __init__(self, layer: nn.ConvTranspose2d):
        self.layer = layer
        self.reach = tuple(d * (k - 1) for d, k in zip(layer.dilation, layer.kernel_size, strict=True))

    def channels(self, given):
        return self.layer.out_channels

    def size(self, length, axis):
        layer = self.layer
        whole = (length - 1) * layer.stride[axis] + self.reach[axis] + 1
        return whole - 2 * layer.padding[axis] + layer.output_padding[axis]

    def work(self, given):
        return self.layer.weight.numel() / (self.layer.stride[0] * self.layer.stride[1])

    def _sources(self, want: Span, axis: int) -> Span:
        stride, padding = self.layer.stride[axis], self.layer.padding[axis]
        first = -((self.reach[axis] - want.start - padding) // stride)
        return Span(first, (want.stop - 1 + padding) // stride + 1)

    def need(self, want, length, axis):
        return self._sources(want, axis).within(length)

    def run(self, x, have, want, size, owned):
        layer = self.layer
        sources = (self._sources(want[0], 0), self._sources(want[1], 1))
        x = pad(x, have, sources)  # places that do not exist give nothing
        x = F.conv_transpose2d(x, layer.weight, layer.bias, layer.stride, 0, 0, layer.groups, layer.dilation)
        starts = [s.start * layer.stride[a] - layer.padding[a] for a, s in enumerate(sources)]
        return crop(x, (Span(starts[0], 0), Span(starts[1], 0)), want)


class Double(Step):
    """Twice the size by bilinear interpolation between pixel centres, borders repeated."""

    in_place = False

    def size(self, length, axis):
        return 2 * length

    def work(self, given):
        return 4.0 * given

    def need(self, want, length, axis):
        return Span((want.start - 1) // 2, want.stop // 2 + 1).within(length)

    def run(self, x, have, want, size, owned):
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
        return crop(x, (Span(2 * have[0].start, 0), Span(2 * have[1].start, 0)), want)


class Shuffle(Step):
    """Channels to pixels, or pixels to channels where ``factor`` is negative."""

    in_place, worth_storing = False, True

    def __init__(self, factor: int):
        self.factor, self.apart = abs(factor), factor > 0

    def channels(self, given):
        return given // self.factor**2 if self.apart else given * self.factor**2

    def size(self, length, axis):
        return length * self.factor if self.apart else length // self.factor

    def need(self, want, length, axis):
        f = self.factor
        return Span(want.start // f, -(-want.stop // f)) if self.apart else Span(want.start * f, want.stop * f)

    def run(self, x, have, want, size, owned):
        if not self.apart:
            return F.pixel_unshuffle(x, self.factor)
        f = self.factor
        return crop(F.pixel_shuffle(x, f), (Span(f * have[0].start, 0), Span(f * have[1].start, 0)), want)


class Crop(Step):
    """The map's first rows and columns."""

    def __init__(self, size: tuple[int, int]):
        self.to = size

    def size(self, length, axis):
        return min(length, self.to[axis])

    def work(self, given):
        return 0.0
