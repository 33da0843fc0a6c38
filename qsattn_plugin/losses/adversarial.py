"""Adversarial losses."""

from __future__ import annotations

import abc
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qsattn_plugin.devices import no_autocast, send
from qsattn_plugin.errors import at_least, check_sizes
from qsattn_plugin.registry import register


class AdversarialLoss(nn.Module, abc.ABC):
    """Losses of the discriminator and of the generator, from the discriminator's score maps.

    Subclasses define :meth:`real`, :meth:`fake` and :meth:`fool`; losses of several score maps (of a multi-scale
    discriminator) are averaged.
    """

    #: Whether :meth:`gradient_penalty`, which needs a second backward pass, is part of the discriminator's loss.
    penalised: bool = False

    def __init__(self) -> None:
        super().__init__()  # explicit, so that the signature has no arguments

    @abc.abstractmethod
    def real(self, scores: Tensor) -> Tensor:
        """Return the discriminator's loss for the scores of real images."""

    @abc.abstractmethod
    def fake(self, scores: Tensor) -> Tensor:
        """Return the discriminator's loss for the scores of translated images."""

    def fool(self, scores: Tensor) -> Tensor:
        """Return the generator's loss for the scores of translated images."""
        return self.real(scores)

    @staticmethod
    def _maps(scores: Tensor | list[Tensor]) -> list[Tensor]:
        return [s.float() for s in (scores if isinstance(scores, (list, tuple)) else [scores])]

    def discriminator(self, real: Tensor | list[Tensor], fake: Tensor | list[Tensor]) -> tuple[Tensor, Tensor]:
        """Return the discriminator's losses on real and on translated images, averaged over the score maps."""
        real, fake = self._maps(real), self._maps(fake)
        on_real, on_fake = sum(map(self.real, real)) / len(real), sum(map(self.fake, fake)) / len(fake)
        return cast(Tensor, on_real), cast(Tensor, on_fake)

    def generator(self, fake: Tensor | list[Tensor]) -> Tensor:
        """Return the generator's loss, averaged over the score maps."""
        fake = self._maps(fake)
        return cast(Tensor, sum(map(self.fool, fake)) / len(fake))

    def gradient_penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None = None
    ) -> Tensor | None:
        """Return the gradient penalty of the discriminator's loss, or None where there is none.

        ``real`` and ``fake`` are images (B, C, H, W); no gradient flows to them. ``generator`` is that of random draws.
        """
        return None


@register("objective", "lsgan", tags=("gan",))
class LSGAN(AdversarialLoss):
    """Least squares towards 1 for real and 0 for translated images (Mao et al. 2017): the papers' adversarial loss."""

    def real(self, scores: Tensor) -> Tensor:
        return F.mse_loss(scores, torch.ones_like(scores))

    def fake(self, scores: Tensor) -> Tensor:
        return scores.square().mean()


@register("objective", "vanilla", tags=("gan",))
class VanillaGAN(AdversarialLoss):
    """Binary cross-entropy (Goodfellow et al. 2014), non-saturating for the generator."""

    def real(self, scores: Tensor) -> Tensor:
        return F.softplus(-scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.softplus(scores).mean()


@register("objective", "hinge", tags=("gan",))
class HingeGAN(AdversarialLoss):
    """Margins at 1 and -1 for the discriminator, the negated score for the generator (Lim and Ye 2017)."""

    def real(self, scores: Tensor) -> Tensor:
        return F.relu(1 - scores).mean()

    def fake(self, scores: Tensor) -> Tensor:
        return F.relu(1 + scores).mean()

    def fool(self, scores: Tensor) -> Tensor:
        return -scores.mean()


@register("objective", "wgan-gp", tags=("gan",))
class WGANGP(AdversarialLoss):
    """Difference of the mean scores, with a penalty on gradient norms other than 1 (Gulrajani et al. 2017).

    The penalty is equation 3 of the paper: ``weight`` times the mean of (norm of the scores' gradient - 1) squared, at
    a random point on the line between each real and each translated image. The score of an image is the mean of its
    score map; the penalties of several maps are averaged.

    Args:
        weight: weight of the penalty.
    """

    penalised = True

    def __init__(self, weight: float = 10.0):
        super().__init__()
        at_least(0, weight=weight)
        self.weight = weight

    def real(self, scores: Tensor) -> Tensor:
        return -scores.mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.mean()

    def gradient_penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        check_sizes("wgan-gp", real.shape, fake.shape)
        device = generator.device if generator is not None else real.device
        share = send(torch.rand(len(real), 1, 1, 1, generator=generator, device=device), real.device)
        # In float32, also under autocast: squares of small gradients underflow in half precision. Without fused
        # attention kernels: they have no second derivative.
        with no_autocast(real.device.type), sdpa_kernel(SDPBackend.MATH):
            mixed = torch.lerp(fake.detach().float(), real.detach().float(), share).requires_grad_()
            maps = self._maps(discriminator(mixed))
            total = torch.zeros((), device=real.device)
            for scores in maps:
                (slope,) = torch.autograd.grad(scores.flatten(1).mean(1).sum(), mixed, create_graph=True)
                total = total + (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.weight * total / len(maps)
