"""One generator on tensors of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.registry.interfaces import side_multiple

#: The smallest side of a generator's input: below it, instance norm has too few positions at the deepest layers.
LEAST_SIDE = 16

#: A padding's (left, right, top, bottom) and its mode.
Padding = tuple[tuple[int, int, int, int], Literal["reflect", "replicate"]]


def smallest_side(generator: nn.Module | None, least: int = LEAST_SIDE) -> int:
    """Return the smallest side in pixels, from ``least`` on, that a generator takes."""
    multiple = side_multiple(generator)
    return -(-least // multiple) * multiple


def padding_for(generator: nn.Module | None, size: tuple[int, int]) -> list[Padding]:
    """Return the paddings from (height, width) to a size that a generator takes.

    Only the right and the bottom are padded, by reflection where the picture is large enough for that.
    """
    multiple, least = side_multiple(generator), smallest_side(generator)
    found: list[Padding] = []
    for axis, side in ((1, size[1]), (0, size[0])):
        missing = max(-side % multiple, least - side)
        if missing:
            sides = (0, missing, 0, 0) if axis else (0, 0, 0, missing)
            found.append((sides, "reflect" if missing < side else "replicate"))
    return found


def padded_size(generator: nn.Module | None, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) of a picture as it is padded for a generator."""
    width, height = size
    for (left, right, top, bottom), _ in padding_for(generator, (height, width)):
        width, height = width + left + right, height + top + bottom
    return width, height


def pad_for(generator: nn.Module | None, images: Tensor) -> Tensor:
    """Pad (B, C, H, W) at the right and the bottom to a size that the generator takes."""
    height, width = images.shape[-2:]
    for sides, mode in padding_for(generator, (height, width)):
        images = F.pad(images, sides, mode=mode)
    return images


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, and restore the mode of each of their modules afterwards."""
    modes = [(module, module.training) for network in networks for module in network.modules()]
    for network in networks:
        network.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.inference_mode()
def translate(generator: nn.Module, images: Tensor) -> Tensor:
    """Translate images (B, C, H, W) in [-1, 1] of any size; return the same shape, in [-1, 1]."""
    height, width = images.shape[-2:]
    return generator(pad_for(generator, images))[..., :height, :width].clamp(-1, 1)


def with_alpha(result: Image.Image, source: Image.Image) -> Image.Image:
    """Return the translation with the source's transparency, unless the model translated that too."""
    if "A" not in source.getbands() or "A" in result.getbands():
        return result
    result = result.copy()
    result.putalpha(source.getchannel("A"))
    return result
