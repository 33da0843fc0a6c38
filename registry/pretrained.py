"""Published weights: the index, and a file with a checked SHA-256 for each.

    entry = published_model("toy")
    path = weights_file(entry)      # in the package, or downloaded once; its SHA-256 is compared every time

``pretrained.yaml`` describes each model, its training and its scores; ``weights/`` holds the files.
Nothing is unpickled.
"""

from __future__ import annotations

import fnmatch
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry.yaml_lines import Place, parse
from qsattn_plugin.storage.download import DownloadFailed, checksum, download, download_bar

__all__ = ["INDEX", "Entry", "entries", "list_models", "published_model", "weights_file"]

#: The index; its ``file`` entries lie in ``weights/`` beside it.
INDEX = Path(__file__).parent / "pretrained.yaml"


@dataclass(frozen=True)
class Entry:
    """One published model, as the index describes it."""

    name: str
    summary: str
    generator: str  # registered name
    arguments: dict[str, Any] = field(default_factory=dict)  # of the generator, that differ from its defaults
    sha256: str | None = None  # of the weights, in hexadecimal; None while there are none
    file: str | None = None  # name below registry/weights/, if the file is part of the package
    url: str | None = None  # address of the weights otherwise
    card: dict[str, Any] = field(default_factory=dict)  # everything else: recipe, licence, data, training, scores

    @property
    def has_weights(self) -> bool:
        """Whether there are weights to load."""
        return self.sha256 is not None


def entries(index: Path = INDEX) -> dict[str, Entry]:
    """Return every published model by name, in the index's order.

    Raises:
        UserError: the index is missing or not valid.
    """
    try:
        found = parse(index.read_text(encoding="utf-8"), Place(str(index))).to_plain()
        own = set(Entry.__dataclass_fields__) - {"card"}
        return {
            name: Entry(
                name,
                **{key: value for key, value in given.items() if key in own},
                card={key: value for key, value in given.items() if key not in own},
            )
            for name, given in (found or {}).items()
        }
    except (OSError, TypeError, AttributeError) as error:
        raise UserError(f"the index of published models cannot be read: {index}: {error}") from error


def list_models(pattern: str = "*") -> list[str]:
    """Return the names of the published models that fit a pattern such as ``"horse*"``, in the index's order."""
    return [name for name in entries() if fnmatch.fnmatchcase(name, pattern)]


def published_model(name: str, index: Path = INDEX) -> Entry:
    """Return a published model.

    Raises:
        UserError: there is no model of that name.
    """
    known = entries(index)
    if name not in known:
        raise UserError(f"no model {name!r} is published{nearest(name, known)} ({', '.join(known)})")
    return known[name]


def weights_file(entry: Entry, progress: bool = True, folder: Path | None = None) -> Path:
    """Return the file with a model's weights, after its checksum was compared.

    A file that is not in the package is downloaded once, with ``progress`` shown on stderr, into ``folder`` or else
    torch.hub's cache; an interrupted download is resumed, and is never taken for a whole file.

    Raises:
        UserError: there are no weights yet, the file is missing, or its checksum is wrong.
        DownloadFailed: the download failed; the message says where to put the file by hand.
    """
    if entry.sha256 is None:
        trains = f"`qsattn build {entry.card.get('recipe', entry.name)}` trains one"
        what = f"the weights of {entry.name} are not published yet; pretrained=False gives its generator untrained"
        raise UserError(f"{what}, and {trains}")
    if entry.file is not None:
        path = INDEX.parent / "weights" / entry.file
        if not path.is_file():
            raise UserError(f"{path} is missing from this installation of qsattn-plugin; install the package again")
    else:
        import torch

        folder = folder or Path(torch.hub.get_dir()) / "checkpoints"
        path = folder / f"qsattn_{entry.name}-{entry.sha256[:8]}.safetensors"
        if not path.is_file():
            _fetch(entry, path, progress)
    if checksum(path) != entry.sha256:
        remedy = "install qsattn-plugin again" if entry.file is not None else "delete it, and it is downloaded again"
        raise UserError(f"{path} is not the file that was published (its SHA-256 differs); {remedy}")
    return path


def _fetch(entry: Entry, path: Path, progress: bool) -> None:
    assert entry.url is not None
    try:
        with download_bar(entry.name, disable=not progress) as show:
            download(entry.url, path, entry.sha256, show)
    except DownloadFailed as error:
        raise DownloadFailed(
            f"the weights of {entry.name} are not on this machine: {error}. Without a network, copy {entry.url} "
            f"from another machine to {path}"
        ) from error
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror or error}") from error
