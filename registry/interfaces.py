"""What the package uses of a generator, an encoder and a sampler, and the defaults for parts that do not say it.

A part of somebody else's need not derive from these protocols. Optional members are read by the functions below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from torch import Generator as RandomGenerator
    from torch import Tensor, nn

__all__ = ["Encoder", "Generator", "Sampler", "attentive_layers", "side_multiple"]


class Generator(Protocol):
    """Translates images (B, C, H, W) in [-1, 1]."""

    #: Sides of images must be multiples of this many pixels; optional, see :func:`side_multiple`.
    multiple: int

    def __call__(self, x: Tensor) -> Tensor: ...


class Encoder(Protocol):
    """Gives the features that the contrastive loss compares."""

    #: Names of the layers, shallow to deep; the channels at each, and the pixels that one position spans there.
    taps: Sequence[int | str]
    channels: Sequence[int]
    strides: Sequence[int]

    def translate(self, generator: nn.Module, source: Tensor) -> tuple[Tensor, list[Tensor]]: ...

    def features(self, generator: nn.Module, image: Tensor) -> list[Tensor]: ...


class Sampler(Protocol):
    """Chooses one route per layer."""

    def choose(
        self,
        features: Sequence[Tensor],
        taps: Sequence[int | str] | None = None,
        generator: RandomGenerator | None = None,
        observe: bool = False,
    ) -> list[Any]: ...

    #: Optional, see :func:`attentive_layers`.
    def attentive(self, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]: ...


def side_multiple(generator: Generator | nn.Module | None, default: int = 4) -> int:
    """Return the number of pixels of which the sides of a generator's images must be multiples."""
    return getattr(generator, "multiple", default)


def attentive_layers(sampler: Sampler, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]:
    """Return for each layer whether the sampler chooses its route (True without ``attentive``), not random positions.

    Raises:
        UserError: the sampler names a tap that is not among ``taps``.
    """
    attentive = getattr(sampler, "attentive", None)
    return [True] * len(features) if attentive is None else attentive(features, taps)
