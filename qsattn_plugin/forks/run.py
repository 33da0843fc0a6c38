"""Run a fork's own script with its sampler taken over, as ``python train.py ...`` would run it.

The class is taken over as soon as the module that defines it has been imported, by whom and when the script likes. So
the script's own order of imports, its options and its environment stay what they are.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import os
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.forks import Swap, looks_like_sampler, take_over
from qsattn_plugin.forks.swap import ForkWarning

__all__ = ["Binder", "account", "run_script"]

#: Without a name given, classes whose names begin so are taken over, where they are called as CUT's is.
USUAL = "PatchSample"

#: After so many steps of its optimizers a training has made its networks.
EARLY = 20


class Binder(importlib.abc.MetaPathFinder):
    """Takes a fork's sampler classes over, each when its module has been imported.

    Args:
        instead: Answers their calls, see :func:`qsattn_plugin.forks.take_over`.
        folder: The fork's. Modules in it are looked through.
        module: Only this module is looked through; it may lie elsewhere.
        kind: Name of the class; without it, every class whose name begins with "PatchSample" and that is called as
            CUT's is.
        tell: Called with the full name of each class that is taken over.

    Attributes:
        bound: The classes, as "models.networks.PatchSampleF".
        others: Classes that are called as CUT's sampler is, but have another name.
    """

    def __init__(
        self,
        instead: Callable,
        folder: Path,
        module: str | None = None,
        kind: str | None = None,
        tell: Callable[[str], None] = print,
    ):
        self.instead = instead
        self.folder = folder
        self.module = module
        self.kind = kind
        self.tell = tell
        self.bound: list[str] = []
        self.others: list[str] = []
        if module is not None:
            self._check_module(module)

    def _check_module(self, module: str) -> None:
        """Say at once when there is no such file, where that can be known."""
        known = [".".join(p.relative_to(self.folder).with_suffix("").parts) for p in self.folder.glob("**/*.py")]
        known = [name.removesuffix(".__init__") for name in known]
        if module not in known and not (self.folder / module.split(".")[0]).exists():
            try:
                found = importlib.util.find_spec(module.split(".")[0])
            except (ImportError, ValueError):
                found = None
            if found is not None:
                return  # of an installed package
        if module not in known:
            raise UserError(f"there is no module {module!r} in {self.folder}{nearest(module, known)}")

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Find a module as the other finders do, and have it looked through once it has run."""
        for finder in sys.meta_path:
            find = getattr(finder, "find_spec", None)
            spec = None if finder is self or find is None else find(name, path, target)
            if spec is not None:
                break
        else:
            return None
        if self._wanted(name, spec.origin) and hasattr(spec.loader, "exec_module"):
            run = spec.loader.exec_module

            def run_and_look(module: ModuleType) -> None:
                run(module)
                self.look_through(module)

            spec.loader.exec_module = run_and_look
        return spec

    def _wanted(self, name: str, origin: str | None) -> bool:
        if self.module is not None:
            return name == self.module
        if not origin or not os.path.isabs(origin):
            return False
        inside = os.path.relpath(os.path.realpath(origin), self.folder).split(os.sep)
        return inside[0] != ".." and "site-packages" not in inside

    def look_through(self, module: ModuleType) -> None:
        """Take over the classes of a module that are meant.

        Raises:
            UserError: the class was named and this is the module that was named, but it has no such class, or one that
                is not called as CUT's sampler is.
        """
        classes = {
            n: v for n, v in vars(module).items() if isinstance(v, type) and not v.__module__.startswith("torch")
        }
        if self.module is not None and self.kind is not None and self.kind not in classes:
            raise UserError(f"module {self.module} has no class {self.kind!r}{nearest(self.kind, classes)}")
        for name, value in classes.items():
            if self.kind is not None:
                meant = name == self.kind and (self.module is not None or value.__module__ == module.__name__)
            else:
                meant = name.startswith(USUAL) and value.__module__ == module.__name__ and looks_like_sampler(value)
            full = f"{module.__name__}.{name}"
            if meant and full not in self.bound:
                take_over(value, self.instead)
                self.bound.append(full)
                self.tell(full)
            elif not meant and value.__module__ == module.__name__ and looks_like_sampler(value):
                self.others.append(full)

    def failure(self) -> UserError:
        """Return the error that the sampler was never called, with what is known of the reason."""
        why = f"no class {self.kind or f'{USUAL}...'} of {self.module or self.folder} was imported"
        if self.bound:
            why = f"{', '.join(self.bound)} was taken over, but never called to choose positions"
        others = f"; called as CUT's sampler is, too: {', '.join(self.others)}" if self.others else ""
        what = "If it samples by another class, name it with --module and --class"
        return UserError(f"the fork's sampler was not swapped: {why}{others}. {what}")


def run_script(
    script: Path, arguments: Sequence[str], binder: Binder, called: Callable[[], bool] = lambda: True
) -> None:
    """Run a script as ``python script arguments...`` does in its own folder. What it raises comes out as it is.

    Args:
        script: The file.
        arguments: Its own.
        binder: Takes the classes over.
        called: Tells whether a class that was taken over has been called; a training that has begun without is warned.

    Raises:
        UserError: the training has begun, and no class was taken over.
    """
    os.chdir(script.parent)
    sys.argv = [script.name, *arguments]
    if not sys.flags.safe_path:  # the place of the folder of the program that was started
        del sys.path[0]
    sys.path.insert(0, str(script.parent))
    sys.meta_path.insert(0, binder)
    steps = 0

    def has_begun(*_: Any) -> None:
        """Fail in the first steps of a training rather than at its end; a class may still be called later."""
        nonlocal steps
        steps += 1
        if steps == EARLY and not binder.bound:
            raise binder.failure()
        if steps == EARLY and not called():
            warnings.warn(
                f"{', '.join(binder.bound)} was not called in the first {EARLY} steps. If this training samples by "
                "another class, the swap does nothing: stop it, and name that class with --module and --class",
                ForkWarning,
                stacklevel=2,
            )

    hook = register_optimizer_step_post_hook(has_begun)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        hook.remove()
        sys.meta_path.remove(binder)


def account(swap: Swap, binder: Binder) -> str:
    """Return what the fork's sampler did, for people.

    Raises:
        UserError: it was never called.
    """
    counts = swap.counts
    if not counts["chosen"]:
        raise binder.failure()
    sides: dict[bool, list[str]] = {True: [], False: []}
    for (_, height, width), chosen in swap.layers:
        sides[chosen].append(f"{height} x {width}")
    where = f" on maps of {', '.join(sides[True])}" if sides[True] else ""
    rest = f" (at random on {', '.join(sides[False])})" if sides[False] else ""
    lost = f" ({counts['lost']} maps without a route)" if counts["lost"] else ""
    given = f"was given them {counts['given']} times{lost}"
    return f"{swap.name} chose positions {counts['chosen']} times{where}{rest}, and {given}"
