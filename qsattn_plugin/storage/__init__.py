"""Atomic files, and files of tensors: safetensors with one JSON document in the metadata.

Checkpoints, weights for translation and published generators are written here. Nothing is unpickled. safetensors orders
several metadata keys at random, so the document is a single key, and equal contents give equal bytes. That key's name
holds a checksum of the file, which is compared whenever tensors are read; files of version 0.1 have none.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage.content import containers, pretence, wrong_key

if TYPE_CHECKING:
    from torch import Tensor

#: The name of the document's key, and what a checksum adds to it: the CRC-32 of the whole file with zeros in its place.
_KEY, _CHECKSUM = "qsattn", " crc32 %08x"
_SEAL = re.compile(rb'^{"__metadata__":{"qsattn crc32 ([0-9a-f]{8})":')
#: Exceptions of safetensors, and of torch behind it, on files that are damaged.
_BROKEN = (SafetensorError, OSError, ValueError, LookupError, TypeError, AttributeError, RuntimeError)


class DamagedFile(UserError):
    """A file is damaged: truncated, not safetensors, or without this package's document."""


class WriteFailed(UserError, OSError):
    """A file could not be written; an earlier file of that name is unchanged."""


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to, and rename it to ``path`` once it is complete on disk.

    Raises:
        WriteFailed: the disk is full, the folder read-only, ...; the temporary file is gone and ``path`` unchanged.
    """
    temporary = None
    try:
        if path.exists() and not path.is_file():
            raise WriteFailed(f"could not write {path}: it is {'a folder' if path.is_dir() else 'a device or a pipe'}")
        path.parent.mkdir(parents=True, exist_ok=True)
        # Only a part of the name, which may have the maximum length already.
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:40]}.", suffix=".part")
        os.close(handle)
        temporary = Path(name)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # mkstemp makes files private, but runs are shared.
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)
    except (OSError, SafetensorError) as error:
        if isinstance(error, UserError):
            raise
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        kept = f"; the file that was there ({path.name}) is untouched" if os.path.exists(path) else ""
        raise WriteFailed(f"could not write {path}: {reason}{kept}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _umask() -> int:
    value = os.umask(0)
    os.umask(value)
    return value


def may_write(folder: Path) -> bool:
    """Return whether files can be created in a folder, or the folder itself in its nearest existing parent."""
    there = next((place for place in (folder, *folder.absolute().parents) if place.exists()), folder)
    return there.is_dir() and os.access(there, os.W_OK | os.X_OK)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; raise WriteFailed if that is not possible."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")  # names of files may be any bytes


def save_tensors(path: Path, tensors: Mapping[str, Tensor], document: Mapping[str, Any]) -> None:
    """Write tensors and a JSON-serialisable document atomically; raise WriteFailed if that is not possible."""
    from safetensors.torch import save_file  # imports torch, which reading the index of published models does not need

    copies = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    # safetensors refuses tensors that share memory; loading gives copies in any case.
    seen: set[int] = set()
    for name, tensor in copies.items():
        address = tensor.untyped_storage().data_ptr()
        if address in seen:
            copies[name] = tensor.clone()
        seen.add(address)
    with replacing(path) as temporary:
        save_file(copies, temporary, metadata={_KEY + _CHECKSUM % 0: json.dumps(document, sort_keys=True)})
        with open(temporary, "r+b") as file:
            at, _, checksum = _checksum(file)
            assert at, "safetensors writes the metadata first"
            file.seek(at)
            file.write(b"%08x" % checksum)


def _checksum(file: IO[bytes]) -> tuple[int, int | None, int]:
    """Return where a file's checksum stands, the one that stands there (None: none does), and the one that it has."""
    head = file.read(8)
    head += file.read(min(int.from_bytes(head, "little"), 1 << 27))
    found = _SEAL.match(head[8:])
    if found is None:
        return 0, None, 0
    begin, end = (8 + place for place in found.span(1))
    value = zlib.crc32(head[:begin] + bytes(8) + head[end:])
    while block := file.read(1 << 20):
        value = zlib.crc32(block, value)
    return begin, int(found[1], 16), value


def check_file(path: Path) -> dict[str, Any]:
    """Return the JSON document of a file after its checksum was compared, if it has one.

    Raises:
        UserError: there is no such file.
        DamagedFile: it is damaged or was not written by this package.
    """
    with _open(path) as file:
        document = _document(path, file)
        with open(path, "rb") as raw:
            _, stated, found = _checksum(raw)
        if stated not in (None, found):
            raise DamagedFile(f"{path} is damaged: its checksum should be {stated:08x} and is {found:08x}")
    return document


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of a file, without reading its tensors.

    Raises:
        UserError: there is no such file.
        DamagedFile: it is damaged or was not written by this package.
    """
    with _open(path) as file:
        return _document(path, file)


def read_shapes(path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Return the tensors whose names start with ``prefix`` (without it) on the meta device: shapes and types alone."""
    import torch

    names = {"F": "float", "BF": "bfloat", "I": "int", "U": "uint", "C": "complex"}
    found = {}
    with _open(path) as file:
        for name in (n for n in file.keys() if n.startswith(prefix)):  # noqa: SIM118
            one = file.get_slice(name)
            letters, bits = re.fullmatch(r"([A-Z]+)(.*)", one.get_dtype()).groups()  # type: ignore[union-attr]
            dtype = getattr(torch, f"{names.get(letters)}{bits}", torch.bool)  # what has no such name is no weight
            found[name[len(prefix) :]] = torch.empty(one.get_shape(), dtype=dtype, device="meta")
    return found


def load_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors whose names start with ``prefix`` (without it), on the CPU, and the document.

    Raises:
        UserError: there is no such file.
        DamagedFile: it is damaged or was not written by this package.
    """
    document = check_file(path)
    with _open(path) as file:
        return {n[len(prefix) :]: file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}, document  # noqa: SIM118


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        files = "; that is a folder: give a file in it, of a run one in its checkpoints" if path.is_dir() else ""
        raise UserError(f"there is no file {path}{files}")
    try:
        if what := pretence(path):
            raise DamagedFile(f"{path} {what}")
        with safe_open(path, framework="pt") as file:
            yield file
    except _BROKEN as error:
        raise DamagedFile(f"{path} is damaged or not a safetensors file ({error or type(error).__name__})") from error


def _document(path: Path, file: Any) -> dict[str, Any]:
    found = file.metadata() or {}
    key = next((key for key in found if re.fullmatch(rf"{_KEY}( crc32 [0-9a-f]{{8}})?", key)), None)
    if key is None or len(found) > 1:
        what = f"not one that this package wrote (no {_KEY!r} document in it)"
        raise DamagedFile(f"{path} is a safetensors file, but {what}")
    try:
        document = json.loads(found[key])
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged: its document is not JSON ({type(error).__name__})") from error
    if containers(document) is None:
        raise DamagedFile(f"{path} is damaged: its document is nested too deeply, or too large")
    if wrong := wrong_key(document):
        raise DamagedFile(f"{path} has no valid description of its {wrong}")
    return document


__all__ = [
    "DamagedFile",
    "WriteFailed",
    "check_file",
    "load_tensors",
    "read_document",
    "read_shapes",
    "replacing",
    "save_tensors",
    "write_text",
]
