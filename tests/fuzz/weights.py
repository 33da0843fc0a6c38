"""Weights: this package's files and those of torch.save, with odd documents, odd tensors and damaged bytes."""

from __future__ import annotations

import copy
import functools
import random
from pathlib import Path
from typing import Any

import torch

from qsattn_plugin.registry import create
from qsattn_plugin.registry.timm_features import _read
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.translation.importing import import_weights
from qsattn_plugin.translation.load import load
from tests.fuzz import Case, damage, meddle, odd


@functools.cache
def _base() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    arguments = {
        "width": 2,
        "norm": "instance",
        "antialias": True,
        "in_channels": 3,
        "out_channels": 3,
        "init_gain": 0.02,
    }
    spec = {"type": "resnet_4blocks", "arguments": arguments, "channels": 3, "prefix": "g.", "trained": 64}
    recipe = {"name": "x", "data": {"crop": 64, "resize": 70, "preprocess": "none"}, "encoder": {"type": "generator"}}
    document = {"kind": "weights", "generators": {"forward": spec}, "recipe": recipe, "step": 3, "torch": "2"}
    return create("generator", "resnet_4blocks", width=2).state_dict(), document


def _strange(draw: random.Random, tensor: torch.Tensor) -> Any:
    flat = tensor.reshape(-1)[:4].float()
    return draw.choice(
        (
            lambda: tensor.flatten(),
            lambda: tensor.to(draw.choice((torch.int8, torch.bool, torch.int64, torch.float64, torch.complex64))),
            lambda: torch.zeros(1).expand(10**6, 10**6),
            lambda: tensor.float().to_sparse(),
            lambda: tensor.to("meta"),
            lambda: torch.quantize_per_tensor(flat, 0.1, 0, torch.qint8),
            lambda: torch.zeros(0),
            lambda: torch.full_like(tensor, float("nan")),
            lambda: odd(draw),
        )
    )()


def make(draw: random.Random, folder: Path) -> Case:
    tensors, document = copy.deepcopy(_base())
    if draw.random() < 0.4:
        return _foreign(draw, folder, dict(tensors))
    path = folder / "own.safetensors"
    named = {f"g.{name}": tensor for name, tensor in tensors.items()}
    if draw.random() < 0.3:
        name = draw.choice(list(named))
        value = _strange(draw, named.pop(name)) if draw.random() < 0.8 else None
        if isinstance(value, torch.Tensor) and value.layout is torch.strided and value.numel() < 10**6 and value.is_cpu:
            named[name] = value
    if draw.random() < 0.7:
        meddle(draw, document)
    if draw.random() < 0.1:
        document["generators"]["forward"]["arguments"][draw.choice(("width", "in_channels"))] = draw.choice(
            (10**6, 2**62)
        )
    save_tensors(path, named, document if draw.random() < 0.95 else odd(draw))
    if draw.random() < 0.3:
        path.write_bytes(damage(draw, path.read_bytes()))
    return lambda: load(path)


def _foreign(draw: random.Random, folder: Path, tensors: dict[str, Any]) -> Case:
    path, out = folder / "theirs.pth", folder / "out.safetensors"
    for name in draw.sample(list(tensors), draw.choice((0, 1, 1, 2))):
        tensors[name] = _strange(draw, tensors[name])
    content: Any = {"state_dict": tensors, "epoch": odd(draw)} if draw.random() < 0.3 else tensors
    if draw.random() < 0.1:
        content["itself"] = content
    torch.save(content, path, _use_new_zipfile_serialization=draw.random() < 0.8)
    if draw.random() < 0.4:
        path.write_bytes(damage(draw, path.read_bytes()))
    if draw.random() < 0.3:
        return lambda: _read(path)
    return lambda: import_weights(path, out, overwrite=True)
