"""A trained generator that translates pictures of any kind and size."""

from __future__ import annotations

import itertools
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple, overload

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.decoders import of_pillow
from qsattn_plugin.data.images import carried, normalise_mode, read_first, read_image, read_raster
from qsattn_plugin.data.pixels import NaNImageError, as_pil, from_tensor, shown, to_channels, to_float
from qsattn_plugin.data.preprocess import resize_bands
from qsattn_plugin.data.ranges import Range, to_signal, translated
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.writing import ANY
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.interfaces import side_multiple
from qsattn_plugin.translation.apply import padded_size, translate, with_alpha
from qsattn_plugin.translation.files import KEPT
from qsattn_plugin.translation.sizes import At, carry_back, carry_back_signal, resize_picture, working_size
from qsattn_plugin.translation.tiles import TILE, CannotTile, is_large, tiled_chain, translate_tiled

#: The most pixels in a batch: sixteen pictures of 256 x 256.
_BATCH_PIXELS = 1 << 20
Progress = Callable[[float], None]


class Untiled(UserWarning):
    """Large pictures need much memory, because this generator cannot work in tiles."""


class Weights(NamedTuple):
    """A model's file, and the name that means this model and no other: a run's folder, a file, ``pretrained/NAME``."""

    name: str
    path: Path


