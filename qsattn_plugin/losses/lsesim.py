"""Spatially-correlative maps: F-LSeSim (Zheng, Cham and Cai, CVPR 2021)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.attention.routes import Route
from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import above, at_least, check_sizes, one_of
from qsattn_plugin.losses.contrastive import ContrastiveObjective, Pair
from qsattn_plugin.registry import Nested, create_nested, register


@register("objective", "lsesim", tags=("contrastive",))
class LSeSim(ContrastiveObjective):
    """Distance of the self-similarity maps of source and translation, fixed or learned (F-LSeSim, Zheng et al. 2021).

    The map of a query holds its similarities to the positions of a window around it, in its own image. Maps of source
    and translation are compared where the translation's is largest, in a quarter of the window. Learned maps go through
    two 1 x 1 convolutions a tap, trained by contrast: the source's maps are to be those of its translation and of its
    augmented self, not those of an image of the target domain turned by 180 degrees.

    Args:
        similarity: of features centred over the image: "dot", tanh of a tenth of the mean product of their channels, or
            "cosine".
        distance: "cosine" or "l1", between the maps.
        window: side of the window in positions; maps that are not larger are taken whole.
        learned: train convolutions in front of the similarities (LSeSim); else they are those of the encoder (FSeSim).
        augment: for learned maps: the augmentation that leaves the structure; null is none.
        temperature: of the contrast that learned maps are trained by.
        init_gain: deviation of the convolutions' normal initialisation.
    """

    identity = False
    projects = False

    def __init__(
        self,
        similarity: Literal["dot", "cosine"] = "dot",
        distance: Literal["cosine", "l1"] = "cosine",
        window: int = 64,
        learned: bool = False,
        augment: Annotated[str | dict[str, Any] | None, Nested("augmentation")] = "colour",
        temperature: float = 0.07,
        init_gain: float = 0.02,
    ):
        super().__init__()
        one_of(("dot", "cosine"), similarity=similarity)
        one_of(("cosine", "l1"), distance=distance)
        at_least(2, window=window)
        at_least(0, init_gain=init_gain)
        above(0, temperature=temperature)
        self.similarity, self.distance, self.window, self.learned = similarity, distance, window, learned
        self.temperature, self.init_gain = temperature, init_gain
        self.augment = create_nested("augmentation", augment, "augment") if learned and augment is not None else None

    def build(self, generator: nn.Module, encoder: Any, heads: nn.Module) -> None:
        for channels in (getattr(encoder, name, 3) for name in ("in_channels", "target_channels")):
            try:
                _ = self.augment and self.augment(torch.zeros(1, channels, 32, 32), torch.Generator())
            except ValueError as error:
                raise ValueError(f"augment: {error}") from error
        taps = list(zip(encoder.channels, self.translated, strict=True)) if self.learned else []
        self.select = nn.ModuleList(self._layers(channels) for channels, _ in taps)
        # For translations at taps where another encoder gives them other channels: at the image itself.
        others = {str(i): self._layers(theirs) for i, (channels, theirs) in enumerate(taps) if theirs != channels}
        self.select_translated = nn.ModuleDict(others)

    def _layers(self, channels: int) -> nn.Module:
        width = max(32, channels // 4)
        first, second = nn.Conv2d(channels, width, 1), nn.Conv2d(width, width, 1)
        for layer in (first, second):
            nn.init.normal_(layer.weight, 0.0, self.init_gain)
            nn.init.zeros_(cast(Tensor, layer.bias))
        return nn.Sequential(first, nn.ReLU(), second)

    def _selectors(self, translated: bool) -> list[nn.Module]:
        """Return the learned layers of all taps, for features of the source or of translations."""
        others = dict(self.select_translated.items()) if translated else {}
        return [others.get(str(i), layers) for i, layers in enumerate(self.select)]

    def compare(self, pair: Pair) -> Tensor:
        source = [f.detach() for f in pair.source]
        if self.learned:
            pair.own["similarity"] = self._contrast(pair, source)
        wanted = self.maps(self._fixed(source, False), [route.detach() for route in pair.routes])
        maps = self.maps(self._fixed(pair.features, True), pair.routes)
        return torch.stack([self.compare_maps(a, b) for a, b in zip(wanted, maps, strict=True)]).mean()

    def _fixed(self, features: Sequence[Tensor], translated: bool) -> list[Tensor]:
        """Return the features through the learned layers, which get no gradient; themselves if none are learned."""
        if not self.learned:
            return list(features)
        select = self._selectors(translated)
        weights = [{name: p.detach() for name, p in layers.named_parameters()} for layers in select]
        return [functional_call(s, w, (f,)) for s, w, f in zip(select, weights, features, strict=True)]

    def maps(self, features: Sequence[Tensor], routes: Sequence[Route]) -> list[Tensor]:
        """Return the maps of the routes' queries, (B, N, K) for windows of K positions, in features (B, C, H, W)."""
        found = []
        for f, route in zip(features, routes, strict=True):
            with no_autocast(f.device.type):
                f = at_least_float32(f)
                mean = f.mean((2, 3), keepdim=True)
                cosine = self.similarity == "cosine"
                # Routed first: a route may look at the features themselves.
                queries, keys = route(f) - mean.flatten(1).unsqueeze(1), (f - mean).flatten(2)
                if cosine:
                    queries, keys = F.normalize(queries, dim=2), F.normalize(keys, dim=1)
                else:
                    queries = queries / (10 * f.shape[1])
                scores = self._in_window(torch.bmm(queries, keys), route.queries, f.shape[2], f.shape[3])
                found.append(scores if cosine else torch.tanh(scores))
        return found

    def _in_window(self, scores: Tensor, queries: Tensor, height: int, width: int) -> Tensor:
        """Return the scores (B, N, H * W) in the window around each query (B, N), moved into the image."""
        if self.window >= min(height, width):
            return scores
        steps = torch.arange(self.window, device=queries.device)
        top, left = (
            (at - self.window // 2).clamp(0, side - self.window).unsqueeze(-1) + steps
            for at, side in ((queries // width, height), (queries % width, width))
        )
        return scores.gather(2, (top.unsqueeze(-1) * width + left.unsqueeze(-2)).flatten(2))

    def compare_maps(self, source: Tensor, translation: Tensor) -> Tensor:
        """Return the distance of maps (B, N, K), 0-dim, where the translation's are largest."""
        count = max(1, translation.shape[-1] // 4)
        largest = translation.detach().topk(min(count + 1, translation.shape[-1]), sorted=False).values
        outside = translation < largest.amin(-1, keepdim=True)
        source, translation = source.masked_fill(outside, 0.0), translation.masked_fill(outside, 0.0)
        if self.distance == "cosine":
            got = F.cosine_similarity(source, translation, dim=-1)
            want = torch.ones_like(got)
        else:
            factor = translation.shape[-1] / count
            got, want = factor * source, factor * translation
        return (F.l1_loss if self.similarity == "cosine" else F.smooth_l1_loss)(got, want)

    def _contrast(self, pair: Pair, source: Sequence[Tensor]) -> Tensor:
        """Return the loss of the learned layers: the maps' cross-entropy, with those of another image as negatives."""
        assert pair.target is not None
        check_sizes("lsesim with learned maps", pair.input.shape, pair.target.shape)
        routes = [route.detach() for route in pair.routes]
        with torch.no_grad():
            here, there = self._selectors(False), self._selectors(True)
            cases = [(there, [f.detach() for f in pair.features], pair.target)]
            if self.augment is not None:
                same, other = (self.augment(images, pair.draws) for images in (pair.input, pair.target))
                cases.append((here, pair.encode_source(same), other))
            encoded = [(select, same, pair.encode(other.flip(2, 3))) for select, same, other in cases]
        losses = []
        for index, layers in enumerate(here):
            (a,) = self.maps([layers(source[index])], [routes[index]])
            for select, same, other in encoded:
                seen = [select[index](same[index]), there[index](other[index])]
                b, c = self.maps(seen, [routes[index]] * 2)
                losses.append(contrast_maps(a, b, c, self.temperature))
        return torch.stack(losses).mean()


def contrast_maps(source: Tensor, same: Tensor, other: Tensor, temperature: float) -> Tensor:
    """Return the cross-entropy, 0-dim, of finding each of ``source``'s maps (B, N, K) in ``same``.

    The maps of ``other`` are negatives of both.
    """
    with no_autocast(source.device.type):
        lengths = [maps.norm(dim=-1, keepdim=True).clamp_min(1e-12) for maps in (source, same, other)]
        # Maps have more numbers than the products of all of them: dividing these costs less, gradients most of all.
        a, b, c = zip((source, same, other), lengths, strict=True)
        logits = torch.cat([x @ y.mT / (long * wide.mT) for (x, long), (y, wide) in ((a, b), (a, c), (b, c))], 2)
        places = torch.arange(source.shape[1], device=source.device).repeat(len(source))
        return F.cross_entropy(logits.flatten(0, 1) / temperature, places)
