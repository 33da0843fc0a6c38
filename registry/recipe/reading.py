"""Find and read recipe files, and follow ``extends``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

from qsattn_plugin.errors import nearest
from qsattn_plugin.registry.recipe.schema import DEFAULTS, LISTS, PARTS
from qsattn_plugin.registry.yaml_lines import Node, Place, Problem, RecipeError, parse

__all__ = ["Layer", "find_recipe", "follow", "read_file", "read_text", "shipped_recipes", "shown", "write_out"]

#: Size limit of recipe files; weights and images are larger.
MOST_BYTES = 1_000_000


@dataclass(frozen=True)
class Layer:
    """The content of one file, and the directory that its relative paths start from."""

    tree: Node
    directory: Path


def shipped_recipes() -> dict[str, Path]:
    """Return the recipes of the package: name -> file."""
    return {path.stem: path for path in sorted((Path(__file__).parents[1] / "recipes").glob("*.yaml"))}


def find_recipe(source: str | Path, directory: Path | None = None, at: Problem | None = None) -> Path:
    """Return the file of a recipe: a path (to ``.yaml``, or with a directory), else a shipped name.

    Args:
        source: Path or name.
        directory: Base of a relative path.
        at: The place that names the recipe, for the error.

    Raises:
        RecipeError: there is no such file or shipped recipe.
    """
    at = at or Problem(Place(str(source)), "", "")
    text = str(source)
    if not (isinstance(source, Path) or Path(text).suffix in (".yaml", ".yml") or "/" in text or os.sep in text):
        shipped = shipped_recipes()
        if text not in shipped:
            known = f"(shipped: {', '.join(shipped) or 'none'}; a path ends in .yaml)"
            raise RecipeError(at._replace(text=f"there is no recipe {text!r}{nearest(text, shipped)} {known}"))
        return shipped[text]
    path = Path(os.path.expanduser(source))
    path = path if path.is_absolute() or directory is None else Path(os.path.normpath(directory / path))
    if not path.is_file():
        what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
        raise RecipeError(at._replace(text=f"{shown(path) if at.key else 'the file'} {what}"))
    return path


def shown(path: Path) -> str:
    """Return the path for messages: relative if it lies below the current directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_text(text: str, place: Place, directory: Path) -> Layer:
    """Return the layer of a recipe's text, with its shorthands expanded.

    Raises:
        RecipeError: not YAML, not a mapping, or a section of the wrong type.
    """
    tree = parse(text, place)
    if tree.value is None:
        raise RecipeError(Problem(place, "", "this recipe is empty"))
    if not isinstance(tree.value, dict):
        raise RecipeError(Problem(tree.place, "", f"a recipe consists of 'key: value' lines, got {tree}"))
    return Layer(write_out(replace(tree, place=Place(place.source, 1))), directory)


def read_file(path: Path) -> Layer:
    """Return the layer of a recipe's file.

    Raises:
        RecipeError: as :func:`read_text`, or the file cannot be read as text.
    """
    place = Place(shown(path))
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8-sig")
    except OSError as error:
        raise RecipeError(Problem(place, "", f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError:
        raise RecipeError(Problem(place, "", "this is not a text file, and so not a recipe")) from None
    if len(content) > MOST_BYTES:
        raise RecipeError(Problem(place, "", "this file is too large for a recipe"))
    return read_text(text, place, path.parent)


def follow(layer: Layer, path: Path | None = None) -> list[Layer]:
    """Return a layer and those of the recipes that it extends, the lowest first.

    Args:
        layer: The layer of the recipe itself.
        path: Its file, if it has one.

    Raises:
        RecipeError: a recipe cannot be read, or recipes extend each other in a circle.
    """
    chain, paths = [layer], [path] if path else []
    while above := chain[0].tree.get("extends"):
        at = Problem(above.place, "extends", "")
        if not isinstance(above.value, str):
            raise RecipeError(at._replace(text=f"must be one shipped name or path, got {above}"))
        path = find_recipe(above.value, chain[0].directory, at)
        if any(path.samefile(other) for other in paths):
            circle = " -> ".join(shown(p) for p in (*paths, path))
            raise RecipeError(at._replace(text=f"the recipes extend each other in a circle: {circle}"))
        paths.append(path)
        chain.insert(0, read_file(path))
    return chain


def write_out(tree: Node) -> Node:
    """Return the tree with ``generator: x`` written as ``generator: {type: x}``; sections must be mappings."""
    problems: list[Problem] = []

    def part(node: Node, key: str) -> Node:
        if isinstance(node.value, dict):
            return node
        if isinstance(node.value, list) or node.value is None:
            problems.append(Problem(node.place, key, f"must be a part's name, or a mapping with 'type', got {node}"))
        name = node.value if isinstance(node.value, str) else node.text
        return Node({"type": Node(name, node.place, node.text)}, node.place)

    own = dict(tree.value)
    for key, node in tree.value.items():
        if key in LISTS:
            if isinstance(node.value, list):
                items = [part(item, f"{key}.{i}") for i, item in enumerate(node.value)]
                own[key] = replace(node, value=items)
            else:
                problems.append(Problem(node.place, key, f"must be a list of parts, got {node}"))
        elif key in PARTS:
            own[key] = part(node, key)
        elif isinstance(DEFAULTS.get(key), dict) and not isinstance(node.value, dict):
            problems.append(Problem(node.place, key, f"must be a mapping, got {node}"))
    if problems:
        raise RecipeError(*problems)
    return replace(tree, value=own)
