"""Layers of the generator's encoder and decoder matched without negatives: EnCo (Cai et al., AAAI 2024)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import UserError, at_least
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair, check_positions
from qsattn_plugin.registry import register


@register("objective", "enco", tags=("contrastive",))
class EnCo(ContrastiveObjective):
    """Cosine distance of mirrored layers of the generator's encoder and decoder (EnCo, Cai et al. 2024).

    There are no negatives. Both layers of a pair are projected by one MLP, the decoder's further by a predictor; 2 - 2
    cos is averaged over positions and pairs. No gradient flows through the encoder's features, but one does through the
    rows of attention that are made of them. All features come from the pass that translates.

    Args:
        pairs: layers of the generator, by index or name: one of the encoder and one of the decoder, of equal size and
            channels each; without it the first and the last named layer of every size.
        width: width of the MLPs; the predictors' is half of it.
        init_gain: scale of their Xavier initialisation.
    """

    identity = False
    projects = False

    def __init__(
        self,
        pairs: tuple[tuple[int | str, int | str], ...] | None = None,
        width: int = 256,
        init_gain: float = 0.02,
    ):
        super().__init__()
        at_least(2, width=width)
        at_least(0, init_gain=init_gain)
        self.pairs, self.width, self.init_gain = pairs, width, init_gain

    def build(self, generator: Any, encoder: object, heads: nn.Module) -> None:
        if not hasattr(generator, "find_taps"):
            raise UserError(f"enco compares layers of the generator, and {type(generator).__name__} has no taps")
        pairs = mirrored_layers(generator.taps) if self.pairs is None else [generator.find_taps(p) for p in self.pairs]
        for inner, outer in pairs:
            if (inner.channels, inner.stride) != (outer.channels, outer.stride):
                shown = " and ".join(f"{t.name} ({t.channels} channels, stride {t.stride})" for t in (inner, outer))
                raise UserError(f"pairs: layers of a pair must have the same channels and stride, got {shown}")
        if not pairs:
            raise UserError("pairs: the generator has no two named layers of the same channels and stride; name some")
        self.inner, self.outer = ([pair[side].index for pair in pairs] for side in (0, 1))
        self.layers = sorted({*self.inner, *self.outer})
        self.routed = self.inner
        width = self.width
        self.projectors, self.predictors = nn.ModuleList(), nn.ModuleList()
        for inner, _ in pairs:
            # 1 x 1 convolutions over places: linear layers whose norms see one image at a time.
            self.projectors.append(
                nn.Sequential(
                    nn.Conv1d(inner.channels, width, 1, bias=False),
                    nn.InstanceNorm1d(width, affine=True),
                    nn.ReLU(),
                    nn.Conv1d(width, width, 1, bias=False),
                    nn.InstanceNorm1d(width),
                )
            )
            self.predictors.append(
                nn.Sequential(
                    nn.Conv1d(width, width // 2, 1, bias=False),
                    nn.InstanceNorm1d(width // 2, affine=True),
                    nn.ReLU(),
                    nn.Conv1d(width // 2, width, 1),
                )
            )
        for layer in self.modules():
            if isinstance(layer, nn.Conv1d):
                nn.init.xavier_normal_(layer.weight, gain=self.init_gain)
                if layer.bias is not None:
                    nn.init.zeros_(layer.bias)

    def compare(self, pair: Pair) -> Tensor:
        encoder, decoder = ([pair.passed[index] for index in side] for side in (self.inner, self.outer))
        routes = pair.choose(encoder, self.inner, pair.mirrored)
        losses = []
        for index, route in enumerate(routes):
            project, predict = self.projectors[index], self.predictors[index]
            check_positions(route.queries.shape[1], 2)
            predicted = predict(project(route(decoder[index]).transpose(1, 2)))
            with torch.no_grad():
                wanted = project(route(encoder[index]).transpose(1, 2))
            with no_autocast(predicted.device.type):
                cosine = F.cosine_similarity(at_least_float32(predicted), at_least_float32(wanted), dim=1)
                losses.append((2 - 2 * cosine).mean())
        return torch.stack(losses).mean()


def mirrored_layers(taps: list[Any]) -> list[tuple[Any, Any]]:
    """Return the first and the last named layer of each size, without the image at both ends, outer pairs first."""
    named = [tap for tap in taps if not tap.name.isdigit()][1:-1]
    by_size: dict[tuple[int, int], list[Any]] = {}
    for tap in named:
        by_size.setdefault((tap.channels, tap.stride), []).append(tap)
    return [(same[0], same[-1]) for same in by_size.values() if len(same) > 1]
