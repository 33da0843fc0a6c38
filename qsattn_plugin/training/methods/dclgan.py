"""DCLGAN: two generators, and a contrastive loss in both directions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.losses import Pair
from qsattn_plugin.losses.contrastive import check_positions
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import Nested, register
from qsattn_plugin.registry.layers import initialise
from qsattn_plugin.training.methods.adversary import Adversary, adversarial_loss
from qsattn_plugin.training.methods.base import Method, Parts, check_identity
from qsattn_plugin.training.methods.contrast import Contrast, Objectives, Translated


class Signature(nn.Module):
    """Maps the projections of some places at all taps to one unit vector an image.

    Taps are the channels of a small convolutional network over places and numbers, as in the authors' code.

    Args:
        taps: number of taps.
        width: numbers in the vector.
    """

    def __init__(self, taps: int, width: int = 64):
        super().__init__()
        self.model = nn.Sequential(
            *(nn.Conv2d(taps, width, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
            *(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width)),
        )
        initialise(self.model, "normal", 0.02)

    def forward(self, projected: list[Tensor]) -> Tensor:
        """Return (B, width) for projections (B, N, C), one tensor a tap; of the N, as many as every tap has count."""
        count = min(p.shape[1] for p in projected)
        check_positions(count, 3)
        out = self.model(torch.stack([p[:, :count] for p in projected], 1)).float()
        return out / (out.norm(dim=1, keepdim=True) + 1e-7)


@register("method", "dclgan", tags=("contrastive", "two-sided"))
class DCLGAN(Method):
    """Two generators and a contrastive loss in both directions, with an encoder and a head a domain (Han et al. 2021).

    A translation is encoded by the generator of its own domain and projected by that domain's heads. The generators'
    objective is the mean over both directions of the adversarial loss, ``nce_weight`` times the contrastive loss and
    ``identity_l1`` times the L1 distance between an image of the target domain and its translation.

    Args:
        parts: builds the networks.
        gan: the adversarial loss: a registered objective's name, or ``{type: name, ...}`` with its arguments.
        gan_weight: the weight of the adversarial losses for the generators.
        nce: the contrastive loss: a registered objective's name, or ``{type: name, ...}`` with its arguments, or a list
            of these, to be added up by their ``weight``.
        nce_weight: the weight of the contrastive losses.
        identity_l1: weight of the L1 distance between G(y) and y.
        similarity_weight: weight of the distance between signatures of real and translated images of each domain.
        temperature: of contrastive losses that have one and do not set it.
        negatives: likewise: "internal" or "batch", see the objective ``patchnce``.
        detach_positives: likewise: stop gradients through the positives.
        head_width: output features of the projection heads.
        head_gain: gain of the heads' Xavier initialisation.
    """

    defaults: Mapping[str, Any] = {"data": {"random_crop": "until_decay"}, "sampler": {"type": "random"}}

    def __init__(
        self,
        parts: Parts,
        *,
        gan: Annotated[str | dict[str, Any], Nested("objective")] = "lsgan",
        gan_weight: float = 1.0,
        nce: Annotated[str | dict[str, Any] | list[str | dict[str, Any]], Nested("objective", True)] = "patchnce",
        nce_weight: float = 2.0,
        identity_l1: float = 1.0,
        similarity_weight: float = 0.0,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
        head_width: int = 256,
        head_gain: float = 0.02,
    ):
        super().__init__()
        at_least(0, gan_weight=gan_weight, nce_weight=nce_weight, identity_l1=identity_l1, head_gain=head_gain)
        at_least(0, similarity_weight=similarity_weight)
        at_least(3 if similarity_weight else 1, head_width=head_width)  # signatures are convolutions over it
        if not gan_weight and not nce_weight:
            raise ValueError("gan_weight: 0, and nce_weight too: the generators have no loss")
        if identity_l1:
            check_identity(parts, "identity_l1", 0)
        self.generator, self.generator_back = parts.generator(), parts.generator(back=True)
        self.discriminator, self.discriminator_back = parts.discriminator(), parts.discriminator(back=True)
        # A translation is encoded by the other direction's encoder: each sees the images of one domain.
        self.encoder = parts.encoder(self.generator, translations=False)
        self.encoder_back = parts.encoder(self.generator_back, back=True, translations=False)
        shared = {"temperature": temperature, "negatives": negatives, "detach_positives": detach_positives}
        self.nce, self.nce_back = Objectives(nce, **shared), Objectives(nce, **shared)
        encoded = [self.encoder.channels, self.encoder_back.channels]
        encoded = encoded if similarity_weight else [self.nce.heads(channels) for channels in encoded]
        self.heads, self.heads_back = (ProjectionHeads(channels, head_width, head_gain) for channels in encoded)
        self.nce.build(self.generator, self.encoder, self.heads, parts, self.encoder_back)
        self.nce_back.build(self.generator_back, self.encoder_back, self.heads_back, parts, self.encoder)
        self.sampler = parts.sampler(self.encoder.taps)
        self.signatures = nn.ModuleList(Signature(self.heads.count) for _ in range(4 if similarity_weight else 0))
        loss, augment = adversarial_loss(gan), parts.augmentation()
        self.adversary = Adversary(self.discriminator, loss, augment)
        self.adversary_back = Adversary(self.discriminator_back, loss, augment)
        there = (self.generator, self.encoder, self.heads)
        back = (self.generator_back, self.encoder_back, self.heads_back)
        self.contrast = Contrast(self.nce, *there, self.sampler, self.adversary, back)
        self.contrast_back = Contrast(self.nce_back, *back, self.sampler, self.adversary_back, there)
        self.gan_weight, self.nce_weight = gan_weight, nce_weight
        self.identity_l1, self.similarity_weight = identity_l1, similarity_weight

    def roles(self) -> dict[str, list[nn.Module]]:
        owned = [*self.nce.owned(), *self.nce_back.owned()] if self.nce_weight else []
        there, back = (self.generator, self.heads, self.encoder), (self.generator_back, self.heads_back)
        roles = {
            "generator": [*there, *back, self.encoder_back, self.signatures],
            "discriminator": [self.discriminator, self.discriminator_back],
        }
        return {**roles, **({"objective": owned} if owned else {})}

    def published(self) -> dict[str, nn.Module]:
        return {"forward": self.generator, "backward": self.generator_back}

    def compilable(self) -> list[nn.Module]:
        left_out = (self.discriminator, self.discriminator_back, *self.nce, *self.nce_back)
        judges = [*self.adversary.compilable(), *self.adversary_back.compilable()]
        return [n for n in super().compilable() if n not in left_out] + judges

    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        parts = self.divide(batch)
        for objectives in (self.nce, self.nce_back):
            objectives.set_progress(self.progress)
        logs: list[dict[str, Tensor]] = [{} for _ in parts]
        sides = (
            (self.contrast, self.adversary, "forward", "A", "B"),
            (self.contrast_back, self.adversary_back, "backward", "B", "A"),
        )
        # The discriminators are updated first and need all translations. The first part's graphs are kept for the
        # generators' update; the others are translated twice: their graphs would take the memory that dividing saves.
        made: list[list[Callable[[], Translated]]] = []
        judged: list[Callable[[], Tensor]] = []
        for part, log in zip(parts, logs, strict=True):
            made.append([])
            for contrast, adversary, name, source, target in sides:
                translate = partial(self._translate, contrast, part[source])
                with torch.set_grad_enabled(len(made) == 1):
                    first = [translate()]
                fake = first[0].image.detach()
                made[-1].append(first.pop if len(made) == 1 else translate)
                judged.append(partial(adversary.discriminator_loss, part[target], fake, draws, log, f"_{name}"))
        self.update("discriminator", judged, len(parts))
        terms: list[Callable[[], Tensor]] = []
        for part, log, both in zip(parts, logs, made, strict=True):
            directions = [
                partial(self._direction, contrast, adversary, translate, part[target], name, draws, log, observe)
                for (contrast, adversary, name, _, target), translate in zip(sides, both, strict=True)
            ]
            if self.similarity_weight:  # it joins both directions in one graph
                terms.append(partial(self._with_similarity, directions, log))
            else:
                terms += [partial(self._alone, direction) for direction in directions]
            if self.identity_l1:
                terms += [
                    partial(self._identity_loss, part[target], contrast.generator, name, log)
                    for contrast, _, name, _, target in sides
                ]
        self.update(("generator", "objective"), terms, len(parts))
        for objectives in (self.nce, self.nce_back):
            objectives.after_step()
        self.end_step()
        return self.merge(logs)

    def _translate(self, contrast: Contrast, source: Tensor) -> Translated:
        with self.autocast():
            return contrast.translate(source)

    def _direction(
        self,
        contrast: Contrast,
        adversary: Adversary,
        translate: Callable[[], Translated],
        target: Tensor,
        name: str,
        draws: torch.Generator,
        log: dict[str, Tensor],
        observe: bool,
    ) -> tuple[Tensor, Pair]:
        """Return the generator's objective in one direction, and the pair that it compared."""
        made = translate()
        total = 0.5 * self.gan_weight * adversary.generator_loss(made.image, draws, log, f"_{name}")
        pair = contrast.pair(made, draws, log, f"NCE_{name}", target, observe, learning=bool(self.similarity_weight))
        if self.nce_weight:
            nce, own = contrast.loss(pair, log, f"NCE_{name}")
            total = total + 0.5 * self.nce_weight * nce + own
        return total, pair

    @staticmethod
    def _alone(direction: Callable[[], tuple[Tensor, Pair]]) -> Tensor:
        return direction()[0]

    def _with_similarity(
        self, directions: Sequence[Callable[[], tuple[Tensor, Pair]]], log: dict[str, Tensor]
    ) -> Tensor:
        """Return both directions' objectives and the similarity loss between real and translated images."""
        (there, a), (back, b) = (direction() for direction in directions)
        of_a, from_a, of_b, from_b = self.signatures
        distance = F.l1_loss(of_a(a.positives), from_b(b.anchors)) + F.l1_loss(from_a(a.anchors), of_b(b.positives))
        log["similarity"] = distance.detach()
        return there + back + self.similarity_weight * distance

    def _identity_loss(self, image: Tensor, generator: nn.Module, name: str, log: dict[str, Tensor]) -> Tensor:
        """Return the identity loss of an image of the target domain."""
        loss = F.l1_loss(generator(image).float(), image)
        log[f"identity_{name}"] = loss.detach()
        return 0.5 * self.identity_l1 * loss


@register("method", "simdcl", tags=("contrastive", "two-sided"))
class SimDCL(DCLGAN):
    """DCLGAN with a loss on the similarity of real and translated images of a domain (SimDCL, Han et al. 2021)."""

    defaults: Mapping[str, Any] = {**DCLGAN.defaults, "objective": {"nce_weight": 1.0, "similarity_weight": 10.0}}
