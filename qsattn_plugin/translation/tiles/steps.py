"""Primitive layers on a part of a picture: which part of its input a layer needs, and how it runs on that part alone.

Every :class:`Step` answers the same questions, for one axis at a time: how large its output is, and on which span of
its input (in positions of the whole map) a span of its output depends. Padding happens only at the picture's borders.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Span(NamedTuple):
    """Positions ``start`` to ``stop - 1`` of an axis."""

    start: int
    stop: int

    def hull(self, other: Span) -> Span:
        """Return the smallest span that contains both."""
        return Span(min(self.start, other.start), max(self.stop, other.stop))

    def within(self, length: int) -> Span:
        """Return the part that exists on an axis of this length; at least one position."""
        start = min(max(self.start, 0), length - 1)
        return Span(start, max(min(self.stop, length), start + 1))


#: Rows and columns.
Box = tuple[Span, Span]


def crop(x: Tensor, have: Box, want: Box) -> Tensor:
    """Return the box ``want`` of a map, of which ``x`` is the box ``have``."""
    (top, left), (rows, columns) = (have[0].start, have[1].start), want
    return x[..., rows.start - top : rows.stop - top, columns.start - left : columns.stop - left]


def pad(x: Tensor, have: Box, want: Box) -> Tensor:
    """Return the box ``want`` of a map, of which ``x`` is the box ``have``: zero outside ``have``."""
    both = have[0].hull(want[0]), have[1].hull(want[1])
    sides = [n for h, b in zip(have[::-1], both[::-1], strict=True) for n in (h.start - b.start, b.stop - h.stop)]
    return crop(F.pad(x, sides) if any(sides) else x, both, want)


class Step:
    """A pointwise layer that keeps the shape; the base class of the others."""

    #: Whether the output is worth storing: not where computing it again costs next to nothing.
    worth_storing = False

    def channels(self, given: int) -> int:
        """Return the number of output channels for a number of input channels."""
        return given

    def size(self, length: int, axis: int) -> int:
        """Return the output's length for an input's; axis 0 is rows, 1 columns."""
        return length

    def need(self, want: Span, length: int, axis: int) -> Span:
        """Return the span of an input of this length on which a span of the output depends."""
        return want

    def work(self, given: int) -> float:
        """Return the multiply-adds for one position of the output, all its channels, given the input's channels."""
        return 2.0 * given

    def run(self, x: Tensor, have: Box, want: Box, size: tuple[int, int], owned: bool) -> Tensor:
        """Compute the part ``want`` of the output.

        Args:
            x: (1, C, h, w), the part ``have`` of an input of ``size``: exactly what :meth:`need` returned.
            owned: whether nothing else reads ``x``, so that it may be overwritten.

        Returns:
            (1, C, h', w').
        """
        return x


class Activation(Step):
    """ReLU, leaky ReLU, tanh or hard tanh."""

    def __init__(self, layer: nn.Module):
        self.layer = layer

    def run(self, x, have, want, size, owned):
        if isinstance(self.layer, nn.Tanh):
            return x.tanh_() if owned else x.tanh()
        if isinstance(self.layer, nn.Hardtanh):
            return F.hardtanh(x, self.layer.min_val, self.layer.max_val, inplace=owned)
        slope = getattr(self.layer, "negative_slope", 0.0)
        return F.leaky_relu(x, slope, inplace=owned) if slope else F.relu(x, inplace=owned)


class Norm(Step):
    """A norm: with running statistics, or with those of the whole map, which have to be measured first."""

    def __init__(self, layer: nn.InstanceNorm2d | nn.BatchNorm2d):
        self.measured = layer.training or layer.running_mean is None
        self.layer = layer

    def scale_and_shift(self, mean: Tensor | None = None, variance: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the factors and the offsets added after them: float64 on the CPU, each (C,)."""
        if not self.measured:
            assert self.layer.running_mean is not None and self.layer.running_var is not None
            mean, variance = self.layer.running_mean.cpu().double(), self.layer.running_var.cpu().double()
        assert mean is not None and variance is not None  # given where they are measured
        scale = (variance + self.layer.eps).rsqrt()
        if self.layer.weight is not None:
            scale = scale * self.layer.weight.detach().cpu().double()
        shift = -mean * scale
        return scale, shift if self.layer.bias is None else shift + self.layer.bias.detach().cpu().double()


class Pad(Step):
    """Padding by (left, right, top, bottom) positions: "constant" (zeros), "reflect" or "replicate"."""

    def __init__(self, sides: tuple[int, int, int, int], mode: str):
        self.sides, self.mode = (sides[2:], sides[:2]), mode

    def size(self, length, axis):
        return length + sum(self.sides[axis])

    def work(self, given):
        return 0.0  # only the borders cost anything

    def need(self, want, length, axis):
        inside = Span(want.start - self.sides[axis][0], want.stop - self.sides[axis][0])
        if self.mode == "constant" or inside == inside.within(length):
            return inside.within(length)
        sources = self._sources(inside, length)
        return Span(min(sources), max(sources) + 1)

    def _sources(self, inside: Span, length: int) -> list[int]:
        """Return the position of the input that each position of the output repeats."""
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


class Convolution(Step):
    """A convolution without padding."""

    worth_storing = True

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


class TransposedConvolution(Step):
    """A transposed convolution."""

    worth_storing = True

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
        # int: its type allows names as well, which convolutions alone have.
        stride, padding = self.layer.stride[axis], int(self.layer.padding[axis])
        first = -((self.reach[axis] - want.start - padding) // stride)
        return Span(first, (want.stop - 1 + padding) // stride + 1)

    def need(self, want, length, axis):
        return self._sources(want, axis).within(length)

    def run(self, x, have, want, size, owned):
        layer = self.layer
        sources = (self._sources(want[0], 0), self._sources(want[1], 1))
        x = pad(x, have, sources)  # zeros add nothing
        x = F.conv_transpose2d(x, layer.weight, layer.bias, layer.stride, 0, 0, layer.groups, layer.dilation)
        starts = [s.start * layer.stride[a] - layer.padding[a] for a, s in enumerate(sources)]
        return crop(x, (Span(starts[0], 0), Span(starts[1], 0)), want)


class BilinearUpsample(Step):
    """Twice the size by bilinear interpolation between pixel centres, with replicated borders."""

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
    """Pixel shuffle by ``factor``, or pixel unshuffle where it is negative."""

    worth_storing = True

    def __init__(self, factor: int):
        self.factor, self.enlarges = abs(factor), factor > 0

    def channels(self, given):
        return given // self.factor**2 if self.enlarges else given * self.factor**2

    def size(self, length, axis):
        return length * self.factor if self.enlarges else length // self.factor

    def need(self, want, length, axis):
        f = self.factor
        return Span(want.start // f, -(-want.stop // f)) if self.enlarges else Span(want.start * f, want.stop * f)

    def run(self, x, have, want, size, owned):
        if not self.enlarges:
            return F.pixel_unshuffle(x, self.factor)
        f = self.factor
        return crop(F.pixel_shuffle(x, f), (Span(f * have[0].start, 0), Span(f * have[1].start, 0)), want)


class Trim(Step):
    """Removes rows at the bottom and columns on the right beyond a (height, width)."""

    def __init__(self, size: tuple[int, int]):
        self.to = size

    def size(self, length, axis):
        return min(length, self.to[axis])

    def work(self, given):
        return 0.0
