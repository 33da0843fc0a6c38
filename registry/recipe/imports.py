"""Import the Python files and modules that register the parts of a recipe."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from qsattn_plugin.errors import describe_error
from qsattn_plugin.registry.recipe.checking import check
from qsattn_plugin.registry.recipe.reading import Layer, shown
from qsattn_plugin.registry.yaml_lines import Problem, RecipeError

__all__ = ["import_file", "import_parts"]


def import_parts(layer: Layer, run: bool = True) -> list[str]:
    """Import what a layer lists under ``import``; return the module names and absolute paths.

    Without ``run`` nothing is imported. A name is a file beside the recipe if there is one, else an installed module.

    Raises:
        RecipeError: there is no such file or module, or its import failed.
    """
    node = layer.tree.get("import")
    if node is None:
        return []
    problems: list[Problem] = []
    names = check(list[str], node, "import", problems)
    if problems:
        raise RecipeError(*problems)
    if not run:
        return names
    done = []
    for i, name in enumerate(names):
        at = Problem(node.value[i].place, "import", "")
        is_path = name.endswith(".py") or "/" in name
        file = layer.directory / Path(os.path.expanduser(name if is_path else f"{name}.py"))
        if is_path and not file.is_file():
            raise RecipeError(at._replace(text=f"{shown(file)} does not exist"))
        try:
            if file.is_file():
                name = os.path.abspath(file)
                import_file(Path(name))
            else:
                importlib.import_module(name)
        except Exception as error:
            what = describe_error(error)
            if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
                what = f"there is no file {shown(file)} and no module {name!r}"
            raise RecipeError(at._replace(text=f"{name}: {what}" if name not in what else what)) from error
        done.append(name)
    return done


def import_file(path: Path) -> ModuleType:
    """Import a file under a name that follows from its path, so that a second recipe finds the same classes."""
    content = path.read_bytes()
    name = f"recipe_parts_{path.stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
    known = sys.modules.get(name)
    if known and known.__dict__.get("__content__") == content:
        return known
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError("the name of a file of Python code ends in .py")
    module = importlib.util.module_from_spec(spec)
    module.__dict__["__content__"] = content
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module
