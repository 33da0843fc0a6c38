"""Weights in the layout of CUT, CycleGAN, pix2pix and QS-Attn: recognised, checked and loaded.

``latest_net_G.pth`` of these projects is loaded into this package's ResNets and U-Nets::

    weights = torch.load("latest_net_G.pth", map_location="cpu", weights_only=True)
    name, arguments = recognise(weights)
    generator = create("generator", name, **arguments)
    load_cut_weights(generator, weights)
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage.weights import misfits, show_shape

#: Buffers that instance norm had in old versions of torch; they are not used: each image has its own statistics.
_OLD_BUFFERS = ("running_mean", "running_var", "num_batches_tracked")
#: Prefixes that parallel and compiled wrappers add to every key.
_PREFIXES = ("module.", "_orig_mod.")


class LoadReport(NamedTuple):
    """What :func:`load_cut_weights` did: the number of tensors loaded, the keys left out, the keys filled in."""

    loaded: int
    left_out: list[str]
    filled_in: list[str]


def normalise_keys(state_dict: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return tensors by key, without the prefix of a wrapper, and numbered as if there were no dropout.

    Dropout is the fifth layer of a residual block: the layers after it have numbers larger by one.

    Raises:
        UserError: not a mapping of names to tensors.
    """
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise UserError("not a state_dict: expected a mapping of names to tensors, as in CUT's latest_net_G.pth")
    odd = [str(key) for key, value in state_dict.items() if not isinstance(value, Tensor)]
    if odd:
        raise UserError(f"not a state_dict: {', '.join(odd[:5])} hold no tensor; is it the checkpoint of a whole run?")
    found = dict(state_dict)
    while prefix := next((p for p in _PREFIXES if all(key.startswith(p) for key in found)), None):
        found = {key.removeprefix(prefix): value for key, value in found.items()}
    weights = (re.search(r"\.conv_block\.(\d+)\.weight$", key) for key, value in found.items() if value.dim() == 4)
    if {match[1] for match in weights if match} == {"1", "6"}:
        for there, here in ((".conv_block.6.", ".conv_block.5."), (".conv_block.7.", ".conv_block.6.")):
            found = {key.replace(there, here): value for key, value in found.items()}
    return found


def load_cut_weights(generator: nn.Module, state_dict: Mapping[str, Tensor]) -> LoadReport:
    """Load weights in the layout of CUT and CycleGAN into a generator, in place, all of them or none.

    The prefix of a wrapper (``module.``) is removed; buffers that instance norm had in old versions of torch are left
    out; fixed blur filters that are not in the file are filled in, as they are constants. CUT's networks without a norm
    have convolutions without biases: ours get biases of 0.

    Args:
        generator: built with the arguments that the file was trained with, see :func:`recognise`.
        state_dict: tensors by name.

    Raises:
        UserError: some weights do not fit. Each such key is listed with its shape; nothing was loaded.
    """
    given, own = normalise_keys(state_dict), generator.state_dict()
    norms = {name for name, m in generator.named_modules() if isinstance(m, nn.InstanceNorm2d)}
    old = {f"{norm}.{buffer}" for norm in norms for buffer in _OLD_BUFFERS}
    left_out = [key for key in given if key in old - own.keys()]
    unbiased = _unbiased(generator, given)
    filled_in = sorted((_optional(own) | unbiased) - set(given))
    given = {key: value for key, value in given.items() if key not in left_out}

    problems = misfits(own, given, filled_in)
    for key in own.keys() & given.keys() if not any(tensor.is_meta for tensor in own.values()) else ():
        fixed = key.endswith(".filt") and given[key].shape == own[key].shape
        if fixed and not torch.allclose(given[key].to(own[key]), own[key], rtol=0, atol=1e-3):
            problems.append(f"{key}: {show_shape(given[key])}, not the generator's blur filter")
    if problems:
        hint = ""
        with contextlib.suppress(UserError):
            name, arguments = recognise(state_dict)
            hint = f" (they look like {name} with {', '.join(f'{k}={v!r}' for k, v in arguments.items())})"
        raise UserError("\n  ".join([f"{len(problems)} of the weights do not fit this generator{hint}:", *problems]))
    constants = {key: torch.zeros_like(own[key]) if key in unbiased else own[key] for key in filled_in}
    # A generator without values (on the meta device) cannot be written to: it is only checked.
    generator.load_state_dict({**given, **constants}, assign=any(tensor.is_meta for tensor in own.values()))
    return LoadReport(len(given), left_out, filled_in)


def _unbiased(generator: nn.Module, given: Mapping[str, Tensor]) -> set[str]:
    """Return the biases that a file lacks because its network, which has no norm, was built without biases."""
    if any(isinstance(m, (nn.InstanceNorm2d, nn.BatchNorm2d)) for m in generator.modules()):
        return set()
    convolutions = [name for name, m in generator.named_modules() if isinstance(m, (nn.Conv2d, nn.ConvTranspose2d))]
    lacking = {f"{name}.bias" for name in convolutions if f"{name}.weight" in given and f"{name}.bias" not in given}
    return lacking & generator.state_dict().keys()


