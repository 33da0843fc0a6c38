"""The one reader of weights that other projects wrote, and the one comparison of tensors with those of a network.

No code in a file is run. What is no plain tensor (sparse, quantised, complex, without values, larger than its memory)
and what never ends is refused, before anything is computed with it.
"""

from __future__ import annotations

import pickle
import re
import warnings
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import DamagedFile
from qsattn_plugin.storage.content import containers, pretence

#: The number formats of weights; integers are for counters and indices.
_FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


def read_weights(path: Path, saved: bool = False) -> Any:
    """Return what a file of weights holds, on the CPU: safetensors, or tensors and containers saved by ``torch.save``.

    ``saved`` takes the latter alone: for a file that a library will then unpickle, which may be both at once.

    Raises:
        DamagedFile: it is damaged, no such file at all (a web page, a Git LFS pointer), or holds anything else.
        UserError: there is no such file, or reading it is not permitted.
    """
    if not path.is_file():
        raise UserError(f"there is no file {path}")
    try:
        if what := pretence(path):
            raise DamagedFile(f"{path} {what}")
        content = _read(path, saved)
        if isinstance(content, torch.jit.ScriptModule):
            raise RuntimeError("a TorchScript program")  # as newer PyTorch does
    except PermissionError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except UserError:
        raise
    except Exception as error:  # whatever readers make of a damaged file
        text = str(error)
        if "TorchScript" in text:
            what = f"{path} is a TorchScript program, not weights"
            raise DamagedFile(f"{what}; import the checkpoint that it was made from") from error
        found = re.search(r"GLOBAL ([\w.]+)|(?:class|type|Type) <?(?:class )?'?([\w.]+)'? was not", text)
        if isinstance(error, pickle.UnpicklingError) and found:
            raise DamagedFile(
                f"{path} holds more than tensors ({found[1] or found[2]}), and reading that could run code: it was not "
                "read. If you trust it, let the project that wrote it save the weights alone: "
                "torch.save(netG.state_dict(), 'latest_net_G.pth')"
            ) from error
        raise DamagedFile(
            f"{path} is not a file of weights that torch.save or safetensors wrote, or it is damaged"
        ) from error
    every = containers(content)
    if every is None:
        raise DamagedFile(f"{path} is nested too deeply, without end, or too large")
    for one in every:
        for name, value in one.items() if isinstance(one, Mapping) else enumerate(one):
            if isinstance(value, Tensor) and (what := _odd(value)):
                raise DamagedFile(f"{path}: its tensor {name} {what}, not weights")
    return content


def _read(path: Path, saved: bool) -> Any:
    with open(path, "rb") as file:
        head = file.read(9)
    if head[8:] == b"{" and not saved:  # the header of safetensors, after its length
        from safetensors.torch import load_file

        return load_file(path)
    if head.startswith(b"PK"):
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
            script = any(member.filename.endswith("/constants.pkl") for member in members)  # torch tells of these
            if not script and any(member.compress_type != zipfile.ZIP_STORED for member in members):
                raise DamagedFile(f"{path} is compressed, as torch.save never does; is it an archive of files?")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's warnings to programmers
        return torch.load(path, map_location="cpu", weights_only=True)


def _odd(tensor: Tensor) -> str:
    """Return why a tensor is not a plain one, or an empty string."""
    if tensor.layout is not torch.strided or tensor.is_nested:
        return f"is sparse or nested ({str(tensor.layout).removeprefix('torch.')})"
    if tensor.is_quantized or tensor.is_complex():
        return f"holds {str(tensor.dtype).removeprefix('torch.')} numbers"
    if tensor.device.type != "cpu":
        return f"has no values (it is on the device {tensor.device})"
    if tensor.untyped_storage().nbytes() < tensor.numel() * tensor.element_size():
        return "claims more values than the file has (it is an expanded view)"
    return ""


def misfits(
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    optional: Collection[str] = (),
    owner: str = "the generator",
) -> list[str]:
    """Return a line for every tensor that is missing, has another shape, is no weight where one is needed, or too much.

    Args:
        own: the network's tensors by name; their values do not matter, and may be absent (on the meta device).
        given: those of a file.
        optional: names that may be missing.
        owner: what the network is called in the lines.
    """
    problems = []
    for key in [*own, *(key for key in given if key not in own)]:
        if key not in given:
            problems += [] if key in optional else [f"{key}: missing, {owner} has {show_shape(own[key])}"]
        elif key not in own:
            problems.append(f"{key}: {show_shape(given[key])}, {owner} has no such layer")
        elif given[key].shape != own[key].shape:
            problems.append(f"{key}: {show_shape(given[key])}, {owner} has {show_shape(own[key])}")
        elif _kind(given[key]) != _kind(own[key]):
            theirs, mine = (str(tensor.dtype).removeprefix("torch.") for tensor in (given[key], own[key]))
            problems.append(f"{key}: {theirs} numbers, {owner} has {mine}")
    return problems


def _kind(tensor: Tensor) -> str:
    """Return what a tensor's numbers are for: weights in any precision, counters and indices, or anything else."""
    if tensor.dtype in _FLOATS:
        return "weights"
    return "integers" if tensor.dtype in (torch.int64, torch.int32) else str(tensor.dtype)


def in_a_line(problems: list[str]) -> str:
    """Return the first lines of :func:`misfits` as one."""
    more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
    return "; ".join(problems[:3]) + more


def show_shape(tensor: Tensor) -> str:
    """Return a tensor's shape for people: 4 x 3 x 7 x 7."""
    return " x ".join(map(str, tensor.shape)) or "scalar"
