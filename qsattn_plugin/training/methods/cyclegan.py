"""CycleGAN: two generators that invert each other."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import Nested, register
from qsattn_plugin.training.methods.adversary import Adversary, adversarial_loss
from qsattn_plugin.training.methods.base import Method, Parts, check_identity


class ImagePool:
    """A pool of earlier translations, shown to a discriminator half of the time (Shrivastava et al. 2017).

    Args:
        size: the number of images kept; 0 disables the pool.
        mixed: whether images of other sizes than the given ones may be shown, one at a time.
    """

    def __init__(self, size: int, mixed: bool = True):
        self.size, self.mixed = size, mixed
        self.images: list[Tensor] = []

    def exchange(self, images: Tensor, draws: torch.Generator) -> Tensor:
        """Return a batch (B, C, H, W) that mixes the given images with earlier ones.

        An earlier image of another size is shown only where it is alone in the batch, and replaced in any case.
        """
        shown = []
        for image in images.detach():
            if len(self.images) < self.size:
                self.images.append(image.clone())
                shown.append(image)
                continue
            swap = torch.rand((), generator=draws) < 0.5
            place = int(torch.randint(2**31, (), generator=draws)) % max(self.size, 1)
            if self.size and swap:
                earlier, self.images[place] = self.images[place], image.clone()
                fits = earlier.shape == image.shape or (self.mixed and len(images) == 1)
                shown.append(earlier if fits else image)
            else:
                shown.append(image)
        return torch.stack(shown)


@register("method", "cyclegan", tags=("paper", "cycle"))
class CycleGAN(Method):
    """Two generators, two discriminators, and a cycle-consistency loss (Zhu et al. 2017).

    The generators' objective is the sum of both adversarial losses, ``cycle_weight`` times the L1 distance between each
    image and its translation there and back, and ``cycle_weight * identity_weight`` times the L1 distance between
    each image and its translation into its own domain.

    Args:
        parts: builds the networks.
        gan: the adversarial loss: a registered objective's name, or ``{type: name, ...}`` with its arguments.
        gan_weight: the weight of the adversarial losses for the generators.
        cycle_weight: the weight of the cycle loss, lambda in the paper.
        identity_weight: the weight of the identity loss, as a factor on ``cycle_weight``; 0 disables it.
        pool: the number of earlier translations kept for each discriminator; 0 disables the pool.
    """

    defaults: Mapping[str, Any] = {
        "generator": {"type": "resnet_9blocks", "antialias": False, "antialias_up": False, "init": "normal"},
        "discriminator": {"type": "patchgan", "antialias": False, "init": "normal"},
    }

    def __init__(
        self,
        parts: Parts,
        *,
        gan: Annotated[str | dict[str, Any], Nested("objective")] = "lsgan",
        gan_weight: float = 1.0,
        cycle_weight: float = 10.0,
        identity_weight: float = 0.5,
        pool: int = 50,
    ):
        super().__init__()
        at_least(0, gan_weight=gan_weight, cycle_weight=cycle_weight, identity_weight=identity_weight, pool=pool)
        if identity_weight:
            check_identity(parts, "identity_weight", 0)
        self.generator = parts.generator()
        self.generator_back = parts.generator(back=True)
        self.discriminator = parts.discriminator()
        self.discriminator_back = parts.discriminator(back=True)
        loss, augment = adversarial_loss(gan), parts.augmentation()
        self.adversary = Adversary(self.discriminator, loss, augment)
        self.adversary_back = Adversary(self.discriminator_back, loss, augment)
        self.gan_weight = gan_weight
        self.cycle_weight = cycle_weight
        self.identity_weight = identity_weight
        # A gradient penalty is taken between a real and a shown image.
        self.pools = {name: ImagePool(pool, mixed=not loss.penalised) for name in ("forward", "backward")}

    def roles(self) -> dict[str, list[nn.Module]]:
        return {
            "generator": [self.generator, self.generator_back],
            "discriminator": [self.discriminator, self.discriminator_back],
        }

    def published(self) -> dict[str, nn.Module]:
        return {"forward": self.generator, "backward": self.generator_back}

    def compilable(self) -> list[nn.Module]:
        return [*self.roles()["generator"], *self.adversary.compilable(), *self.adversary_back.compilable()]

    def memory(self) -> dict[str, Tensor]:
        return {f"{name}/{i:04d}": image for name, pool in self.pools.items() for i, image in enumerate(pool.images)}

    def load_memory(self, tensors: Mapping[str, Tensor]) -> None:
        for name, pool in self.pools.items():
            keys = [key for key in tensors if key.startswith(f"{name}/")]
            keys.sort(key=lambda key: int(key.rpartition("/")[2]))  # as text, "10000" is before "1001"
            pool.images = [tensors[key].to(self.device) for key in keys]

    def step(self, batch: Mapping[str, Tensor], draws: torch.Generator, observe: bool = False) -> dict[str, Tensor]:
        parts = self.divide(batch)
        logs: list[dict[str, Tensor]] = [{} for _ in parts]
        fakes: dict[str, list[Tensor]] = {"forward": [], "backward": []}
        there, back = self.generator, self.generator_back
        terms: list[Callable[[], Tensor]] = []
        for part, log in zip(parts, logs, strict=True):
            a, b = part["A"], part["B"]
            # Four terms that share no activations: each is differentiated before the next is computed.
            terms += [
                partial(self._cycle_loss, a, there, back, self.adversary, "forward", fakes, draws, log),
                partial(self._cycle_loss, b, back, there, self.adversary_back, "backward", fakes, draws, log),
            ]
            if self.identity_weight:
                terms += [
                    partial(self._identity_loss, b, there, "forward", log),
                    partial(self._identity_loss, a, back, "backward", log),
                ]
        self.update("generator", terms, len(parts))
        terms = []
        for index, (part, log) in enumerate(zip(parts, logs, strict=True)):
            shown = {name: self.pools[name].exchange(fakes[name][index], draws) for name in ("forward", "backward")}
            terms += [
                partial(self.adversary.discriminator_loss, part["B"], shown["forward"], draws, log, "_forward"),
                partial(self.adversary_back.discriminator_loss, part["A"], shown["backward"], draws, log, "_backward"),
            ]
        self.update("discriminator", terms, len(parts))
        self.end_step()
        return self.merge(logs)

    def _cycle_loss(
        self,
        image: Tensor,
        there: nn.Module,
        back: nn.Module,
        adversary: Adversary,
        name: str,
        fakes: dict[str, list[Tensor]],
        draws: torch.Generator,
        log: dict[str, Tensor],
    ) -> Tensor:
        """Return the adversarial and the cycle loss of one image."""
        fake = there(image)
        fakes[name].append(fake.detach())
        adversarial = adversary.generator_loss(fake, draws, log, f"_{name}")
        cycle = F.l1_loss(back(fake).float(), image)
        log[f"cycle_{name}"] = cycle.detach()
        return self.gan_weight * adversarial + self.cycle_weight * cycle

    def _identity_loss(self, image: Tensor, generator: nn.Module, name: str, log: dict[str, Tensor]) -> Tensor:
        """Return the identity loss of an image of the target domain."""
        loss = F.l1_loss(generator(image).float(), image)
        log[f"identity_{name}"] = loss.detach()
        return self.cycle_weight * self.identity_weight * loss
