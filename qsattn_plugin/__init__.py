"""QS-Attn for unpaired image-to-image translation: query-selected attention as a plug-in for CUT and CycleGAN.

Importing the package costs nothing: each name below imports what it needs when it is first touched (PEP 562).
"""

from __future__ import annotations

import importlib
import os

__version__ = "0.1.0"

# In a bare checkout (what torch.hub downloads) `registry/` and `cli/` lie beside this folder, not below it, where the
# installed package has them. Looking one folder up as well gives both the same names (`qsattn_plugin.registry`, ...).
if not os.path.isdir(os.path.join(__path__[0], "registry")):
    __path__.append(os.path.dirname(__path__[0]))

#: Public name -> the module that holds it.
_LAZY = {
    "UserError": "qsattn_plugin.errors",
    "PatchSampler": "qsattn_plugin.forks",
    "load": "qsattn_plugin.translation.load",
    "swap_sampler": "qsattn_plugin.forks",
}

__all__ = ["__version__", *_LAZY]


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
