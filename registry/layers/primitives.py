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

from torch import nn

__all__ = ["Primitive", "Skip", "primitives"]


class Skip(enum.Enum):
    """The start and the end of a skip connection; they nest like brackets."""

    #: The input here is kept.
    FORK = "fork"
    #: The kept input is added to the value here.
    ADD = "add"
    #: The kept input is concatenated before the value here, along the channels.
    CONCATENATE = "concatenate"


Primitive = nn.Module | Skip


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
