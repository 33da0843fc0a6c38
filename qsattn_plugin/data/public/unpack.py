"""Unpacks archives that are not trusted.

Names are checked, links and devices are refused, sizes and members are limited; permissions are not taken over. An
archive with one bad member is refused as a whole. ``tarfile.data_filter`` is no substitute: it strips the leading slash
of a name, allows links within the folder, and does nothing for zip files.
"""

from __future__ import annotations

import errno
import gzip
import lzma
import os
import re
import shutil
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from qsattn_plugin.errors import UserError

__all__ = ["BadArchive", "unpack"]

_CHUNK = 1 << 18
#: The longest header that is read: tarfile reads the whole of a header, such as a long name, into memory.
_LONGEST_HEADER = 1 << 20
#: Exceptions of the decoders on damaged input; those of the file system, which have an errno, are told apart.
_BROKEN = (
    *(zipfile.BadZipFile, tarfile.TarError, zlib.error, lzma.LZMAError, EOFError, struct.error, OSError, ValueError),
    *(LookupError, ArithmeticError, RuntimeError, TypeError, AttributeError, AssertionError, MemoryError),
)
#: What the file system says of a member's name that cannot be written.
_NAMES = (errno.EEXIST, errno.EISDIR, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EINVAL, errno.EILSEQ)


class BadArchive(UserError):
    """A file that is no archive, or an archive that is broken or unsafe."""


class _Member(NamedTuple):
    name: str
    size: int  # as stated in the archive
    problem: str  # why it is refused, or ""
    folder: bool
    open: Callable[[], Any]


def unpack(
    archive: Path,
    target: Path,
    choose: Callable[[str], str | None] = lambda name: name,
    most_bytes: int = 4 << 30,
    most_files: int = 100_000,
    progress: Callable[[int], None] = lambda done: None,
) -> list[str]:
    """Unpack a zip or tar archive into a new folder, whole or not at all.

    Args:
        archive: zip, or tar with any of tar's compressions, recognised by its content.
        target: the folder; it must not exist, or be empty.
        choose: returns a member's name below ``target`` for its name in the archive ("/" between folders), or None to
            leave it out. Members that are left out are checked as well.
        most_bytes: limit on the size of all members together, also those that are left out.
        most_files: limit on the number of members.
        progress: called with the number of bytes written since the last call.

    Returns:
        The names that were written, in the archive's order.

    Raises:
        BadArchive: it is broken or no archive; a name is absolute, contains "..", or comes twice; a member is a link, a
            device or encrypted; there are too many, or they are too large. ``target`` is then unchanged.
        UserError: ``target`` exists and is not an empty folder.
    """
    with _replacing(target) as folder, _as_bad_archive(archive):
        written: dict[str, None] = {}
        claimed = 0
        for count, member in enumerate(_members(archive), start=1):
            claimed += member.size  # no more than this is read of it: too small a size ends in a wrong checksum
            name = None if member.folder else choose(member.name)
            problem = ""
            if bad := member.problem or _bad_name(member.name):
                problem = f"its member {member.name!r} {bad}"
            elif count > most_files:
                problem = f"it has more than {most_files:,} members"
            elif claimed > most_bytes:
                problem = f"it holds more than {most_bytes:,} bytes"
            elif name in written:
                problem = f"{name} is in it twice"
            if problem:
                raise BadArchive(f"{archive.name} is not unpacked: {problem}")
            if name is None:
                continue
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, open(path, "xb") as file:
                while chunk := source.read(_CHUNK):
                    file.write(chunk)
                    progress(len(chunk))
            written[name] = None
        return list(written)


@contextmanager
def _replacing(target: Path) -> Iterator[Path]:
    """Yield a new folder that replaces ``target`` at the end, or is removed after an exception."""
    target.parent.mkdir(parents=True, exist_ok=True)
    if target.is_symlink() or (target.exists() and (not target.is_dir() or any(target.iterdir()))):
        raise UserError(f"{target} exists and is not an empty folder")
    folder = target.with_name(f".{target.name}.{os.getpid()}.part")
    shutil.rmtree(folder, ignore_errors=True)  # of a killed process with the same id
    folder.mkdir()
    try:
        yield folder
        folder.replace(target)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _as_bad_archive(archive: Path) -> Iterator[None]:
    try:
        yield
    except _BROKEN as error:
        code = error.errno if isinstance(error, OSError) and not isinstance(error, gzip.BadGzipFile) else None
        if code in _NAMES or isinstance(error, NotImplementedError):
            raise BadArchive(f"{archive.name} cannot be unpacked: {error}") from error
        if code is not None:
            raise
        raise BadArchive(f"{archive.name} is broken: {' '.join(str(error).split()) or type(error).__name__}") from error


def _members(archive: Path) -> Iterator[_Member]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as file:
            yield from [_zip_member(file, info) for info in file.infolist()]
        return
    try:
        tar = tarfile.open(archive, tarinfo=_TarInfo)  # noqa: SIM115 - closed below; opening has its own errors
    except _BROKEN as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise BadArchive(f"{archive.name} is neither a zip nor a tar archive, or is cut off") from error
    with tar:
        for member in tar:
            yield _tar_member(tar, member)


def _zip_member(file: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = stat.S_IFMT(info.external_attr >> 16)  # 0 where the archive was not made on Unix
    problem = ""
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = "is a link or a device"
    elif info.flag_bits & 1:
        problem = "is encrypted"
    return _Member(info.filename, info.file_size, problem, info.is_dir(), lambda: file.open(info))


class _TarInfo(tarfile.TarInfo):
    def _proc_member(self, archive: tarfile.TarFile) -> Any:  # called by tarfile for each header
        if self.size > _LONGEST_HEADER and not self.isreg():
            raise tarfile.ReadError("a header is too long")
        return super()._proc_member(archive)  # type: ignore[misc]  # private, so not declared


def _tar_member(file: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    problem = "" if info.isreg() or info.isdir() else "is a link or a device"
    return _Member(info.name, info.size, problem, info.isdir(), lambda: file.extractfile(info))


def _bad_name(name: str) -> str:
    """Return what is wrong with a member's name, or an empty string."""
    if name.startswith(("/", "\\")) or re.match("[A-Za-z]:", name):
        return "has an absolute path"
    if ".." in re.split(r"[/\\]", name):
        return "leads out of the folder"
    if "\\" in name or "\0" in name or not name:
        return "has an invalid name"
    return ""
