"""The preprocess modes of CUT and its forks: a resize that is done once, and a random crop at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import get_args

import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.pixels import as_pil, memory_of, to_channels
from qsattn_plugin.errors import one_of
from qsattn_plugin.registry.interfaces import PreprocessMode

__all__ = ["FACTOR", "Preprocess", "known_side", "resize_bands"]

#: Shorter sides that differ by no more than this factor are of one size, to a generator.
FACTOR = 1.5

#: The most pixels of a resized picture; only extreme aspect ratios come near it.
MAX_PIXELS = 1 << 27


def known_side(whole: int, seen: int) -> int:
    """Return the shorter side of the pictures that a generator knows, given those of its training's pictures.

    It is that of whole pictures. Where crops show most of them it is that of what is ``seen``, as in tests.
    """
    return seen if whole <= FACTOR * seen else whole


def resize_bands(image: Tensor, size: tuple[int, int]) -> Tensor:
    """Resize a float32 image (C, H, W) to (width, height), each channel by Pillow's antialiased bicubic filter."""
    bands = []
    for band in image.contiguous():
        picture = Image.frombytes("F", (band.shape[1], band.shape[0]), bytes(memory_of(band)))
        resized = picture.resize(size, Image.Resampling.BICUBIC)
        bands.append(torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.float32).view(size[1], size[0]))
    return torch.stack(bands)


@dataclass(frozen=True)
class Preprocess:
    """Resizes images, and defines the size of the crop that a training step takes.

    Calling it does the resize, with Pillow's antialiased bicubic filter. For a picture of width w and height h:

    ============================  ===========================================  ===================
    mode                          after the call                               a step uses
    ============================  ===========================================  ===================
    ``resize_and_crop``           resize x resize, proportions not kept        crop x crop
    ``crop``                      w x h                                        crop x crop
    ``scale_width_and_crop``      resize x (h resize / w)                      crop x crop
    ``scale_shortside_and_crop``  shorter side at least resize                 crop x crop
    ``scale_width``               resize x (h resize / w)                      all of it
    ``scale_shortside``           shorter side at least resize                 all of it
    ``none``                      w x h                                        all of it
    ============================  ===========================================  ===================

    As in CUT, ``scale_shortside`` enlarges small pictures and keeps larger ones, and the sides of pictures that are not
    cropped are rounded to a multiple: 4 for two downsampling layers, or what the generator needs. Unlike in CUT, a
    picture that is too small for the crop is enlarged to fit it with its aspect ratio kept (CUT stretches it or fails),
    and ``scale_width`` always keeps the aspect ratio (CUT stretches pictures that become lower than ``crop``, although
    this mode takes no crop).

    Args:
        mode: a mode of the table.
        resize: in pixels; not used by ``crop`` and ``none``.
        crop: side of the square crop in pixels, a multiple of 4; only used by modes with ``crop`` in their name.
        multiple: sides of pictures that are not cropped are rounded to a multiple of it.
        centre: take a centre crop in the call itself; see :meth:`for_test`.

    Raises:
        ValueError: the mode is unknown, a size is below 1, or the crop is not a multiple of 4 or exceeds ``resize``.
    """

    mode: PreprocessMode = "resize_and_crop"
    resize: int = 286
    crop: int = 256
    multiple: int = 4
    centre: bool = False

    def __post_init__(self):
        one_of(get_args(PreprocessMode), mode=self.mode)
        if self.resize < 1:
            raise ValueError(f"resize: must be at least 1, got {self.resize}")
        if self.crop_size is not None:
            if self.crop < 4 or self.crop % 4:
                raise ValueError(f"crop: must be a multiple of 4, at least 4, got {self.crop}")
            if self.mode != "crop" and self.resize < self.crop:
                raise ValueError(f"resize: must be at least crop ({self.crop}) in mode {self.mode}, got {self.resize}")

    @property
    def crop_size(self) -> int | None:
        """Side of the square crop in pixels, or ``None`` in modes without a crop."""
        return self.crop if self.mode.endswith("crop") else None

    def for_test(self) -> Preprocess:
        """Return the deterministic version, for evaluation.

        As in CUT's tests, which set the load size to the crop size, ``resize_and_crop`` resizes the whole picture to
        crop x crop. The other modes that scale and crop scale to the crop size and take a centre crop, where CUT takes
        a random one, and ``crop`` takes one without scaling. The modes without a crop are unchanged.
        """
        return self if self.crop_size is None else replace(self, resize=self.crop, centre=True)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Return (width, height) after the resize, before any crop."""
        w, h = width, height
        if self.mode == "resize_and_crop":
            w = h = self.resize
        elif self.mode.startswith("scale_width"):
            w, h = self.resize, max(1, self.resize * h // w)
        elif self.mode.startswith("scale_shortside") and min(w, h) < self.resize:
            w, h = (round(side * self.resize / min(width, height)) for side in (w, h))
        if self.crop_size is None:
            return self._rounded(w), self._rounded(h)
        if (short := min(w, h)) < self.crop:
            w, h = (max(self.crop, round(side * self.crop / short)) for side in (w, h))
        return w, h

    def _rounded(self, side: int) -> int:
        """Round to the nearest positive multiple; halves go to the even multiple, as in CUT."""
        return max(self.multiple, round(side / self.multiple) * self.multiple)

    def __call__(self, image: Tensor) -> Tensor:
        """Resize an image (C, H, W), and take the centre crop if ``centre`` is set.

        With 2 or 4 channels of uint8 the last one is alpha, and colours are weighted by it, as in Pillow. More of them,
        and channels of int16 (:mod:`qsattn_plugin.data.ranges`), are bands, each resized by itself.

        Raises:
            UnreadableImage: the resized picture would have more than :data:`MAX_PIXELS` pixels.
        """
        channels, height, width = image.shape
        w, h = self.size(width, height)
        if (w, h) != (width, height):
            if w * h > MAX_PIXELS:
                what = f"{width} x {height} pixels would have to become {w} x {h}"
                raise UnreadableImage(f"{what}: crop the picture first")
            if image.dtype == torch.uint8 and channels <= 4:
                image = to_channels(as_pil(image).resize((w, h), Image.Resampling.BICUBIC), channels)
            else:
                kind = torch.iinfo(image.dtype)
                image = resize_bands(image.float(), (w, h)).round_().clamp_(kind.min, kind.max).to(image.dtype)
        if self.centre and self.crop_size is not None:
            top, left = (h - self.crop) // 2, (w - self.crop) // 2
            image = image[:, top : top + self.crop, left : left + self.crop]
        return image.contiguous()
