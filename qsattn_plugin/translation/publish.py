"""From a trained run to a published file: the generator alone, in half precision.

    python -m qsattn_plugin.translation.publish RUN -o registry/weights/NAME.safetensors

prints what the index of published models (``registry/pretrained.yaml``) needs to know.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, NamedTuple

import torch

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.storage.download import checksum
from qsattn_plugin.translation.files import identity
from qsattn_plugin.translation.load import find_weights, load, main_generator

_PREFIX = "generator/"


class Published(NamedTuple):
    """What :func:`publish` wrote: SHA-256, bytes, and what half precision changes on random images in [-1, 1]."""

    sha256: str
    size: int
    largest: float
    mean: float


def publish(model: str | Path, out: Path, generator: str | None = None, overwrite: bool = False) -> Published:
    """Write a model's generator, float16, with the recipe that trained it.

    Args:
        model: as for :func:`qsattn_plugin.translation.load.load`.
        out: a safetensors file.
        generator: which one, where a method trains several.
        overwrite: replace ``out`` if it is there; never where it is what is published.

    Raises:
        UserError: there is no such model, or ``out`` is there already.
        WriteFailed: the file could not be written.
    """
    source = find_weights(model)
    if identity(out) not in (None, identity(source)) and not overwrite:
        raise UserError(f"{out} is there already; --overwrite replaces it")
    if identity(out) == identity(source):
        raise UserError(f"{out} is what is to be published; name another file")
    translator = load(source, name=generator)
    document = translator.document
    spec = document["generators"][generator or main_generator(document["generators"])]
    state = translator.generator.state_dict()
    tensors = {_PREFIX + key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    kept = {key: document[key] for key in ("recipe", "step", "torch") if key in document}
    kept["recipe"] = _without_folders(kept.get("recipe"))
    kind, arguments, channels = spec["type"], spec["arguments"], translator.channels
    described = {"forward": {"type": kind, "arguments": arguments, "channels": channels, "prefix": _PREFIX}}
    save_tensors(out, tensors, {"kind": "weights", "generators": described, **kept})
    multiple = getattr(translator.generator, "multiple", 4)
    side = -(-128 // multiple) * multiple
    images = torch.rand(1, translator.channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        apart = (load(out)(images) - translator(images)).abs()
    return Published(checksum(out), out.stat().st_size, apart.max().item(), apart.mean().item())


def _without_folders(value: Any) -> Any:
    """A recipe's plain data in which a path that begins at the root of somebody's machine is its last part alone."""
    if isinstance(value, dict):
        return {key: _without_folders(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_without_folders(below) for below in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value


def main() -> None:
    """Publish what the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="a run, RUN@best, or a weights file")
    parser.add_argument("-o", "--out", type=Path, required=True)
    parser.add_argument("--generator")
    parser.add_argument("--overwrite", action="store_true")
    given = parser.parse_args()
    try:
        done = publish(given.model, given.out, given.generator, given.overwrite)
    except UserError as error:
        parser.exit(1, f"Error: {error}\n")
    print(f"sha256: {done.sha256}\nbytes: {done.size:,}")
    print(f"half precision changes random images by {done.mean:.2g} in the mean, {done.largest:.2g} at most, of 2")


if __name__ == "__main__":
    main()
