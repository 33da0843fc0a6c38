"""Writing a data set as picture files, in the folder layout of CUT and its forks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

import torch

from qsattn_plugin.data import Dataset
from qsattn_plugin.data.images import write_image
from qsattn_plugin.data.pixels import as_pil
from qsattn_plugin.errors import UserError


def write_dataset(
    dataset: Dataset, root: Path, splits: Iterable[str], progress: Callable[[int], None] = lambda done: None
) -> dict[str, int]:
    """Write the pictures of splits such as ``testA`` into ``root/<split>``; return their number by split.

    Folders are created; ``progress`` is called with 1 after each picture.

    Raises:
        UserError: a split does not exist, its pictures are not of 8 bits, or a file cannot be written.
    """
    counts = {}
    for split in splits:
        images = dataset.split(split)
        for index, name in enumerate(images.names):
            image = images[index]
            if image.dtype != torch.uint8:
                raise UserError(
                    f"{split}: holds values of a range; only pictures of 8 bits are written: leave range out"
                )
            write_image(as_pil(image), root / split / name)
            progress(1)
        counts[split] = len(images)
    return counts
