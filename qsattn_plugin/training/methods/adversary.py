"""A discriminator with its loss: what judges translations, and what it makes of being fooled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qsattn_plugin.losses import AdversarialLoss
from qsattn_plugin.registry import PartError, create_nested
from qsattn_plugin.registry.discriminators.ensemble import Ensemble


class Judge(NamedTuple):
    """One discriminator of an adversary."""

    network: nn.Module
    #: Of its losses.
    weight: float
    #: Of its R1 penalty.
    r1: float
    #: Stands at the end of its losses' names in the log.
    name: str


class Adversary:
    """Judges with one discriminator, or with each of an ensemble. It has no parameters of its own.

    Args:
        discriminator: gives scores, or a list of them, for images.
        loss: the adversarial loss.
        augment: changes what the discriminator sees, real and translated, from a generator of draws; differentiable.
        r1: weight of R1, half the squared slope of the scores at real images (Mescheder et al. 2018); 0 leaves it out.
            An ensemble's own weights come before it.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        r1: float = 0.0,
    ):
        if isinstance(discriminator, Ensemble):
            names, networks = zip(*discriminator.judges.items(), strict=True)
            slopes = discriminator.r1 or (r1,) * len(networks)
            self.judges = [
                Judge(network, weight, slope, f"_{name}")
                for network, weight, slope, name in zip(networks, discriminator.weights, slopes, names, strict=True)
            ]
        else:
            self.judges = [Judge(discriminator, 1.0, r1, "")]
        self.loss = loss
        self.augment = augment or (lambda images, draws: images)

    def compilable(self) -> list[nn.Module]:
        """Return the discriminators without a penalty: what torch.compile makes has no second derivative."""
        return [judge.network for judge in self.judges if not (judge.r1 or self.loss.penalised)]

    def judge(self, real: Tensor, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], of: str = "") -> Tensor:
        """Return the discriminator's objective; ``of`` ends the names under which ``log`` gets its parts."""
        real, fake = self.augment(real, draws), self.augment(fake.detach(), draws)
        terms = [j.weight * self._judge(j, real, fake, draws, log, f"{j.name}{of}") for j in self.judges]
        return torch.stack(terms).sum()

    def _judge(
        self, judge: Judge, real: Tensor, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], of: str
    ) -> Tensor:
        """Return one discriminator's objective."""
        if judge.r1:
            real = real.detach().requires_grad_()
        # With plain attention: fused kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if judge.r1 else contextlib.nullcontext():
            scores = judge.network(real)
        on_real, on_fake = self.loss.discriminator(scores, judge.network(fake))
        log[f"D_real{of}"], log[f"D_fake{of}"] = on_real.detach(), on_fake.detach()
        total = 0.5 * (on_real + on_fake)
        if self.loss.penalised:
            penalty = self.loss.gradient_penalty(judge.network, real, fake, generator=draws)
            log[f"D_penalty{of}"] = penalty.detach()
            total = total + penalty
        if judge.r1:
            penalty = _squared_slope(judge.network, real, scores)
            log[f"D_R1{of}"] = penalty.detach()
            total = total + 0.5 * judge.r1 * penalty
        return total

    def fooled_by(self, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], of: str = "") -> Tensor:
        """Return the generator's objective."""
        fake = self.augment(fake, draws)
        terms = []
        for judge in self.judges:
            loss = self.loss.generator(judge.network(fake))
            log[f"G_GAN{judge.name}{of}"] = loss.detach()
            terms.append(judge.weight * loss)
        return torch.stack(terms).sum()


def _squared_slope(discriminator: nn.Module, real: Tensor, scores: Tensor | Sequence[Tensor]) -> Tensor:
    """Return the mean over images of the scores' squared slope, from scores that were computed where they can."""
    device = real.device.type
    if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
        # Norms' second derivatives leave float16's range; bfloat16 has float32's.
        with torch.autocast(device, enabled=False), sdpa_kernel(SDPBackend.MATH):
            scores = discriminator(real.float())
    maps = scores if isinstance(scores, (list, tuple)) else [scores]
    (slope,) = torch.autograd.grad(sum(m.float().sum() for m in maps), real, create_graph=True)
    return slope.float().square().flatten(1).sum(dim=1).mean()


def adversarial_loss(spec: str | dict[str, Any]) -> AdversarialLoss:
    """Build an adversarial loss from its registered name, or from ``{"type": name, argument: value}``.

    Raises:
        PartError: there is no such objective, it takes other arguments, or it is not adversarial.
    """
    loss = create_nested("objective", spec, "gan")
    if not isinstance(loss, AdversarialLoss):
        raise PartError(f"gan: the objective {spec!r} is no adversarial loss", "gan")
    return loss
