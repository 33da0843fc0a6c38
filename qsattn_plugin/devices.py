"""Which device to compute on."""

from __future__ import annotations

import torch

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
