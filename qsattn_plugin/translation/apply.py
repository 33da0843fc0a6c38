"""One generator on tensors of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The smallest side that generators get: below it, instance norm has too few positions at the deepest layers.
_LEAST = 16


def pad_for(generator: nn.Module | None, images: Tensor) -> Tensor:
    """Pad (B, C, H, W) on the right and below, by reflection, to sides that the generator takes."""
    multiple = getattr(generator, "multiple", 4)
    least = -(-_LEAST // multiple) * multiple
    height, width = images.shape[-2:]
    right, below = (max(-(-side // multiple) * multiple, least) - side for side in (width, height))
    for pad, side in (((0, right, 0, 0), width), ((0, 0, 0, below), height)):
        if any(pad):  # reflection cannot invent more than there is
            images = F.pad(images, pad, mode="reflect" if max(pad) < side else "replicate")
    return images


@torch.inference_mode()
def translate(generator: nn.Module, images: Tensor) -> Tensor:
    """Translate (B, C, H, W) in [-1, 1] to the same size, whatever it is."""
    height, width = images.shape[-2:]
    return generator(pad_for(generator, images))[..., :height, :width].clamp(-1, 1)
