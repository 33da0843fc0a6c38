"""Run a fork's script as ``python train.py ...`` does, with a registered sampler in place of its own.

An import hook overrides the fork's sampler class as soon as the script has imported the module that defines it. The
script's order of imports, its options and its working folder stay unchanged; torch is imported before it begins.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.util
import os
import re
import runpy
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from torch.optim.optimizer import register_optimizer_step_post_hook

from qsattn_plugin.attention.routes import by
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.forks import CLASS_PREFIX, Swap, sampler_classes, take_over
from qsattn_plugin.forks.swap import ForkWarning

__all__ = ["SamplerImportHook", "run_script", "summarise"]

#: Steps of its optimizers after which a training has made its networks.
FIRST_STEPS = 20


class SamplerImportHook(importlib.abc.MetaPathFinder):
    """An import hook that takes over a fork's sampler classes, each when its module has been imported.

    Args:
        instead: Answers their calls, see :func:`qsattn_plugin.forks.take_over`.
        folder: The fork's folder. Modules in it and below are searched for classes.
        module: The only module to search; it may lie elsewhere.
        kind: Name of the class; without it, every class whose name begins with "PatchSample" and that has the call
            interface of CUT's.
        tell: Called with the full name of each class that was taken over, when it is called for the first time.

    Attributes:
        taken_over: The classes, as "models.networks.PatchSampleF".
        called: Those of them that have been called.
        others: Classes with the call interface of CUT's sampler and another name.

    Raises:
        UserError: there is no module ``module``, or no file of the fork names ``kind``.
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
        self.taken_over: list[str] = []
        self.called: list[str] = []
        self.others: list[str] = []
        if module is not None:
            self._check_module(module)
        elif kind is not None:
            self._check_class(kind)

    def _check_module(self, module: str) -> None:
        """Raise UserError if the module exists neither in the fork's folder nor as an installed package."""
        names: set[str] = set()
        for path in self.folder.glob("**/*.py"):
            parts, root = path.relative_to(self.folder).with_suffix("").parts, self.folder
            for index, part in enumerate(parts):
                # A script may put any folder that is no package on the path that modules are imported from.
                if index == 0 or not (root / "__init__.py").exists():
                    names.add(".".join(parts[index:]).removesuffix(".__init__"))
                root /= part
        known = sorted(names)
        if module not in known and not (self.folder / module.split(".")[0]).exists():
            try:
                found = importlib.util.find_spec(module.split(".")[0])
            except (ImportError, ValueError):
                found = None
            if found is not None:
                return  # an installed package
        if module not in known:
            raise UserError(f"there is no module {module!r} in {self.folder}{nearest(module, known)}")

    def _check_class(self, kind: str) -> None:
        """Raise UserError if no file in the fork's folder has the class's name in it."""
        known: set[str] = set()
        for path in self.folder.glob("**/*.py"):
            if "site-packages" not in path.parts and path.is_file():  # an editor may leave links that lead nowhere
                text = path.read_text(encoding="utf-8", errors="replace")
                if re.search(rf"\b{re.escape(kind)}\b", text):
                    return
                known |= set(re.findall(r"^class +(\w+)", text, re.M))
        raise UserError(f"no file in {self.folder} has a class {kind!r}{nearest(kind, known)}")

    def find_spec(self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> Any:
        """Return the spec that the other finders give; after its execution the module is searched for classes."""
        for finder in sys.meta_path:
            other = getattr(finder, "find_spec", None)
            spec = None if finder is self or other is None else other(name, path, target)
            if spec is not None:
                break
        else:
            return None
        if self._wanted(name, spec.origin) and hasattr(spec.loader, "exec_module"):
            execute = spec.loader.exec_module

            def execute_and_search(module: ModuleType) -> None:
                execute(module)
                self.take_over_classes(module)

            spec.loader.exec_module = execute_and_search
        return spec

    def _wanted(self, name: str, origin: str | None) -> bool:
        if self.module is not None:
            return name == self.module
        if not origin or not os.path.isabs(origin):
            return False
        inside = os.path.relpath(os.path.realpath(origin), self.folder).split(os.sep)
        return inside[0] != ".." and "site-packages" not in inside

    def take_over_classes(self, module: ModuleType) -> None:
        """Take over the sampler classes of a module.

        Raises:
            UserError: the named module has no class of the given name, or the class does not have the call interface of
                CUT's sampler.
        """
        classes = {
            n: v for n, v in vars(module).items() if isinstance(v, type) and not v.__module__.startswith("torch")
        }
        if self.module is not None and self.kind is not None and self.kind not in classes:
            raise UserError(f"module {self.module} has no class {self.kind!r}{nearest(self.kind, classes)}")
        like = sampler_classes(module)
        if self.kind is None:
            meant: dict[str, type] = {n: v for n, v in like.items() if n.startswith(CLASS_PREFIX)}
        else:
            here = {n: v for n, v in classes.items() if self.module is not None or v.__module__ == module.__name__}
            meant = {n: v for n, v in here.items() if n == self.kind}
        self.others += [f"{module.__name__}.{name}" for name in like if name not in meant]
        for name, value in meant.items():
            full = f"{module.__name__}.{name}"
            if full not in self.taken_over:
                take_over(value, functools.partial(self._answer, full))
                self.taken_over.append(full)

    def _answer(self, name: str, module: Any, call: Any) -> tuple:
        if name not in self.called:
            self.called.append(name)
            self.tell(name)
        return self.instead(module, call)

    def failure(self) -> UserError:
        """Return the error that the sampler was never called, with the known reason."""
        why = f"no class {self.kind or f'{CLASS_PREFIX}...'} of {self.module or self.folder} was imported"
        if self.taken_over:
            why = f"{', '.join(self.taken_over)} was taken over, but never called to choose positions"
        others = f"; also called as CUT's sampler is: {', '.join(self.others)}" if self.others else ""
        what = (
            "If another class samples, name it with --module and --class; one that the script itself defines is "
            "swapped there, by qsattn_plugin.swap_sampler"
        )
        return UserError(f"the fork's sampler was not swapped: {why}{others}. {what}")


def run_script(script: Path, arguments: Sequence[str], hook: SamplerImportHook) -> None:
    """Run a script as ``python script arguments...`` does. Its exceptions are passed on.

    A training that begins without a call of the classes that were taken over gets a warning.

    Args:
        script: The file.
        arguments: The arguments of the script.
        hook: Takes the classes over.

    Raises:
        UserError: the training has begun, and no class was taken over.
    """
    sys.argv = [str(script), *arguments]
    if not getattr(sys.flags, "safe_path", False):  # the entry of the folder of the running program
        del sys.path[0]
    sys.path.insert(0, str(script.parent))
    sys.meta_path.insert(0, hook)
    steps = 0

    def has_begun(*_: Any) -> None:
        """Raise in the first steps of a training, not at its end, if nothing was taken over."""
        nonlocal steps
        steps += 1
        if steps == FIRST_STEPS and not hook.taken_over:
            raise hook.failure()
        if steps == FIRST_STEPS and not hook.called:
            warnings.warn(
                f"{', '.join(hook.taken_over)} was not called in the first {FIRST_STEPS} steps. If another class "
                "samples in this training, the swap has no effect: stop it, and name the class by --module and --class",
                ForkWarning,
                stacklevel=2,
            )

    after_steps = register_optimizer_step_post_hook(has_begun)
    try:
        runpy.run_path(str(script), run_name="__main__")
    finally:
        after_steps.remove()
        sys.meta_path.remove(hook)


def summarise(swap: Swap, hook: SamplerImportHook) -> str:
    """Return a sentence about what the sampler did in the fork.

    Raises:
        UserError: it was never called.
    """
    counts = swap.counts
    if not counts["chosen"]:
        raise hook.failure()
    sides: dict[bool, list[str]] = {True: [], False: []}
    for (_, *sizes), chosen in swap.layers:
        sides[chosen].append(by(sizes))
    where = f" on maps of {', '.join(sides[True])}" if sides[True] else ""
    rest = f" (at random on {', '.join(sides[False])})" if sides[False] else ""
    lost = f" ({counts['lost']} maps without a route)" if counts["lost"] else ""
    given = f"was given them {counts['given']} times{lost}"
    return f"{swap.name} chose positions {counts['chosen']} times{where}{rest}, and {given}"
