"""Folders of pictures as scores see them: in the order of their names, at one size, paired by name."""

from __future__ import annotations

import unicodedata
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.images import find_images, read_first, show, write_image
from qsattn_plugin.data.pixels import NaNImageError, to_channels
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.errors import UserError
from qsattn_plugin.translation.files import check_output, identity
from qsattn_plugin.translation.sizes import resize_picture, resize_raster
from qsattn_plugin.translation.translator import Translator

#: Begins a stage of work on so many pictures; what it gives is called with how many more are done.
Stage = Callable[[str, int], AbstractContextManager[Callable[[int], None]]]


@dataclass(frozen=True)
class Pictures:
    """The pictures in a folder and below, in the order of their relative paths.

    Every picture is resized to ``size`` x ``size`` (bicubic, antialiased) unless it has that size; None: as it is.
    """

    folder: Path
    paths: tuple[Path, ...]
    size: int | None = None
    shown: Callable[[Path], Image.Image] = read_first

    @classmethod
    def find(
        cls,
        folder: str | Path,
        size: int | None = None,
        first: int | None = None,
        shown: Callable[[Path], Image.Image] = read_first,
    ) -> Pictures:
        """Look for pictures; ``first`` takes so many alone, ``shown`` reads one in 8 bits.

        Raises:
            UserError: there is no such folder, or no picture in it.
        """
        return cls(Path(folder), tuple(find_images(folder)[:first]), size, shown)

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Tensor]:
        return map(self.read, range(len(self)))

    @property
    def names(self) -> list[str]:
        """The relative paths without their ending, in Unicode's form NFC: some file systems store another."""
        below = (path.relative_to(self.folder).with_suffix("").as_posix() for path in self.paths)
        return [unicodedata.normalize("NFC", name) for name in below]

    @property
    def resize(self) -> str:
        """What is done to the pictures' sizes, for a report."""
        return f"brought to {self.size} x {self.size} (bicubic, antialiased)" if self.size else "as they are"

    def read(self, index: int) -> Tensor:
        """Return one picture as uint8 (3, H, W), transparency dropped.

        Raises:
            UnreadableImage: it cannot be read. A score of fewer pictures than were asked for would be another score.
        """
        picture = to_channels(self.shown(self.paths[index]), 3)
        return picture if self.size is None else resized(picture, self.size)

    def batches(self, most: int, done: Callable[[int], None] = lambda count: None) -> Iterator[Tensor]:
        """Yield all pictures in order, neighbours of equal size together: uint8 (B, 3, H, W), B at most ``most``.

        ``done`` is called with how many pictures were dealt with.
        """
        batch: list[Tensor] = []
        for index in range(len(self)):
            picture = self.read(index)
            if batch and (len(batch) == most or batch[0].shape != picture.shape):
                yield torch.stack(batch)
                done(len(batch))
                batch = []
            batch.append(picture)
        if batch:
            yield torch.stack(batch)
            done(len(batch))


def resized(picture: Tensor, size: int) -> Tensor:
    """Bring a uint8 picture (3, H, W) to ``size`` x ``size``, bicubic, antialiased; one that has it is untouched."""
    if picture.shape[-2:] == (size, size):
        return picture
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy())
    return to_channels(image.resize((size, size), Image.Resampling.BICUBIC), 3)


def partners(wanted: Pictures, others: Pictures, key: Callable[[str], str] = lambda name: name) -> list[int]:
    """Return, for every picture, the index of the one of the same name (its ending aside) in another folder.

    ``key`` returns what of a name counts.

    Raises:
        UserError: a partner is missing, or two pictures of a folder have the same name.
    """
    known = _by_key(others, key)
    lost = [name for name in _by_key(wanted, key) if name not in known]
    if lost:
        there = ", ".join(list(known)[:3])
        raise UserError(
            f"{len(lost)} of {len(wanted)} pictures in {show(wanted.folder)} have no partner of the same name in "
            f"{show(others.folder)}, the first is {lost[0]!r} (there are {there}{', ...' if len(known) > 3 else ''})"
        )
    return [known[key(name)] for name in wanted.names]


