"""Translating files and folders: everything that can be read, nothing overwritten by accident, bad files named."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from qsattn_plugin.data.images import UnreadableImage, find_images, read_image, write_image
from qsattn_plugin.errors import UserError
from qsattn_plugin.translation.load import Translator

_BATCH = 8


@dataclass
class Report:
    """What became of the inputs."""

    written: list[Path] = field(default_factory=list)
    skipped: list[Path] = field(default_factory=list)
    failed: list[tuple[Path, str]] = field(default_factory=list)


def plan(inputs: Iterable[Path | str], out: Path) -> list[tuple[Path, Path]]:
    """Return (source, destination) for every picture among the inputs.

    Files, folders (all pictures below them, their structure kept) and glob patterns. Destinations are PNGs, except for
    JPEG and WebP sources, which keep their format; two sources that would get the same name get their own.

    Raises:
        UserError: an input is not there, or a destination would be an input.
    """
    pairs: list[tuple[Path, Path]] = []
    for given in inputs:
        path = Path(given)
        if path.is_dir():
            pairs += [(p, out / p.relative_to(path)) for p in find_images(path)]
        elif path.exists():
            pairs.append((path, out / path.name))
        elif glob.has_magic(str(given)) and (found := sorted(glob.glob(str(given), recursive=True))):
            pairs += plan(found, out)
        else:
            raise UserError(f"there is no file or folder {given}")
    named: list[tuple[Path, Path]] = []
    taken: set[Path] = set()
    sources = {source.resolve() for source, _ in pairs}
    for source, target in pairs:
        if target.suffix.lower() not in (".jpg", ".jpeg", ".png", ".webp"):
            target = target.with_suffix(".png")
        number = 2
        base = target
        while target in taken:
            target = base.with_stem(f"{base.stem}-{number}")
            number += 1
        taken.add(target)
        if target.resolve() in sources:
            raise UserError(f"{target} is one of the inputs and would be overwritten; choose another output folder")
        named.append((source, target))
    return named


def translate_files(
    translator: Translator,
    pairs: Iterable[tuple[Path, Path]],
    overwrite: bool = False,
    progress: Callable[[int], None] = lambda done: None,
) -> Report:
    """Translate the pictures of a :func:`plan`; each comes out at its own size.

    What is there already is skipped, unless ``overwrite``. A picture that cannot be read is noted and passed over.
    ``progress`` is called with how many pictures are dealt with.
    """
    report = Report()
    done = 0
    for batch in _batches(pairs, overwrite, report):
        results = translator.translate([picture for _, _, picture in batch])
        for (_, target, _), result in zip(batch, results, strict=True):
            write_image(result, target)
            report.written.append(target)
        now = len(report.written) + len(report.skipped) + len(report.failed)
        progress(now - done)
        done = now
    progress(len(report.written) + len(report.skipped) + len(report.failed) - done)
    return report


def _batches(
    pairs: Iterable[tuple[Path, Path]], overwrite: bool, report: Report
) -> Iterator[list[tuple[Path, Path, Image.Image]]]:
    """Read pictures and hand neighbours of equal size over together."""
    batch: list[tuple[Path, Path, Image.Image]] = []
    for source, target in pairs:
        if target.exists() and not overwrite:
            report.skipped.append(target)
            continue
        try:
            picture = read_image(source)
        except UnreadableImage as error:
            report.failed.append((source, str(error)))
            continue
        if batch and (len(batch) == _BATCH or batch[0][2].size != picture.size):
            yield batch
            batch = []
        batch.append((source, target, picture))
    if batch:
        yield batch
