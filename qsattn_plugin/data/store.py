"""A store: every image of a set decoded once and kept as uint8, in memory or, beyond a budget, in one file."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import Tensor

from qsattn_plugin.data import ImageSet
from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.errors import UserError

__all__ = ["Store"]

_THREADS = 4


class Store:
    """The readable images of a set, decoded and prepared once; itself an :class:`~qsattn_plugin.data.ImageSet`.

    ``store[i]`` is a uint8 tensor (C, H, W) that belongs to the store: read it, do not write to it. Indices run over
    the images that could be read. While these take at most ``budget`` bytes they lie in memory. Beyond that all of them
    lie in one file, which has no name and goes with the store; it is read by ``pread``, since pages of a mapped file
    count as this process's memory. The bytes are the same either way.

    Args:
        images: what to read.
        prepare: done to each image once, e.g. a :class:`~qsattn_plugin.data.preprocess.Preprocess`; uint8 (C, H, W) in
            and out. It may raise :class:`~qsattn_plugin.data.images.UnreadableImage` to have an image skipped.
        budget: bytes of memory for the images of this store; 0 spills always.
        spill_to: the folder for the file; by default the system's folder for temporary files.
        threads: how many images are decoded at once, at most 4.
        progress: called as ``progress(done, total)`` after each image, from this thread.

    Raises:
        UserError: not one image could be read, or the file could not be written.

    Attributes:
        names: the images' names, in order.
        sizes: their (height, width).
        skipped: (name, reason) of the images that could not be read.
        nbytes: bytes of all images together.
        channels: the channels of every image.
    """

    def __init__(
        self,
        images: ImageSet,
        prepare: Callable[[Tensor], Tensor] | None = None,
        *,
        budget: int = 8 << 30,
        spill_to: str | os.PathLike | None = None,
        threads: int = _THREADS,
        progress: Callable[[int, int], None] | None = None,
    ):
        self.names: list[str] = []
        self.sizes: list[tuple[int, int]] = []
        self.skipped: list[tuple[str, str]] = []
        self.nbytes = 0
        self.channels = 0
        self._memory: list[Tensor] = []
        self._offsets: list[int] = []
        self._file: int | None = None
        for done, (name, image) in enumerate(_decoded(images, prepare, threads), start=1):
            if isinstance(image, UnreadableImage):
                self.skipped.append((name, image.reason))
            else:
                self._add(name, image, budget, spill_to)
            if progress is not None:
                progress(done, len(images))
        if not self.names:
            shown = "; ".join(f"{name}: {reason}" for name, reason in self.skipped[:3])
            more = f"; and {len(self.skipped) - 3} more" if len(self.skipped) > 3 else ""
            raise UserError(f"not one of {len(images)} pictures could be read ({shown}{more})")

    def _add(self, name: str, image: Tensor, budget: int, spill_to: str | os.PathLike | None) -> None:
        if image.dtype != torch.uint8 or image.dim() != 3:
            raise ValueError(f"images: must be uint8 (C, H, W), got {image.dtype} {tuple(image.shape)} for {name}")
        self.channels = self.channels or image.shape[0]
        if image.shape[0] != self.channels:
            raise ValueError(f"images: must all have {self.channels} channels, got {image.shape[0]} for {name}")
        image = image.contiguous()
        self.names.append(name)
        self.sizes.append((image.shape[1], image.shape[2]))
        self._offsets.append(self.nbytes)
        self.nbytes += image.numel()
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
        left = memoryview(image.reshape(-1).numpy())
        try:
            while left:
                written = os.pwrite(self._file, left, offset)
                left, offset = left[written:], offset + written
        except OSError as error:
            place = spill_to or tempfile.gettempdir()
            raise UserError(
                f"cannot keep decoded images in {place}: {error.strerror}; give another folder or a larger budget"
            ) from error

    @property
    def spilled(self) -> bool:
        """Whether the images lie in a file instead of memory."""
        return self._file is not None

    def __len__(self) -> int:
        return len(self.names)

    def __getitem__(self, index: int) -> Tensor:
        """Give image ``index``: uint8 (C, H, W)."""
        index = range(len(self))[index]  # an IndexError of the usual kind, and negative indices
        if self._file is None:
            return self._memory[index]
        height, width = self.sizes[index]
        count, offset = self.channels * height * width, self._offsets[index]
        pixels = bytearray()
        while len(pixels) < count:
            read = os.pread(self._file, count - len(pixels), offset + len(pixels))
            if not read:
                raise OSError(f"the file of decoded images ends before image {index}")
            pixels += read
        return torch.frombuffer(pixels, dtype=torch.uint8).reshape(self.channels, height, width)


def _decoded(
    images: ImageSet, prepare: Callable[[Tensor], Tensor] | None, threads: int
) -> Iterator[tuple[str, Tensor | UnreadableImage]]:
    """Decode in a few threads and give (name, image or what was wrong with it) in order."""

    def one(index: int) -> Tensor | UnreadableImage:
        try:
            image = images[index]
            return image if prepare is None else prepare(image)
        except UnreadableImage as error:
            return error

    threads = max(1, min(threads, _THREADS, os.cpu_count() or 1))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")
    try:
        # A short queue: decoded images that wait to be written must not fill the memory that the file is to save.
        waiting: deque = deque()
        todo = iter(range(len(images)))
        for index in todo:
            waiting.append((index, pool.submit(one, index)))
            if len(waiting) >= 4 * threads:
                done, future = waiting.popleft()
                yield images.names[done], future.result()
        for done, future in waiting:
            yield images.names[done], future.result()
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _nameless_file(folder: str | os.PathLike | None) -> int:
    """Open a new file for reading and writing that no folder lists: it ends with its descriptor."""
    try:
        if folder is not None:
            os.makedirs(folder, exist_ok=True)
        handle, path = tempfile.mkstemp(prefix="qsattn-", dir=folder)
    except OSError as error:
        place = folder or tempfile.gettempdir()
        raise UserError(f"cannot keep decoded images in {place}: {error.strerror}") from error
    os.unlink(path)
    return handle
