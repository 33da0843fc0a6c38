"""What floors above share: words of recipes, and what parts that derive from no base class may leave out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = ["Attentive", "PreprocessMode", "attentive_layers", "of_domain", "side_multiple"]

#: What happens to a training image before it is cropped: CUT's and CycleGAN's modes.
PreprocessMode = Literal[
    "resize_and_crop",
    "crop",
    "scale_width",
    "scale_width_and_crop",
    "scale_shortside",
    "scale_shortside_and_crop",
    "none",
]


def of_domain(value: Any, domain: str) -> Any:
    """Return what a key of ``data`` says of the domain "A" or "B": one value for both, or a mapping of both."""
    return value[domain] if isinstance(value, Mapping) else value


class Attentive(Protocol):
    """A sampler that says on which layers it uses attention."""

    def attentive(self, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]: ...


def side_multiple(generator: nn.Module | None, default: int = 4) -> int:
    """Return the number of pixels of which the sides of a generator's images must be multiples."""
    return getattr(generator, "multiple", default)


def attentive_layers(sampler: Attentive | object, features: Sequence[Tensor], taps: Sequence[str]) -> list[bool]:
    """Return for each layer whether the sampler chooses its route; True without ``attentive``.

    Raises:
        UserError: the sampler names a tap that is not among ``taps``.
    """
    attentive = getattr(sampler, "attentive", None)
    return [True] * len(features) if attentive is None else attentive(features, taps)
