"""A discriminator with its loss: what judges translations, and what it makes of being fooled."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qsattn_plugin.losses import AdversarialLoss
from qsattn_plugin.registry import PartError, create


class Adversary:
    """Judges with one discriminator. It has no parameters of its own.

    Args:
        discriminator: gives scores, or a list of them, for images.
        loss: the adversarial loss.
        augment: changes what the discriminator sees, real and translated, from a generator of draws; differentiable.
        r1: weight of R1, half the squared slope of the scores at real images (Mescheder et al. 2018); 0 leaves it out.
    """

    def __init__(
        self,
        discriminator: nn.Module,
        loss: AdversarialLoss,
        augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
        r1: float = 0.0,
    ):
        self.discriminator = discriminator
        self.loss = loss
        self.augment = augment or (lambda images, draws: images)
        self.r1 = r1

    @property
    def penalised(self) -> bool:
        """Whether :meth:`judge` differentiates the discriminator twice."""
        return bool(self.r1) or self.loss.penalised

    def judge(self, real: Tensor, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], of: str = "") -> Tensor:
        """Return the discriminator's objective; ``of`` ends the names under which ``log`` gets its parts."""
        real, fake = self.augment(real, draws), self.augment(fake.detach(), draws)
        if self.r1:
            real = real.detach().requires_grad_()
        # With plain attention: fused kernels have no second derivative.
        with sdpa_kernel(SDPBackend.MATH) if self.r1 else contextlib.nullcontext():
            scores = self.discriminator(real)
        on_real, on_fake = self.loss.discriminator(scores, self.discriminator(fake))
        log[f"D_real{of}"], log[f"D_fake{of}"] = on_real.detach(), on_fake.detach()
        total = 0.5 * (on_real + on_fake)
        if self.loss.penalised:
            penalty = self.loss.gradient_penalty(self.discriminator, real, fake, generator=draws)
            log[f"D_penalty{of}"] = penalty.detach()
            total = total + penalty
        if self.r1:
            penalty = self._squared_slope(real, scores)
            log[f"D_R1{of}"] = penalty.detach()
            total = total + 0.5 * self.r1 * penalty
        return total

    def _squared_slope(self, real: Tensor, scores: Tensor | Sequence[Tensor]) -> Tensor:
        """Return the mean over images of the scores' squared slope, from scores that were computed where they can."""
        device = real.device.type
        if torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16:
            # Norms' second derivatives leave float16's range; bfloat16 has float32's.
            with torch.autocast(device, enabled=False), sdpa_kernel(SDPBackend.MATH):
                scores = self.discriminator(real.float())
        maps = scores if isinstance(scores, (list, tuple)) else [scores]
        (slope,) = torch.autograd.grad(sum(m.float().sum() for m in maps), real, create_graph=True)
        return slope.float().square().flatten(1).sum(dim=1).mean()

    def fooled_by(self, fake: Tensor, draws: torch.Generator, log: dict[str, Tensor], of: str = "") -> Tensor:
        """Return the generator's objective."""
        loss = self.loss.generator(self.discriminator(self.augment(fake, draws)))
        log[f"G_GAN{of}"] = loss.detach()
        return loss


def adversarial_loss(spec: str | dict[str, Any]) -> AdversarialLoss:
    """Build an adversarial loss from its registered name, or from ``{"type": name, argument: value}``.

    Raises:
        PartError: there is no such objective, it takes other arguments, or it is not adversarial.
    """
    arguments = {"type": spec} if isinstance(spec, str) else dict(spec)
    try:
        loss = create("objective", str(arguments.pop("type", "")), **arguments)
    except PartError as error:
        raise PartError(f"gan: {error}", "gan") from error
    if not isinstance(loss, AdversarialLoss):
        raise PartError(f"gan: the objective {spec!r} is no adversarial loss", "gan")
    return loss
