"""Writing a data set as picture files, in the folder layout of CUT and its forks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path

from qsattn_plugin.data import Dataset
from qsattn_plugin.data.images import write_image
from qsattn_plugin.data.pixels import as_pil


def write_dataset(
    dataset: Dataset, root: Path, splits: Iterable[str], progress: Callable[[int], None] = lambda done: None
) -> dict[str, int]:
    """Write the pictures of splits such as ``testA`` into ``root/<split>``; return their number by split.

    Folders are created; ``progress`` is called with 1 after each picture.

    Raises:
        UserError: a split does not exist, or a file cannot be written.
    """
    counts = {}
    for split in splits:
        images = dataset.split(split)
        for index, name in enumerate(images.names):
            write_image(as_pil(images[index]), root / split / name)
            progress(1)
        counts[split] = len(images)
    return counts
