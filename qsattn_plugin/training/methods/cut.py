"""CUT and its variants: one generator, one discriminator, and a contrastive loss between input and output patches."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import Nested, register
from qsattn_plugin.training.methods.adversary import Adversary, adversarial_loss
from qsattn_plugin.training.methods.base import Method, Parts, check_identity
from qsattn_plugin.training.methods.contrast import Contrast, Objectives, Translated

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
        nce: the contrastive loss: a registered objective's name, or ``{type: name, ...}`` with its arguments, or a list
            of these, to be added up by their ``weight``.
        nce_weight: the weight of the contrastive loss.
        identity: add the identity term NCE(y, G(y)) for images y of the target domain, where the contrastive loss has
            one (enco, lsesim, src and srunit have none).
        identity_l1: weight of the L1 distance between G(y) and y, as in CUT's single-image training.
        temperature: of contrastive losses that have one and do not set it.
        negatives: likewise: "internal" or "batch", see the objective ``patchnce``.
        detach_positives: likewise: stop gradients through the positives, as CUT does.
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
        nce: Annotated[str | dict[str, Any] | list[str | dict[str, Any]], Nested("objective", True)] = "patchnce",
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
        at_least(0, gan_weight=gan_weight, nce_weight=nce_weight, identity_l1=identity_l1, r1=r1, head_gain=head_gain)
        at_least(1, head_width=head_width)
        if not gan_weight and not nce_weight:
            raise ValueError("gan_weight: 0, and nce_weight too: the generator has no loss")
        self.generator = parts.generator()
        self.discriminator = parts.discriminator()
        self.encoder = parts.encoder(self.generator)
        shared = {"temperature": temperature, "negatives": negatives, "detach_positives": detach_positives}
        self.nce = Objectives(nce, **shared)
        self.heads = ProjectionHeads(self.nce.heads(self.encoder.channels), head_width, head_gain)
        self.nce.build(self.generator, self.encoder, self.heads, parts)
        self.sampler = parts.sampler(self.encoder.taps)
        self.adversary = Adversary(self.discriminator, adversarial_loss(gan), parts.augmentation(), r1)
        self.contrast = Contrast(self.nce, self.generator, self.encoder, self.heads, self.sampler, self.adversary)
        self.gan_weight = gan_weight
        self.nce_weight = nce_weight
        self.identity = identity and bool(nce_weight) and self.nce.identity
        self.identity_l1 = identity_l1
        if self.identity:
            check_identity(parts, "identity", "false")
        if identity_l1:
            check_identity(parts, "identity_l1", 0)
        self.flip_equivariance = flip_equivariance

    def roles(self) -> dict[str, list[nn.Module]]:
        owned = self.nce.owned() if self.nce_weight else []
        roles: dict[str, list[nn.Module]] = {"generator": [self.generator, self.heads, self.encoder]}
        return {**roles, "discriminator": [self.discriminator], **({"objective": owned} if owned else {})}

    def published(self) -> dict[str, nn.Module]:
        return {"forward": self.generator}

    def compilable(self) -> list[nn.Module]:
        left_out = (self.discriminator, *self.nce)
        return [n for n in super().compilable() if n not in left_out] + self.adversary.compilable()

    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        parts = self.divide(batch)
        self.nce.set_progress(self.progress)
        logs: list[dict[str, Tensor]] = [{} for _ in parts]
        # Drawn on the CPU, so that no device has to be waited for.
        mirrored = [self.flip_equivariance and bool(torch.rand((), generator=draws) < 0.5) for _ in parts]
        # The discriminator is updated first and needs all translations. The first part's graph is kept for the
        # generator's update; the others are translated twice: their graphs would take the memory that dividing saves.
        first, *others = [partial(self._translate, part["A"], m) for part, m in zip(parts, mirrored, strict=True)]
        kept = [first()]
        fakes = [kept[0].image.detach()]
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
        translations: list[Callable[[], Translated]] = [kept.pop, *others]
        terms: list[Callable[[], Tensor]] = [
            partial(self._translation_loss, translate, part["B"], draws, log, observe)
            for translate, part, log in zip(translations, parts, logs, strict=True)
        ]
        if self.identity or self.identity_l1:
            terms += [
                partial(self._identity_loss, part["B"], m, draws, log)
                for part, m, log in zip(parts, mirrored, logs, strict=True)
            ]
        self.update(("generator", "objective"), terms, len(parts))
        self.nce.after_step()
        self.end_step()
        return self.merge(logs)

    def _translate(self, source: Tensor, mirrored: bool) -> Translated:
        """Return the translation of ``source``, or of its mirror image, and the features of ``source``."""
        with self.autocast():
            return self.contrast.translate(source, mirrored)

    def _translation_loss(
        self,
        translate: Callable[[], Translated],
        target: Tensor,
        draws: torch.Generator,
        log: dict[str, Tensor],
        observe: bool,
    ) -> Tensor:
        """Return the generator's objective on a translated image: adversarial and contrastive loss."""
        made = translate()
        total = made.image.new_zeros((), dtype=torch.float32)
        if self.gan_weight:
            total = total + self.gan_weight * self.adversary.generator_loss(made.image, draws, log)
        if self.nce_weight:
            pair = self.contrast.pair(made, draws, log, "NCE", target, observe)
            nce, own = self.contrast.loss(pair, log, "NCE", half=self.identity)
            total = total + self.nce_weight * nce + own
        return total

    def _identity_loss(self, target: Tensor, mirrored: bool, draws: torch.Generator, log: dict[str, Tensor]) -> Tensor:
        """Return the generator's identity objective on an image of the target domain."""
        made = self._translate(target, mirrored)
        total = made.image.new_zeros((), dtype=torch.float32)
        if self.identity:
            pair = self.contrast.pair(made, draws, log, "NCE_identity")
            nce, own = self.contrast.loss(pair, log, "NCE_identity", half=True, identity=True)
            total = total + self.nce_weight * nce + own
        if self.identity_l1:
            distance = F.l1_loss(made.image.float(), target.flip(-1) if mirrored else target)
            log["L1_identity"] = distance.detach()
            total = total + self.identity_l1 * distance
        return total


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