def paired(wanted: Pictures, others: Pictures) -> Pictures:
    """Return the partners of pictures in the order of these, see :func:`partners`."""
    return replace(others, paths=tuple(others.paths[place] for place in partners(wanted, others)))


def read_pair(after: Pictures, before: Pictures, index: int) -> tuple[Tensor, Tensor]:
    """Return the pictures at one place of two folders in the same order, uint8 (3, H, W) each.

    Raises:
        UserError: they differ in size, or one cannot be read.
    """
    pair = after.read(index), before.read(index)
    if pair[0].shape != pair[1].shape:
        sizes = " and ".join(f"{x.shape[2]} x {x.shape[1]}" for x in pair)
        names = f"{show(after.paths[index])} and {show(before.paths[index])}"
        raise UserError(f"{names} differ in size ({sizes}); --size brings every picture to one")
    return pair


def _by_key(pictures: Pictures, key: Callable[[str], str]) -> dict[str, int]:
    found: dict[str, int] = {}
    for place, name in enumerate(pictures.names):
        if key(name) in found:
            first = pictures.paths[found[key(name)]]
            raise UserError(f"{show(first)} and {show(pictures.paths[place])} cannot be told apart by their names")
        found[key(name)] = place
    return found


def translate_pictures(
    translator: Translator,
    source: Pictures,
    out: Path,
    done: Callable[[int], None] = lambda count: None,
    most: int = 8,
    others: Iterable[Path] = (),
    overwrite: bool = False,
) -> Pictures:
    """Translate pictures at their own size (or ``source.size``) into PNGs below ``out``, ``most`` at once; return them.

    Where the model has value ranges, the PNGs show its translations in 8 bits of three bands, as they are scored.
    ``done`` is called with how many more are done; ``others`` are never written over, as the sources.

    Raises:
        UserError: a picture cannot be read or written, or would get the name of another, of what is to stay, or,
            without ``overwrite``, of any file.
    """
    names = list(_by_key(source, lambda name: name))
    stays = {identity(path) for path in (*source.paths, *others)} - {None}
    for target in (out / f"{name}.png" for name in names):
        if identity(target) in stays:
            raise UserError(f"{show(target)} is one of the given pictures; keep translations in another folder")
        check_output(target, overwrite)
    written: list[Path] = []
    if any(translator.ranges):
        for path, name in zip(source.paths, names, strict=True):
            written.append(out / f"{name}.png")
            write_image(_translated_values(translator, path, source.size), written[-1])
            done(1)
        return Pictures(out, tuple(written), source.size)
    for start in range(0, len(source), most):
        paths = source.paths[start : start + most]
        # With their transparency, which resizing and a model of four channels look at.
        pictures = [_of_size(source.shown(path), source.size) for path in paths]
        try:
            results = translator.translate(pictures)
        except NaNImageError:  # of one of them
            results = [_translated(translator, *both) for both in zip(pictures, paths, strict=True)]
        for result in results:
            target = out / f"{names[len(written)]}.png"
            write_image(result, target)
            written.append(target)
        done(len(paths))
    return Pictures(out, tuple(written), source.size)


def _translated(translator: Translator, picture: Image.Image, path: Path) -> Image.Image:
    """Return the translation of one picture."""
    try:
        return translator.translate(picture)
    except NaNImageError as error:
        raise UserError(f"{show(path)}: the model produced NaN; nothing can be scored") from error


def _of_size(picture: Any, size: int | None) -> Any:
    """Return a PIL image or a raster at ``size`` x ``size``; None: as it is."""
    if size is None:
        return picture
    return (resize_raster if isinstance(picture, Raster) else resize_picture)(picture, (size, size))


def _translated_values(translator: Translator, path: Path, size: int | None) -> Image.Image:
    """Return the translation of a file as it is shown."""
    picture = _of_size(translator.read(path), size)
    try:
        return translator.preview(translator.translate_values(picture), made=True)
    except NaNImageError as error:
        raise UserError(f"{show(path)}: the model produced NaN; nothing can be scored") from error
