"""Translates many files, in batches or in tiles: all that can be read, each written whole or not at all."""

from __future__ import annotations

import errno
import os
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from qsattn_plugin.data.images import UnreadableImage, show, write_image
from qsattn_plugin.data.pixels import NaNImageError
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.writing import write_raster
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import may_write
from qsattn_plugin.translation.apply import padded_size
from qsattn_plugin.translation.grid import labelled
from qsattn_plugin.translation.sizes import At, resize_picture, resize_raster, working_size
from qsattn_plugin.translation.tiles import TILE, WHOLE
from qsattn_plugin.translation.tiles.spill import DiskFull
from qsattn_plugin.translation.translator import Translator

#: Default batch size; 1 on the CPU, where large allocations cost more than batches save.
_BATCH = {"cpu": 1}
_BATCH_ELSEWHERE = 8
#: The most pixels of pictures that wait for others of their size, to share a batch.
_WAITING = 1 << 24
#: Errors that every other file would meet too.
FATAL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


@dataclass
class Outcome:
    """The outcome of a job: files written, files that existed already, and (source, reason) of failures.

    ``carried`` counts the written ones that were translated at another size, by the shorter side there. ``frames`` are
    sources of several pages or frames of which the first was taken unasked, and how many they have.
    """

    written: list[Path] = field(default_factory=list)
    carried: Counter[int] = field(default_factory=Counter)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)
    frames: list[tuple[Path, int]] = field(default_factory=list)


@dataclass(frozen=True)
class _Task:
    source: Path
    target: Path
    picture: Image.Image | Raster
    size: tuple[int, int]  # at which it is translated


