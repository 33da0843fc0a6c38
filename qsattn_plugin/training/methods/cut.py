"""CUT and its variants: one generator, one discriminator, and a contrastive loss between input and output patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.losses import PatchNCE
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import Nested, register
from qsattn_plugin.training.methods.adversary import Adversary, adversarial_loss
from qsattn_plugin.training.methods.base import Method, Parts

#: The reference code stops random cropping when the learning rate starts to decay.
_CROPS = {"random_crop": "until_decay"}


@register("method", "cut", tags=("paper", "contrastive"))
class CUT(Method):
    """Contrastive unpaired translation with patches at random places (Park et al. 2020).

    The generator's objective is the adversarial loss plus half of NCE(x, G(x)) and NCE(y, G(y)); without the identity
    term it is the adversarial loss plus NCE(x, G(x)).

    Args:
        parts: builds the networks.
        gan: the adversarial loss: a registered objective's name, or ``{type: name, ...}`` with its arguments.
        gan_weight: the weight of the adversarial loss for the generator.
        nce_weight: the weight of the contrastive loss.
        identity: add the identity term NCE(y, G(y)) for images y of the target domain.
        identity_l1: weight of the L1 distance between G(y) and y, as in CUT's single-image training.
        temperature: of the contrastive loss.
        negatives: "internal" or "batch", see the objective ``patchnce``.
        detach_positives: stop gradients through the positives, as CUT does.
        head_width: output features of the projection heads.
        head_gain: gain of the heads' Xavier initialisation.
        r1: weight of the R1 penalty, on the discriminator's gradient at real images; 0 disables it.
        flip_equivariance: with probability 1/2, translate the mirrored image and compare it with the features of the
            original.
    """

    defaults: Mapping[str, Any] = {"data": _CROPS, "sampler": {"type": "random"}}

    def __init__(
        self,
        parts: Parts,
        *,
        gan: Annotated[str | dict[str, Any], Nested("objective")] = "lsgan",
        gan_weight: float = 1.0,
        nce_weight: float = 1.0,
        identity: bool = True,
        identity_l1: float = 0.0,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
        head_width: int = 256,
        head_gain: float = 0.02,
        r1: float = 0.0,
        flip_equivariance: bool = False,
    ):
        super().__init__()
        if not gan_weight and not nce_weight:
            raise ValueError("gan_weight: 0, and nce_weight too: the generator has no loss")
        if head_gain < 0:
            raise ValueError(f"head_gain: must be at least 0, got {head_gain}")
        self.generator = parts.generator()
        self.discriminator = parts.discriminator()
        self.encoder = parts.encoder(self.generator)
        self.heads = ProjectionHeads(self.encoder.channels, head_width, head_gain)
        self.sampler = parts.sampler(self.encoder.taps)
        self.adversary = Adversary(self.discriminator, adversarial_loss(gan), parts.augmentation(), r1)
        self.nce = PatchNCE(temperature, negatives, detach_positives)
        self.gan_weight = gan_weight
        self.nce_weight = nce_weight
        self.identity = identity
        self.identity_l1 = identity_l1
        self.flip_equivariance = flip_equivariance

    def roles(self) -> dict[str, list[nn.Module]]:
        return {"generator": [self.generator, self.heads, self.encoder], "discriminator": [self.discriminator]}

    def published(self) -> dict[str, nn.Module]:
        return {"forward": self.generator}

    def compilable(self) -> list[nn.Module]:
        return [n for n in super().compilable() if n is not self.discriminator] + self.adversary.compilable()

    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        parts = self.divide(batch)
        logs: list[dict[str, Tensor]] = [{} for _ in parts]
        # Drawn on the CPU, so that no device has to be waited for.
        mirrored = [self.flip_equivariance and bool(torch.rand((), generator=draws) < 0.5) for _ in parts]
        # The discriminator is updated first and needs all translations. The first part's graph is kept for the
        # generator's update; the others are translated twice: their graphs would take the memory that dividing saves.
        first, *others = [partial(self._translate, part["A"], m) for part, m in zip(parts, mirrored, strict=True)]
        kept = [first()]
        fakes = [kept[0][0].detach()]
        for part, m in zip(parts[1:], mirrored[1:], strict=True):
            with torch.no_grad(), self.autocast():
                fakes.append(self.generator(part["A"].flip(-1) if m else part["A"]))
        self.update(
            "discriminator",
            [
                partial(self.adversary.discriminator_loss, part["B"], fake, draws, log)
                for part, fake, log in zip(parts, fakes, logs, strict=True)
            ],
            len(parts),
        )
        translations: list[Callable[[], tuple[Tensor, list[Tensor]]]] = [kept.pop, *others]
        terms: list[Callable[[], Tensor]] = [
            partial(self._translation_loss, translate, m, draws, log, observe)
            for translate, m, log in zip(translations, mirrored, logs, strict=True)
        ]
        if (self.identity and self.nce_weight) or self.identity_l1:
            terms += [
                partial(self._identity_loss, part["B"], m, draws, log)
                for part, m, log in zip(parts, mirrored, logs, strict=True)
            ]
        self.update("generator", terms, len(parts))
        self.end_step()
        return self.merge(logs)

    def _translate(self, source: Tensor, mirrored: bool) -> tuple[Tensor, list[Tensor]]:
        """Return the translation of ``source``, or of its mirror image, and the features of ``source``."""
        with self.autocast():
            if not mirrored:
                return self.encoder.translate(self.generator, source)
            # Features of the original, translation of its mirror image: one pass cannot give both.
            features = self.encoder.features(self.generator, source)
            return self.generator(source.flip(-1)), features

    def _translation_loss(
        self,
        translate: Callable[[], tuple[Tensor, list[Tensor]]],
        mirrored: bool,
        draws: torch.Generator,
        log: dict[str, Tensor],
        observe: bool,
    ) -> Tensor:
        """Return the generator's objective on a translated image: adversarial and contrastive loss."""
        fake, features = translate()
        total = fake.new_zeros((), dtype=torch.float32)
        if self.gan_weight:
            total = total + self.gan_weight * self.adversary.generator_loss(fake, draws, log)
        if self.nce_weight:
            share = 0.5 if self.identity else 1.0
            nce = self.contrast(features, fake, draws, log, "NCE", mirrored, observe)
            total = total + share * self.nce_weight * nce
        return total

    def _identity_loss(self, target: Tensor, mirrored: bool, draws: torch.Generator, log: dict[str, Tensor]) -> Tensor:
        """Return the generator's identity objective on an image of the target domain."""
        same, features = self._translate(target, mirrored)
        total = same.new_zeros((), dtype=torch.float32)
        if self.identity and self.nce_weight:
            nce = self.contrast(features, same, draws, log, "NCE_identity", mirrored)
            total = total + 0.5 * self.nce_weight * nce
        if self.identity_l1:
            distance = F.l1_loss(same.float(), target.flip(-1) if mirrored else target)
            log["L1_identity"] = distance.detach()
            total = total + self.identity_l1 * distance
        return total

    def contrast(
        self,
        source: Sequence[Tensor],
        image: Tensor,
        draws: torch.Generator,
        log: dict[str, Tensor],
        name: str,
        mirrored: bool = False,
        observe: bool = False,
    ) -> Tensor:
        """Return the contrastive loss between ``image`` (B, C, H, W) and its source's features, averaged over the taps.

        Routes are chosen on the source and applied to both: the paper's cross-domain value routing (equations 3 and 4).
        """
        taps = list(self.encoder.taps)
        routes = self.sampler.choose(list(source), taps, generator=draws, observe=observe)
        features = self.encoder.features(self.generator, image)
        if mirrored:
            features = [f.flip(-1) for f in features]
        anchors = self.heads([route(f) for route, f in zip(routes, features, strict=True)])
        # Detached positives need no graph through the heads.
        with torch.set_grad_enabled(not self.nce.detach_positives):
            positives = self.heads([route(f) for route, f in zip(routes, source, strict=True)])
        by_tap = torch.stack([self.nce(a, p).mean() for a, p in zip(anchors, positives, strict=True)])
        log[name] = by_tap.mean().detach()
        for tap, route in zip(taps, routes, strict=True):
            for key, value in route.stats.items():
                if observe or key == "nonfinite":
                    log[f"tap_{tap}/{name}/{key}" if name != "NCE" else f"tap_{tap}/{key}"] = value
        return by_tap.mean()


