"""Models on the Hugging Face Hub: ``hf:OWNER/NAME[@REVISION]``, read through its cache, and written.

A repository holds ``model.safetensors``, ``config.json``, which names the SHA-256 of the weights, and a card. Both
files are taken from one commit, the checksum is compared on every load, and nothing is unpickled. What was loaded once
loads without a network.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage.download import DownloadFailed, checksum

__all__ = ["CARD", "CONFIG", "PREFIX", "WEIGHTS", "checked_weights", "hub_file", "parse_hub_name", "upload"]

#: What a model's name begins with to mean a repository of the hub.
PREFIX = "hf:"

WEIGHTS, CONFIG, CARD = "model.safetensors", "config.json", "README.md"


def parse_hub_name(model: str) -> tuple[str, str | None]:
    """Return (OWNER/NAME, the revision or None) of ``hf:OWNER/NAME[@REVISION]``.

    Raises:
        UserError: it has another form.
    """
    found = re.fullmatch(r"hf:([\w.-]+/[\w.-]+)(?:@([\w./-]+))?", model)
    if found is None:
        raise UserError(
            f"{model!r} is not the name of a model on the hub: write hf:OWNER/NAME or hf:OWNER/NAME@REVISION"
        )
    return found[1], found[2]


def hub_file(model: str) -> Path:
    """Return the weights of a model on the hub, after their checksum was compared: downloaded once, then cached.

    Raises:
        UserError: the package huggingface_hub is missing, there is no such repository or revision, or it holds no model
            of this package.
        DownloadFailed: the hub cannot be reached, and the model is not in the cache.
    """
    repository, revision = parse_hub_name(model)
    hub = _package()
    with _in_words(hub, model):
        # `endpoint` for HF_ENDPOINT as it is now, not as it was when the package was imported.
        config = Path(hub.hf_hub_download(repository, CONFIG, revision=revision, endpoint=_endpoint()))
        commit = config.parent.name  # snapshots/COMMIT/config.json
        hub.hf_hub_download(repository, WEIGHTS, revision=commit, endpoint=_endpoint())
    return checked_weights(config.parent, model, "; delete {}, and they are downloaded again")


def checked_weights(folder: Path, model: str, remedy: str = "") -> Path:
    """Return the weights in a folder as :func:`upload` takes it, after their checksum was compared.

    Raises:
        UserError: its :data:`CONFIG` names another checksum, or none; ``remedy``, with the file's path, ends the text.
    """
    weights = folder / WEIGHTS
    try:
        expected = json.loads((folder / CONFIG).read_text(encoding="utf-8"))["sha256"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{model} is not a model of this package: its {CONFIG} names no sha256") from error
    if checksum(weights) != expected:
        what = f"the weights of {model} are not those that its {CONFIG} names (the SHA-256 differs)"
        raise UserError(f"{what}{remedy.format(weights.resolve())}")
    return weights


def upload(folder: Path, model: str, message: str) -> str:
    """Upload a folder's files as a model, whose repository is made if need be; return the new commit.

    Raises:
        UserError: the package huggingface_hub is missing, or the hub does not let this user write there.
        DownloadFailed: the hub cannot be reached.
    """
    repository, revision = parse_hub_name(model)
    hub = _package()
    with _in_words(hub, model):
        api = hub.HfApi(endpoint=_endpoint())
        api.create_repo(repository, exist_ok=True)
        done = api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            revision=revision,
            commit_message=message,
            allow_patterns=[WEIGHTS, CONFIG, CARD],
        )
    return str(done.oid)


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT") or None


def _package() -> ModuleType:
    try:
        import huggingface_hub
        import huggingface_hub.utils  # also its exceptions, in every version
    except ImportError as error:
        raise UserError("models on the hub need the package huggingface_hub: pip install huggingface_hub") from error
    return huggingface_hub


@contextmanager
def _in_words(hub: Any, model: str) -> Iterator[None]:
    """Turn the hub's exceptions into this package's."""
    errors = hub.utils
    try:
        yield
    except errors.RevisionNotFoundError as error:
        raise UserError(f"{model}: the repository has no such revision") from error
    except errors.GatedRepoError as error:
        raise UserError(
            f"{model} asks for consent: accept its terms on its page, and log in with `hf auth login`"
        ) from error
    except errors.RepositoryNotFoundError as error:
        what = "there is no such repository, or it is private"
        raise UserError(f"{model}: {what}; for a private one log in with `hf auth login`") from error
    except errors.LocalEntryNotFoundError as error:
        raise DownloadFailed(f"{model} is not in the cache, and the hub cannot be reached") from error
    except errors.EntryNotFoundError as error:
        raise UserError(f"{model} is not a model of this package: it has no {CONFIG} and {WEIGHTS}") from error
    except errors.HFValidationError as error:
        raise UserError(f"{model}: {str(error).splitlines()[0]}") from error
    except errors.HfHubHTTPError as error:
        status = getattr(error.response, "status_code", None)
        login = "; log in with `hf auth login`" if status in (401, 403) else ""
        raise UserError(f"{model}: the hub answers {status}{login}") from error
    except (errors.OfflineModeIsEnabled, OSError) as error:
        raise DownloadFailed(f"{model}: the hub cannot be reached ({error})") from error
    except Exception as error:
        # Whichever this version uses; huggingface_hub 1.16 tries again with a client that it has closed.
        library = type(error).__module__.partition(".")[0]
        if library.startswith(("httpx", "httpcore", "requests")) or "client has been closed" in str(error):
            raise DownloadFailed(f"{model}: the hub cannot be reached ({error})") from error
        raise
