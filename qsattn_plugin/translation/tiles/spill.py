"""Feature maps on disk, read and written in parts.

A map lies in an unlinked temporary file, rows of places with their channels side by side (H, W, C), so that a part of
a row is one stretch of the file. It is read and written by pread and pwrite: memory-mapped files count as memory.
"""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Callable

import torch
from torch import Tensor

from qsattn_plugin.data.pixels import memory_of
from qsattn_plugin.errors import UserError
from qsattn_plugin.translation.tiles.steps import Box


class NoRoom(UserError):
    """The temporary folder is too full for a picture's feature maps; a smaller picture may do."""


def amount(size: float) -> str:
    """Say so many bytes."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class Spill:
    """Maps on disk by position; counts what they take.

    Args:
        folder: where; the system's folder for temporary files (``TMPDIR``) without it.
    """

    def __init__(self, folder: str | os.PathLike | None = None):
        self.folder = folder or tempfile.gettempdir()
        self.maps: dict[int, SpilledMap] = {}
        self.peak = 0

    def __enter__(self) -> Spill:
        return self

    def __exit__(self, *_: object) -> None:
        self.keep(frozenset())

    @property
    def bytes(self) -> int:
        return sum(m.bytes for m in self.maps.values())

    def make(self, position: int, channels: int, size: tuple[int, int], dtype: torch.dtype) -> SpilledMap:
        """Take room for a map.

        Raises:
            NoRoom: the disk has not got it.
        """
        self.maps[position] = made = SpilledMap(self.folder, channels, size, dtype)
        self.peak = max(self.peak, self.bytes)
        return made

    def keep(self, positions: frozenset[int]) -> None:
        """Let all others go; their room on disk is free at once."""
        for position in self.maps.keys() - positions:
            self.maps.pop(position).close()


class SpilledMap:
    """One map (1, C, H, W) on disk."""

    def __init__(self, folder: str | os.PathLike, channels: int, size: tuple[int, int], dtype: torch.dtype):
        self.folder, self.channels, self.size, self.dtype = folder, channels, size, dtype
        self.place = channels * dtype.itemsize
        self.bytes = size[0] * size[1] * self.place
        try:
            with tempfile.TemporaryFile(prefix="qsattn-", dir=folder, buffering=0) as file:
                self.file = os.dup(file.fileno())
        except OSError as error:
            raise NoRoom(
                f"no temporary file can be made in {folder} ({error.strerror}); set TMPDIR to another folder"
            ) from error
        if hasattr(os, "posix_fallocate"):  # a full disk is better known before the work than after it
            try:
                os.posix_fallocate(self.file, 0, self.bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot
                    self.close()
                    raise self._refusal(error) from error

    def close(self) -> None:
        os.close(self.file)

    def _refusal(self, error: OSError) -> UserError:
        return NoRoom(
            f"a large picture's feature map ({amount(self.bytes)}) cannot be kept in the temporary folder "
            f"{self.folder}: {error.strerror}; set TMPDIR to a folder with more room"
        )

    def _rows(self, box: Box, memory: memoryview, move: Callable[[list[memoryview], int], int]) -> None:
        """Move the box's rows, or all of them at once where they are whole, between the file and memory."""
        rows, (start, stop) = box[0], box[1]
        stretch = (stop - start) * self.place
        if stop - start == self.size[1]:
            stretch *= rows.stop - rows.start
        first = (rows.start * self.size[1] + start) * self.place
        for number in range(len(memory) // stretch):
            at, left = first + number * self.size[1] * self.place, memory[number * stretch : (number + 1) * stretch]
            while left:
                moved = move([left], at)
                if not moved:
                    raise OSError(errno.EIO, "a temporary file ends too early")
                at, left = at + moved, left[moved:]

    def write(self, box: Box, x: Tensor) -> None:
        """Write (1, C, h, w) to a box of the map.

        Raises:
            NoRoom: the disk is full.
        """
        lines = x[0].permute(1, 2, 0).contiguous().to("cpu", self.dtype)
        memory = memory_of(lines)
        try:
            self._rows(box, memory, lambda parts, at: os.pwritev(self.file, parts, at))
        except OSError as error:
            raise self._refusal(error) from error

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Read a box of the map as (1, C, h, w), channels last in memory."""
        lines = torch.empty(*(s.stop - s.start for s in box), self.channels, dtype=self.dtype, device="cpu")
        memory = memory_of(lines)
        self._rows(box, memory, lambda parts, at: os.preadv(self.file, parts, at))
        return lines.to(device).permute(2, 0, 1)[None]
