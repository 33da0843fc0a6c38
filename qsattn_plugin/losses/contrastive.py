"""What contrastive objectives compare, their base class, and the patch-wise loss of CUT."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.attention.entropy import at_least_float32
from qsattn_plugin.attention.routes import Route
from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import Misfit, above, one_of
from qsattn_plugin.registry import register

__all__ = ["ContrastiveObjective", "Pair", "PatchNCE", "PatchObjective"]


def check_positions(count: int, least: int) -> None:
    """Raise :class:`Misfit` if fewer positions were chosen at a tap than a loss needs."""
    if count < least:
        text = f"the loss needs at least {least} positions at a tap, got {count}: set more queries (or, with negatives:"
        text += " batch, a larger train.batch_size), or leave out taps whose maps are smaller"
        raise Misfit(text, "sampler.queries")


@dataclass
class Pair:
    """A source image and its translation, as contrastive objectives see them.

    Features, routes and projections are computed when an objective first asks for them, once for all objectives.

    Attributes:
        input: the source images, (B, C, H, W).
        image: their translations, (B, C', H, W); mirrored along the width if ``mirrored``.
        source: the source's features at the encoder's taps, (B, C, H, W) each.
        taps: the names of these taps.
        passed: outputs of layers of the generator in the pass that made ``image``, by index: those that the objective
            names in ``layers``.
        target: real images of the other domain; None for an image and its translation into its own domain.
        generator: the network that made ``image``.
        encode: returns the features of an image at the taps, as of translations.
        encode_source: the same, as of sources.
        heads: projects routed features of the source.
        translation_heads: projects routed features of the translation.
        choose: returns routes for feature maps of the source and the names of their layers. The third argument says
            whether the maps are of the mirrored source, as ``passed`` is.
        draws: the generator of all random numbers.
        mirrored: whether the translation is of the mirrored source (flip equivariance).
        detached: whether nothing learns from the positives: they then have no graph.
        own: losses of the objective's own networks, by name, to be filled by the objective. They train these networks
            alone: nothing else may get a gradient of them.
    """

    input: Tensor
    image: Tensor
    source: list[Tensor]
    taps: list[int | str]
    passed: Mapping[int, Tensor]
    target: Tensor | None
    generator: nn.Module
    encode: Callable[[Tensor], list[Tensor]]
    encode_source: Callable[[Tensor], list[Tensor]]
    heads: Any
    translation_heads: Any
    choose: Callable[[Sequence[Tensor], Sequence[int | str], bool], list[Route]]
    draws: torch.Generator
    mirrored: bool = False
    detached: bool = True
    own: dict[str, Tensor] = field(default_factory=dict)

    @cached_property
    def routes(self) -> list[Route]:
        """The sampler's choice on the source's features, one route a tap."""
        with torch.enable_grad():  # an objective may ask first where it needs no gradient itself
            return self.choose(self.source, self.taps, False)

    @cached_property
    def features(self) -> list[Tensor]:
        """The translation's features at the taps, turned back if it is mirrored."""
        with torch.enable_grad():
            features = self.encode(self.image)
            return [f.flip(-1) for f in features] if self.mirrored else features

    @cached_property
    def anchors(self) -> list[Tensor]:
        """The translation's projections, unit vectors (B, N, width), one tensor a tap."""
        routes = self.routes  # before the features: random numbers are drawn in this order
        with torch.enable_grad():
            return self.translation_heads([route(f) for route, f in zip(routes, self.features, strict=True)])

    @cached_property
    def positives(self) -> list[Tensor]:
        """The source's projections at the same places."""
        # Detached positives need no graph through the heads.
        with torch.set_grad_enabled(not self.detached):
            return self.heads([route(f) for route, f in zip(self.routes, self.source, strict=True)])


class ContrastiveObjective(nn.Module):
    """Compares a source image with its translation: what ``objective.nce`` of a recipe names.

    A subclass defines :meth:`forward`, the loss of the projections at one tap; or it overrides :meth:`compare` and asks
    the :class:`Pair` for what it needs. It may own networks, made in :meth:`build`: the optimizer ``objective`` trains
    them, on the loss that the generator is trained on, and on what the objective puts into :attr:`Pair.own`.
    """

    #: Whether it also compares an image of the target domain with its translation, the identity term. Objectives that
    #: do have half the weight in each of the two.
    identity: bool = True
    #: Whether it asks for projections, and so for heads.
    projects: bool = True
    #: Whether no gradient flows through the positives.
    detach_positives: bool = True
    #: Indices of the generator's layers whose outputs it asks for, see :attr:`Pair.passed`.
    layers: Sequence[int] = ()
    #: Names of the layers that it has routes chosen for; None for the encoder's taps.
    routed: Sequence[int | str] | None = None
    #: The channels of the translation's features at the taps; set before :meth:`build`.
    translated: Sequence[int] = ()
    #: The share of the training's steps that are done, 0 to 1; the method sets it.
    progress: float = 0.0

    def build(self, generator: nn.Module, encoder: Any, heads: nn.Module) -> None:
        """Make the networks that it owns, and decide on ``layers`` and ``routed``. Called once, before training.

        Args:
            generator: the network that translates.
            encoder: has ``taps``, ``channels`` and ``strides``.
            heads: project the source's features.

        Raises:
            UserError: the objective cannot be computed with these.
        """

    def compare(self, pair: Pair) -> Tensor:
        """Return the loss of a pair, 0-dim: the mean over taps, images and anchors."""
        each = [self(a, p).mean() for a, p in zip(pair.anchors, pair.positives, strict=True)]
        return torch.stack(each).mean()

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of each anchor, (B, N), from anchors and positives (B, N, C) of unit length."""
        raise NotImplementedError

    def after_step(self) -> None:
        """Follow a step of the optimizers, as moving averages do."""


class PatchObjective(ContrastiveObjective):
    """Base of losses that compare every anchor with every position of the source.

    Args:
        temperature: divides the similarities.
        negatives: "internal" takes negatives from the same image (the papers'), "batch" from all images of the batch.
        detach_positives: no gradient flows through the positives, as in CUT.

    Raises:
        ValueError: an argument is out of its range.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
    ):
        super().__init__()
        above(0, temperature=temperature)
        one_of(("internal", "batch"), negatives=negatives)
        self.temperature = temperature
        self.negatives = negatives
        self.detach_positives = detach_positives

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of each anchor, (B, N), from anchors and positives (B, N, C) of unit length.

        It is float32 (float64 for float64) also under autocast: similarities over a temperature of 0.07 need more than
        eight bits.

        Raises:
            ValueError: anchors and positives differ in shape.
            Misfit: there are no negatives, and no loss without them.
        """
        if anchors.shape != positives.shape or anchors.ndim != 3:
            raise ValueError(
                f"anchors: must have the same shape (B, N, C) as positives, got {tuple(anchors.shape)} and "
                f"{tuple(positives.shape)}"
            )
        shape = anchors.shape[:2]
        if self.detach_positives:
            positives = positives.detach()
        with no_autocast(anchors.device.type):
            anchors, positives = at_least_float32(anchors), at_least_float32(positives)
            if self.negatives == "batch":
                anchors, positives = anchors.flatten(0, 1)[None], positives.flatten(0, 1)[None]
            return self.each(anchors, positives).view(shape)

    def compare(self, pair: Pair) -> Tensor:
        # A map of one position teaches nothing; all of them would be a training without this loss.
        images = len(pair.image) if self.negatives == "batch" else 1
        check_positions(max(images * route.queries.shape[1] for route in pair.routes), 2)
        return super().compare(pair)

    def each(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of each anchor, (b, n): anchors and positives (b, n, C) of one entry are compared."""
        raise NotImplementedError


def without_diagonal(values: Tensor) -> Tensor:
    """Return (b, n, n) with -inf on the diagonal, where an anchor meets its own positive.

    Raises:
        Misfit: n is 1, so that nothing is left.
    """
    check_positions(values.shape[-1], 2)
    return values.masked_fill(torch.eye(values.shape[-1], dtype=torch.bool, device=values.device), -torch.inf)


@register("objective", "patchnce", tags=("cut", "contrastive"))
class PatchNCE(PatchObjective):
    """Cross-entropy of finding, for each anchor, its positive among all positions of the image (CUT, Park et al. 2020).

    Equation 3 of the paper: similarities are dot products of unit vectors over ``temperature``; the positive is on the
    diagonal, all other rows of the same image are negatives.

    Args:
        temperature: divides the similarities.
        negatives: "internal" takes negatives from the same image (the papers'), "batch" from all images of the batch.
        detach_positives: no gradient flows through the positives, as in CUT.
    """

    def each(self, anchors: Tensor, positives: Tensor) -> Tensor:
        logits = torch.bmm(anchors, positives.transpose(1, 2)) / self.temperature
        diagonal = torch.arange(logits.shape[1], device=logits.device).repeat(logits.shape[0])
        return F.cross_entropy(logits.flatten(0, 1), diagonal, reduction="none")
