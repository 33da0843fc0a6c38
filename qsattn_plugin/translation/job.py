"""Translating many files: in batches or in tiles, everything that can be read, nothing half written."""

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
from qsattn_plugin.translation.apply import padded_size, resized, with_alpha
from qsattn_plugin.translation.load import Translator
from qsattn_plugin.translation.tiles import TILE, WHOLE, CannotTile, is_large, tiled_chain, translate_tiled
from qsattn_plugin.translation.tiles.spill import NoRoom

#: Pictures that share a batch; one on the CPU, where large blocks of memory cost more than batches save.
_BATCH = {"cpu": 1}
_BATCH_ELSEWHERE = 8
#: Pictures wait for others of their size while they have no more pixels than this together.
_WAITING = 1 << 24
#: What no other file will fare better with.
_ENDING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EMFILE, errno.ENFILE)


class Untiled(UserWarning):
    """Large pictures need much memory, as this generator cannot work in tiles."""


@dataclass
class Report:
    """What became of the inputs: where they were written, what was there already, and (source, reason) of failures."""

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
    report: Report | None = None,
) -> Report:
    """Translate the pictures of a :func:`~qsattn_plugin.translation.files.plan`; each comes out at its own size.

    What is there already is skipped, unless ``overwrite``. A picture that cannot be read, translated or written is
    noted and passed over.

    Args:
        translator: what :func:`~qsattn_plugin.translation.load.load` gave.
        pairs: (source, destination).
        overwrite: translate again what is there.
        progress: called with how many pictures, and parts of large ones, were dealt with.
        tile: pictures of more than ``tile`` x ``tile`` pixels are translated in tiles of that side, 0 translates all
            whole. Without it, tiles of 512 pixels for pictures of more than 1024 x 1024.
        batch: the most pictures of equal size that are translated together; fewer where they are large. Without it 1 on
            the CPU and 8 elsewhere.
        size: resize every picture first: the shorter side, or (width, height).
        report: filled in as the job goes on, for who wants to know it after an exception as well.

    Raises:
        UserError: the disk is full or broken, or a generator is to work in tiles that cannot.
    """
    report = Report() if report is None else report
    job = _Job(translator, overwrite, progress, tile, batch, size, report)
    for tasks in job.batches(pairs):
        job.translate(tasks)
    return report


class _Job:
    def __init__(
        self,
        translator: Translator,
        overwrite: bool,
        progress: Callable[[float], None],
        tile: int | None,
        batch: int | None,
        size: int | tuple[int, int] | None,
        report: Report,
    ):
        self.translator, self.overwrite, self.progress = translator, overwrite, progress
        self.size, self.report = size, report
        device = next(translator.generator.parameters()).device.type
        self.batch = batch or _BATCH.get(device, _BATCH_ELSEWHERE)
        self.tile = TILE if tile is None else tile
        #: Pixels that are translated at once, in one picture or in several.
        self.limit = float("inf") if tile == 0 else (tile or WHOLE) ** 2
        self.given = tile
        self._writable: dict[Path, bool] = {}

    def batches(self, pairs: Iterable[tuple[Path, Path]]) -> Iterator[list[_Task]]:
        """Read pictures and hand those of equal size over together, also where others lie between them."""
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
            if len(waiting[size]) >= self._most(size):
                pixels -= len(waiting[size]) * size[0] * size[1]
                yield waiting.pop(size)
            while pixels > _WAITING:
                first = next(iter(waiting))
                pixels -= len(waiting[first]) * first[0] * first[1]
                yield waiting.pop(first)
        yield from waiting.values()

    def _most(self, size: tuple[int, int]) -> int:
        """How many pictures of a size go into a batch."""
        width, height = padded_size(self.translator.generator, size)
        most = min(self.limit, WHOLE**2) // (width * height)
        return max(1, min(self.batch, int(most)))

    def _read(self, source: Path, target: Path) -> _Task | None:
        """Read a picture that is to be translated; note what becomes of the others."""
        try:
            there = _looked_up(target)
        except OSError as error:  # a name too long for the disk, a folder that may not be looked into
            self._failed(source, f"{show(source)}: cannot write {show(target)}: {error.strerror}")
            return None
        if not self._may_write(target.parent):
            self._failed(source, f"{show(source)}: cannot write {show(target)}: {os.strerror(errno.EACCES)}")
            return None
        if there is not None and stat.S_ISDIR(there.st_mode):
            self._failed(source, f"{show(source)}: a folder stands at {show(target)}, where its translation goes")
        elif there is not None and there.st_size and not self.overwrite:
            self.report.skipped.append(target)
        else:
            try:
                picture = read_image(source)
                return _Task(source, target, resized(picture, self.size) if self.size else picture)
            except UnreadableImage as error:
                self._failed(source, str(error if error.path else UnreadableImage(error.reason, source)))
            except MemoryError:
                self._failed(source, f"{show(source)}: not enough memory to read it")
        return None

    def _may_write(self, folder: Path) -> bool:
        """Whether pictures can be written to a folder: known before the work."""
        if folder not in self._writable:
            self._writable[folder] = may_write(folder)
        return self._writable[folder]

    def _failed(self, source: Path, reason: str) -> None:
        self.report.failed.append((source, reason))

    def translate(self, tasks: list[_Task]) -> None:
        """Translate a batch and write it."""
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
        except NoRoom as error:
            for task in tasks:
                self._failed(task.source, f"{show(task.source)}: {error}")
        except NaNImageError:
            for task in tasks:
                self._failed(task.source, f"{show(task.source)}: the model gave numbers that are none (NaN)")
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
        """Whether this generator works in tiles; says so where it does not."""
        try:
            tiled_chain(self.translator.generator, self.translator.channels, (picture.height, picture.width))
        except CannotTile as error:
            if self.given is not None:
                raise
            warnings.warn(f"{error}; trying it whole", Untiled, stacklevel=2)
            return False
        return True

    def _advice(self, picture: Image.Image) -> str:
        tile = min(self.tile or TILE, max(picture.size)) // 2
        return f"{picture.width} x {picture.height} pixels are too many for the memory there is; try --tile {tile}"

    def _write(self, task: _Task, result: Image.Image) -> None:
        try:
            write_image(result, task.target)
        except (UserError, ValueError) as error:
            if getattr(error.__cause__, "errno", None) in _ENDING:
                raise
            self._failed(task.source, f"{show(task.source)}: {error}")
        else:
            self.report.written.append(task.target)


def _looked_up(path: Path) -> os.stat_result | None:
    """What is at a path; None if nothing is. Unlike ``exists``, links that lead nowhere are nothing."""
    try:
        return path.stat()
    except (FileNotFoundError, NotADirectoryError):
        return None
