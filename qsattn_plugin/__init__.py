"""QS-Attn for unpaired image-to-image translation: query-selected attention as a plug-in for CUT and CycleGAN.

Importing the package costs nothing: each name below imports what it needs when it is first touched (PEP 562).
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__version__ = "0.1.0"

# In a bare checkout (what torch.hub downloads) `registry/` and `cli/` lie beside this folder, not below it, where the
# installed package has them. Looking one folder up as well gives both the same names (`qsattn_plugin.registry`, ...).
if not os.path.isdir(os.path.join(__path__[0], "registry")):
    __path__.append(os.path.dirname(__path__[0]))

#: Public name -> the module that holds it.
_LAZY = {
    "UserError": "qsattn_plugin.errors",
    "PatchSampler": "qsattn_plugin.forks",
    "QSAttnSampler": "qsattn_plugin.samplers",
    "Training": "qsattn_plugin.training.python",
    "build": "qsattn_plugin.training.python",
    "entropy_maps": "qsattn_plugin.evaluation.mapping",
    "list_models": "qsattn_plugin.registry.pretrained",
    "load": "qsattn_plugin.translation.load",
    "swap_sampler": "qsattn_plugin.forks",
    "swapped": "qsattn_plugin.forks",
}

#: A module's name in earlier versions, where README or docs named it -> its name now.
_MOVED = {
    "qsattn_plugin.point_samplers": "qsattn_plugin.samplers.points",
    "qsattn_plugin.routes": "qsattn_plugin.attention.routes",
    "qsattn_plugin.training.method": "qsattn_plugin.training.methods.base",
}

__all__ = ["__version__", *_LAZY]


class _Moved:
    """An import hook: a module's earlier name gives the module, with a warning."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in _MOVED:
            return None
        warnings.warn(f"{name} is now {_MOVED[name]}; the old name will go", DeprecationWarning, stacklevel=2)
        # The type asked for has `load_module`, which loaders no longer need.
        return importlib.util.spec_from_loader(name, _Moved)  # type: ignore[arg-type]

    @staticmethod
    def create_module(spec: ModuleSpec) -> ModuleType:
        module = importlib.import_module(_MOVED[spec.name])
        spec.loader_state = module.__spec__
        return module

    @staticmethod
    def exec_module(module: ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__ = module.__spec__.loader_state  # it keeps its own: the import system has just set the other


if _Moved not in sys.meta_path:
    sys.meta_path.append(_Moved)


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
