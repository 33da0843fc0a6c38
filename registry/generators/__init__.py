"""Generators: they translate an image of one domain to the other.

The layers of a generator are its *taps*, whose features a contrastive loss may compare::

    image = generator(x)                                             # (B, 3, H, W), values in [-1, 1]
    image, features = generator(x, taps=(0, 4, 8, 12, 16))           # and the features of these layers, in one pass
    features = generator(x, taps=(12, 16), encode_only=True)         # stops at the deepest tap
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError, at_least, nearest
from qsattn_plugin.registry import register
from qsattn_plugin.registry.layers import Downsample, Init, Norm, Upsample, bound, initialise, normalisation
from qsattn_plugin.registry.layers.memory_saving import FusedSequential, ReflectionPad
from qsattn_plugin.registry.layers.primitives import Primitive, Skip, blend


class Tap(NamedTuple):
    """A layer of a network: its index and name, its channels, and the pixels that one position spans."""

    index: int  # type: ignore[assignment]  # instead of tuple.index
    name: str
    channels: int
    stride: int


class TappedGenerator(nn.Module):
    """A generator whose ``self.model`` is a sequence of layers, each of them a tap.

    A subclass builds its layers in its constructor and passes them to :meth:`finish`. Arguments that generators share:

    Args:
        norm: "instance" (the papers'), "batch" or "none".
        init: distribution of the initial weights: "xavier" (CUT), "normal" (CycleGAN), "kaiming" or "orthogonal".
        init_gain: scale of that distribution.
        in_channels: channels of the images of the source domain; a recipe takes them from ``data.channels``.
        out_channels: those of the target domain; likewise.
    """

    #: The taps that the contrastive loss uses if a recipe names none.
    default_taps: tuple[int | str, ...] = ()
    #: Sides of images must be multiples of this many pixels.
    multiple: int = 4
    #: Whether the output of the last layer is added to the image, which then need not be reproduced.
    residual: bool = False
    #: Whether it is mixed with the image instead, by a mask in one channel more (:func:`blend`).
    mask: bool = False
    #: The layers; a subclass whose layers do not form a FusedSequential also overrides ``_layers`` and ``_primitives``.
    model: Any

    def finish(
        self,
        model: list[nn.Module],
        names: Mapping[int, str] | None = None,
        in_channels: int = 3,
        init: Init = "xavier",
        gain: float = 0.02,
    ) -> None:
        """Set the layers, draw their weights, and determine the channels and the stride of each.

        Args:
            model: the layers in order; each takes the output of the one before it, the first the image.
            names: names of layers as taps, by index; the other taps are named by their index.
            in_channels: channels of the image.
            init: distribution of the weights: xavier, normal, kaiming or orthogonal.
            gain: scale of that distribution.
        """
        self.model = FusedSequential(*model)
        initialise(self, init, gain)
        self.taps: list[Tap] = []
        channels, stride = in_channels, 1
        for index, layer in enumerate(model):
            for m in layer.modules():
                channels = cast(int, getattr(m, "out_channels", channels))
                if isinstance(m, Downsample) or (type(m) is nn.Conv2d and m.stride[0] == 2):
                    stride *= 2
                elif isinstance(m, (Upsample, nn.ConvTranspose2d)):
                    stride //= 2
                elif isinstance(m, nn.PixelUnshuffle):
                    channels, stride = channels * m.downscale_factor**2, stride * m.downscale_factor
                elif isinstance(m, nn.PixelShuffle):
                    channels, stride = channels // m.upscale_factor**2, stride // m.upscale_factor
            self.taps.append(Tap(index, (names or {}).get(index, str(index)), channels, stride))

    def find_taps(self, taps: Sequence[int | str] | None = None) -> list[Tap]:
        """Return the taps with these indices or names, in the order of the layers; the default ones for None.

        Raises:
            UserError: there is no such tap, or one is named twice.
        """
        by_name = {key: tap for tap in self.taps for key in (tap.index, str(tap.index), tap.name)}
        found = []
        for name in self.default_taps if taps is None else taps:
            if name not in by_name:
                named = [t.name for t in self.taps if not t.name.isdigit()]
                raise UserError(
                    f"the generator has no tap {name!r}{nearest(name, named)} "
                    f"(taps: 0 to {len(self.taps) - 1}, or {', '.join(named)})"
                )
            found.append(by_name[name])
        if len(set(found)) < len(found):
            raise UserError(f"a tap is named twice: {', '.join(map(str, taps or ()))}")
        return sorted(found)

    def forward(
        self,
        x: Tensor,
        taps: Sequence[int | str] = (),
        encode_only: bool = False,
        change: Mapping[int, Tensor] | None = None,
    ):
        """Translate (B, C, H, W) in [-1, 1].

        Args:
            x: the images; sides a multiple of ``self.multiple``.
            taps: indices or names of layers whose outputs are returned too.
            encode_only: stop at the deepest tap and return the features alone.
            change: is added to the outputs of layers, by index, before the next layer sees them.

        Returns:
            The image; (image, list of features) with ``taps``; the list alone with ``encode_only``.
        """
        wanted = [tap.index for tap in self.find_taps(taps)] if len(taps) else []
        features: list[Tensor] = []
        out = x
        if not encode_only or wanted:
            for index, out in self._walk(x, [*wanted, *change], change) if change else self._walk(x, wanted):
                if index in wanted:
                    features.append(out)
                    if encode_only and len(features) == len(wanted):
                        break
        if encode_only:
            return features
        return (out, features) if wanted else out

    def _walk(
        self, x: Tensor, wanted: Collection[int], change: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield the index and the output of the layers in order: at least of those ``wanted`` and of the last one."""
        last, inner = self.taps[-1].index, dict(change or {})
        at_end = inner.pop(last, None)  # of the translation, as the tap is
        for index, out in self._layers(x, wanted, inner):
            if index == last:
                out = self._joined(x, out) if at_end is None else self._joined(x, out) + at_end
            yield index, out

    def _joined(self, x: Tensor, out: Tensor) -> Tensor:
        """Return the translation: the last layer's output joined with the image, where it is."""
        if self.mask:
            return blend(x, out)
        # A residual through tanh would have to invert it wherever the image is to stay unchanged.
        return bound(x + out) if self.residual else out

    def _layers(
        self, x: Tensor, wanted: Collection[int], change: Mapping[int, Tensor] | None = None
    ) -> Iterator[tuple[int, Tensor]]:
        """Yield what :meth:`_walk` does, before the last output is joined with the image."""
        return self.model.walk(x, wanted, change)

    def primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`forward` runs, see :mod:`qsattn_plugin.registry.layers.primitives`."""
        layers = self._primitives()
        if self.mask:
            return [Skip.FORK, *layers, Skip.BLEND]
        return [Skip.FORK, *layers, Skip.ADD, nn.Hardtanh()] if self.residual else layers

    def _primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`_layers` runs."""
        return list(self.model)

    def check_sides(self, x: Tensor) -> None:
        """Raise ValueError for images whose sides are not multiples of ``self.multiple``."""
        height, width = x.shape[-2:]
        if height % self.multiple or width % self.multiple:
            what = f"this generator takes sides that are multiples of {self.multiple}, got {height} x {width}"
            raise ValueError(what)


def adds(residual: bool, in_channels: int, out_channels: int, argument: str = "residual") -> bool:
    """Return ``residual``; raise :class:`ValueError` about ``argument`` if images of these channels cannot be added."""
    if residual and in_channels != out_channels:
        what = f"images of {in_channels} input and {out_channels} output channels cannot be added"
        raise ValueError(f"{argument}: {what}; set it to false, or data.channels to one number")
    return residual


def chained(layers: Mapping[str, list[nn.Module]]) -> tuple[list[nn.Module], dict[int, str]]:
    """Return named groups of layers as :meth:`TappedGenerator.finish` takes them: one module each, and their names."""
    return [g[0] if len(g) == 1 else nn.Sequential(*g) for g in layers.values()], dict(enumerate(layers))


class ResidualBlock(nn.Module):
    """Layers with a skip connection: ``x + self.conv_block(x)``."""

    def __init__(self, conv_block: nn.Sequential):
        super().__init__()
        self.conv_block = conv_block

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv_block(x)

    def primitives(self) -> list[Primitive]:
        """Return the layers that :meth:`forward` runs."""
        return [Skip.FORK, *self.conv_block, Skip.ADD]


class ResnetBlock(ResidualBlock):
    """Two 3 x 3 convolutions and a skip connection; reflection padding (Johnson et al. 2016)."""

    def __init__(self, channels: int, norm: Norm):
        make_norm = normalisation(norm)
        convolutions = [nn.Conv2d(channels, channels, 3, bias=norm != "batch") for _ in range(2)]
        first, second = ([ReflectionPad(1), conv, make_norm(channels)] for conv in convolutions)
        super().__init__(FusedSequential(*first, nn.ReLU(), *second))


class ResnetGenerator(TappedGenerator):
    """The ResNet generator of CycleGAN and CUT: two steps down, ``blocks`` residual blocks, two steps up.

    Layer indices and ``state_dict`` keys are those of both projects' ``ResnetGenerator``. ReLUs are not in place, so a
    tap holds the output of its layer.

    Args:
        width: channels of the stem; the blocks have four times as many.
        antialias: blur when downsampling, as CUT does; CycleGAN does not.
        antialias_up: blur when upsampling, as CUT does; CycleGAN uses transposed convolutions.
        residual: add the output of the last layer to the input image; without, that output is the translation.
        init_gain: scale of the initial weights' distribution. The last layer of a residual generator has 0.3 of it.
    """

    #: The number of residual blocks, and their class.
    blocks: int = 9
    block_type: type[nn.Module] = ResnetBlock

    def __init__(
        self,
        width: int = 64,
        norm: Norm = "instance",
        antialias: bool = True,
        antialias_up: bool = True,
        residual: bool = False,
        init: Init = "xavier",
        init_gain: float = 0.02,
        in_channels: int = 3,
        out_channels: int = 3,
    ):
        super().__init__()
        at_least(1, width=width)
        self.residual = adds(residual, in_channels, out_channels)
        make_norm = normalisation(norm)
        bias = norm != "batch"  # batch norm has a bias of its own
        model: list[nn.Module] = []
        names: dict[str, int] = {}

        def add(*layers: nn.Module, name: str) -> None:
            model.extend(layers)
            names[name] = len(model) - 1

        add(ReflectionPad(3), name="image")
        add(nn.Conv2d(in_channels, width, 7, bias=bias), make_norm(width), nn.ReLU(), name="stem")
        channels = width
        taps = [names["image"]]
        for level in (1, 2):
            taps.append(len(model))
            # With antialiasing the convolution keeps the size and a blur halves it; without, its stride does both.
            conv = nn.Conv2d(channels, channels * 2, 3, stride=1 if antialias else 2, padding=1, bias=bias)
            channels *= 2
            blur = [Downsample(channels)] if antialias else []
            add(conv, make_norm(channels), nn.ReLU(), *blur, name=f"down_{level}")
        for block in range(1, self.blocks + 1):
            add(self.block_type(channels, norm), name=f"block_{block}")
        for level in (1, 2):
            half = channels // 2
            if antialias_up:
                up = [Upsample(channels), nn.Conv2d(channels, half, 3, padding=1, bias=bias)]
            else:
                up = [nn.ConvTranspose2d(channels, half, 3, stride=2, padding=1, output_padding=1, bias=bias)]
            channels = half
            add(*up, make_norm(channels), nn.ReLU(), name=f"up_{level}")
        paint = nn.Conv2d(channels, out_channels, 7)
        add(ReflectionPad(3), paint, *([] if residual else [nn.Tanh()]), name="output")

        # The papers' taps: the padded image, both convolutions on the way down, the first block and the fifth, where
        # there is one: 0, 4, 8, 12, 16 with antialiasing.
        self.default_taps = (*taps, *(names[f"block_{n}"] for n in (1, 5) if n <= self.blocks))
        self.finish(model, {index: name for name, index in names.items()}, in_channels, init, init_gain)
        if residual:  # small at first
            with torch.no_grad():
                paint.weight *= 0.3


@register("generator", "resnet_9blocks", tags=("resnet", "cut", "cyclegan"))
class Resnet9Blocks(ResnetGenerator):
    """ResNet generator with nine blocks: the papers' generator at 256 pixels."""


@register("generator", "resnet_6blocks", tags=("resnet", "cut", "cyclegan"))
class Resnet6Blocks(ResnetGenerator):
    """ResNet generator with six blocks: CycleGAN's at 128 pixels."""

    blocks = 6


@register("generator", "resnet_4blocks", tags=("resnet", "small"))
class Resnet4Blocks(ResnetGenerator):
    """ResNet generator with four blocks: for small pictures."""

    blocks = 4
