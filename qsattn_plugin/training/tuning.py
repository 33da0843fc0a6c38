"""Settings that make the same step faster on some machines: the layout of images in memory, and compiled networks."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterable

import torch
from torch import nn

from qsattn_plugin.errors import UserError

#: Device -> whether channels_last was measured to be faster there (docs/measured/train-step.md); off where nothing was measured.
CHANNELS_LAST = {"cpu": False}


def memory_format(channels_last: bool | None, device: torch.device) -> torch.memory_format:
    """Return the layout of images and weights; ``None`` takes the device's."""
    if channels_last is None:
        channels_last = CHANNELS_LAST.get(device.type, False)
    return torch.channels_last if channels_last else torch.contiguous_format


def compile_networks(networks: Iterable[nn.Module], device: torch.device) -> None:
    """Compile each network by itself, in place: its parameters, their names and what holds it stay as they are.

    Raises:
        UserError: the machine has no C++ compiler, which torch.compile calls on a CPU.
    """
    compiler = os.environ.get("CXX", "clang++" if sys.platform == "darwin" else "g++")
    if device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(
            f"train.compile: torch.compile needs a C++ compiler on the CPU, and there is no {compiler} here; "
            f"install one, name one in the environment variable CXX, or leave train.compile off"
        )
    for network in networks:
        # Kernels for one size of image: those for any size are slower, and training crops are all of one size.
        network.compile(dynamic=False)
