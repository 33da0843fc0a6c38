"""Objectives: the patch-wise contrastive loss of CUT, and adversarial losses."""

from __future__ import annotations

import abc
from typing import Literal, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from qsattn_plugin.devices import no_autocast, send
from qsattn_plugin.registry import register


@register("objective", "patchnce", tags=("cut", "contrastive"))
class PatchNCE(nn.Module):
    """Cross-entropy of classifying, for each anchor, its positive among all positions of the image.

    Park et al. 2020 (CUT), equation 3: similarities are dot products of unit vectors over ``temperature``; the positive
    is on the diagonal, all other rows of the same image are negatives.

    Args:
        temperature: divides the similarities.
        negatives: "internal" takes negatives from the same image (the papers'), "batch" from all images of the batch.
        detach_positives: no gradient flows through the positives, as in CUT.
    """

    def __init__(
        self,
        temperature: float = 0.07,
        negatives: Literal["internal", "batch"] = "internal",
        detach_positives: bool = True,
    ):
        super().__init__()
        if temperature <= 0:
            raise ValueError(f"temperature: must be above 0, got {temperature}")
        if negatives not in ("internal", "batch"):
            raise ValueError(f"negatives: must be internal or batch, got {negatives!r}")
        self.temperature = temperature
        self.negatives = negatives
        self.detach_positives = detach_positives

    def forward(self, anchors: Tensor, positives: Tensor) -> Tensor:
        """Return the loss of each anchor, (B, N), from anchors and positives (B, N, C) of unit length.

        It is float32 also under autocast: similarities over a temperature of 0.07 need more than eight bits.

        Raises:
            ValueError: anchors and positives differ in shape.
        """
        if anchors.shape != positives.shape or anchors.ndim != 3:
            got = f"{tuple(anchors.shape)} and {tuple(positives.shape)}"
            raise ValueError(f"anchors: must have the same shape (B, N, C) as positives, got {got}")
        if self.detach_positives:
            positives = positives.detach()
        batch, count, _ = anchors.shape
        with no_autocast(anchors.device.type):
            anchors, positives = anchors.float(), positives.float()
            if self.negatives == "batch":
                anchors, positives = anchors.flatten(0, 1)[None], positives.flatten(0, 1)[None]
            logits = torch.bmm(anchors, positives.transpose(1, 2)) / self.temperature
            diagonal = torch.arange(logits.shape[1], device=logits.device).repeat(logits.shape[0])
            loss = F.cross_entropy(logits.flatten(0, 1), diagonal, reduction="none")
        return loss.view(batch, count)


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
        if weight < 0:
            raise ValueError(f"weight: must be at least 0, got {weight}")
        self.weight = weight

    def real(self, scores: Tensor) -> Tensor:
        return -scores.mean()

    def fake(self, scores: Tensor) -> Tensor:
        return scores.mean()

    def gradient_penalty(
        self, discriminator: nn.Module, real: Tensor, fake: Tensor, generator: torch.Generator | None = None
    ) -> Tensor:
        device = generator.device if generator is not None else real.device
        share = send(torch.rand(len(real), 1, 1, 1, generator=generator, device=device), real.device)
        # In float32, also under autocast: squares of small gradients underflow in half precision. Without fused
        # attention kernels: they have no second derivative.
        with torch.autocast(real.device.type, enabled=False), sdpa_kernel(SDPBackend.MATH):
            mixed = torch.lerp(fake.detach().float(), real.detach().float(), share).requires_grad_()
            maps = self._maps(discriminator(mixed))
            total = torch.zeros((), device=real.device)
            for scores in maps:
                (slope,) = torch.autograd.grad(scores.flatten(1).mean(1).sum(), mixed, create_graph=True)
                total = total + (slope.flatten(1).norm(dim=1) - 1).square().mean()
        return self.weight * total / len(maps)
