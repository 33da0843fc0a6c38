"""Reading pictures, data sets, preprocessing, and training batches.

==================  ====================================================================================
``images``          one picture file of any kind to a PIL image or a uint8 tensor, and back
``folders``         the data set that reads ``trainA``, ``trainB``, ``testA``, ``testB``
``raster``          a picture with the bands and the numbers of its file, which ``decoders`` read, some of them
                    by ``tiff`` and ``arrays``
``ranges``          value ranges, to a network's [-1, 1] and back
``preprocess``      the resize and crop modes of CUT and its forks
``store``           every picture decoded once, in memory or in one file
``batches``         the images and crops of a training step
``seeding``         seeds derived from integers, one for each purpose
``toy*``            drawn horses and zebras: the data set, the drawing, the score
``public``          a public data set, step by step: ``catalogue``, ``unpack``, ``cityscapes``
``export``          a data set's pictures written as files
``parallel``        a function over many items on a few threads
==================  ====================================================================================

This module defines their two protocols and imports nothing at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import Tensor

__all__ = ["SPLITS", "Dataset", "ImageSet"]

#: The splits of a data set, named as the folders of CUT: phase, then domain.
SPLITS = ("trainA", "trainB", "testA", "testB")


@runtime_checkable
class ImageSet(Protocol):
    """A sequence of images, read on access.

    ``images[i]`` is a tensor (C, H, W), uint8 or the int16 codes of :mod:`qsattn_plugin.data.ranges`; sizes may differ
    between images. It raises
    :class:`~qsattn_plugin.data.images.UnreadableImage` if image ``i`` cannot be read; a
    :class:`~qsattn_plugin.data.store.Store` then skips it.

    Attributes:
        names: a unique name for each image; for files the path relative to the split's folder.
        skipped: (name, reason) of the images found unreadable so far.
    """

    names: list[str]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@runtime_checkable
class Dataset(Protocol):
    """A registered part of kind ``dataset``: the images of both domains, for training and for testing.

    Attributes:
        channels: the number of channels of every image, or a mapping of "A" and "B" with that of each domain.
        score: ``score(images, direction)`` returns scores of translations by name; smaller is better, the first leads.
            ``None`` if the data set has no ground truth. ``images`` is float (N, C, H, W) in [-1, 1]: translations of
            the first N test images of the source domain, in order. ``direction`` is ``"AtoB"`` or ``"BtoA"``.
    """

    channels: int | Mapping[str, int]
    score: Callable[[Tensor, str], dict[str, float]] | None

    def has(self, name: str) -> bool:
        """Return whether the split ``name`` exists, without reading an image."""
        ...

    def split(self, name: str) -> ImageSet:
        """Return one of :data:`SPLITS`; raise :class:`~qsattn_plugin.errors.UserError` if it does not exist."""
        ...
