"""Pictures as tensors and back: channels, ranges, and bytes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Literal

import torch
from PIL import Image
from torch import Tensor

__all__ = [
    *("NaNImageError", "as_pil", "check_channels", "colours", "from_tensor", "memory_of", "shown", "to_channels"),
    "to_float",
]

#: Which pages or frames of a file are pictures: the first, all, or one by its number from 1.
Pages = Literal["first", "all"] | int

#: Number of channels -> Pillow's mode.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


class NaNImageError(ValueError):
    """An image contains NaN, which no pixel value can represent."""


def check_channels(channels: int) -> int:
    """Return ``channels``; raise :class:`ValueError` if it is not 1 to 4."""
    if channels not in _MODES:
        raise ValueError(f"channels: must be 1, 2, 3 or 4, got {channels}")
    return channels


def to_channels(image: Image.Image, channels: int) -> Tensor:
    """Convert a picture to a uint8 tensor (C, H, W) with a number of channels.

    1 is luminance (ITU-R 601, as Pillow), 2 luminance and alpha, 3 RGB, 4 RGBA. Missing alpha becomes 255, opaque.
    Surplus alpha is *dropped*, not composited on a background: the colours of transparent pixels appear, as with
    ``convert("RGB")`` in CUT and its forks, so that trained weights see the same input.

    Raises:
        ValueError: ``channels`` is not 1 to 4.
    """
    mode = _MODES[check_channels(channels)]
    image = image if image.mode == mode else image.convert(mode)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def as_pil(pixels: Tensor) -> Image.Image:
    """Convert a uint8 tensor (C, H, W), C from 1 to 4, to a picture: the inverse of :func:`to_channels`.

    Raises:
        ValueError: the tensor is not uint8, or has another shape.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        raise ValueError(f"pixels: must be uint8 (C, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    channels = check_channels(pixels.shape[0])
    lines = pixels.permute(1, 2, 0).contiguous().cpu()
    return Image.frombytes(_MODES[channels], (lines.shape[1], lines.shape[0]), bytes(memory_of(lines)))


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale pixels of any shape to [-1, 1], on the device they are on.

    They are uint8, 0..255, or the int16 codes of :mod:`qsattn_plugin.data.ranges`.
    """
    if pixels.dtype == torch.int16:
        return pixels.to(torch.float32).add_(0.5).div_(32767.5).to(dtype)
    return pixels.to(torch.float32).div_(127.5).sub_(1).to(dtype)


def from_tensor(image: Tensor) -> Image.Image:
    """Convert a float image (C, H, W) in [-1, 1] to a picture; values outside are clipped, others rounded to nearest.

    The inverse of :func:`to_float`: all 256 levels are preserved, as far as float16 and bfloat16 can represent them.

    Raises:
        NaNImageError: the image contains NaN.
        ValueError: the image is not floating or not (C, H, W), C from 1 to 4.
    """
    if not image.is_floating_point() or image.dim() != 3:
        raise ValueError(f"image: must be float (C, H, W) in [-1, 1], got {image.dtype} {tuple(image.shape)}")
    image = image.detach().float()
    if image.isnan().any():
        raise NaNImageError("image: holds NaN")
    return as_pil(((image + 1) * 127.5).clamp(0, 255).round().to(torch.uint8))


def shown(image: Tensor, bands: Sequence[int] | None = None) -> Image.Image:
    """Return an image (C, H, W), in [-1, 1] or as :func:`to_float` takes it, as an RGB picture for people.

    Of more than three channels these three ``bands`` are shown, counted from 1, or the first three; of two the first.
    """
    image = image if image.is_floating_point() else to_float(image)
    return from_tensor(colours(image, bands)).convert("RGB")


def colours(images: Tensor, bands: Sequence[int] | None = None) -> Tensor:
    """Return the channels of images (..., C, H, W) that people are shown, one or three; see :func:`shown`."""
    if images.shape[-3] < 3:
        return images[..., :1, :, :]
    return images if images.shape[-3] == 3 else images[..., [band - 1 for band in bands or (1, 2, 3)], :, :]


def memory_of(tensor: Tensor) -> memoryview:
    """Return a writable view of a contiguous CPU tensor's bytes, valid as long as the tensor exists.

    It needs no numpy, which users of torch.hub may not have.
    """
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
