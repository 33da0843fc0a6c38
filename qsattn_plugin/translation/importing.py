"""Converts another project's checkpoint to a weights file of this package."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.registry import create, find
from qsattn_plugin.registry.blueprint import blueprint
from qsattn_plugin.registry.cut_weights import LoadReport, find_state_dicts, load_cut_weights, matches, recognise
from qsattn_plugin.registry.recipe.checking import check_settings
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.storage.download import checksum
from qsattn_plugin.storage.weights import read_weights
from qsattn_plugin.translation.files import check_output

#: The main generator's prefix in a run's checkpoints, so that ``train.init_from`` takes an imported file too.
_PREFIX = "model/generator."


class Imported(NamedTuple):
    """The generator that :func:`import_weights` found, and which tensors were loaded, left out and filled in."""

    type: str
    arguments: dict[str, Any]
    place: str  # the key of the weights in the file; "" for the file itself
    loaded: LoadReport


def import_weights(
    file: Path,
    out: Path,
    arch: str | None = None,
    settings: Sequence[str] = (),
    key: str | None = None,
    overwrite: bool = False,
    trained: int | None = None,
) -> Imported:
    """Read a generator of CUT, CycleGAN, pix2pix or QS-Attn and write it as a weights file of this package.

    Args:
        file: what their training wrote (``latest_net_G.pth``), or a whole checkpoint that holds such weights.
        out: the safetensors file; ``load`` and the commands take it as a model.
        arch: the generator's registered name; None: recognised from the keys.
        settings: ``name=value`` for the generator's arguments; they override what was recognised.
        key: the key of the weights in the file, if it holds several networks.
        overwrite: replace ``out`` if it exists.
        trained: the shorter side, in pixels, that pictures had in its training; None: unknown.

    Raises:
        UserError: the file cannot be read without running code in it, or holds no such generator.
        WriteFailed: ``out`` could not be written.
    """
    check_output(out, overwrite, file)
    content = read_weights(file)
    candidate = None if arch is None else _build(arch, _arguments(arch, settings, {}))
    place, weights = _pick(file, content, key, candidate)
    try:
        name, found = recognise(weights)
    except UserError as error:
        if arch is None:
            raise UserError(f"{file}: {error}; --arch says which it is, if it is one of this package's") from error
        name, found = arch, {}
    if arch not in (None, name):
        name, found = arch, {}
    arguments = _arguments(name, settings, found)
    try:
        # First without values: what does not fit need not be allocated.
        if (plan := blueprint("generator", name, arguments)) is not None:
            load_cut_weights(plan, weights)
        generator = _build(name, arguments)
        loaded = load_cut_weights(generator, weights)
    except UserError as error:
        raise UserError(f"{file}: {error}") from error
    described = {"type": name, "arguments": arguments, "prefix": _PREFIX, "trained": trained}
    document = {
        "kind": "weights",
        "generators": {"forward": described},
        "imported": {"file": file.name, "sha256": checksum(file), "place": place, **loaded._asdict()},
        "torch": torch.__version__,
    }
    save_tensors(out, {_PREFIX + name: tensor for name, tensor in generator.state_dict().items()}, document)
    return Imported(name, arguments, place, loaded)


def _arguments(arch: str, settings: Sequence[str], found: dict[str, Any]) -> dict[str, Any]:
    """Return all arguments of a generator: its defaults, then those recognised from the weights, then the settings."""
    parameters = find("generator", arch).signature.parameters
    defaults = {n: p.default for n, p in parameters.items() if p.default is not p.empty}
    values = check_settings("generator", arch, settings, "width=64", {**defaults, **found})
    return {**defaults, **found, **values}


def _build(arch: str, arguments: dict[str, Any]) -> nn.Module:
    try:
        # The drawn weights are replaced: drawing them must not change the caller's random numbers.
        with torch.random.fork_rng(devices=[]):
            return create("generator", arch, **arguments)
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"generator {arch!r}: {error}") from error


def _pick(file: Path, content: Any, key: str | None, candidate: nn.Module | None) -> tuple[str, dict[str, Tensor]]:
    """Return key and state_dict of the only generator in a file: one that is recognised, or fits ``candidate``."""

    def wanted(tensors: dict[str, Tensor]) -> bool:
        try:
            return bool(recognise(tensors))
        except UserError:
            return candidate is not None and matches(candidate, tensors)

    networks = find_state_dicts(content, wanted)
    # Without a recognised generator any network is taken: loading it then says why it does not fit.
    every = networks or find_state_dicts(content, bool)
    if key is not None:
        if key not in every:
            raise UserError(f"{file} has no network at {key!r}{nearest(key, every)} ({', '.join(every) or 'none'})")
        return key, every[key]
    if len(networks) > 1:
        names = ", ".join(networks)
        raise UserError(f"{file} holds several generators: {names}; choose one with --key {next(iter(networks))}")
    if not every:
        raise UserError(f"{file} is no state_dict and holds none: there are no tensors with names in it")
    return max(every.items(), key=lambda item: len(item[1]))
