"""A store of decoded images: every image of a set decoded once and kept as uint8 or int16, in memory or in one file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable

import torch
from torch import Tensor

from qsattn_plugin.data import ImageSet
from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.parallel import threaded_map
from qsattn_plugin.errors import UserError

__all__ = ["Store"]

#: The most images that are decoded at once.
_THREADS = 4
#: Bytes of images that are kept in memory if nothing else is said.
BUDGET = 8 << 30


class Store:
    """The readable images of a set, decoded and prepared once; itself an :class:`~qsattn_plugin.data.ImageSet`.

    ``store[i]`` is a uint8 or int16 tensor (C, H, W) that must not be written to. Indices run over the images that
    could be read. Up to ``budget`` bytes, images are kept in memory; beyond that, all of them are kept in one unnamed
    file, which is deleted with the store. It is read by ``pread``, since pages of a memory-mapped file count as this
    process's memory.

    Args:
        images: the images to read.
        prepare: applied to each image once, e.g. a :class:`~qsattn_plugin.data.preprocess.Preprocess`; (C, H, W) in and
            out. It may raise :class:`~qsattn_plugin.data.images.UnreadableImage` to skip an image.
        limit: keep only the first so many images that can be read.
        budget: the most bytes of images kept in memory; 0 always uses the file.
        spill_to: the folder of the file; by default the system's folder for temporary files.
        progress: called as ``progress(done, total)`` after each image, from this thread.

    Raises:
        UserError: no image could be read, or the file could not be written.

    Attributes:
        sizes: the (height, width) of the images.
        nbytes: the bytes of all images.
        channels: the number of channels of every image.
        dtype: the type of every image.
        notes: what the set has to say about the images read, in sentences.
    """

    def __init__(
        self,
        images: ImageSet,
        prepare: Callable[[Tensor], Tensor] | None = None,
        *,
        limit: int | None = None,
        budget: int = BUDGET,
        spill_to: str | os.PathLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.skipped: list[tuple[str, str]] = []
        self.nbytes = 0
        self.channels = 0
        self.dtype = torch.uint8
        self._memory: list[Tensor] = []
        self._offsets: list[int] = []
        self._file: int | None = None

        def decode(index: int) -> Tensor | UnreadableImage:
            try:
                return images[index] if prepare is None else prepare(images[index])
            except UnreadableImage as error:
                return error

        count = len(images) if limit is None else min(limit, len(images))
        decoded = threaded_map(decode, range(len(images)), min(_THREADS, os.cpu_count() or 1))
        for index, image in enumerate(decoded):
            if isinstance(image, UnreadableImage):
                self.skipped.append((images.names[index], image.reason))
            else:
                self._add(images.names[index], image, budget, spill_to)
            if progress is not None:
                progress(index + 1, count)
            if len(self.names) == count:
                break
        decoded.close()
        self.notes = list(getattr(images, "notes", ()))
        if not self.names:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            raise UserError(f"none of {len(images)} pictures could be read ({shown}{more})")

    def _add(self, name: str, image: Tensor, budget: int, spill_to: str | os.PathLike | None) -> None:
        if image.dtype not in (torch.uint8, torch.int16) or image.dim() != 3:
            shape = f"{image.dtype} {tuple(image.shape)}"
            raise ValueError(f"images: must be uint8 or int16 (C, H, W), got {shape} for {name}")
        self.dtype = image.dtype if not self.names else self.dtype
        if image.dtype != self.dtype:
            raise ValueError(f"images: must all be {self.dtype}, got {image.dtype} for {name}")
        self.channels = self.channels or image.shape[0]
        if image.shape[0] != self.channels:
            raise ValueError(f"images: must all have {self.channels} channels, got {image.shape[0]} for {name}")
        image = image.contiguous()
        self.names.append(name)
        self.sizes.append((image.shape[1], image.shape[2]))
        self._offsets.append(self.nbytes)
        self.nbytes += image.nbytes
        self._memory.append(image)
        if self._file is None and self.nbytes > budget:
            self._file = _nameless_file(spill_to)
            weakref.finalize(self, os.close, self._file)
        if self._file is not None:
            start = len(self.names) - len(self._memory)
            for offset, kept in zip(self._offsets[start:], self._memory, strict=True):
                self._write(kept, offset, spill_to)
            self._memory.clear()

    def _write(self, image: Tensor, offset: int, spill_to: str | os.PathLike | None) -> None:
        assert self._file is not None
        left = image.reshape(-1).view(torch.uint8).numpy().data
        try:
            while left:
                written = os.pwrite(self._file, left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            place = spill_to or tempfile.gettempdir()
            raise UserError(
                f"cannot keep decoded images in {place}: {error.strerror}; give another folder or a larger budget"
            ) from error

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Return image ``index``: uint8 or int16 (C, H, W)."""
        index = range(len(self))[index]  # raises the usual IndexError, and supports negative indices
        if self._file is None:
            return self._memory[index]
        height, width = self.sizes[index]
        count, offset = self.channels * height * width * self.dtype.itemsize, self._offsets[index]
        pixels = bytearray()
        while len(pixels) < count:
            read = os.pread(self._file, count - len(pixels), offset + len(pixels))
            if not read:
                raise OSError(f"the file of decoded images is cut off before image {index}")
            pixels += read
        return torch.frombuffer(pixels, dtype=self.dtype).reshape(self.channels, height, width)


def _nameless_file(folder: str | os.PathLike | None) -> int:
    """Open a new unnamed file for reading and writing; closing its descriptor deletes it."""
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="qsattn-", dir=folder)
    except OSError as error:
        place = folder or tempfile.gettempdir()
        raise UserError(f"cannot keep decoded images in {place}: {error.strerror}") from error
    os.unlink(path)
    return handle
