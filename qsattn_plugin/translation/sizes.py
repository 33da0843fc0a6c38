"""The size at which a picture is translated, and the way back: only the *change* is enlarged, onto the picture itself.

A generator knows objects of the size that they had in training. A larger picture is therefore brought to a working
size, translated there, and the change is carried back, so that the picture keeps its own detail. With the picture I,
the same at the working size i, its translation there o, all on 0..255 and each band by itself:

    p = o - i                                                      the change
    a = (box(i p) - box(i) box(p)) / (box(i i) - box(i)^2 + 163)   its slope over the picture; box: mean of 3 x 3
    O = I + up(a) I + up(p - a i)                                  up: bicubic (Keys, -0.5), as Pillow's

Without the slope, up(p) is as blurred at an animal's outline as the working size is, and bleeds into what lies behind
it: a halo. With it, the change follows the picture's own edges. This is the fast guided filter (He and Sun 2015) but
for one thing: that filter smooths the change, which washes stripes out; here the offset p - a i makes up for the slope
at every pixel of the working size, so that the change itself is not smoothed.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.pixels import as_pil, to_channels
from qsattn_plugin.data.preprocess import FACTOR, MAX_PIXELS, resize_bands
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.errors import UserError, nearest

#: A working size: pixels of the shorter side; the trained size; the picture's own.
At = int | Literal["trained", "full"]

#: Small pictures are not enlarged by default where that makes more pixels than these.
ENLARGED = 1 << 20
#: The guided filter's regularisation: 0.01 on [-1, 1].
EPS = 163.0
#: Rows that are computed at once.
_ROWS = 128


def parse_at(text: str) -> At:
    """Return a working size from "256", "trained" or "full".

    Raises:
        ValueError: the text has another form.
    """
    if text in ("trained", "full"):
        return text  # type: ignore[return-value]  # mypy does not narrow a str
    if text.isdecimal() and 16 <= int(text) <= 1 << 16:
        return int(text)
    hint = nearest(text, ("trained", "full"))
    raise ValueError(f"{text!r} is not a size{hint}: write pixels of the shorter side from 16 on, trained or full")


def parse_sizes(text: str) -> list[At]:
    """Return working sizes from "192,256,full"."""
    return [parse_at(part.strip()) for part in text.split(",")]


def scaled_size(size: tuple[int, int], side: int) -> tuple[int, int]:
    """Return (width, height) of a picture whose shorter side becomes ``side``, its aspect kept."""
    width, height = (max(1, round(length * side / min(size))) for length in size)
    return width, height


def resize_picture(picture: Image.Image, size: int | tuple[int, int]) -> Image.Image:
    """Resize a picture with Pillow's antialiased bicubic filter, as for training.

    Args:
        picture: any mode.
        size: pixels of the shorter side, or (width, height).

    Raises:
        UnreadableImage: the result would have more than 128 megapixels.
    """
    wanted = _allowed(picture.size, scaled_size(picture.size, size) if isinstance(size, int) else size)
    return picture if picture.size == wanted else picture.resize(wanted, Image.Resampling.BICUBIC)


def resize_raster(raster: Raster, size: int | tuple[int, int]) -> Raster:
    """Resize a picture of any bands as :func:`resize_picture` does, each band by itself."""
    import numpy as np

    wanted = _allowed(raster.size, scaled_size(raster.size, size) if isinstance(size, int) else size)
    if raster.size == wanted:
        return raster
    bands = torch.from_numpy(np.ascontiguousarray(raster.values.transpose(2, 0, 1), np.float32))
    values = resize_bands(bands, wanted).permute(1, 2, 0).numpy()
    kind = raster.values.dtype
    if kind.kind != "f":
        values = np.clip(np.floor(values.astype(np.float64) + 0.5), np.iinfo(kind).min, np.iinfo(kind).max)
    return replace(raster, values=values.astype(kind))


def _allowed(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Return the wanted (width, height), or raise :class:`UnreadableImage` where that is too large."""
    if wanted[0] * wanted[1] > MAX_PIXELS:
        raise UnreadableImage(f"{size[0]} x {size[1]} pixels would have to become {wanted[0]} x {wanted[1]}")
    return wanted