class Translator(nn.Module):
    """A trained generator, for tensors and for pictures.

    Args:
        generator: the network.
        channels: channels of its input images.
        document: the document of its file, such as the recipe and the step.
        trained: the shorter side, in pixels, that pictures had in training; None: unknown.
        weights: its file; None where it was not loaded from one.
        ranges: the value ranges of its input and of its output; None: 8 bits.
        bands: of what has more than three, the three that people are shown, counted from 1; None: the first.
        out_channels: channels of its output; None: as many as of its input.
    """

    def __init__(
        self,
        generator: nn.Module,
        channels: int,
        document: dict[str, Any] | None = None,
        trained: int | None = None,
        weights: Weights | None = None,
        ranges: tuple[Range | None, Range | None] = (None, None),
        bands: tuple[int, int, int] | None = None,
        out_channels: int | None = None,
    ):
        super().__init__()
        self.generator = generator
        self.channels = channels
        self.document = document or {}
        self.trained = trained
        self.weights = weights
        self.ranges = ranges
        self.out_channels = out_channels or channels
        self.bands = bands

    def extra_repr(self) -> str:
        return f"trained={self.trained}"

    @property
    def origin(self) -> str:
        """Which model this is, in a line for people: its name, its file, and the size that it was trained at."""
        size = f"at {self.trained} px" if self.trained else "at a size that its file does not say"
        name, path = self.weights or ("an untrained generator", None)
        return f"{name}{f' ({path})' if path and str(path) != name else ''}, trained {size}"

    @property
    def carries(self) -> bool:
        """Whether a change made at another size is carried back to a picture: its translation is of the same kind."""
        return (self.channels, self.ranges[0]) == (self.out_channels, self.ranges[1])

    def forward(self, images: Tensor) -> Tensor:
        """Translate images (B, C, H, W) in [-1, 1]; H and W are multiples of ``generator.multiple``.

        Raises:
            UserError: the images have other axes, channels or sides, or are bytes.
        """
        shape = tuple(images.shape)
        if len(shape) != 4 or shape[1] != self.channels:
            batch = "; a single image needs a batch axis: images[None]" if len(shape) == 3 else ""
            raise UserError(f"images: must be (B, {self.channels}, H, W), got {shape}{batch}")
        if not images.is_floating_point():
            raise UserError(
                f"images: must be floats in [-1, 1], got {images.dtype}; write images / 127.5 - 1 for bytes"
            )
        multiple = side_multiple(self.generator, default=1)
        if shape[2] % multiple or shape[3] % multiple:
            raise UserError(
                f"images: sides must be multiples of {multiple}, got {shape[2]} x {shape[3]}; translate() takes "
                "pictures of any size"
            )
        return self.generator(images)

    @overload
    def translate(
        self, pictures: Image.Image, tile: int | None = None, at: At | None = None, progress: Progress = ...
    ) -> Image.Image: ...

    @overload
    def translate(
        self, pictures: Iterable[Image.Image], tile: int | None = None, at: At | None = None, progress: Progress = ...
    ) -> list[Image.Image]: ...

    def translate(
        self,
        pictures: Image.Image | Iterable[Image.Image],
        tile: int | None = None,
        at: At | None = None,
        progress: Progress = lambda share: None,
    ) -> Image.Image | list[Image.Image]:
        """Translate pictures of any mode and size to pictures of the same sizes.

        Transparency, colour profile and resolution are kept; wide gamuts become sRGB.

        The EXIF orientation of a picture is applied. Pictures much larger or smaller than those in training are
        translated at the trained size, and the change is carried back (:mod:`qsattn_plugin.translation.sizes`); where
        the output has other channels than the input, so that there is no change to add, the translation is enlarged.
        Consecutive pictures of the same size share a batch. What is large at the size at which it is translated is
        translated in tiles where the generator's layers allow it, with the same result in less memory.

        Args:
            pictures: one, or a list or any other iterable; an iterator is consumed picture by picture.
            tile: more than ``tile`` x ``tile`` pixels are translated in tiles of that side; 0: never in tiles. None:
                tiles of 512 pixels for more than 1024 x 1024.
            at: the size at which pictures are translated: pixels of the shorter side, "trained", or "full", their own.
                None: "trained" where the shorter side differs from it by more than 1.5 times, otherwise "full".
            progress: called with parts of a picture as they are done, where it is translated in tiles.

        Returns:
            A picture for a picture, otherwise a list.

        Raises:
            CannotTile: ``tile`` is set, and the generator cannot work in tiles.
            DiskFull: there is too little space for the feature maps of a large picture.
            TypeError: something is not a PIL image.
            UnreadableImage: at this size, a picture would have more than 128 megapixels.
            UserError: ``at`` is "trained", and that size is unknown; or the generator is not one of 8-bit pictures.
            ValueError: a picture has no pixels.
        """
        if isinstance(pictures, Image.Image):
            return self.translate([pictures], tile, at, progress)[0]
        self.check_eight_bits()
        if not (hasattr(pictures, "__iter__") or hasattr(pictures, "__getitem__")):
            _checked(pictures)
        if isinstance(pictures, Sequence):  # others are checked one by one, as they come
            for picture in pictures:
                _checked(picture)
        out: list[Image.Image] = []
        # A generator: a long list is not held twice.
        found = (self._seen(normalise_mode(_checked(picture)), at) for picture in pictures)
        for size, alike in itertools.groupby(found, key=lambda pair: pair[1].size):
            width, height = padded_size(self.generator, size)
            tiled = is_large((width, height), tile) and self._can_tile(size, tile)
            most = 1 if tiled else max(1, _BATCH_PIXELS // (width * height))
            while batch := list(itertools.islice(alike, most)):
                seen = [small for _, small in batch]
                made = [self._in_tiles(seen[0], tile or TILE, progress)] if tiled else self._whole(seen)
                for (picture, small), result in zip(batch, made, strict=True):
                    full = carry_back(picture, small, result) if self.carries else resize_picture(result, picture.size)
                    out.append(with_alpha(full, picture))
                    out[-1].info.update(carried(picture, out[-1].mode))
        return out

    def check_eight_bits(self) -> None:
        """Raise :class:`UserError` if this generator does not translate pictures of 8 bits, as PIL images are."""
        if any(self.ranges):
            raise UserError(
                "this model's pictures have a value range (model.ranges), which a PIL image does not hold: "
                "model.translate_values(model.read(path))"
            )
        if max(self.channels, self.out_channels) > 4:
            channels = f"{self.channels} to {self.out_channels} channels"
            raise UserError(f"this model translates {channels}, which a PIL image does not hold: call it with tensors")

    def _seen(self, picture: Image.Image, at: At | None) -> tuple[Image.Image, Image.Image]:
        """Return a picture, and the same at the size at which it is translated."""
        return picture, resize_picture(picture, working_size(picture.size, at, self.trained))

    def read(self, path: str | os.PathLike, page: int | None = None) -> Image.Image | Raster:
        """Read a picture file as this generator takes it; raise as :func:`~qsattn_plugin.data.images.read_image`."""
        return read_image(path, page) if self.ranges[0] is None else read_raster(path, page)

    def signal(self, picture: Image.Image | Raster) -> Tensor:
        """Return a picture as an image (C, H, W) in [-1, 1] for the generator.

        Raises:
            UnreadableImage: it has other bands than the generator takes, or values that are no numbers.
            UserError: it has 8 bits, and the generator takes pictures of a value range.
        """
        if isinstance(picture, Raster):
            assert self.ranges[0] is not None  # only then it is read so
            return to_signal(picture, self.ranges[0], self.channels)
        if self.ranges[0] is not None:
            self.check_eight_bits()
        return to_float(to_channels(picture, self.channels))

    def preview(self, picture: Image.Image | Raster, made: bool = False) -> Image.Image:
        """Return a picture, or one that this generator made, as people are shown it: RGB, three of many bands."""
        if not isinstance(picture, Raster):
            return picture
        value_range = self.ranges[made]
        assert value_range is not None  # only then it is a raster
        return shown(to_signal(picture, value_range, self.out_channels if made else self.channels), self.bands)

    def shown(self, path: str | os.PathLike, made: bool = False) -> Image.Image:
        """Read a picture file of the source domain, or of the target domain (``made``), as people are shown it."""
        if self.ranges[made] is None:
            return read_first(path)
        return self.preview(read_raster(path), made)

    @property
    def kept(self) -> tuple[tuple[str, ...], str]:
        """The file name endings that translations keep, and the one that all others get."""
        value_range = self.ranges[1]
        if value_range is None:
            return KEPT, ".png"
        deep = value_range == "dtype" or (value_range[0] >= 0 and 255 <= value_range[1] <= 65535)
        return ((*ANY, ".png") if deep and self.out_channels <= 4 else ANY), ".tif"

    def translate_values(
        self,
        picture: Image.Image | Raster,
        tile: int | None = None,
        at: At | None = None,
        progress: Progress = lambda share: None,
    ) -> Image.Image | Raster:
        """Translate what :meth:`read` returned where the input or the output has a value range.

        The result has the kind of the target domain, in the number type of the source where that holds its range; it is
        a PIL image of 8 bits where the target domain has no range. Where both domains have the same range and as many
        bands, the change is carried back to the picture's own size; otherwise the translation is enlarged. Arguments
        and errors are those of :meth:`translate`.
        """
        image, out_range = self.signal(picture), self.ranges[1]
        size = working_size(picture.size, at, self.trained)
        seen = image if size == picture.size else resize_bands(image, size).clamp_(-1, 1)
        padded = padded_size(self.generator, size)
        if is_large(padded, tile) and self._can_tile(size, tile):
            made = translate_tiled(self.generator, seen, tile or TILE, progress=progress)
        else:
            weights = next(self.generator.parameters())
            made = translate(self.generator, seen[None].to(weights.device, weights.dtype))[0].float().cpu()
        if made.isnan().any():
            raise NaNImageError("the translation holds NaN")
        if seen is not image:
            enlarged = None if self.carries else resize_bands(made, picture.size).clamp_(-1, 1)
            made = carry_back_signal(image, seen, made) if enlarged is None else enlarged
        if out_range is not None:
            return translated(picture if isinstance(picture, Raster) else of_pillow(picture), made, out_range)
        result = from_tensor(made)
        if isinstance(picture, Image.Image):
            result = with_alpha(result, picture)
            result.info.update(carried(picture, result.mode))
        return result

    def _whole(self, pictures: list[Image.Image]) -> list[Image.Image]:
        """Translate pictures of one size in one batch, without their transparency."""
        weights = next(self.generator.parameters())
        images = torch.stack([to_float(to_channels(picture, self.channels)) for picture in pictures])
        results = translate(self.generator, images.to(weights.device, weights.dtype)).cpu()
        return list(map(from_tensor, results))

    def _in_tiles(self, picture: Image.Image, tile: int, progress: Progress) -> Image.Image:
        """Translate a large picture, without its transparency."""
        pixels = translate_tiled(self.generator, to_channels(picture, self.channels), tile, progress=progress)
        return as_pil(pixels)

    def _can_tile(self, size: tuple[int, int], tile: int | None) -> bool:
        """Return whether the generator can work in tiles; warn if it cannot, or raise if ``tile`` asks for it."""
        try:
            tiled_chain(self.generator, self.channels, (size[1], size[0]))
        except CannotTile as error:
            if tile is not None:
                raise
            warnings.warn(f"{error}; translating it whole", Untiled, stacklevel=3)
            return False
        return True


def _checked(picture: Any) -> Image.Image:
    if not isinstance(picture, Image.Image):
        remedy = "call the model itself with tensors" if isinstance(picture, Tensor) else "open it with PIL.Image.open"
        raise TypeError(f"pictures: must be PIL images, got {type(picture).__name__}; {remedy}")
    if not all(picture.size):
        raise ValueError(f"pictures: one has no pixels, its size is {picture.width} x {picture.height}")
    return picture
