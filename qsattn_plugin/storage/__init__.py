"""Atomic files, and files of tensors: safetensors with one JSON document in the metadata.

Checkpoints, weights for translation and published generators are written here. Nothing is unpickled. safetensors orders
several metadata keys at random, so the document is a single key, and equal contents give equal bytes.
"""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from qsattn_plugin.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

_KEY = "qsattn"


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
        kept = f"; the file that was there ({path.name}) is untouched" if path.exists() else ""
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
        temporary.write_text(text, encoding="utf-8")


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
        save_file(copies, temporary, metadata={_KEY: json.dumps(document, sort_keys=True)})


def read_document(path: Path) -> dict[str, Any]:
    """Return the JSON document of a file, without reading its tensors.

    Raises:
        UserError: there is no such file.
        DamagedFile: it is damaged or was not written by this package.
    """
    with _open(path) as file:
        return _document(path, file)


def load_tensors(path: Path, prefix: str = "") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the tensors whose names start with ``prefix`` (without it), on the CPU, and the document.

    Raises:
        UserError: there is no such file.
        DamagedFile: it is damaged or was not written by this package.
    """
    with _open(path) as file:
        document = _document(path, file)
        tensors = {n[len(prefix) :]: file.get_tensor(n) for n in file.keys() if n.startswith(prefix)}  # noqa: SIM118
    return tensors, document


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise DamagedFile(f"{path} is damaged or not a safetensors file ({error})") from error


def _document(path: Path, file: Any) -> dict[str, Any]:
    try:
        return json.loads((file.metadata() or {})[_KEY])
    except (KeyError, ValueError) as error:
        what = f"not one that this package wrote (no {_KEY!r} document in it)"
        raise DamagedFile(f"{path} is a safetensors file, but {what}") from error


__all__ = ["DamagedFile", "WriteFailed", "load_tensors", "read_document", "replacing", "save_tensors", "write_text"]
