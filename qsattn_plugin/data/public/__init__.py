"""Public data sets, downloaded or from local files, as complete and checked folders."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.images import UnreadableImage, find_images, read_image
from qsattn_plugin.data.parallel import threaded_map
from qsattn_plugin.data.public.catalogue import PublicSet
from qsattn_plugin.data.public.cityscapes import prepare
from qsattn_plugin.data.public.unpack import unpack
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage.download import DownloadFailed, checksum, download

__all__ = ["Obtained", "get_public_set"]

#: Called with the name of a stage, how much of it is done, and how much there is (None: unknown): bytes or pictures.
StageProgress = Callable[[str, int, int | None], None]


class Obtained(NamedTuple):
    """The result of :func:`get_public_set`: whether the set existed already, and the checksum of an archive used."""

    existed: bool
    sha256: str | None = None


def get_public_set(
    one: PublicSet,
    root: Path,
    source: Path | None = None,
    url: str | None = None,
    progress: StageProgress = lambda what, done, total: None,
) -> Obtained:
    """Write trainA, trainB, testA and testB of a public data set below ``root``, each split whole or not at all.

    Splits that exist with the right number of pictures are kept; if all do, nothing is done. A downloaded archive lies
    in ``root`` until the pictures are in place; an archive that was there before is used, and kept.

    Args:
        one: the data set.
        root: the folder; created if it does not exist.
        source: an archive or a folder to take the pictures from, instead of a download.
        url: the address to download from instead of the data set's own; the checksum stays the same.
        progress: called as the work goes on.

    Raises:
        UserError: a split exists with another number of pictures; the archive could not be downloaded, is not the
            published one (if it was), is broken or unsafe; pictures are missing or cannot be read. ``root`` is then
            unchanged.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    missing = _missing(one, root)
    if not missing:
        return Obtained(existed=True)
    how = one.how.format(root=root)
    if source is None and how:
        raise UserError(how)
    if source is not None and not source.exists():
        raise UserError(f"there is no file or folder {source}")
    if source is not None and (source / one.file).is_file():
        source = source / one.file
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    # Inside root, not beside it: root may be a file system of its own, and folders are renamed within one only.
    stage = root / f".{os.getpid()}.part"
    downloaded = None
    try:
        shutil.rmtree(stage, ignore_errors=True)
        sha256, published = None, False
        if how and source is not None:
            prepare(source, stage, one.counts, how, _adding(progress, "resizing", sum(one.counts.values())))
            published = True  # each was decoded
        elif source is not None and source.is_dir():
            _copy(one, source, stage)
        else:
            archive = source or root / one.file
            if source is None and not archive.exists():
                address = url or one.url
                assert address is not None  # a set without one says how to get it
                _fetch(one, address, archive, progress)
                downloaded = archive
            sha256 = checksum(archive)
            published = sha256 == one.sha256
            if source is None and one.sha256 and not published:
                raise UserError(
                    f"{archive} is not the published archive: its SHA-256 should be {one.sha256} and is {sha256}; "
                    "remove it, or pass it with --from to have its content checked instead"
                )
            unpack(archive, stage, one.choose, progress=_adding(progress, "unpacking", None))
        _check(one, stage, source or root / one.file, not published, progress)
        for split in missing:
            (stage / split).replace(root / split)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: it holds the pictures, or a part of the archive
                root.rmdir()
    if downloaded:
        downloaded.unlink()
    return Obtained(existed=False, sha256=sha256)


def _adding(progress: StageProgress, stage: str, total: int | None) -> Callable[[int], None]:
    """Return a callback that takes what was done since its last call."""
    done = 0

    def add(count: int) -> None:
        nonlocal done
        done += count
        progress(stage, done, total)

    return add


def _missing(one: PublicSet, root: Path) -> list[str]:
    """Return the missing splits; raise UserError if one cannot be made, or exists with another number of pictures."""
    missing = []
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir() or not any(folder.iterdir()):
            if folder.is_symlink() or folder.is_file():
                what = "a link without pictures behind it" if folder.is_symlink() else "a file"
                raise UserError(f"{folder} is {what}, and a folder is made here; move it away or choose another --root")
            missing.append(split)
        elif (count := _count(folder)) != one.counts[split]:
            raise UserError(
                f"{folder} holds {count} pictures where {one.name} has {one.counts[split]}; "
                "move it away or choose another --root"
            )
    return missing


def _count(folder: Path) -> int:
    try:
        return len(find_images(folder))
    except UserError:  # no folder, or no picture in it
        return 0


def _fetch(one: PublicSet, url: str, archive: Path, progress: StageProgress) -> None:
    try:
        download(url, archive, one.sha256, lambda done, total: progress("downloading", done, total))
    except DownloadFailed as error:
        raise DownloadFailed(
            f"{error}\nIf this machine cannot reach it, download it elsewhere, put it at {archive} and run this again; "
            f"or say where it is: qsattn data {one.name} --root ... --from {one.file} (or an unpacked folder)"
        ) from error


def _copy(one: PublicSet, source: Path, stage: Path) -> None:
    """Copy the data set's pictures from a folder; its own name is a part of their paths."""
    base = source.resolve()
    for path in find_images(base):
        name = one.choose(f"{base.name.lstrip('.')}/{path.relative_to(base).as_posix()}")
        if name is None:
            continue
        place = stage / name
        if place.exists():
            raise UserError(f"{source} holds {name} twice, the second time as {path.relative_to(base)}")
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, place)


def _check(one: PublicSet, stage: Path, source: Path, decode: bool, progress: StageProgress) -> None:
    """Raise UserError if a split has another number of pictures or, with ``decode``, if some cannot be read."""
    counts = {split: _count(stage / split) for split in SPLITS}
    if counts != dict(one.counts):
        found = ", ".join(f"{split} {counts[split]} (should be {one.counts[split]})" for split in SPLITS)
        raise UserError(f"{source} is not {one.name}, or not all of it: {found}")
    if not decode:
        return
    paths = [path for split in SPLITS for path in find_images(stage / split)]
    bad = []
    for done, (path, reason) in enumerate(zip(paths, threaded_map(_unreadable, paths), strict=True), start=1):
        progress("checking", done, len(paths))
        if reason:
            bad.append(f"{path.relative_to(stage)} ({reason})")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(f"{len(bad)} of {len(paths)} pictures cannot be read: {', '.join(bad[:5])}{more}")


def _unreadable(path: Path) -> str:
    try:
        read_image(path)
    except UnreadableImage as error:
        return error.reason
    return ""
