"""Images in: reading pictures, datasets, preprocessing, and the batch that a training step sees.

==================  ====================================================================================
``images``          one picture file of any kind to a PIL image or a uint8 tensor, and back
``folders``         the dataset part that reads ``trainA``, ``trainB``, ``testA``, ``testB``
``preprocess``      the fork world's resize and crop modes
``store``           every picture decoded once, in memory or spilled to one file
``batches``         which images, and which crops of them, a step sees
``seeding``         one seed for each purpose, mixed from integers
``toy*``            the drawn horses and zebras: the dataset part, its drawing, its score
``public``          a public data set, step by step: ``catalogue``, ``unpack``, ``cityscapes``
``export``          a data set's pictures written as files
``parallel``        a function over many items on a few threads
==================  ====================================================================================

This module holds the two protocols between them and imports nothing that costs time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, runtime_checkable

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

__all__ = ["SPLITS", "Dataset", "ImageSet"]

#: The splits that a dataset may have, by the fork world's folder names: phase, then domain.
SPLITS = ("trainA", "trainB", "testA", "testB")


@runtime_checkable
class ImageSet(Protocol):
    """A sequence of images, read when asked for.

    ``images[i]`` is a uint8 tensor (C, H, W); sizes may differ between images. It raises
    :class:`~qsattn_plugin.data.images.UnreadableImage` when image ``i`` cannot be had, which a
    :class:`~qsattn_plugin.data.store.Store` notes and skips.

    Attributes:
        names: one name for each image, unique within the set; for files the path relative to the split's folder.
        skipped: (name, reason) of the images that turned out unreadable so far.
    """

    names: list[str]
    skipped: list[tuple[str, str]]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Tensor: ...


@runtime_checkable
class Dataset(Protocol):
    """A registered part of kind ``dataset``: the images of both domains, for training and for testing.

    Attributes:
        channels: how many channels every image has, 1 to 4.
        score: ``score(images, direction)`` gives figures for translations, smaller is better, the first one leads;
            ``None`` where the dataset knows no truth. ``images`` is float (N, C, H, W) in [-1, 1]: translations of the
            first N test images of the source domain, in order. ``direction`` is ``"AtoB"`` or ``"BtoA"``.
    """

    channels: int
    score: Callable[[Tensor, str], dict[str, float]] | None

    def has(self, name: str) -> bool:
        """Tell whether :meth:`split` can give ``name``, without reading an image."""
        ...

    def split(self, name: str) -> ImageSet:
        """Give one of :data:`SPLITS`; raise :class:`~qsattn_plugin.errors.UserError` where it is not there."""
        ...
