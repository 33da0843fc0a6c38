"""A network as a sequence of primitive layers, for translation in tiles.

A module lists its layers in a method ``primitives()``: modules and marks (:class:`Skip`) in the order in which they
run::

    def primitives(self):
        return [Skip.FORK, *self.conv_block, Skip.ADD]          # x + self.conv_block(x)

A subclass that overrides ``forward`` must override ``primitives`` too; otherwise it counts as one layer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any, cast

from torch import Tensor, nn

__all__ = ["Primitive", "Skip", "blend", "primitives"]


class Skip(enum.Enum):
    """The start and the end of a skip connection; they nest like brackets."""

    #: The input here is kept.
    FORK = "fork"
    #: The kept input is added to the value here.
    ADD = "add"
    #: The kept input is concatenated before the value here, along the channels.
    CONCATENATE = "concatenate"
    #: The kept input and the value here are mixed by the value's last channel, a mask: :func:`blend`.
    BLEND = "blend"


Primitive = nn.Module | Skip


def blend(kept: Tensor, change: Tensor) -> Tensor:
    """Return ``kept`` (B, C, H, W) with a content (B, C, H, W) over it, as far as a mask (B, 1, H, W) lets it.

    The change (B, C + 1, H, W) is the content before its tanh, and the mask's logit in its last channel.
    """
    content, mask = change.split([kept.shape[1], 1], 1)
    return kept + mask.sigmoid() * (content.tanh() - kept)


def primitives(layers: nn.Module | Iterable[Primitive]) -> list[Primitive]:
    """Return the modules without ``primitives`` that a network, or a sequence of layers, consists of, and the marks."""
    if isinstance(layers, nn.Module):
        if type(layers) is nn.Sequential:
            return primitives(iter(layers))
        if _describes_itself(layers):
            return primitives(cast(Any, layers).primitives())
        return [layers]
    return [part for layer in layers for part in ([layer] if isinstance(layer, Skip) else primitives(layer))]


def _describes_itself(module: nn.Module) -> bool:
    """Return whether ``primitives`` belongs to the class whose ``forward`` runs, or to a subclass of it."""

    def writer(method: str) -> int:
        ancestors = type(module).__mro__
        return next((i for i, ancestor in enumerate(ancestors) if method in vars(ancestor)), len(ancestors))

    return hasattr(module, "primitives") and "forward" not in vars(module) and writer("primitives") <= writer("forward")