def translate_files(
    translator: Translator,
    pairs: Iterable[tuple[Path, Path] | tuple[Path, Path, int | None]],
    overwrite: bool = False,
    progress: Callable[[float], None] = lambda pictures: None,
    *,
    tile: int | None = None,
    batch: int | None = None,
    size: int | tuple[int, int] | None = None,
    at: At | list[At] | None = None,
    outcome: Outcome | None = None,
) -> Outcome:
    """Translate the pictures of a :func:`~qsattn_plugin.translation.files.plan` to pictures of the same sizes.

    Existing files are skipped, unless ``overwrite``. A picture that cannot be read, translated or written is recorded
    as failed, and the job continues.

    Args:
        translator: from :func:`~qsattn_plugin.translation.load.load`.
        pairs: (source, destination), or (source, destination, page) of
            :func:`~qsattn_plugin.translation.files.each_page`.
        overwrite: translate pictures again whose file exists.
        progress: called with the number of pictures done since the last call; a part of one for a large picture.
        tile: see :meth:`~qsattn_plugin.translation.translator.Translator.translate`.
        batch: the most pictures of equal size in a batch; fewer where they are large. None: 1 on the CPU, 8 elsewhere.
        size: resize every picture first: the shorter side, or (width, height), in pixels.
        at: the size at which they are translated, as for ``Translator.translate``. A list: each picture becomes a
            sheet of the picture and its translations at these sizes, side by side.
        outcome: updated as the job goes on, so that it is known after an exception as well; it is returned.

    Raises:
        UserError: the disk is full or broken; ``tile`` is set and the generator cannot work in tiles; ``at`` is
            "trained" and that size is unknown.
    """
    outcome = Outcome() if outcome is None else outcome
    job = _Job(translator, overwrite, progress, tile, batch, size, at, outcome)
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
        at: At | list[At] | None,
        outcome: Outcome,
    ):
        self.translator, self.overwrite, self.progress = translator, overwrite, progress
        self.size, self.outcome = size, outcome
        self.sheet = isinstance(at, list)
        self.sizes: Sequence[At | None] = at if isinstance(at, list) else [at]
        device = next(translator.generator.parameters()).device.type
        self.batch = batch or _BATCH.get(device, _BATCH_ELSEWHERE)
        self.tile = tile
        #: The most pixels that are translated at once, in one picture or in several.
        self.limit = float("inf") if tile == 0 else (tile or WHOLE) ** 2
        self._writable: dict[Path, bool] = {}

    def batches(self, pairs: Iterable[tuple[Path, Path] | tuple[Path, Path, int | None]]) -> Iterator[list[_Task]]:
        """Yield batches of pictures that are translated at the same size; they need not be consecutive."""
        waiting: dict[tuple[int, int], list[_Task]] = {}
        pixels = 0
        for source, target, *page in pairs:
            task = self._read(source, target, *page)
            if task is None:
                self.progress(1)
                continue
            waiting.setdefault(task.size, []).append(task)
            pixels += _pixels(task)
            if len(waiting[task.size]) >= self._batch_size(task.size):
                pixels -= sum(map(_pixels, waiting[task.size]))
                yield waiting.pop(task.size)
            while pixels > _WAITING:
                first = waiting.pop(next(iter(waiting)))
                pixels -= sum(map(_pixels, first))
                yield first
        yield from waiting.values()

    def _batch_size(self, size: tuple[int, int]) -> int:
        """Return the most pictures of a size in a batch."""
        width, height = padded_size(self.translator.generator, size)
        most = min(self.limit, WHOLE**2) // (width * height)
        return max(1, min(self.batch, int(most)))

    def _read(self, source: Path, target: Path, page: int | None = None) -> _Task | None:
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
                picture = self.translator.read(source, page)
                if frames := picture.info.get("frames"):
                    self.outcome.frames.append((source, frames))
                if self.size:
                    resize: Any = resize_raster if isinstance(picture, Raster) else resize_picture
                    picture = resize(picture, self.size)
                size = working_size(picture.size, self.sizes[0], self.translator.trained)
                return _Task(source, target, picture, size)
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
            results = self._results([task.picture for task in tasks], progress)
        except (MemoryError, RuntimeError, DiskFull, UnreadableImage, NaNImageError) as error:
            known = isinstance(error, (DiskFull, UnreadableImage, NaNImageError))
            if not known and not out_of_memory(error):
                raise
            if len(tasks) > 1:  # one picture's trouble is not the others'
                for task in tasks:
                    self.translate([task])
                return
            (task,) = tasks
            why = "the model produced NaN" if isinstance(error, NaNImageError) else error if known else ""
            self._failed(task.source, f"{show(task.source)}: {why or self._advice(*task.size)}")
        else:
            for task, result in zip(tasks, results, strict=True):
                self._write(task, result)
        self.progress(len(tasks) - done)

    def _results(self, pictures: list[Any], progress: Callable[[float], None]) -> Sequence[Image.Image | Raster]:
        share = 1 / len(self.sizes)

        def part(done: float) -> None:
            progress(share * done)

        made: list[Any] = []
        for at in self.sizes:
            if any(self.translator.ranges):
                made.append([self.translator.translate_values(one, self.tile, at, part) for one in pictures])
            else:
                made.append(self.translator.translate(pictures, self.tile, at, part))
        if not self.sheet:
            return made[0]
        trained = f"trained ({self.translator.trained})"
        names = ["as it is", *(trained if at == "trained" else str(at) for at in self.sizes)]
        sources = [self.translator.preview(one) for one in pictures]
        results = [[self.translator.preview(one, made=True) for one in row] for row in made]
        return [labelled(list(zip(names, row, strict=True))) for row in zip(sources, *results, strict=True)]

    def _advice(self, width: int, height: int) -> str:
        tile = min(self.tile or TILE, max(width, height)) // 2
        return f"{width} x {height} pixels do not fit into memory; try --tile {tile}"

    def _write(self, task: _Task, result: Image.Image | Raster) -> None:
        try:
            if isinstance(result, Raster):
                write_raster(result, task.target)
            else:
                write_image(result, task.target)
        except (UserError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in FATAL:
                raise
            self._failed(task.source, f"{show(task.source)}: {error}")
        else:
            self.outcome.written.append(task.target)
            if task.size != task.picture.size and not self.sheet:
                self.outcome.carried[min(task.size)] += 1


def _pixels(task: _Task) -> int:
    return task.picture.size[0] * task.picture.size[1]


def _stat(path: Path) -> os.stat_result | None:
    """Return the status of what is at a path; None if nothing is, or a broken link."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
