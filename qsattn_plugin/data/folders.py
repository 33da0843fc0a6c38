"""The data set layout of CUT and its forks: folders of pictures, one for each split."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from PIL import Image
from torch import Tensor

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.images import UnreadableImage, count_pages, find_images, read_image, read_raster, show
from qsattn_plugin.data.parallel import threaded_map
from qsattn_plugin.data.pixels import Pages, check_channels, to_channels
from qsattn_plugin.data.ranges import Range, measured, to_codes, to_signal
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.errors import UserError, nearest, one_of
from qsattn_plugin.registry import register
from qsattn_plugin.registry.interfaces import of_domain

__all__ = ["Folders", "ImageFiles"]


class ImageFiles:
    """Picture files as an :class:`~qsattn_plugin.data.ImageSet`; a file is read at each access.

    Names are the paths relative to ``root``, if that is given. Without a ``value_range`` images are uint8, with 1 to 4
    ``channels`` as of :func:`~qsattn_plugin.data.pixels.to_channels`; with one they are the codes of
    :mod:`~qsattn_plugin.data.ranges`, with the file's own bands. With all ``pages``, each page of a file is an image,
    ``NAME#2``.
    """

    def __init__(
        self,
        paths: Iterable[Path],
        channels: int = 3,
        root: Path | None = None,
        pages: Pages = "first",
        value_range: Range | None = None,
    ):
        self.channels = check_channels(channels) if value_range is None else channels
        self.value_range = value_range
        self.paths: list[Path] = []
        self.names: list[str] = []
        self._pages: list[int | None] = []
        for path in map(Path, paths):
            name = (path.relative_to(root) if root else path).as_posix()
            count = count_pages(path) if pages == "all" else 1
            for page in range(count):
                self.paths.append(path)
                self.names.append(name if count == 1 else f"{name}#{page + 1}")
                self._pages.append(page if count > 1 else pages - 1 if isinstance(pages, int) else None)
        self._reasons: dict[int, str] = {}
        self._frames: dict[int, int] = {}
        self._used: dict[int, tuple[str, float, float, float]] = {}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the files that could not be read so far, by index."""
        return [(self.names[index], reason) for index, reason in sorted(self._reasons.items())]

    @property
    def notes(self) -> list[str]:
        """What is to be said about the files read so far, in sentences."""
        found = []
        if self._frames:
            first, several = min(self._frames), len(self._frames)
            what = "file has several pages or frames" if several == 1 else "files have several pages or frames each"
            used = "of which the first is used; data.pages: all uses each"
            found.append(f"{several} {what} ({self.names[first]}: {self._frames[first]}), {used}")
        if self._used:
            found.append(self._describe_values(*zip(*self._used.values(), strict=True)))
        return found

    def _describe_values(
        self, kinds: Sequence[str], lows: Sequence[float], highs: Sequence[float], tops: Sequence[float]
    ) -> str:
        low, high, top = min(lows), max(highs), max(tops)
        text = f"{' and '.join(sorted(set(kinds)))}, uses {low:g} to {high:g}"
        if self.value_range is None:
            text += f" of {top:g}, which become 0 to 255"
            dark = high - low < top / 4
            return f"{text}: {round((high - low) / top * 255) + 1} levels; set data.range, or auto" if dark else text
        if self.value_range == "dtype":
            narrow = top and high - low < top / 4
            return f"{text} of the {top:g} steps of its type; set data.range, or auto" if narrow else text
        outside = low < self.value_range[0] or high > self.value_range[1]
        bounds = f"{self.value_range[0]:g} to {self.value_range[1]:g}"
        return f"{text}; data.range is {bounds}{', what lies outside is clipped' * outside}"

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read file ``index``: uint8 or int16 (C, H, W).

        Raises:
            UnreadableImage: it cannot be read; it is added to ``skipped``.
        """
        try:
            place = range(len(self))[index]
            picture = self._read(place)
            if frames := picture.info.get("frames"):
                self._frames[place] = frames
            if used := picture.info.get("used"):
                self._used[place] = used
            if isinstance(picture, Raster):
                assert self.value_range is not None  # only then it is read so
                return to_codes(to_signal(picture, self.value_range, self.channels))
            return to_channels(picture, self.channels)
        except UnreadableImage as error:
            self._reasons[range(len(self))[index]] = error.reason
            raise

    def _read(self, index: int) -> Image.Image | Raster:
        path, page = self.paths[index], self._pages[index]
        return read_image(path, page) if self.value_range is None else read_raster(path, page).with_use()

    def measure(self, most: int = 200) -> tuple[float, float]:
        """Return the range of the values of at most so many of the files, taken evenly among them.

        Raises:
            UserError: none can be read, or all values are the same.
        """
        step = max(1, -(-len(self) // most))

        def read(index: int) -> Raster | None:
            with contextlib.suppress(UnreadableImage):  # which the training names
                return read_raster(self.paths[index], self._pages[index])
            return None

        return measured(raster for raster in threaded_map(read, range(0, len(self), step)) if raster is not None)


@register("dataset", "folders")
class Folders:
    """Pictures in ``trainA``, ``trainB``, ``testA`` and ``testB`` below one folder.

    Subfolders are searched as well. If ``testA`` or ``testB`` is missing, ``valA`` or ``valB`` is used, as in CUT;
    without those, training works, but there are no images to evaluate on.

    Args:
        root: the folder with the splits; a relative path is one from where the command is given, not from the recipe.
        channels: channels of every image: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; with a range, the bands of
            the files. Or a mapping of A and B.
        range: the values that become -1 and 1: two numbers, dtype (the limits of the file's number type; 0 and 1 of
            floats), auto (all but a thousandth of the training values at either end), or a mapping with one of these,
            or null, for A and for B. Null reads pictures of 8 bits, and others as such.
        pages: of files with several pages or frames: first, all (each is an image), or a page's number from 1.

    Raises:
        ValueError: ``channels`` is not 1 to 4 where there is no range, or ``pages`` is below 1.
    """

    #: Real pictures have no ground truth to score against.
    score = None

    def __init__(
        self,
        root: Path,
        channels: int | Mapping[str, int] = 3,
        range: Range | Literal["auto"] | Mapping[str, Any] | None = None,
        pages: Pages = "first",
    ):
        if isinstance(pages, int) and pages < 1:
            raise ValueError(f"pages: must be first, all, or a number from 1, got {pages}")
        self.root, self.pages = Path(os.path.expanduser(root)), pages
        self._measured: dict[str, tuple[float, float]] = {}
        self.channels, self.range = channels, range
        for domain in "AB":
            count = of_domain(channels, domain)
            if of_domain(range, domain) is None and not 1 <= count <= 4:
                raise ValueError(
                    f"channels: must be 1, 2, 3 or 4 for pictures of 8 bits, got {count}; others need a "
                    "data.range: dtype, auto, or two numbers"
                )

    def _place(self, name: str) -> Path | None:
        one_of(SPLITS, name=name)
        for folder in (name, name.replace("test", "val")):
            if (self.root / folder).is_dir():
                return self.root / folder
        return None

    def has(self, name: str) -> bool:
        """Return whether there is a folder for the split ``name``."""
        return self._place(name) is not None

    def split(self, name: str) -> ImageFiles:
        """Return the pictures of a split; none of them is read yet.

        Raises:
            UserError: the root or the split's folder is missing, or has no pictures.
        """
        folder = self._place(name)
        if folder is None:
            raise UserError(self._missing(name))
        channels, value_range = (of_domain(value, name[-1]) for value in (self.channels, self.range))
        if value_range == "auto":
            value_range = self.measure(name[-1])
        return ImageFiles(find_images(folder), channels, folder, self.pages, value_range)

    def measure(self, domain: str) -> tuple[float, float]:
        """Return the range of the values of a domain's training set; raise :class:`UserError` if it has none."""
        if domain not in self._measured:
            folder = self._place(f"train{domain}")
            if folder is None:
                raise UserError(self._missing(f"train{domain}"))
            try:
                self._measured[domain] = ImageFiles(find_images(folder), 1, folder, self.pages, "dtype").measure()
            except UnreadableImage as error:
                raise UserError(f"{show(folder)}: {error.reason}") from error
        return self._measured[domain]

    def _missing(self, name: str) -> str:
        if not self.root.is_dir():
            beside = self.root.parent
            near = nearest(self.root.name, _folders(beside)) if beside.is_dir() else ""
            what = "is not a folder" if self.root.exists() else "does not exist"
            return f"the data folder {show(self.root)} {what}{near} (it should hold {', '.join(SPLITS)})"
        there = _folders(self.root)
        near = nearest(name, [other for other in there if other not in SPLITS])
        holds = f"{show(self.root)} holds {'the folders ' + ', '.join(there) if there else 'no folders'}"
        return f"there is no folder {show(self.root / name)}{near} ({holds})"


def _folders(place: Path) -> list[str]:
    """Return the names of the folders in ``place``, sorted and printable; empty if it cannot be read."""
    try:
        return sorted(show(entry.name) for entry in os.scandir(place) if entry.is_dir())
    except OSError:
        return []
