"""Performance settings: memory format and compiled networks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch import nn

from qsattn_plugin.errors import UserError

#: Device type -> whether channels_last is the default; only where it was measured to be faster
#: (docs/measured/train-step.md).
CHANNELS_LAST = {"cpu": False}


def memory_format(channels_last: bool | None, device: torch.device) -> torch.memory_format:
    """Return the memory format of images and weights; ``None`` selects the device's default."""
    if channels_last is None:
        channels_last = CHANNELS_LAST.get(device.type, False)
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each network separately and in place; parameters and their names do not change.

    Raises:
        UserError: PyTorch is older than what compiled networks were tried with, or there is no C++ compiler, which
            torch.compile needs on a CPU.
    """
    if tuple(map(int, torch.__version__.split(".")[:2])) < (2, 11):
        raise UserError(
            f"train.compile: PyTorch {torch.__version__} is too old: compiled networks had wrong gradients with 2.4; "
            "install 2.11 or newer, or leave train.compile off"
        )
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile: torch.compile needs a C++ compiler on the CPU, and there is no {compiler} here; "
            f"install one, name one in the environment variable CXX, or leave train.compile off"
        )
    for network in networks:
        # Static shapes are faster, and all training crops have one size.
        network.compile(dynamic=False)
