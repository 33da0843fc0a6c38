"""Augmentations of training images: kornia's, batched, on the tensor's device, with draws from the run's own seed.

    augment = Augmentations([Flip(), Affine(rotate=5.0)])
    seen = augment(fake, generator)         # (B, C, H, W) in [-1, 1] to the same; draws come from `generator` alone
    twin = augment.replay(source)           # the very same flips and angles, on another batch of that size

This file holds the geometry and the container; `colour.py` holds colours, `diffaugment.py` what only a discriminator
should see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from qsattn_plugin.registry import register


class Augmentation(nn.Module):
    """One kornia augmentation whose draws come from a given generator, and can be replayed.

    kornia draws from torch's global CPU generator. :meth:`forward` borrows that generator for the length of the call,
    seeded with one number from its own, and puts the global state back.
    """

    def __init__(self, kornia_part: K.AugmentationBase2D):
        super().__init__()
        # Past nn.Module's registration: moved to a GPU, kornia would draw there, and its ranges would be in state_dict.
        self.__dict__["kornia_part"] = kornia_part
        self._drawn_for: torch.Size | None = None

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images (B, C, H, W) in [-1, 1].

        Args:
            x: the images; gradients flow back to them.
            generator: what the draws come from; exactly one number is taken from it.
        """
        self._check(x)
        seed = torch.randint(2**62, (), generator=generator, device=generator.device).item()
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed every accelerator, and those are not put back.
            torch.random.default_generator.manual_seed(seed)
            out = self._run(x, None)
        self._drawn_for = x.shape
        return out

    def replay(self, x: Tensor) -> Tensor:
        """Do to ``x`` (B, C, H, W) what the last call of :meth:`forward` did, image by image.

        Raises:
            RuntimeError: nothing was drawn yet.
            ValueError: another batch size or image size than the draw was for.
        """
        if self._drawn_for is None:
            raise RuntimeError(f"{type(self).__name__}.replay: call it first, there is no draw to repeat")
        was, now = tuple(self._drawn_for), tuple(x.shape)
        if (was[0], was[2:]) != (now[0], now[2:]):
            raise ValueError(f"x: the draw to repeat was for a batch of shape {was}, this one is {now}")
        return self._run(x, self.kornia_part._params)

    def _run(self, x: Tensor, params: dict[str, Tensor] | None) -> Tensor:
        # Half precision would round coordinates and colours; float64 stays as it is.
        with torch.autocast(x.device.type, enabled=False):
            full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
            return self._apply_kornia(full, params).to(x.dtype)

    def _apply_kornia(self, x: Tensor, params: dict[str, Tensor] | None) -> Tensor:
        return self.kornia_part(x, params=params)

    def _check(self, x: Tensor) -> None:
        """Refuse images that the augmentation cannot take."""


class Augmentations(nn.Module):
    """Several augmentations one after the other, from one generator.

    >>> import torch
    >>> from qsattn_plugin.registry.augmentations import Augmentations, Flip
    >>> augment = Augmentations([Flip(p=1.0)])
    >>> augment(torch.tensor([[[[-1.0, 0.0, 1.0]]]]), torch.Generator().manual_seed(0))
    tensor([[[[ 1.,  0., -1.]]]])

    Args:
        parts: modules with ``forward(x, generator)`` and ``replay(x)``; none leaves images as they are.
    """

    def __init__(self, parts: Iterable[nn.Module] = ()):
        super().__init__()
        self.parts = nn.ModuleList(parts)

    def __len__(self) -> int:
        return len(self.parts)

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images (B, C, H, W) in [-1, 1] with draws from ``generator``."""
        for part in self.parts:
            x = part(x, generator)
        return x

    def replay(self, x: Tensor) -> Tensor:
        """Do to ``x`` what the last call of :meth:`forward` did."""
        for part in self.parts:
            x = part.replay(x)
        return x


def check_share(name: str, value: float, lowest: float = 0.0, highest: float = 1.0) -> float:
    """Return ``value``, or raise ValueError when it is outside ``lowest`` to ``highest``."""
    if not lowest <= value <= highest:
        raise ValueError(f"{name}: must be from {lowest:g} to {highest:g}, got {value}")
    return value


@register("augmentation", "flip", tags=("geometry",))
class Flip(Augmentation):
    """Mirrors images left to right.

    Args:
        p: the probability, for each image by itself.
    """

    def __init__(self, p: float = 0.5):
        super().__init__(K.RandomHorizontalFlip(p=check_share("p", p)))


@register("augmentation", "resize", tags=("geometry",))
class Resize(Augmentation):
    """Resizes images to a square, whatever their shape was, as the papers do before cropping.

    Args:
        size: the side of the square in pixels.
        filter: how pixels are interpolated; making images smaller is antialiased.
    """

    def __init__(self, size: int = 286, filter: Literal["bilinear", "bicubic"] = "bicubic"):
        if size < 1:
            raise ValueError(f"size: must be at least 1, got {size}")
        super().__init__(K.Resize((size, size), resample=filter, align_corners=False, antialias=True))

    def _apply_kornia(self, x: Tensor, params: dict[str, Tensor] | None) -> Tensor:
        # Cubic interpolation overshoots at edges; images stay in [-1, 1].
        return super()._apply_kornia(x, params).clamp(-1, 1)


@register("augmentation", "crop", tags=("geometry",))
class Crop(Augmentation):
    """Cuts a square from a random place.

    Args:
        size: the side of the square in pixels.
    """

    def __init__(self, size: int = 256):
        if size < 1:
            raise ValueError(f"size: must be at least 1, got {size}")
        self.size = size
        super().__init__(K.RandomCrop((size, size), cropping_mode="slice"))

    def _check(self, x: Tensor) -> None:
        if min(x.shape[-2:]) < self.size:
            raise ValueError(f"size: a crop of {self.size} pixels does not fit into images of {tuple(x.shape[-2:])}")


@register("augmentation", "affine", tags=("geometry",))
class Affine(Augmentation):
    """Rotates, shifts, scales and shears images; the border is mirrored.

    Args:
        rotate: degrees to either side at most.
        translate: shift to either side at most, as a share of the image's side.
        scale: factors from 1 - scale to 1 + scale.
        shear: degrees to either side at most.
        padding: what comes in from outside: the mirrored image, its border repeated, or mid-grey.
        p: the probability, for each image by itself.
    """

    def __init__(
        self,
        rotate: float = 10.0,
        translate: float = 0.05,
        scale: float = 0.1,
        shear: float = 0.0,
        padding: Literal["reflection", "border", "zeros"] = "reflection",
        p: float = 1.0,
    ):
        check_share("rotate", rotate, 0, 180)
        check_share("translate", translate)
        check_share("scale", scale, 0, 0.9)
        check_share("shear", shear, 0, 80)
        super().__init__(
            K.RandomAffine(
                rotate,
                translate=(translate, translate),
                scale=(1 - scale, 1 + scale),
                shear=shear or None,
                padding_mode=padding,
                p=check_share("p", p),
            )
        )
