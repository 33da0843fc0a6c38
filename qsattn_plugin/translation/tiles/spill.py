"""Feature maps on disk, read and written in parts.

A map lies in an unlinked temporary file as (H, W, C), channels last, so that a part of a row is contiguous. It is read
and written by pread and pwrite: memory-mapped files count as memory.
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


class DiskFull(UserError):
    """The temporary folder has too little space for a picture's feature maps; a smaller picture may fit."""


def format_bytes(size: float) -> str:
    """Format a byte count."""
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


class Spill:
    """Maps on disk by their position in the chain, and the peak of their bytes.

    Args:
        folder: where the files lie; the system's folder for temporary files (``TMPDIR``) without it.
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None):
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
        """Reserve space for a map.

        Raises:
            DiskFull: there is not enough.
        """
        self.maps[position] = made = SpilledMap(self.folder, channels, size, dtype)
        self.peak = max(self.peak, self.bytes)
        return made

    def keep(self, positions: frozenset[int]) -> None:
        """Delete all other maps; their space on disk is free at once."""
        for position in self.maps.keys() - positions:
            self.maps.pop(position).close()


class SpilledMap:
    """One map (1, C, H, W) on disk."""

    def __init__(self, folder: str | os.PathLike[str], channels: int, size: tuple[int, int], dtype: torch.dtype):
        self.folder, self.channels, self.size, self.dtype = folder, channels, size, dtype
        self.stride = channels * dtype.itemsize
        self.bytes = size[0] * size[1] * self.stride
        try:
            with tempfile.TemporaryFile(prefix="qsattn-", dir=folder, buffering=0) as file:
                self.file = os.dup(file.fileno())
        except OSError as error:
            what = f"no temporary file can be made in {folder} ({error.strerror})"
            raise DiskFull(f"{what}; set TMPDIR to another folder") from error
        if hasattr(os, "posix_fallocate"):  # a full disk shows before the work, not after it
            try:
                os.posix_fallocate(self.file, 0, self.bytes)
            except OSError as error:
                if error.errno not in (errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS):  # the file system cannot
                    self.close()
                    raise self._disk_full(error) from error

    def close(self) -> None:
        os.close(self.file)

    def _disk_full(self, error: OSError) -> UserError:
        return DiskFull(
            f"a large picture's feature map ({format_bytes(self.bytes)}) cannot be kept in the temporary folder "
            f"{self.folder}: {error.strerror}; set TMPDIR to a folder with more room"
        )

    def _rows(self, box: Box, memory: memoryview, move: Callable[[list[memoryview], int], int]) -> None:
        """Copy the box's rows between the file and memory, all at once where they are whole rows of the map."""
        rows, (start, stop) = box[0], box[1]
        run = (stop - start) * self.stride
        if stop - start == self.size[1]:
            run *= rows.stop - rows.start
        first = (rows.start * self.size[1] + start) * self.stride
        for number in range(len(memory) // run):
            at, left = first + number * self.size[1] * self.stride, memory[number * run : (number + 1) * run]
            while left:
                moved = move([left], at)
                if not moved:
                    raise OSError(errno.EIO, "a temporary file ends too early")
                at, left = at + moved, left[moved:]

    def write(self, box: Box, x: Tensor) -> None:
        """Write (1, C, h, w) to a box of the map.

        Raises:
            DiskFull: the disk is full.
        """
        lines = x[0].permute(1, 2, 0).contiguous().to("cpu", self.dtype)
        memory = memory_of(lines)
        try:
            self._rows(box, memory, lambda parts, at: os.pwritev(self.file, parts, at))
        except OSError as error:
            raise self._disk_full(error) from error

    def read(self, box: Box, device: torch.device) -> Tensor:
        """Read a box of the map as (1, C, h, w), channels last in memory."""
        lines = torch.empty(*(s.stop - s.start for s in box), self.channels, dtype=self.dtype, device="cpu")
        memory = memory_of(lines)
        self._rows(box, memory, lambda parts, at: os.preadv(self.file, parts, at))
        return lines.to(device).permute(2, 0, 1)[None]
