"""Finds pictures among files, folders and patterns, and names the file of each translation."""

from __future__ import annotations

import contextlib
import glob
import itertools
import os
import re
import warnings
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from qsattn_plugin.data.images import EXTENSIONS, NoPictures, count_pages, find_images, show
from qsattn_plugin.data.pixels import Pages
from qsattn_plugin.errors import UserError, nearest

#: Suffixes whose format a translation keeps; all others become PNGs.
KEPT = (".jpg", ".jpeg", ".png", ".webp")


class OutputAmongInputs(UserWarning):
    """The output folder is also among the inputs."""


def plan(
    inputs: Iterable[Path | str],
    out: Path,
    kept: Collection[str] = KEPT,
    files: Callable[[Path], Iterable[Path]] = lambda target: (target,),
    other: str = ".png",
) -> list[tuple[Path, Path]]:
    """Return (source, destination) for every picture among the inputs, in a deterministic order.

    An input is a file, a folder (all pictures below it; its structure is kept) or a glob pattern (the structure below
    the part without wildcards is kept). A file that is named twice counts once. Pictures in the output folder are no
    inputs where it lies inside an input folder or is named among several inputs. Destinations are PNGs (or what
    ``other`` says), except for sources with a suffix in ``kept``. An output that is no folder and has a picture's
    suffix is the file of the one picture there is. Where two sources would get the same name, the one that already has
    it keeps it; ``photo.bmp`` then becomes ``photo.bmp.png``, and others are numbered. ``files`` returns what will be
    written for a destination.

    Raises:
        UserError: an input does not exist, a file to be written is one of the inputs, also by another name, or there
            are several pictures for one file.
    """
    pairs: dict[str, tuple[Path, Path]] = {}
    for given in _inputs(inputs, out):
        for source, below in _find(given, out):
            pairs.setdefault(os.path.abspath(source), (source, out / below))
    if is_file(out):
        if len(pairs) > 1:
            raise UserError(f"{show(out)} is one file, but there are {len(pairs)} pictures; choose a folder")
        targets = dict.fromkeys(pairs, out)
    elif out.is_file():
        raise UserError(f"{show(out)} is a file, and not a picture; choose a folder")
    else:
        targets = _named({key: base for key, (_, base) in pairs.items()}, kept, other)
    named = [(source, targets[key]) for key, (source, _) in pairs.items()]
    sources = {identity(source) for source, _ in named} - {None}
    for _, target in named:
        for file in files(target):
            # By device and inode, not by name: links, and file systems that ignore case.
            if identity(file) in sources:
                what = f"{show(file)} is one of the inputs and would be overwritten"
                raise UserError(f"{what}; choose another output folder")
    return named


def each_page(pairs: Iterable[tuple[Path, Path]], pages: Pages) -> list[tuple[Path, Path, int | None]]:
    """Return (source, destination, page) for the wanted pages of pictures, pages counted from 0.

    Of a file with several pages, all of which are wanted, page 2 becomes ``NAME-page-2``. The page is None where the
    first is taken because nothing else is said.

    Raises:
        UserError: the file of a page is one of the inputs.
    """
    pairs = list(pairs)
    if pages != "all":
        return [(source, target, None if pages == "first" else pages - 1) for source, target in pairs]
    found: list[tuple[Path, Path, int | None]] = []
    sources = {identity(source) for source, _ in pairs} - {None}
    counts = [count_pages(source) for source, _ in pairs]
    taken = {target for (_, target), count in zip(pairs, counts, strict=True) if count == 1}
    for (source, target), count in zip(pairs, counts, strict=True):
        if count == 1:
            found.append((source, target, None))
            continue
        for page in range(count):
            place = _free(target.with_stem(f"{target.stem}-page-{page + 1:0{len(str(count))}}"), taken)
            taken.add(place)
            if identity(place) in sources:
                what = f"{show(place)} is one of the inputs and would be overwritten"
                raise UserError(f"{what}; choose another output folder")
            found.append((source, place, page))
    return found


def _free(target: Path, taken: Collection[Path]) -> Path:
    """Return the destination, with a number from 2 on where it is taken."""
    free, number = target, 2
    while free in taken:
        free, number = target.with_stem(f"{target.stem}-{number}"), number + 1
    return free


def _named(bases: dict[str, Path], kept: Collection[str], other: str) -> dict[str, Path]:
    """Return each source's destination, by the same keys; sources that keep their name choose first."""
    found: dict[str, Path] = {}
    taken: set[Path] = set()
    stays = {key: base.suffix.lower() in kept for key, base in bases.items()}
    for key, base in sorted(bases.items(), key=lambda item: not stays[item[0]]):  # a stable sort
        target = base if stays[key] else base.with_suffix(other)
        if target in taken and not stays[key]:
            target = base.with_name(base.name + other)
        target = _free(target, taken)
        taken.add(target)
        found[key] = target
    return found


def is_file(out: Path) -> bool:
    """Return whether an output is a picture file, there or not, rather than a folder."""
    return out.suffix.lower() in EXTENSIONS and not out.is_dir()


