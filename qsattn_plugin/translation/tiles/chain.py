"""A generator as a chain of steps, with the sizes of a picture's feature maps along it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.registry.layers import BatchNorm, Downsample, InstanceNorm, Upsample
from qsattn_plugin.registry.layers.memory_saving import ReflectionPad
from qsattn_plugin.registry.layers.primitives import Skip, blend, primitives
from qsattn_plugin.translation.apply import padding_for
from qsattn_plugin.translation.tiles.steps import (
    Activation,
    BilinearUpsample,
    Box,
    Convolution,
    Norm,
    Pad,
    Shuffle,
    Span,
    Step,
    TransposedConvolution,
    Trim,
)


class UnknownLayer(TypeError):
    """A layer for which it is not defined how it works on a part of a picture."""


def steps_of(layer: Any) -> list[Step]:
    """Return the steps that a layer, any module, consists of.

    Raises:
        UnknownLayer: there are no steps for this kind of layer.
    """
    kind = type(layer)
    if any(
        getattr(layer, name, None) for name in ("_forward_pre_hooks", "_forward_hooks")
    ):  # they may change what the layer computes, or its weights
        raise UnknownLayer(f"{kind.__name__} with hooks")
    if kind in (nn.Identity, nn.Dropout, nn.Dropout2d) and not (layer.training and kind is not nn.Identity):
        return []
    if kind in (nn.ReLU, nn.LeakyReLU, nn.Tanh, nn.Hardtanh):
        return [Activation(layer)]
    if kind in (nn.InstanceNorm2d, nn.BatchNorm2d, InstanceNorm, BatchNorm):
        return [Norm(layer)]
    if kind in (nn.ReflectionPad2d, ReflectionPad):
        return [Pad(tuple(layer.padding), "reflect")]
    if kind is nn.ReplicationPad2d:
        return [Pad(tuple(layer.padding), "replicate")]
    if kind is nn.ZeroPad2d:
        return [Pad(tuple(layer.padding), "constant")]
    if kind is Downsample:
        return [Pad((1, 1, 1, 1), "reflect"), Convolution(layer.filt, None, (2, 2), groups=len(layer.filt))]
    if kind is Upsample:
        return [BilinearUpsample()]
    if kind is nn.PixelShuffle:
        return [Shuffle(layer.upscale_factor)]
    if kind is nn.PixelUnshuffle:
        return [Shuffle(-layer.downscale_factor)]
    if kind is nn.ConvTranspose2d and all(
        s <= d * (k - 1) + 1 for s, d, k in zip(layer.stride, layer.dilation, layer.kernel_size, strict=True)
    ):
        return [TransposedConvolution(layer)]
    if kind is nn.Conv2d and layer.padding_mode in ("zeros", "reflect", "replicate") and type(layer.padding) is tuple:
        (down, across), mode = layer.padding, layer.padding_mode.replace("zeros", "constant")
        around = [Pad((across, across, down, down), mode)] if down or across else []
        return [*around, Convolution(layer.weight, layer.bias, layer.stride, layer.dilation, layer.groups)]
    raise UnknownLayer(kind.__name__)


@dataclass
class Join(Step):
    """The end of a skip connection, which begins at position ``fork``."""

    fork: int
    kind: Skip
    kept: int  # channels of what is kept

    def channels(self, given):
        return given + self.kept if self.kind is Skip.CONCATENATE else self.kept

    def join(self, kept: Tensor, x: Tensor, owned: bool) -> Tensor:
        """Return the value after the connection; ``x`` may be overwritten if it is owned."""
        if self.kind is Skip.CONCATENATE:
            return torch.cat([kept, x], 1)
        if self.kind is Skip.BLEND:
            return blend(kept, x)
        return x.add_(kept) if owned else x + kept


@dataclass
class Chain:
    """Consecutive steps. Position 0 is the picture, p the output of step p - 1, the last one the translation."""

    steps: list[Step] = field(default_factory=list)
    channels: list[int] = field(default_factory=list)
    sizes: list[tuple[int, int]] = field(default_factory=list)
    #: For every position, where the skip connections that pass over it begin.
    forks: list[tuple[int, ...]] = field(default_factory=list)

    @property
    def end(self) -> int:
        return len(self.steps)

    def whole(self, position: int) -> Box:
        """Return the box of the whole map at a position."""
        height, width = self.sizes[position]
        return Span(0, height), Span(0, width)

    def elements(self, position: int) -> int:
        """Return the number of elements of the map at a position."""
        return self.channels[position] * self.sizes[position][0] * self.sizes[position][1]

    def needed_at(self, position: int) -> frozenset[int]:
        """Return the positions of the maps needed to continue from a position, without the picture."""
        return frozenset((position, *self.forks[position])) - {0}

    def add(self, step: Step, forks: tuple[int, ...]) -> None:
        """Append a step; ``forks`` are where the open skip connections begin."""
        height, width = self.sizes[-1]
        self.steps.append(step)
        self.sizes.append((step.size(height, 0), step.size(width, 1)))
        self.channels.append(step.channels(self.channels[-1]))
        self.forks.append(forks)


def chain_of(generator: nn.Module, channels: int, size: tuple[int, int]) -> Chain:
    """Return the steps of a generator on a picture of (height, width), with the padding to sides that it takes.

    Raises:
        UnknownLayer: the generator has a layer for which there are no steps.
    """
    chain = Chain(channels=[channels], sizes=[size], forks=[()])
    for sides, mode in padding_for(generator, size):
        chain.add(Pad(sides, mode), ())
    open_forks: list[int] = []
    for layer in primitives(generator):
        if layer is Skip.FORK:
            open_forks.append(chain.end)
            chain.forks[chain.end] = tuple(open_forks)
        elif isinstance(layer, Skip):
            fork = open_forks.pop()
            chain.add(Join(fork, layer, chain.channels[fork]), tuple(open_forks))
        else:
            for step in steps_of(layer):
                chain.add(step, tuple(open_forks))
    chain.add(Trim(size), ())
    return chain
