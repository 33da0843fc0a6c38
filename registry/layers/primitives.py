"""A network as primitive layers in a row: what working in tiles needs to know about it.

A module says what it is made of by a method ``primitives()``, which gives modules and marks (:class:`Skip`) in the
order in which they run::

    def primitives(self):
        return [Skip.FORK, *self.conv_block, Skip.ADD]          # x + self.conv_block(x)

Whoever writes ``forward`` anew in a subclass writes ``primitives`` anew as well, or the subclass counts as one layer.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable

from torch import nn

__all__ = ["Primitive", "Skip", "primitives"]


class Skip(enum.Enum):
    """The ends of a skip connection; they nest like brackets."""

    #: What comes in here is needed again.
    FORK = "fork"
    #: It is added to what arrives here.
    ADD = "add"
    #: It is put before what arrives here, channel-wise.
    CONCATENATE = "concatenate"


Primitive = nn.Module | Skip


def primitives(layers: nn.Module | Iterable[Primitive]) -> list[Primitive]:
    """Take a network, or layers in a row, apart into modules that do not say more about themselves, and marks."""
    if isinstance(layers, nn.Module):
        if type(layers) is nn.Sequential:
            return primitives(iter(layers))
        if _describes_itself(layers):
            return primitives(layers.primitives())
        return [layers]
    return [part for layer in layers for part in ([layer] if isinstance(layer, Skip) else primitives(layer))]


def _describes_itself(module: nn.Module) -> bool:
    """Whether ``primitives`` was written by the class whose ``forward`` runs, or by one derived from it."""

    def writer(method: str) -> int:
        ancestors = type(module).__mro__
        return next((i for i, ancestor in enumerate(ancestors) if method in vars(ancestor)), len(ancestors))

    return hasattr(module, "primitives") and "forward" not in vars(module) and writer("primitives") <= writer("forward")