@register("method", "qsattn", tags=("paper", "contrastive"))
class QSAttn(CUT):
    """CUT with query-selected attention: the loss uses the queries of lowest entropy (Hu et al. 2022)."""

    defaults: Mapping[str, Any] = {"data": _CROPS, "sampler": {"type": "qsattn_global"}}


@register("method", "fastcut", tags=("paper", "contrastive"))
class FastCUT(CUT):
    """CUT's light variant: no identity term, a heavier contrastive loss, flip equivariance."""

    defaults: Mapping[str, Any] = {
        "data": _CROPS,
        "sampler": {"type": "random"},
        "objective": {"identity": False, "nce_weight": 10.0, "flip_equivariance": True},
    }


@register("method", "sincut", tags=("contrastive", "single-image"))
class SinCUT(CUT):
    """CUT between two single pictures: crops of one against crops of the other (Park et al. 2020)."""

    # One query per crop, contrasted with those of all other crops of the batch. R1 regularises the discriminator, which
    # sees little data; the L1 term preserves target pixels.
    defaults: Mapping[str, Any] = {
        "sampler": {"type": "random", "queries": 1},
        "objective": {"gan": "vanilla", "nce_weight": 4.0, "negatives": "batch", "r1": 1.0, "identity_l1": 1.0},
    }
