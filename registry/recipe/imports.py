"""Import the Python files and modules that register the parts of a recipe."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

from qsattn_plugin.errors import describe_error
from qsattn_plugin.registry.recipe.checking import check
from qsattn_plugin.registry.recipe.reading import Layer, follow, read_recipe, shown
from qsattn_plugin.registry.yaml_lines import Place, Problem, RecipeError

__all__ = ["import_file", "import_named", "import_parts"]


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
    places = [node.value[i].place for i in range(len(names))]
    return [_import(n, layer.directory, place) for n, place in zip(names, places, strict=True)]


def import_named(names: Sequence[str]) -> list[str]:
    """Import files and modules that register parts, and what recipes (``.yaml``) among them import.

    Returns:
        Module names and absolute paths.

    Raises:
        RecipeError: as :func:`import_parts`.
    """
    done: list[str] = []
    for name in names:
        if name.endswith((".yaml", ".yml")):
            done += [file for layer in follow(read_recipe(name)) for file in import_parts(layer)]
        else:
            done.append(_import(name, Path.cwd(), Place(f"--import {name}")))
    return done


def _import(name: str, directory: Path, place: Place) -> str:
    """Import a file, or a module if there is no such file; return its absolute path or name."""
    at = Problem(place, "import", "")
    is_path = name.endswith(".py") or "/" in name
    file = directory / Path(os.path.expanduser(name if is_path else f"{name}.py"))
    if is_path and not file.is_file():
        raise RecipeError(at._replace(text=f"{shown(file)} does not exist"))
    try:
        if file.is_file():
            name = os.path.abspath(file)
            import_file(Path(name))
        else:
            importlib.import_module(name)
    except (Exception, SystemExit) as error:
        what = describe_error(error)
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            what = f"there is no file {shown(file)} and no module {name!r}"
        raise RecipeError(at._replace(text=f"{name}: {what}" if name not in what else what)) from error
    return name


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
