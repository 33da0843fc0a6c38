"""Which device to compute on."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor

from qsattn_plugin.errors import UserError


def pick_device(name: str = "auto") -> torch.device:
    """Return the named device, or the best that this machine has.

    Raises:
        UserError: the named device is not there.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:  # torch asserts where it was built without a backend
        raise UserError(f"device {name!r} cannot be used here ({str(error).splitlines()[0]})") from error
    return device


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """Return the tensor on the device; the host does not wait for what the device has still to do.

    To the CPU it does wait: the numbers could be read before they are there.
    """
    if tensor.device.type == "cpu" and device.type == "cuda":
        tensor = tensor.pin_memory()  # from pageable memory the copy may wait, whatever is asked of it
    return tensor.to(device, non_blocking=device.type != "cpu")


def out_of_memory(error: Exception) -> bool:
    """Tell whether an error says that memory was too small, the CPU's or a device's."""
    known = any(words in str(error) for words in ("DefaultCPUAllocator", "not enough memory", "out of memory"))
    return known or isinstance(error, (MemoryError, torch.OutOfMemoryError))


def no_autocast(device: str) -> contextlib.AbstractContextManager:
    """The context in which a kind of device computes in the numbers that it is given."""
    # The meta device has no autocast. (is_autocast_available would say so, but PyTorch 2.11 cannot compile it.)
    return contextlib.nullcontext() if device == "meta" else torch.autocast(device, enabled=False)
