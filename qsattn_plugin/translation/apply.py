"""One generator on tensors of any size."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

#: The smallest side that generators get: below it, instance norm has too few positions at the deepest layers.
_LEAST = 16


@torch.inference_mode()
def translate(generator: nn.Module, images: Tensor) -> Tensor:
    """Translate (B, C, H, W) in [-1, 1] to the same size, whatever it is.

    Sides are padded to the generator's ``multiple`` on the right and below, by reflection, and cut back.
    """
    height, width = images.shape[-2:]
    multiple = getattr(generator, "multiple", 4)
    for axis, side in ((-1, width), (-2, height)):
        more = max(-(-side // multiple) * multiple, -(-_LEAST // multiple) * multiple) - side
        if more:
            pad = (0, more, 0, 0) if axis == -1 else (0, 0, 0, more)
            # Reflection cannot invent more than there is.
            images = F.pad(images, pad, mode="reflect" if more < side else "replicate")
    return generator(images)[..., :height, :width].clamp(-1, 1)
