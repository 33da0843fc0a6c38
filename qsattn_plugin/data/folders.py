"""The data set layout of CUT and its forks: folders of pictures, one for each split."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import Tensor

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.images import UnreadableImage, find_images, read_image, show
from qsattn_plugin.data.pixels import check_channels, to_channels
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import register

__all__ = ["Folders", "ImageFiles"]


class ImageFiles:
    """Picture files as an :class:`~qsattn_plugin.data.ImageSet`; a file is read at each access.

    Names are the paths relative to ``root``, if that is given. For ``channels``, 1 to 4, see
    :func:`~qsattn_plugin.data.pixels.to_channels`.
    """

    def __init__(self, paths: Iterable[Path], channels: int = 3, root: Path | None = None):
        self.paths = [Path(path) for path in paths]
        self.channels = check_channels(channels)
        self.names = [(path.relative_to(root) if root else path).as_posix() for path in self.paths]
        self._reasons: dict[int, str] = {}

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(name, reason) of the files that could not be read so far, by index."""
        return [(self.names[index], reason) for index, reason in sorted(self._reasons.items())]

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        """Read file ``index``: uint8 (C, H, W).

        Raises:
            UnreadableImage: it cannot be read; it is added to ``skipped``.
        """
        try:
            return to_channels(read_image(self.paths[index]), self.channels)
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

    Raises:
        ValueError: ``channels`` is not 1 to 4.
    """

    #: Real pictures have no ground truth to score against.
    score = None

    def __init__(self, root: Path, channels: int = 3):
        self.root = Path(os.path.expanduser(root))
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
        return ImageFiles(find_images(folder), self.channels, root=folder)

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
