"""From a trained run to a published file: the generator alone, in half precision."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import torch

from qsattn_plugin.storage import save_tensors
from qsattn_plugin.storage.download import checksum
from qsattn_plugin.translation.apply import smallest_side
from qsattn_plugin.translation.files import check_output, file_below
from qsattn_plugin.translation.load import Weights, load, load_file, main_generator

_PREFIX = "generator/"


class Published(NamedTuple):
    """The file that :func:`publish` wrote, and how much half precision changes a random image's translation."""

    path: Path
    sha256: str
    size: int  # bytes
    largest: float  # change on [-1, 1]
    mean: float


def publish(model: str | Path, out: Path, generator: str | None = None, overwrite: bool = False) -> Published:
    """Write a model's generator in float16, with the recipe that trained it, into a safetensors file.

    The model is as for :func:`qsattn_plugin.translation.load.load`; in a folder the file is named after its recipe. An
    existing file is replaced with ``overwrite``, but never the model itself.

    Raises:
        UserError: there is no such model, or the file exists already.
        WriteFailed: the file could not be written.
    """
    translator = load(model, name=generator)
    assert translator.weights is not None  # it was loaded
    document = translator.document
    spec = document["generators"][generator or main_generator(document["generators"])]
    path = file_below(out, (document.get("recipe") or {}).get("name") or spec["type"], ".safetensors")
    check_output(path, overwrite, translator.weights.path)
    state = translator.generator.state_dict()
    tensors = {_PREFIX + key: t.half() if t.is_floating_point() else t for key, t in state.items()}
    kept: dict[str, Any] = {key: document[key] for key in ("recipe", "step", "torch") if key in document}
    kept["recipe"] = _without_folders(kept.get("recipe"))
    kind, arguments, channels = spec["type"], spec["arguments"], translator.channels
    described = {"type": kind, "arguments": arguments, "channels": channels, "prefix": _PREFIX}
    described["trained"] = translator.trained
    described |= {key: spec[key] for key in ("ranges", "out_channels") if key in spec}
    save_tensors(path, tensors, {"kind": "weights", "generators": {"forward": described}, **kept})
    side = smallest_side(translator.generator, 128)
    images = torch.rand(1, channels, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        changes = (load_file(Weights(str(path), path))(images) - translator(images)).abs()
    return Published(path, checksum(path), path.stat().st_size, changes.max().item(), changes.mean().item())


def _without_folders(value: Any) -> Any:
    """Return a recipe's data with every absolute path cut to its last part: folders of a machine are not published."""
    if isinstance(value, dict):
        return {key: _without_folders(below) for key, below in value.items()}
    if isinstance(value, list):
        return [_without_folders(below) for below in value]
    return Path(value).name if isinstance(value, str) and Path(value).is_absolute() else value
