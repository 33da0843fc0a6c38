"""Translates many files, in batches or in tiles: all that can be read, each written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from qsattn_plugin.data.images import UnreadableImage, read_image, show, write_image
from qsattn_plugin.data.pixels import NaNImageError, as_pil, to_channels
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import may_write
from qsattn_plugin.translation.apply import padded_size, resize_picture, with_alpha
from qsattn_plugin.translation.load import Translator
from qsattn_plugin.translation.tiles import TILE, WHOLE, CannotTile, is_large, tiled_chain, translate_tiled
from qsattn_plugin.translation.tiles.spill import DiskFull

#: Default batch size; 1 on the CPU, where large allocations cost more than batches save.
_BATCH = {"cpu": 1}
_BATCH_ELSEWHERE = 8
#: The most pixels of pictures that wait for others of their size, to share a batch.
_WAITING = 1 << 24
#: Errors that every other file would meet too.
_FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


class Untiled(UserWarning):
    """Large pictures need much memory, because this generator cannot work in tiles."""


@dataclass
class Outcome:
    """The outcome of a job: files written, files that existed already, and (source, reason) of failures."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    source: Path
    target: Path
    picture: Image.Image


def translate_files(
    translator: Translator,
    pairs: Iterable[tuple[Path, Path]],
    overwrite: bool = False,
    progress: Callable[[float], None] = lambda pictures: None,
    *,
    tile: int | None = None,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Translate the pictures of a :func:`~qsattn_plugin.translation.files.plan`, each at its own size.

    Existing files are skipped, unless ``overwrite``. A picture that cannot be read, translated or written is recorded
    as failed, and the job continues.

    Args:
        translator: from :func:`~qsattn_plugin.translation.load.load`.
        pairs: (source, destination).
        overwrite: translate pictures again whose file exists.
        progress: called with the number of pictures done since the last call; a part of one for a large picture.
        tile: see :meth:`~qsattn_plugin.translation.load.Translator.translate`.
        batch: the most pictures of equal size in a batch; fewer where they are large. None: 1 on the CPU, 8 elsewhere.
        size: resize every picture first: the shorter side, or (width, height), in pixels.
        outcome: updated as the job goes on, so that it is known after an exception as well; it is returned.

    Raises:
        UserError: the disk is full or broken, or ``tile`` is set and the generator cannot work in tiles.
    """
    outcome = Outcome() if outcome is None else outcome
    job = _Job(translator, overwrite, progress, tile, batch, size, outcome)
    for tasks in job.batches(pairs):
        job.translate(tasks)
    return outcome


class _Job:
    def __init__(
        self,
        translator: Translator,
        overwrite: bool,
        progress: Callable[[float], None],
        tile: int | None,
        batch: int | None,
        size: int | tuple[int, int] | None,
        outcome: Outcome,
    ):
        self.translator, self.overwrite, self.progress = translator, overwrite, progress
        self.size, self.outcome = size, outcome
        device = next(translator.generator.parameters()).device.type
        self.batch = batch or _BATCH.get(device, _BATCH_ELSEWHERE)
        self.tile = TILE if tile is None else tile
        #: The most pixels that are translated at once, in one picture or in several.
        self.limit = float("inf") if tile == 0 else (tile or WHOLE) ** 2
        self.given = tile
        self._writable: dict[Path, bool] = {}

    def batches(self, pairs: Iterable[tuple[Path, Path]]) -> Iterator[list[_Task]]:
        """Yield batches of pictures of the same size, which need not be consecutive."""
        waiting: dict[tuple[int, int], list[_Task]] = {}
        pixels = 0
        for source, target in pairs:
            task = self._read(source, target)
            if task is None:
                self.progress(1)
                continue
            size = task.picture.size
            waiting.setdefault(size, []).append(task)
            pixels += size[0] * size[1]
            if len(waiting[size]) >= self._batch_size(size):
                pixels -= len(waiting[size]) * size[0] * size[1]
                yield waiting.pop(size)
            while pixels > _WAITING:
                first = next(iter(waiting))
                pixels -= len(waiting[first]) * first[0] * first[1]
                yield waiting.pop(first)
        yield from waiting.values()

    def _batch_size(self, size: tuple[int, int]) -> int:
        """Return the most pictures of a size in a batch."""
        width, height = padded_size(self.translator.generator, size)
        most = min(self.limit, WHOLE**2) // (width * height)
        return max(1, min(self.batch, int(most)))

    def _read(self, source: Path, target: Path) -> _Task | None:
        """Read a picture to translate; None if it is skipped or has failed."""
        try:
            there = _stat(target)
        except OSError as error:  # a name too long for the disk, a folder that may not be looked into
            self._failed(source, f"{show(source)}: cannot write {show(target)}: {error.strerror}")
            return None
        if not self._may_write(target.parent):
            self._failed(source, f"{show(source)}: cannot write {show(target)}: {os.strerror(errno.EACCES)}")
            return None
        if there is not None and stat.S_ISDIR(there.st_mode):
            self._failed(source, f"{show(source)}: its translation cannot be written: {show(target)} is a folder")
        elif there is not None and there.st_size and not self.overwrite:
            self.outcome.skipped.append(target)
        else:
            try:
                picture = read_image(source)
                return _Task(source, target, resize_picture(picture, self.size) if self.size else picture)
            except UnreadableImage as error:
                self._failed(source, str(error if error.path else UnreadableImage(error.reason, source)))
            except MemoryError:
                self._failed(source, f"{show(source)}: not enough memory to read it")
        return None

    def _may_write(self, folder: Path) -> bool:
        """Return whether a folder can be written to, so that it is known before the work."""
        if folder not in self._writable:
            self._writable[folder] = may_write(folder)
        return self._writable[folder]

    def _failed(self, source: Path, reason: str) -> None:
        self.outcome.failed.append((source, reason))

    def translate(self, tasks: list[_Task]) -> None:
        """Translate a batch and write the results."""
        done = 0.0

        def progress(share: float) -> None:
            nonlocal done
            done += share
            self.progress(share)

        try:
            results = self._results(tasks, progress)
        except (MemoryError, RuntimeError) as error:
            if not out_of_memory(error):
                raise
            if len(tasks) > 1:
                for task in tasks:
                    self.translate([task])
                return
            self._failed(tasks[0].source, f"{show(tasks[0].source)}: {self._advice(tasks[0].picture)}")
        except DiskFull as error:
            for task in tasks:
                self._failed(task.source, f"{show(task.source)}: {error}")
        except NaNImageError:
            for task in tasks:
                self._failed(task.source, f"{show(task.source)}: the model produced NaN")
        else:
            for task, result in zip(tasks, results, strict=True):
                self._write(task, result)
        self.progress(len(tasks) - done)

    def _results(self, tasks: list[_Task], progress: Callable[[float], None]) -> list[Image.Image]:
        size = padded_size(self.translator.generator, tasks[0].picture.size)
        if not is_large(size, self.given) or not self._can_tile(tasks[0].picture):
            return self.translator.translate([task.picture for task in tasks], tile=0)
        results = []
        for task in tasks:
            pixels = to_channels(task.picture, self.translator.channels)
            pixels = translate_tiled(self.translator.generator, pixels, self.tile, progress=progress)
            results.append(with_alpha(as_pil(pixels), task.picture))
        return results

    def _can_tile(self, picture: Image.Image) -> bool:
        """Return whether the generator can work in tiles; warn if it cannot."""
        try:
            tiled_chain(self.translator.generator, self.translator.channels, (picture.height, picture.width))
        except CannotTile as error:
            if self.given is not None:
                raise
            warnings.warn(f"{error}; translating it whole", Untiled, stacklevel=2)
            return False
        return True

    def _advice(self, picture: Image.Image) -> str:
        tile = min(self.tile or TILE, max(picture.size)) // 2
        return f"{picture.width} x {picture.height} pixels do not fit into memory; try --tile {tile}"

    def _write(self, task: _Task, result: Image.Image) -> None:
        try:
            write_image(result, task.target)
        except (UserError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in _FATAL:
                raise
            self._failed(task.source, f"{show(task.source)}: {error}")
        else:
            self.outcome.written.append(task.target)


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of what is at a path; None if nothing is, or a broken link."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
