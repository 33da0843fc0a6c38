"""Weights that other projects trained.

CUT's and CycleGAN's ``latest_net_G.pth`` go into this package's ResNets::

    weights = torch.load("latest_net_G.pth", map_location="cpu", weights_only=True)
    name, arguments = recognise(weights)
    generator = create("generator", name, **arguments)
    load_foreign(generator, weights)
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError

#: Buffers that instance norm had in old versions of torch; nothing reads them, an image's own statistics are taken.
_OLD_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
#: What a parallel or compiled wrapper puts before every key.
_PREFIXES = ("module.", "_orig_mod.")


class Report(NamedTuple):
    """What :func:`load_foreign` did: how many tensors it took, which keys it left out and which it filled in."""

    loaded: int
    left_out: list[str]
    filled_in: list[str]


def _clean(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Tensors by key, without a wrapper's prefix.

    Raises:
        UserError: this is not a mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise UserError("not a state_dict: expected names with a tensor each, as in CUT's latest_net_G.pth")
    odd = [str(key) for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"not a state_dict: {', '.join(odd[:5])} hold no tensor; is this a whole checkpoint of a run?")
    found = dict(state_dict)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    return found


def _shape(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "scalar"


def load_foreign(generator: nn.Module, state_dict: Mapping[str, Tensor]) -> Report:
    """Load weights laid out as CUT and CycleGAN write them into a generator, in place, all of them or none.

    A wrapper's prefix (``module.``) is taken off; buffers that instance norm had in old versions of torch are left out;
    fixed blur filters that are not in the file, being constants, are filled in.

    Args:
        generator: built with the arguments that the file was trained with, see :func:`recognise`.
        state_dict: names and tensors.

    Raises:
        UserError: something does not fit; every key that does not is listed with its shape, and nothing was loaded.
    """
    given, own = _clean(state_dict), generator.state_dict()
    norms = {name for name, m in generator.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    left_out = [
        key
        for key in given
        if key not in own and key.rpartition(".")[0] in norms and key.rpartition(".")[2] in _OLD_BUFFERS
    ]
    fixed = {key for key in own if key.endswith(".filt")}
    counts = {key for key in own if key.endswith(".num_batches_tracked")}  # old torch did not write them
    filled_in = sorted((fixed | counts) - set(given))
    given = {key: value for key, value in given.items() if key not in left_out}

    problems = []
    for key in [*own, *(key for key in given if key not in own)]:
        if key in filled_in:
            continue
        if key not in given:
            problems.append(f"{key}: missing, the generator has {_shape(own[key])}")
        elif key not in own:
            problems.append(f"{key}: {_shape(given[key])}, the generator has no such layer")
        elif given[key].shape != own[key].shape:
            problems.append(f"{key}: {_shape(given[key])}, the generator has {_shape(own[key])}")
        elif key in fixed and not torch.allclose(given[key].to(own[key]), own[key], rtol=0, atol=1e-3):
            problems.append(f"{key}: {_shape(given[key])}, another blur filter than the generator's")
    if problems:
        hint = ""
        try:
            name, arguments = recognise(state_dict)
            hint = f" (they look like {name} with {', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
        except UserError:
            pass
        listing = "\n  ".join(problems)
        raise UserError(f"{len(problems)} of the weights do not fit this generator{hint}:\n  {listing}")
    generator.load_state_dict({**given, **{key: own[key] for key in filled_in}})
    return Report(len(given), left_out, filled_in)


def recognise(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the ResNet generator that weights were written by.

    Read from keys and shapes: the number of residual blocks, width, channels, and whether the steps down and up blur.

    Raises:
        UserError: the weights are not those of CUT's or CycleGAN's ResNet with 9, 6 or 4 blocks.
    """
    given = _clean(state_dict)
    blocks = sorted({int(m[1]) for key in given if (m := re.match(r"model\.(\d+)\.conv_block\.", key))})
    convs = sorted(
        (int(m[1]), value) for key, value in given.items() if (m := re.fullmatch(r"model\.(\d+)\.weight", key))
    )
    convs = [(index, value) for index, value in convs if value.dim() == 4]
    if len(blocks) not in (9, 6, 4) or len(convs) != 6 or convs[0][0] != 1:
        raise UserError(
            f"not a ResNet generator of CUT or CycleGAN with 9, 6 or 4 blocks: {len(blocks)} residual blocks and "
            f"{len(convs)} other convolutions among {len(given)} tensors"
        )
    stem, last = convs[0][1], convs[-1][1]
    # With a blur after each, the two convolutions on the way down lie four layers apart, else three. On the way up a
    # blur goes before the convolution; a transposed one does both, and has its channels the other way round.
    arguments: dict[str, Any] = {
        "width": stem.shape[0],
        "antialias": convs[2][0] - convs[1][0] == 4,
        "antialias_up": convs[4][0] - convs[3][0] == 4,
        "in_channels": stem.shape[1],
        "out_channels": last.shape[0],
    }
    if f"model.{convs[0][0] + 1}.weight" in given:  # instance norm has no weights
        arguments["norm"] = "batch"
    return f"resnet_{len(blocks)}blocks", arguments