def working_size(size: tuple[int, int], at: At | None, trained: int | None) -> tuple[int, int]:
    """Return (width, height) at which a picture is translated.

    Args:
        size: the picture's (width, height).
        at: pixels of the shorter side, "trained", or "full", the picture's own size. None: "trained" where the shorter
            side differs from it by more than ``FACTOR``, unless that would enlarge the picture to more than a
            megapixel; otherwise "full".
        trained: the shorter side that the model knows; None: unknown, which by default means "full".

    Raises:
        UserError: "trained", and it is unknown; ``at`` has another form, see :func:`parse_at`.
    """
    try:
        at = None if at is None else parse_at(at if isinstance(at, str) else str(operator.index(at)))
    except (TypeError, ValueError):
        raise UserError(f"at: must be pixels from 16 on, 'trained', 'full' or None, got {at!r}") from None
    side = at if isinstance(at, int) else trained
    if at == "trained" and side is None:
        raise UserError("the model's file does not say at what size it was trained: give pixels instead, such as 256")
    if at == "full" or side is None:
        return size
    width, height = scaled_size(size, side)
    near = side / FACTOR <= min(size) <= side * FACTOR
    enlarged = width * height > max(size[0] * size[1], ENLARGED)
    return size if at is None and (near or enlarged) else (width, height)


def carry_back(picture: Image.Image, seen: Image.Image, made: Image.Image) -> Image.Image:
    """Carry a change from the working size back to the picture; the arithmetic is this module's docstring's.

    Args:
        picture: L, LA, RGB or RGBA, at full size.
        seen: the same at the working size.
        made: its translation, of the same size, in any of these modes.

    Returns:
        A picture of the full size, in the mode of ``made``; ``made`` itself if the sizes are equal.
    """
    if picture.size == seen.size:
        return made
    channels, width = len(made.getbands()), picture.width
    small, changed = (to_channels(image, channels).float() for image in (seen, made))

    def rows_of(top: int, bottom: int) -> Tensor:
        return to_channels(picture.crop((0, top, width, bottom)), channels).float()

    out = Image.new(made.mode, picture.size)
    for top, rows in _carried(small, changed, picture.size, rows_of):
        out.paste(as_pil(rows.round_().clamp_(0, 255).to(torch.uint8)), (0, top))
    return out


def carry_back_signal(image: Tensor, seen: Tensor, made: Tensor) -> Tensor:
    """Carry a change back as :func:`carry_back` does, on images (C, H, W) in [-1, 1]."""
    full, small, changed = ((x.float() + 1) * 127.5 for x in (image, seen, made))
    size = image.shape[2], image.shape[1]
    parts = [rows for _, rows in _carried(small, changed, size, lambda top, bottom: full[:, top:bottom])]
    return (torch.cat(parts, 1) / 127.5 - 1).clamp_(-1, 1)


def _carried(
    small: Tensor, made: Tensor, size: tuple[int, int], rows_of: Callable[[int, int], Tensor]
) -> Iterator[tuple[int, Tensor]]:
    """Yield (top, rows) of the picture of a size with the change carried back; all (C, H, W) on 0..255."""
    change = made - small
    slope = _slope(small, change)
    if min(size) < min(small.shape[1:]):  # the picture has no detail that the working size lacks
        slope.zero_()
    (width, height), below = size, small.shape[1]
    down = _resized(torch.eye(below)[None], (height, below))[0]
    wide = _resized(torch.stack([slope, change - slope * small]), (below, width))
    for top in range(0, height, _ROWS):
        rows = down[top : top + _ROWS]
        used = rows.any(0).nonzero()
        near = slice(int(used[0]), int(used[-1]) + 1)
        factor, offset = rows[:, near] @ wide[..., near, :]
        band = rows_of(top, top + len(rows))
        yield top, offset.add_(band).addcmul_(band, factor)


def _slope(image: Tensor, change: Tensor) -> Tensor:
    """Return the slope of the change over the image around each pixel, (C, H, W)."""

    def box(x: Tensor) -> Tensor:
        return F.avg_pool2d(F.pad(x[None], (1, 1, 1, 1), mode="replicate"), 3, stride=1)[0]

    mean, mean_change = box(image), box(change)
    return (box(image * change) - mean * mean_change) / (box(image * image) - mean * mean + EPS)


def _resized(x: Tensor, size: tuple[int, int]) -> Tensor:
    """Bring (..., h, w) to another (height, width) by Pillow's bicubic filter."""
    return F.interpolate(x.flatten(0, -3)[:, None], size, mode="bicubic", antialias=True).view(*x.shape[:-2], *size)
