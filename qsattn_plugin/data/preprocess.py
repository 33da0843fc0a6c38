"""The fork world's preprocess modes: a resize that is done once, and a crop that is drawn anew at every step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal, get_args

from PIL import Image
from torch import Tensor

from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.pixels import as_pil, to_channels

__all__ = ["Mode", "Preprocess"]

Mode = Literal[
    "resize_and_crop",
    "crop",
    "scale_width",
    "scale_width_and_crop",
    "scale_shortside",
    "scale_shortside_and_crop",
    "none",
]

#: No resize makes a picture with more pixels than this; only pictures much longer than wide come near it.
MAX_PIXELS = 1 << 27


@dataclass(frozen=True)
class Preprocess:
    """Resizes an image, and says how large the crop is that a step then takes of it.

    Calling it does the part that is the same at every step, with Pillow's antialiased bicubic filter. For a picture of
    width x height w x h:

    ============================  ===========================================  ===================
    mode                          after the call                               a step sees
    ============================  ===========================================  ===================
    ``resize_and_crop``           resize x resize, proportions not kept        crop x crop
    ``crop``                      w x h                                        crop x crop
    ``scale_width_and_crop``      resize x (h resize / w)                      crop x crop
    ``scale_shortside_and_crop``  shorter side at least resize                 crop x crop
    ``scale_width``               resize x (h resize / w)                      all of it
    ``scale_shortside``           shorter side at least resize                 all of it
    ``none``                      w x h                                        all of it
    ============================  ===========================================  ===================

    As in CUT, ``scale_shortside`` enlarges small pictures and leaves larger ones alone, and pictures that are seen
    whole get sides rounded to a multiple of 4, which two halvings ask for, or of what the generator takes. Unlike in
    CUT, a picture that is too small for the crop is enlarged just enough for it with its proportions kept (CUT
    stretches or fails), and ``scale_width`` keeps the proportions of all (CUT stretches pictures that come out lower
    than the crop, which it does not take there).

    Args:
        mode: one of the table's.
        resize: pixels; not used by ``crop`` and ``none``.
        crop: side of the square crop in pixels, a multiple of 4; not used by the modes without ``crop`` in their name.
        multiple: of what sides are that are seen whole.
        centre: take the crop from the middle in the call itself, for evaluation; see :meth:`for_test`.

    Raises:
        ValueError: an unknown mode, a size below 1, a crop that is no multiple of 4 or larger than what it is taken of.
    """

    mode: Mode = "resize_and_crop"
    resize: int = 286
    crop: int = 256
    multiple: int = 4
    centre: bool = False

    def __post_init__(self):
        if self.mode not in get_args(Mode):
            raise ValueError(f"mode: must be one of {', '.join(get_args(Mode))}, got {self.mode!r}")
        if self.resize < 1:
            raise ValueError(f"resize: must be at least 1, got {self.resize}")
        if self.crop_size is not None:
            if self.crop < 4 or self.crop % 4:
                raise ValueError(f"crop: must be a multiple of 4, at least 4, got {self.crop}")
            if self.mode != "crop" and self.resize < self.crop:
                raise ValueError(f"resize: must be at least crop ({self.crop}) in mode {self.mode}, got {self.resize}")

    @property
    def crop_size(self) -> int | None:
        """Side of the square crop in pixels, or ``None`` where images are seen whole."""
        return self.crop if self.mode.endswith("crop") else None

    def for_test(self) -> Preprocess:
        """Give the version without chance, for evaluation.

        As CUT's tests, which set their load size to the crop size: ``resize_and_crop`` gives the whole picture squeezed
        to crop x crop. The other modes with a crop scale to the crop size and take the middle where CUT takes a random
        place, so they give crop x crop too. The modes without a crop give the same as in training.
        """
        return self if self.crop_size is None else replace(self, resize=self.crop, centre=True)

    def size(self, width: int, height: int) -> tuple[int, int]:
        """Give (width, height) after the resize, before any crop."""
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
        """Round to the nearest multiple, at least once that; halves go to the even multiple, as in CUT."""
        return max(self.multiple, round(side / self.multiple) * self.multiple)

    def __call__(self, image: Tensor) -> Tensor:
        """Do the part that is the same at every step.

        Args:
            image: uint8 (C, H, W), C from 1 to 4; with 2 or 4 channels the last one is alpha, and colours are weighted
                by it as Pillow does.

        Returns:
            uint8 (C, H', W') with (W', H') by :meth:`size`, or (C, crop, crop) where ``centre`` is set in a mode with
            crop.

        Raises:
            UnreadableImage: the picture is so much longer than wide that enlarging it would take over 128 megapixels.
        """
        channels, height, width = image.shape
        w, h = self.size(width, height)
        if (w, h) != (width, height):
            if w * h > MAX_PIXELS:
                raise UnreadableImage(
                    f"{width} x {height} pixels would have to become {w} x {h}: cut it to shape first"
                )
            image = to_channels(as_pil(image).resize((w, h), Image.Resampling.BICUBIC), channels)
        if self.centre and self.crop_size is not None:
            top, left = (h - self.crop) // 2, (w - self.crop) // 2
            image = image[:, top : top + self.crop, left : left + self.crop]
        return image.contiguous()
