"""Cityscapes as the papers use it: photos and coloured label maps of 256 x 256 pixels, in trainA, trainB, testA, testB.

Follows CycleGAN's preparation: domain A is the photos, B the label maps; the split ``train`` becomes ``trainA`` and
``trainB``, ``val`` becomes ``testA`` and ``testB``. Pictures are numbered in the order of their paths and resized, not
cropped, with Pillow's default (bicubic) filter, labels too.
"""

from __future__ import annotations

import contextlib
import io
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from PIL import Image

from qsattn_plugin.data.images import UnreadableImage, find_images
from qsattn_plugin.data.parallel import threaded_map
from qsattn_plugin.data.public.unpack import BadArchive
from qsattn_plugin.errors import UserError

__all__ = ["prepare"]

#: Domain -> the kind of data, and the last part of its files' names.
_KINDS = {"A": ("leftImg8bit", "_leftImg8bit.png"), "B": ("gtFine", "_gtFine_color.png")}
_SPLITS = {"train": "train", "val": "test"}
_SIDE = 256
#: The largest picture file that is read; those of Cityscapes have about 2.5 million bytes.
_MOST_BYTES = 1 << 26

#: Reads a file's bytes.
_Read = Callable[[], bytes]


def prepare(
    source: Path, target: Path, counts: Mapping[str, int], how: str, progress: Callable[[int], None] = lambda done: None
) -> None:
    """Write trainA, trainB, testA and testB, of ``counts`` pictures, below ``target``.

    ``source`` is a folder with ``leftImg8bit_trainvaltest.zip`` and ``gtFine_trainvaltest.zip``, which are read without
    unpacking them, or with their contents, at any depth; the error where something is missing says ``how`` to get it.
    ``progress`` is called with 1 after each picture.

    Raises:
        UserError: pictures are missing, without their counterpart, or cannot be read.
    """
    if not source.is_dir():
        raise UserError(f"{source} is not a folder; {how}")
    with contextlib.ExitStack() as opened:
        found = {domain: _find(source, *kind, opened) for domain, kind in _KINDS.items()}
        jobs = []
        for split, ours in _SPLITS.items():
            scenes = {domain: {key[1] for key in files if key[0] == split} for domain, files in found.items()}
            for domain, (kind, ending) in _KINDS.items():
                wanted = counts[f"{ours}{domain}"]
                if len(scenes[domain]) != wanted:
                    files = f"{len(scenes[domain])} files {kind}/{split}/*/*{ending}"
                    raise UserError(f"{source} holds {files} where there should be {wanted}; {how}")
            unpaired = sorted(scenes["A"] ^ scenes["B"])
            if unpaired:
                raise UserError(f"{split}/{unpaired[0]} has a photo or a label map, but not both, in {source}")
            for domain in _KINDS:
                (target / f"{ours}{domain}").mkdir(parents=True, exist_ok=True)
                for number, scene in enumerate(sorted(scenes[domain])):
                    place = target / f"{ours}{domain}" / f"{number}_{domain}.jpg"
                    jobs.append((found[domain][split, scene], f"{split}/{scene}", place))
        for _ in threaded_map(_resize, jobs):
            progress(1)


def _find(source: Path, kind: str, ending: str, opened: contextlib.ExitStack) -> dict[tuple[str, str], _Read]:
    """Return a reader of each file of a kind, by its split and scene (``city/city_000000_000019``)."""
    pattern = re.compile(rf"(?:.*/)?{kind}/(train|val)/([^/]+/[^/]+){re.escape(ending)}")
    archive = source / f"{kind}_trainvaltest.zip"
    listed: Iterator[tuple[str, _Read]]
    if archive.is_file():
        try:
            file = opened.enter_context(zipfile.ZipFile(archive))
        except zipfile.BadZipFile as error:
            raise BadArchive(f"{archive} is broken or cut off: {error}") from error
        listed = ((name, partial(_read_member, file, name)) for name in file.namelist())
    else:
        # The source may be the folder leftImg8bit itself, and the pattern needs that name.
        base = source.resolve().parent
        paths: list[Path] = []
        with contextlib.suppress(UserError):  # no picture at all: the error follows when both kinds are known
            paths = find_images(source.resolve())  # also below links to folders
        listed = ((path.relative_to(base).as_posix(), path.read_bytes) for path in paths if path.name.endswith(ending))
    matched = ((pattern.fullmatch(name), read) for name, read in listed)
    return {(found[1], found[2]): read for found, read in matched if found}


def _read_member(file: zipfile.ZipFile, name: str) -> bytes:
    if file.getinfo(name).file_size > _MOST_BYTES:  # no more than this is read
        raise UnreadableImage("the file is too large", name)
    return file.read(name)


def _resize(job: tuple[_Read, str, Path]) -> None:
    read, name, place = job
    try:
        with Image.open(io.BytesIO(read())) as picture:
            small = picture.convert("RGB").resize((_SIDE, _SIDE))
    except UnreadableImage:
        raise
    except Exception as error:  # decoders raise nearly anything on damaged input
        raise UnreadableImage(f"cannot be read ({error})", name) from error
    small.save(place, format="JPEG", quality=100, subsampling=0)
