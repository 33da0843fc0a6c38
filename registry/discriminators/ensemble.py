"""An ensemble of discriminators."""

from __future__ import annotations

from typing import Annotated, Any

from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import Nested, create_nested, register
from qsattn_plugin.registry.discriminators import Discriminator


@register("discriminator", "ensemble", tags=("several",))
class Ensemble(Discriminator):
    """Several discriminators, each with its own share of the adversarial loss and its own lines in the log.

    Returns the score maps of all of them in one list; training uses each of them separately.

    Args:
        of: the discriminators: for each a registered name, or ``{type: name, ...}`` with its arguments.
        weights: weight of each one's adversarial loss, in its own loss and in the generator's; 1 each without it.
        r1: weight of each one's R1 penalty; without it the method's ``r1`` for each.
    """

    def __init__(
        self,
        of: Annotated[list[str | dict[str, Any]], Nested("discriminator")],
        weights: tuple[float, ...] | None = None,
        r1: tuple[float, ...] | None = None,
        size: int | None = None,
        in_channels: int = 3,
    ):
        super().__init__()
        if not of:
            raise ValueError("of: must name at least one discriminator")
        for name, values in (("weights", weights), ("r1", r1)):
            if values is not None and len(values) != len(of):
                raise ValueError(f"{name}: needs a number for each of the {len(of)} discriminators, got {len(values)}")
        if weights is not None and min(weights) <= 0:
            raise ValueError(f"weights: must be above 0, got {min(weights)}; leave out a discriminator without weight")
        at_least(0, r1=min(r1 or (0,)))
        types = [spec if isinstance(spec, str) else str(spec.get("type")) for spec in of]
        #: The discriminators by their types, which are numbered where several have the same.
        self.judges = nn.ModuleDict()
        for index, (spec, name) in enumerate(zip(of, types, strict=True)):
            judge = create_nested("discriminator", spec, f"of.{index}", size=size, in_channels=in_channels)
            if isinstance(judge, Ensemble):
                raise ValueError(f"of: {name} {index} is an ensemble itself; name its discriminators here instead")
            self.judges[f"{name}_{index}" if types.count(name) > 1 else name] = judge
        self.weights = weights or (1.0,) * len(of)
        self.r1 = r1

    def forward(self, x: Tensor) -> list[Tensor]:
        maps: list[Tensor] = []
        for judge in self.judges.values():
            scores = judge(x)
            maps += scores if isinstance(scores, list | tuple) else [scores]
        return maps