def identity(path: Path) -> tuple[int, int] | None:
    """Return a file's device and inode, which identify it under any name; None if there is no such file."""
    try:
        found = path.stat()
    except OSError:  # also for names that the disk cannot have and for broken links
        return None
    return found.st_dev, found.st_ino


def file_below(out: Path, name: str, suffix: str) -> Path:
    """Return the file to write: ``out``, or ``name`` with a suffix in it where it is a folder.

    A folder is one that exists, or a path without a suffix. The name may come from a file; it stays in the folder.
    """
    if not out.is_dir() and out.suffix:
        return out
    return out / ((re.sub(r"[^\w.-]+", "_", name).lstrip(".") or "model") + suffix)


def check_output(out: Path, overwrite: bool, source: Path | None = None) -> None:
    """Check that a file may be written.

    Raises:
        UserError: it exists, and is ``source``, or ``overwrite`` is not set.
    """
    if identity(out) is None:
        return
    if source is not None and identity(out) == identity(source):
        raise UserError(f"{out} is the input itself; choose another name")
    if not overwrite:
        raise UserError(f"{out} exists already; choose another name, or use --overwrite")


def _inputs(inputs: Iterable[Path | str], out: Path) -> list[Path | str]:
    """Return the inputs without the output folder, which ``*`` may include."""
    given = list(inputs)
    if "" in given:
        raise UserError("one of the inputs is empty; is a variable of the command not set?")
    if len(given) == 1 or identity(out) is None:
        return given
    others = [one for one in given if identity(Path(one)) != identity(out)]
    if not others or len(others) == len(given):
        return given
    text = f"{show(out)} is the output folder: pictures in it are not translated"
    warnings.warn(text, OutputAmongInputs, stacklevel=3)
    return others


def _find(given: Path | str, out: Path) -> list[tuple[Path, Path]]:
    """Return the pictures of one input, each with its path below the output folder."""
    path = Path(given)
    if path.is_dir():
        return _below(path, find_images(path), out)
    if path.exists():
        return [(path, Path(path.name))]
    if not glob.has_magic(str(given)):
        raise UserError(f"there is no file or folder {show(given)}")
    pictures: list[Path] = []
    for match in _without_loops(sorted(glob.glob(str(given), recursive=True))):
        if match.is_dir():
            with contextlib.suppress(NoPictures):  # other matches may hold some
                pictures += find_images(match)
        elif match.suffix.lower() in EXTENSIONS:
            pictures.append(match)
    if not pictures:
        raise UserError(f"there is no picture at {show(given)}")
    fixed = itertools.takewhile(lambda part: not glob.has_magic(part), path.parts)
    return _below(Path(*fixed), pictures, out)


def _without_loops(matches: list[str]) -> list[Path]:
    """Return the matches in order, each file once: ``**`` follows links to parent folders again and again."""
    first: dict[tuple[str, str], str] = {}
    for match in sorted(matches, key=lambda m: (len(Path(m).parts), m)):
        folder, name = os.path.split(match)
        first.setdefault((os.path.realpath(folder), name), match)
    found = set(first.values())
    return [Path(match) for match in matches if match in found]


def _below(folder: Path, pictures: list[Path], out: Path) -> list[tuple[Path, Path]]:
    """Return pictures with their paths below a folder, without those in an output folder inside it."""
    out = out.resolve()
    if folder.resolve() in out.parents:
        pictures = [p for p in pictures if not p.parent.resolve().is_relative_to(out)]
    return [(p, p.relative_to(folder)) for p in pictures]


def parse_pages(text: str) -> Pages:
    """Return which pages of a file are wanted, from "first", "all", or a page's number from 1.

    Raises:
        ValueError: the text has another form.
    """
    if text in ("first", "all"):
        return text  # type: ignore[return-value]  # mypy does not narrow a str
    if text.isdecimal() and 1 <= int(text) < 1 << 20:
        return int(text)
    raise ValueError(f"{text!r} is not a page{nearest(text, ('first', 'all'))}: write first, all, or a number from 1")


def parse_shard(text: str) -> tuple[int, int]:
    """Return (i, n) from "i/n".

    Raises:
        ValueError: the text has another form, or i is not in 1 to n.
    """
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ValueError(f"{text!r} is not a shard; the first of four is 1/4, the last is 4/4")
    return int(found[1]), int(found[2])


def parse_size(text: str) -> int | tuple[int, int]:
    """Return the shorter side from "256", or (width, height) from "640x480".

    Raises:
        ValueError: the text has another form.
    """
    found = re.fullmatch(r"(\d+)(?:[xX](\d+))?", text)
    sides = [int(side) for side in (found.groups() if found else ()) if side]
    if not sides or min(sides) < 1 or max(sides) > 1 << 20:
        raise ValueError(f"{text!r} is not a size; write 256 for the shorter side, or 640x480")
    return (sides[0], sides[1]) if len(sides) == 2 else sides[0]
