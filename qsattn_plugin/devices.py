"""Choose a device, and copy to it; errors and contexts of devices."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or for "auto" the best one of this machine.

    Raises:
        UserError: the named device cannot be used.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device).cpu()  # "meta" has no values
    except (RuntimeError, AssertionError, ImportError) as error:  # where torch was built without a backend
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device, without waiting for pending work of the device.

    Copies to the CPU do wait: otherwise values could be read before they have arrived.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # copies from pageable memory may block even if non_blocking is set
    return tensor.to(device, non_blocking=device.type != "cpu")


def out_of_memory(error: Exception) -> bool:
    """Return whether an error means that the memory of the CPU or of a device was too small."""
    known = any(words in str(error) for words in ("DefaultCPUAllocator", "not enough memory", "out of memory"))
    return known or isinstance(error, (MemoryError, torch.cuda.OutOfMemoryError))


def is_compiling() -> bool:
    """Return whether torch.compile is tracing this; False in PyTorch 2.1, which cannot compile this package."""
    return hasattr(torch.compiler, "is_compiling") and torch.compiler.is_compiling()


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """Return a context without autocast for a type of device."""
    return contextlib.nullcontext() if device in _WITHOUT_AUTOCAST else torch.autocast(device, enabled=False)


def _has_autocast(device: str) -> bool:
    try:
        torch.autocast(device, enabled=False)
    except RuntimeError:
        return False
    return True


# Known beforehand: torch.compile goes through no_autocast, and PyTorch 2.11 cannot compile is_autocast_available.
_WITHOUT_AUTOCAST = frozenset(device for device in ("meta", "mps") if not _has_autocast(device))
