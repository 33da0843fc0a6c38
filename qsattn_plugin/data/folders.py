"""The data set layout of CUT and its forks: folders of pictures, one for each split."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.images import UnreadableImage, count_pages, find_images, read_image, show
from qsattn_plugin.data.pixels import Pages, check_channels, to_channels
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import register

__all__ = ["Folders", "ImageFiles"]


class ImageFiles:
    """Picture files as an :class:`~qsattn_plugin.data.ImageSet`; a file is read at each access.

    Names are the paths relative to ``root``, if that is given. For ``channels``, 1 to 4, see
    :func:`~qsattn_plugin.data.pixels.to_channels`. With all ``pages``, each page of a file is an image, ``NAME#2``.
    """

    def __init__(self, paths: Iterable[Path], channels: int = 3, root: Path | None = None, pages: Pages = "first"):
        self.channels = check_channels(channels)
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

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the files that could not be read so far, by index."""
        return [(self.names[index], reason) for index, reason in sorted(self._reasons.items())]

    @property
    def notes(self) -> list[str]:
        """What is to be said about the files read so far."""
        if not self._frames:
            return []
        first, several = min(self._frames), len(self._frames)
        what = "file has several pages or frames" if several == 1 else "files have several pages or frames each"
        used = "of which the first is used; data.pages: all uses each"
        return [f"{several} {what} ({self.names[first]}: {self._frames[first]}), {used}"]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read file ``index``: uint8 (C, H, W).

        Raises:
            UnreadableImage: it cannot be read; it is added to ``skipped``.
        """
        try:
            picture = read_image(self.paths[index], self._pages[index])
            if frames := picture.info.get("frames"):
                self._frames[range(len(self))[index]] = frames
            return to_channels(picture, self.channels)
        except UnreadableImage as error:
            self._reasons[range(len(self))[index]] = error.reason
            raise


@register("dataset", "folders")
class Folders:
    """Pictures in ``trainA``, ``trainB``, ``testA`` and ``testB`` below one folder.

    Subfolders are searched as well. If ``testA`` or ``testB`` is missing, ``valA`` or ``valB`` is used, as in CUT;
    without those, training works, but there are no images to evaluate on.

    Args:
        root: the folder with the splits.
        channels: channels of every image: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha.
        pages: of files with several pages or frames: first, all (each is an image), or a page's number from 1.

    Raises:
        ValueError: ``channels`` is not 1 to 4, or ``pages`` is below 1.
    """

    #: Real pictures have no ground truth to score against.
    score = None

    def __init__(self, root: Path, channels: int = 3, pages: Pages = "first"):
        if isinstance(pages, int) and pages < 1:
            raise ValueError(f"pages: must be first, all, or a number from 1, got {pages}")
        self.root, self.pages = Path(os.path.expanduser(root)), pages
        self.channels = check_channels(channels)

    def _place(self, name: str) -> Path | None:
        if name not in SPLITS:
            raise ValueError(f"name: must be one of {', '.join(SPLITS)}, got {name!r}")
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
        return ImageFiles(find_images(folder), self.channels, folder, self.pages)

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