def _optional(own: Iterable[str]) -> set[str]:
    """Return the keys that a file may lack: constants, and counters that old versions of torch did not save."""
    return {key for key in own if key.endswith((".filt", ".num_batches_tracked"))}


def recognise(state_dict: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    """Return the name and the arguments of the generator that weights belong to.

    They follow from keys and shapes: blocks or levels, width, norm, channels, antialiasing of a ResNet's resampling.

    Raises:
        UserError: neither CUT's or CycleGAN's ResNet with 9, 6 or 4 blocks, nor their U-Net for images of 256, 128 or
            64 pixels.
    """
    given = normalise_keys(state_dict)
    return _recognise_unet(given) if "model.model.0.weight" in given else _recognise_resnet(given)


def _recognise_resnet(given: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    blocks = sorted({int(m[1]) for key in given if (m := re.match(r"model\.(\d+)\.conv_block\.", key))})
    convs = sorted(
        (int(m[1]), value)
        for key, value in given.items()
        if (m := re.fullmatch(r"model\.(\d+)\.weight", key)) and value.dim() == 4
    )
    if len(blocks) not in (9, 6, 4) or len(convs) != 6 or convs[0][0] != 1:
        raise UserError(
            f"not a generator of CUT or CycleGAN (ResNet with 9, 6 or 4 blocks, U-Net for 256, 128 or 64 pixels): "
            f"{len(blocks)} residual blocks and {len(convs)} other convolutions among {len(given)} tensors, the first "
            f"of them {next(iter(given))}"
        )
    stem, last = convs[0][1], convs[-1][1]
    # With a blur after each, the two downsampling convolutions lie four layers apart, else three. When upsampling, the
    # blur precedes the convolution; a transposed convolution does both.
    arguments: dict[str, Any] = {
        "width": stem.shape[0],
        "antialias": convs[2][0] - convs[1][0] == 4,
        "antialias_up": convs[4][0] - convs[3][0] == 4,
        "in_channels": stem.shape[1],
        "out_channels": last.shape[0],
    }
    if f"model.{convs[0][0] + 1}.weight" in given:  # instance norm has no weights
        arguments["norm"] = "batch"
    elif f"model.{convs[0][0]}.bias" not in given:  # these convolutions have biases with instance norm only
        arguments["norm"] = "none"
    return f"resnet_{len(blocks)}blocks", arguments


def _recognise_unet(given: Mapping[str, Tensor]) -> tuple[str, dict[str, Any]]:
    convs = [key for key, value in given.items() if key.endswith(".weight") and value.dim() == 4]
    sides = {16: 256, 14: 128, 12: 64}  # by convolutions: one down and one up per level
    outer = given.get("model.model.3.weight")
    if len(convs) not in sides or outer is None or outer.dim() != 4:
        raise UserError(
            f"not a U-Net of CycleGAN or pix2pix for 256, 128 or 64 pixels: {len(convs)} convolutions among "
            f"{len(given)} tensors"
        )
    first = given["model.model.0.weight"]
    arguments: dict[str, Any] = {"width": first.shape[0], "in_channels": first.shape[1], "out_channels": outer.shape[1]}
    inner = "model.model.1.model."  # a convolution and its norm; the convolution has a bias with instance norm only
    if f"{inner}2.weight" in given:
        arguments["norm"] = "batch"
    elif f"{inner}1.bias" not in given:
        arguments["norm"] = "none"
    return f"unet_{sides[len(convs)]}", arguments


def matches(generator: nn.Module, state_dict: Mapping[str, Tensor]) -> bool:
    """Return whether a state_dict has every tensor of a generator, in its shape; it may have others."""
    given, own = normalise_keys(state_dict), generator.state_dict()
    needed = set(own) - _optional(own)
    return all(key in given and given[key].shape == own[key].shape for key in needed)


def find_state_dicts(content: Any, wanted: Callable[[dict[str, Tensor]], bool], name: str = "") -> dict[str, Any]:
    """Return the state_dicts inside a checkpoint that are ``wanted``, by their dotted path in it.

    A state_dict may be the whole content (its path is ""), lie below a key (``netG``, ``state_dict``, ...), or share
    one mapping with others, distinguished by the prefix of their keys (``state_dict.netG``). ``name`` is the path of
    ``content`` itself.
    """
    if not isinstance(content, Mapping):
        return {}
    found: dict[str, Any] = {}
    tensors = {k: v for k, v in content.items() if isinstance(k, str) and isinstance(v, Tensor)}
    if tensors and wanted(tensors):
        found[name] = tensors
    else:
        groups: dict[str, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            head, dot, rest = key.partition(".")
            if dot:
                groups.setdefault(head, {})[rest] = value
        for head, group in groups.items():
            found |= find_state_dicts(group, wanted, f"{name}.{head}".lstrip("."))
    for key, value in content.items():
        if isinstance(value, Mapping):
            found |= find_state_dicts(value, wanted, f"{name}.{key}".lstrip("."))
    return found
