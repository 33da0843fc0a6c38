"""A public data set, from the web or from what people have, into folders that are complete and checked."""

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

__all__ = ["Got", "get_public_set"]

#: Called with what is being done, how much of it is done, and how much there is (None: not known).
Progress = Callable[[str, int, int | None], None]


class Got(NamedTuple):
    """What :func:`get_public_set` did: whether all was there before, and the archive's checksum where one was used."""

    before: bool
    sha256: str | None = None


def get_public_set(
    one: PublicSet,
    root: Path,
    source: Path | None = None,
    url: str | None = None,
    progress: Progress = lambda what, done, total: None,
) -> Got:
    """Put trainA, trainB, testA and testB of a public data set below ``root``, each of them whole or not at all.

    Splits that are there with the right number of pictures stay; if all are, nothing is done. A downloaded archive lies
    in ``root`` until the pictures are in place; one that people put there is used, and stays.

    Args:
        one: the set.
        root: made where it is not there.
        source: an archive or a folder to take the pictures from, instead of the web.
        url: where to download from instead of the set's own address; the checksum stays the set's.
        progress: told what is going on.

    Raises:
        UserError: a split is there with another number of pictures; the archive cannot be had, is not the published
            one (from the web), is broken or unsafe; pictures are missing or cannot be read. Nothing changed at
            ``root`` then.
    """
    root = Path(os.path.abspath(os.path.expanduser(root)))
    lacking = _lacking(one, root)
    if not lacking:
        return Got(before=True)
    if source is not None and not source.exists():
        raise UserError(f"there is no file or folder {source}")
    how = one.how.format(root=root)
    if source is None and how:
        raise UserError(how)
    if source is not None and (source / one.file).is_file():
        source = source / one.file
    made = not root.exists()
    root.mkdir(parents=True, exist_ok=True)
    # Inside root, not beside it: root may be a disk of its own, and a folder is only renamed within a disk.
    stage = root / f".{os.getpid()}.part"
    downloaded = None
    try:
        shutil.rmtree(stage, ignore_errors=True)
        sha256, published = None, False
        if how:
            total, done = sum(one.counts.values()), 0

            def resized(count: int) -> None:
                nonlocal done
                done += count
                progress("resizing", done, total)

            prepare(source, stage, one.counts, how, resized)
            published = True  # each was decoded
        elif source is not None and source.is_dir():
            _copy(one, source, stage)
        else:
            archive = source or root / one.file
            if source is None and not archive.exists():
                _fetch(one, url or one.url, archive, progress)
                downloaded = archive
            sha256 = checksum(archive)
            published = sha256 == one.sha256
            if source is None and one.sha256 and not published:
                raise UserError(
                    f"{archive} is not the published archive: its SHA-256 should be {one.sha256} and is {sha256}; "
                    "remove it, or pass it with --from to have its content checked instead"
                )
            written = 0

            def unpacked(count: int) -> None:
                nonlocal written
                written += count
                progress("unpacking", written, None)

            unpack(archive, stage, one.choose, progress=unpacked)
        _check(one, stage, source or root / one.file, not published, progress)
        for split in lacking:
            (stage / split).replace(root / split)
    finally:
        shutil.rmtree(stage, ignore_errors=True)
        if made:
            with contextlib.suppress(OSError):  # not empty: there is what was wanted, or a part of the archive
                root.rmdir()
    if downloaded:
        downloaded.unlink()
    return Got(before=False, sha256=sha256)


def _lacking(one: PublicSet, root: Path) -> list[str]:
    """Return the splits that are not there; refuse those that are there with other counts than they should have."""
    lacking = []
    for split in SPLITS:
        folder = root / split
        if not folder.is_dir() or not any(folder.iterdir()):
            lacking.append(split)
        elif (count := _count(folder)) != one.counts[split]:
            raise UserError(
                f"{folder} holds {count} pictures where {one.name} has {one.counts[split]}; "
                "move it away or choose another --root"
            )
    return lacking


def _count(folder: Path) -> int:
    try:
        return len(find_images(folder))
    except UserError:  # no folder, or no picture in it
        return 0


def _fetch(one: PublicSet, url: str, archive: Path, progress: Progress) -> None:
    try:
        download(url, archive, one.sha256, lambda done, total: progress("downloading", done, total))
    except DownloadFailed as error:
        raise DownloadFailed(
            f"{error}\nIf this machine cannot reach it, download it elsewhere, put it at {archive} and run this again; "
            f"or give its place: qsattn data {one.name} --root ... --from {one.file} (an unpacked folder will do, too)"
        ) from error


def _copy(one: PublicSet, source: Path, stage: Path) -> None:
    """Copy the set's pictures from a folder; the folder's own name counts, too."""
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


def _check(one: PublicSet, stage: Path, source: Path, decode: bool, progress: Progress) -> None:
    """Refuse other counts than the set has, and (``decode``) pictures that cannot be read."""
    counts = {split: _count(stage / split) for split in SPLITS}
    if counts != dict(one.counts):
        found = ", ".join(f"{split} {counts[split]} (should be {one.counts[split]})" for split in SPLITS)
        raise UserError(f"{source} is not {one.name}, or not all of it: {found}")
    if not decode:
        return
    paths = [path for split in SPLITS for path in find_images(stage / split)]
    bad = []
    for done, reason in enumerate(threaded_map(_unreadable, paths)):
        progress("checking", done + 1, len(paths))
        if reason:
            bad.append(f"{paths[done].relative_to(stage)} ({reason})")
    if bad:
        more = f" and {len(bad) - 5} more" if len(bad) > 5 else ""
        raise UserError(f"{len(bad)} of {len(paths)} pictures cannot be read: {', '.join(bad[:5])}{more}")


def _unreadable(path: Path) -> str:
    try:
        read_image(path)
    except UnreadableImage as error:
        return error.reason
    return ""
