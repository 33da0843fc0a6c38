"""The adversarial terms of an objective: one discriminator, or an ensemble, with its loss and its penalties."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qsattn_plugin.devices import no_autocast
from qsattn_plugin.losses import AdversarialLoss
from qsattn_plugin.registry import PartError, create_nested
from qsattn_plugin.registry.discriminators.ensemble import Ensemble


class WeightedDiscriminator(NamedTuple):
    """A discriminator, the weights of its losses and of its R1 penalty, and the suffix of its losses' names."""

    network: nn.Module
    weight: float
    r1: float
    suffix: str


class Adversary:
    """Computes adversarial losses with one discriminator or an ensemble. It has no parameters of its own.

    Args:
        discriminator: maps images to scores, or to a list of them.
        loss: the adversarial loss.
        augment: differentiable; applied to real and translated images, with a random generator.
        r1: weight of R1, half the squared gradient of the scores at real images (Mescheder et al. 2018); 0 disables
            it. An ensemble's own weights take precedence.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        r1: float = 0.0,
    ):
        if isinstance(discriminator, Ensemble):
            penalties = discriminator.r1 or (r1,) * len(discriminator.judges)
            each = zip(discriminator.judges.items(), discriminator.weights, penalties, strict=True)
            self.judges = [WeightedDiscriminator(judge, w, penalty, f"_{name}") for (name, judge), w, penalty in each]
        else:
            self.judges = [WeightedDiscriminator(discriminator, 1.0, r1, "")]
        self.loss = loss
        self.augment = augment or (lambda images, draws: images)

    def compilable(self) -> list[nn.Module]:
        """Return the discriminators without a gradient penalty: compiled networks have no second derivative."""
        return [judge.network for judge in self.judges if not (judge.r1 or self.loss.penalised)]

    def discriminator_loss(
        self, real: Tensor, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], suffix: str = ""
    ) -> Tensor:
        """Return the discriminator's objective; its terms are added to ``log``, their names ending in ``suffix``."""
        real, fake = self.augment(real, draws), self.augment(fake.detach(), draws)
        terms = [j.weight * self._judge(j, real, fake, draws, log, f"{j.suffix}{suffix}") for j in self.judges]
        return torch.stack(terms).sum()

    def _judge(
        self, judge: WeightedDiscriminator, real: Tensor, fake: Tensor, draws: torch.Generator, log: dict, suffix: str
    ) -> Tensor:
        if judge.r1:
            real = real.detach().requires_grad_()
        # Fused attention kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if judge.r1 else contextlib.nullcontext():
            scores = judge.network(real)
        on_real, on_fake = self.loss.discriminator(scores, judge.network(fake))
        log[f"D_real{suffix}"], log[f"D_fake{suffix}"] = on_real.detach(), on_fake.detach()
        total = 0.5 * (on_real + on_fake)
        penalised = self.loss.penalised
        penalty = self.loss.gradient_penalty(judge.network, real, fake, generator=draws) if penalised else None
        if penalty is not None:
            log[f"D_penalty{suffix}"] = penalty.detach()
            total = total + penalty
        if judge.r1:
            penalty = _squared_gradient(judge.network, real, scores)
            log[f"D_R1{suffix}"] = penalty.detach()
            total = total + 0.5 * judge.r1 * penalty
        return total

    def generator_loss(self, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], suffix: str = "") -> Tensor:
        """Return the generator's objective; its terms are added to ``log``."""
        fake = self.augment(fake, draws)
        terms = []
        for judge in self.judges:
            loss = self.loss.generator(judge.network(fake))
            log[f"G_GAN{judge.suffix}{suffix}"] = loss.detach()
            terms.append(judge.weight * loss)
        return torch.stack(terms).sum()

    @torch.no_grad()
    def scores(self, images: Tensor) -> Tensor:
        """Return a map of scores (B, 1, h, w): the weighted mean of all score maps, at the size of the largest."""
        found: list[Tensor] = []
        for judge in self.judges:
            scores = judge.network(images)
            maps = [scores] if isinstance(scores, Tensor) else list(scores)
            found += [judge.weight * m.float().mean(1, keepdim=True) for m in maps]
        size = max((m.shape[-2:] for m in found), key=lambda s: s.numel())
        return torch.stack([F.interpolate(m, size, mode="bilinear") for m in found]).mean(0)


def _squared_gradient(discriminator: nn.Module, real: Tensor, scores: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the squared gradient of the scores at the real images, averaged over the images; recomputed for fp16."""
    device = real.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        # Slopes, and norms' second derivatives, leave float16's range; bfloat16 has float32's.
        with no_autocast(device), sdpa_kernel(SDPBackend.MATH):
            return _squared_gradient(discriminator, real, discriminator(real.float()))
    maps = [scores] if isinstance(scores, Tensor) else scores
    total = cast(Tensor, sum(m.float().sum() for m in maps))
    (slope,) = torch.autograd.grad(total, real, create_graph=True)
    return slope.float().square().flatten(1).sum(dim=1).mean()


def adversarial_loss(spec: str | dict[str, Any]) -> AdversarialLoss:
    """Return an adversarial loss by its registered name, or ``{"type": name, argument: value}``; or raise PartError."""
    loss = create_nested("objective", spec, "gan")
    if not isinstance(loss, AdversarialLoss):
        raise PartError(f"gan: the objective {spec!r} is not an adversarial loss", "gan")
    return loss
