"""Augmentations of training images: kornia's, batched, on the tensor's device, with random draws from the run's seed.

    augment = Augmentations([Flip(), Affine(rotate=5.0)])
    seen = augment(fake, generator)         # (B, C, H, W) in [-1, 1] to the same; all draws come from `generator`

This file holds the geometry and the container, `colour.py` colours, `diffaugment.py` augmentations for discriminators.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

import kornia.augmentation as K
import torch
from torch import Tensor, nn

from qsattn_plugin.devices import no_autocast
from qsattn_plugin.errors import at_least
from qsattn_plugin.registry import register


class Augmentation(nn.Module):
    """One kornia augmentation whose draws come from a given generator.

    kornia draws from torch's global CPU generator. :meth:`forward` seeds that generator with one number from the given
    one, and restores its state afterwards. An argument that most augmentations have:

    Args:
        p: probability, for each image independently.
    """

    kornia_part: K.AugmentationBase2D

    def __init__(self, kornia_part: K.AugmentationBase2D):
        super().__init__()
        # Not registered as a submodule: kornia would draw on a GPU, and its ranges would be in state_dict.
        self.__dict__["kornia_part"] = kornia_part

    def forward(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """Augment images (B, C, H, W) in [-1, 1], to which gradients flow; one number is drawn from ``generator``."""
        self._check(x)
        seed = int(torch.randint(2**62, (), generator=generator, device=generator.device))
        with torch.random.fork_rng(devices=[]):
            # Not torch.manual_seed, which would also seed accelerators, whose state is not restored.
            torch.random.default_generator.manual_seed(seed)
            # Half precision would round coordinates and colours; float64 stays as it is.
            with no_autocast(x.device.type):
                full = x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
                return self._apply_kornia(full).to(x.dtype)

    def _apply_kornia(self, x: Tensor) -> Tensor:
        return self.kornia_part(x)

    def _check(self, x: Tensor) -> None:
        """Raise ValueError for images that the augmentation cannot take."""


class Augmentations(nn.Module):
    """Several augmentations in sequence, with one random generator.

    >>> import torch
    >>> from qsattn_plugin.registry.augmentations import Augmentations, Flip
    >>> augment = Augmentations([Flip(p=1.0)])
    >>> augment(torch.tensor([[[[-1.0, 0.0, 1.0]]]]), torch.Generator().manual_seed(0))
    tensor([[[[ 1.,  0., -1.]]]])

    Args:
        parts: modules with ``forward(x, generator)``; without any, images stay unchanged.
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

    def sides(self, whole: int, seen: int) -> tuple[int, int]:
        """Return the shorter sides of a picture and of what is seen of it, in pixels, given those before.

        Parts without a method ``sides`` keep them.
        """
        for part in self.parts:
            sides: Any = getattr(part, "sides", None)
            whole, seen = sides(whole, seen) if callable(sides) else (whole, seen)
        return whole, seen


def check_share(name: str, value: float, lowest: float = 0.0, highest: float = 1.0) -> float:
    """Return ``value``, or raise ValueError when it is outside ``lowest`` to ``highest``."""
    if not lowest <= value <= highest:
        raise ValueError(f"{name}: must be from {lowest:g} to {highest:g}, got {value}")
    return value


@register("augmentation", "flip", tags=("geometry",))
class Flip(Augmentation):
    """Mirrors images left to right."""

    def __init__(self, p: float = 0.5):
        super().__init__(K.RandomHorizontalFlip(p=check_share("p", p)))


@register("augmentation", "resize", tags=("geometry",))
class Resize(Augmentation):
    """Resizes images to a square, without keeping their aspect ratio, as the papers do before cropping.

    Args:
        size: the side of the square in pixels.
        filter: interpolation of pixels; downsampling is antialiased.
    """

    def __init__(self, size: int = 286, filter: Literal["bilinear", "bicubic"] = "bicubic"):
        at_least(1, size=size)
        self.size = size
        super().__init__(K.Resize((size, size), resample=filter, align_corners=False, antialias=True))

    def sides(self, whole: int, seen: int) -> tuple[int, int]:
        """Return a picture's and the seen side: both are scaled."""
        return round(whole * self.size / seen), self.size

    def _apply_kornia(self, x: Tensor) -> Tensor:
        # Cubic interpolation overshoots at edges; images stay in [-1, 1].
        return super()._apply_kornia(x).clamp(-1, 1)


@register("augmentation", "crop", tags=("geometry",))
class Crop(Augmentation):
    """Crops a square at a random position.

    Args:
        size: the side of the square in pixels.
    """

    def __init__(self, size: int = 256):
        at_least(1, size=size)
        self.size = size
        super().__init__(K.RandomCrop((size, size), cropping_mode="slice"))

    def sides(self, whole: int, seen: int) -> tuple[int, int]:
        """Return a picture's and the seen side: the scale stays."""
        return whole, self.size

    def _check(self, x: Tensor) -> None:
        if min(x.shape[-2:]) < self.size:
            raise ValueError(f"size: a crop of {self.size} pixels does not fit into images of {tuple(x.shape[-2:])}")


@register("augmentation", "affine", tags=("geometry",))
class Affine(Augmentation):
    """Rotates, shifts, scales and shears images at random.

    Args:
        rotate: largest rotation in degrees, to either side.
        translate: largest shift to either side, as a share of the image's side.
        scale: factors from 1 - scale to 1 + scale.
        shear: largest shear in degrees, to either side.
        padding: fills the area outside the image: the mirrored image, its repeated border, or mid-grey (zeros).
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
