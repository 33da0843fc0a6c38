"""Parts as a file describes them, checked before anything is allocated for them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from qsattn_plugin.registry import PartError, create, find

__all__ = ["blueprint"]


def blueprint(kind: str, name: str, arguments: Mapping[str, Any]) -> nn.Module | None:
    """Return a part without values, on the meta device, whose state_dict has the shapes that a file must hold.

    The arguments, which a file gives, are checked against the types of the part's signature first. None for a part that
    is not this package's: its code was imported by the user, and may not run without values.

    Raises:
        PartError: there is no such part, or it cannot be built with these arguments.
    """
    part = find(kind, name)
    part.check_values(arguments)
    if part.origin[0].partition(".")[0] != __name__.partition(".")[0]:
        return None
    try:
        with torch.device("meta"):
            return create(kind, name, **arguments)
    except PartError:
        raise
    except (ValueError, RuntimeError, ArithmeticError, TypeError) as error:
        text = str(error).partition("\n")[0]
        raise PartError(f"{kind} {name!r}: {text}") from error
