"""One generator on tensors of any size."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.preprocess import MAX_PIXELS

#: The smallest side that generators get: below it, instance norm has too few positions at the deepest layers.
_LEAST = 16


def padding_for(
    generator: nn.Module | None, size: tuple[int, int]
) -> list[tuple[tuple[int, int, int, int], Literal["reflect", "replicate"]]]:
    """Return the paddings, (left, right, top, bottom) and mode, that bring (height, width) to sides a generator takes.

    Only the right and the lower side are padded, by reflection where the picture has as much to reflect.
    """
    multiple = getattr(generator, "multiple", 4)
    least = -(-_LEAST // multiple) * multiple
    found = []
    for axis, side in ((1, size[1]), (0, size[0])):
        missing = max(-(-side // multiple) * multiple, least) - side
        if missing:
            sides = (0, missing, 0, 0) if axis else (0, 0, 0, missing)
            found.append((sides, "reflect" if missing < side else "replicate"))
    return found


def padded_size(generator: nn.Module | None, size: tuple[int, int]) -> tuple[int, int]:
    """Return (width, height) as the generator sees them, for a picture's."""
    width, height = size
    for (left, right, top, bottom), _ in padding_for(generator, (height, width)):
        width, height = width + left + right, height + top + bottom
    return width, height


def pad_for(generator: nn.Module | None, images: Tensor) -> Tensor:
    """Pad (B, C, H, W) on the right and below to sides that the generator takes."""
    for sides, mode in padding_for(generator, images.shape[-2:]):
        images = F.pad(images, sides, mode=mode)
    return images


@contextlib.contextmanager
def evaluating(*networks: nn.Module) -> Iterator[None]:
    """Put networks into evaluation mode, and every module of theirs back afterwards: a part may have frozen some."""
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
    """Translate (B, C, H, W) in [-1, 1] to the same size, whatever it is."""
    height, width = images.shape[-2:]
    return generator(pad_for(generator, images))[..., :height, :width].clamp(-1, 1)


def with_alpha(result: Image.Image, source: Image.Image) -> Image.Image:
    """Give the translation the source's transparency, unless the model translated that too."""
    if "A" not in source.getbands() or "A" in result.getbands():
        return result
    result = result.copy()
    result.putalpha(source.getchannel("A"))
    return result


def resized(picture: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resize with Pillow's antialiased bicubic filter, as pictures are for training.

    Args:
        picture: any mode.
        size: pixels of the shorter side, or (width, height).

    Raises:
        UnreadableImage: a long picture would become larger than 128 megapixels.
    """
    if isinstance(size, int):
        shorter = min(picture.size)
        size = tuple(max(1, round(side * size / shorter)) for side in picture.size)
    if size[0] * size[1] > MAX_PIXELS:
        raise UnreadableImage(f"{picture.width} x {picture.height} pixels would have to become {size[0]} x {size[1]}")
    return picture if picture.size == size else picture.resize(size, Image.Resampling.BICUBIC)
