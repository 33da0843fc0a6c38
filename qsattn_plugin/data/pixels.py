"""One picture as a tensor and back: channels, ranges, and bytes."""

from __future__ import annotations

import ctypes

import torch
from PIL import Image
from torch import Tensor

__all__ = ["as_pil", "check_channels", "from_tensor", "memory_of", "to_channels", "to_float"]

#: Channels to what Pillow calls the mode.
_MODES = {1: "L", 2: "LA", 3: "RGB", 4: "RGBA"}


def check_channels(channels: int) -> int:
    """Return ``channels`` if images can have that many, or raise :class:`ValueError`."""
    if channels not in _MODES:
        raise ValueError(f"channels: must be 1, 2, 3 or 4, got {channels}")
    return channels


def to_channels(image: Image.Image, channels: int) -> Tensor:
    """Turn a picture into a uint8 tensor (C, H, W) with the channels asked for.

    1 is luminance (ITU-R 601, as Pillow), 2 luminance and alpha, 3 RGB, 4 RGBA. Alpha that is asked for and not there
    is 255, opaque. Alpha that is there and not asked for is *dropped*, not composited on a background: the colours
    behind transparent pixels appear, as in the forks' ``convert("RGB")``, so that trained weights see the same input.

    Args:
        image: any mode; :func:`~qsattn_plugin.data.images.read_image` gives what converts without loss.
        channels: 1 to 4.

    Raises:
        ValueError: ``channels`` is none of 1 to 4.
    """
    mode = _MODES[check_channels(channels)]
    image = image if image.mode == mode else image.convert(mode)
    pixels = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8)
    return pixels.view(image.height, image.width, channels).permute(2, 0, 1).contiguous()


def as_pil(pixels: Tensor) -> Image.Image:
    """Turn a uint8 tensor (C, H, W), C from 1 to 4, into a picture: the inverse of :func:`to_channels`.

    Raises:
        ValueError: not uint8, not three axes, or a number of channels that no picture has.
    """
    if pixels.dtype != torch.uint8 or pixels.dim() != 3:
        raise ValueError(f"pixels: must be uint8 (C, H, W), got {pixels.dtype} {tuple(pixels.shape)}")
    channels = check_channels(pixels.shape[0])
    lines = pixels.permute(1, 2, 0).contiguous().cpu()
    return Image.frombytes(_MODES[channels], (lines.shape[1], lines.shape[0]), bytes(memory_of(lines)))


def to_float(pixels: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Scale uint8 pixels of any shape from 0..255 to [-1, 1], on the device they are on."""
    return pixels.to(torch.float32).div_(127.5).sub_(1).to(dtype)


def from_tensor(image: Tensor) -> Image.Image:
    """Turn a float image (C, H, W) in [-1, 1] into a picture; values beyond are clipped, others rounded to nearest.

    The inverse of :func:`to_float`: every one of the 256 levels comes back as itself, from float16 and bfloat16 too
    where they can hold it.

    Args:
        image: C from 1 to 4.

    Raises:
        ValueError: not a floating image of three axes, or it holds NaN, which no grey level would show as such.
    """
    if not image.is_floating_point() or image.dim() != 3:
        raise ValueError(f"image: must be float (C, H, W) in [-1, 1], got {image.dtype} {tuple(image.shape)}")
    image = image.detach().float()
    if image.isnan().any():
        raise ValueError("image: holds NaN")
    return as_pil(((image + 1) * 127.5).clamp(0, 255).round().to(torch.uint8))


def memory_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous tensor on the CPU, to read and to write, for as long as the tensor is kept.

    Without numpy, which torch.hub's users may not have.
    """
    return memoryview((ctypes.c_ubyte * tensor.nbytes).from_address(tensor.data_ptr())).cast("B")
