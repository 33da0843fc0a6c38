"""Find and read recipe files, and follow ``extends``."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from qsattn_plugin.errors import nearest
from qsattn_plugin.registry.recipe.schema import DEFAULTS, LISTS, PARTS
from qsattn_plugin.registry.yaml_lines import Node, Place, Problem, RecipeError, parse, write

__all__ = ["Layer", "follow", "numbered", "read_recipe", "read_text", "shipped_recipes", "shown", "write_out"]

#: Size limit of recipe files; weights and images are larger.
MOST_BYTES = 1_000_000

_RECIPES = Path(__file__).parents[1] / "recipes"
_VARIANTS = _RECIPES.with_name("variants.yaml")


@dataclass(frozen=True)
class Layer:
    """The content of one recipe, the directory that its relative paths start from, its name, and its file if any."""

    tree: Node
    directory: Path
    name: str
    file: Path | None = None

    @property
    def identity(self) -> tuple[str, Path | None]:
        """Equal for the same recipe, by whatever path it was found: one file has many variants."""
        return self.name, self.file and self.file.resolve()


@cache
def _variants() -> dict[str, Node]:
    """Return the shipped recipes that differ from another one in a line or two: name -> recipe."""
    return parse(_VARIANTS.read_text(encoding="utf-8"), Place(str(_VARIANTS))).value


def shipped_recipes() -> dict[str, str]:
    """Return the recipes of the package: name -> a line about it. Variants of other recipes come last."""
    files = {path.stem: path.read_text(encoding="utf-8") for path in sorted(_RECIPES.glob("*.yaml"))}
    known = {name: text.partition("\n")[0].lstrip("# ") for name, text in files.items()}
    for name, node in _variants().items():
        different = node.to_plain()
        known[name] = f"{different.pop('extends')} with {write(different)[1:-1]}"
    return known


def read_recipe(source: str | Path, directory: Path | None = None, at: Problem | None = None) -> Layer:
    """Return the layer of a recipe: of a path (to ``.yaml``, or with a directory), else of a shipped name.

    A relative path starts from ``directory``; errors are about the place ``at`` that names the recipe.

    Raises:
        RecipeError: as :func:`read_text`, there is no such file or shipped recipe, or it cannot be read.
    """
    at = at or Problem(Place(str(source)), "", "")
    text = str(source)
    if not (isinstance(source, Path) or Path(text).suffix in (".yaml", ".yml") or "/" in text or os.sep in text):
        if text in _variants():
            return Layer(write_out(_variants()[text]), _RECIPES, text, _VARIANTS)
        shipped = shipped_recipes()
        if text not in shipped:
            known = f"(shipped: {', '.join(shipped)}; a path ends in .yaml)"
            raise RecipeError(at._replace(text=f"there is no recipe {text!r}{nearest(text, shipped)} {known}"))
        return _read_file(_RECIPES / f"{text}.yaml")
    path = Path(os.path.expanduser(source))
    path = path if path.is_absolute() or directory is None else Path(os.path.normpath(directory / path))
    if not path.is_file():
        what = "is a folder, not a recipe" if path.is_dir() else "does not exist"
        raise RecipeError(at._replace(text=f"{shown(path) if at.key else 'the file'} {what}"))
    return _read_file(path)


def shown(path: Path) -> str:
    """Return the path for messages: relative if it lies below the current directory."""
    try:
        return str(path.absolute().relative_to(Path.cwd()))
    except ValueError:
        return str(path)


def read_text(text: str, place: Place, directory: Path, name: str, file: Path | None = None) -> Layer:
    """Return the layer of a recipe's text, with its shorthands expanded; for the rest see :class:`Layer`.

    Raises:
        RecipeError: not YAML, not a mapping, or a section of the wrong type.
    """
    tree = parse(text, place)
    if tree.value is None:
        raise RecipeError(Problem(place, "", "this recipe is empty"))
    if not isinstance(tree.value, dict):
        raise RecipeError(Problem(tree.place, "", f"a recipe consists of 'key: value' lines, got {tree}"))
    return Layer(write_out(replace(tree, place=Place(place.source, 1))), directory, name, file)


def _read_file(path: Path) -> Layer:
    place = Place(shown(path))
    try:
        with path.open("rb") as file:
            content = file.read(MOST_BYTES + 1)
        text = content.decode("utf-8").removeprefix("\ufeff")
    except OSError as error:
        raise RecipeError(Problem(place, "", f"cannot be read: {error.strerror}")) from None
    except UnicodeDecodeError as error:
        raise RecipeError(_not_utf8(content, error.start, place)) from None
    if len(content) > MOST_BYTES:
        raise RecipeError(Problem(place, "", "this file is too large for a recipe"))
    return read_text(text, place, path.parent, path.stem, path)


def _not_utf8(content: bytes, start: int, place: Place) -> Problem:
    """Return what is wrong with a file whose byte at ``start`` is the first that is not UTF-8."""
    if content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return Problem(place, "", "this is text in UTF-16; save the file as UTF-8")
    if b"\0" in content or start == 0:
        return Problem(place, "", "this is not a text file, and so not a recipe")
    line = content.count(b"\n", 0, start) + 1
    what = f"byte 0x{content[start]:02X} at offset {start} is not UTF-8, but perhaps Latin-1 or GBK"
    return Problem(place._replace(line=line), "", f"{what}; save the file as UTF-8")


def follow(layer: Layer) -> list[Layer]:
    """Return a layer and those of the recipes that it extends, the lowest first.

    Raises:
        RecipeError: a recipe cannot be read, or recipes extend each other in a circle.
    """
    chain = [layer]
    while above := chain[0].tree.get("extends"):
        at = Problem(above.place, "extends", "")
        if not isinstance(above.value, str):
            raise RecipeError(at._replace(text=f"must be one shipped name or path, got {above}"))
        below = read_recipe(above.value, chain[0].directory, at)
        chain.insert(0, below)
        if below.identity in [other.identity for other in chain[1:]]:
            circle = " -> ".join(shown(each.file) for each in reversed(chain) if each.file)
            raise RecipeError(at._replace(text=f"the recipes extend each other in a circle: {circle}"))
    return chain


def numbered(node: Node) -> bool:
    """Return whether a node has items of a list by their numbers: ``{0: ...}``."""
    return isinstance(node.value, dict) and bool(node.value) and all(key.isdecimal() for key in node.value)


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
            elif numbered(node):
                own[key] = replace(node, value={i: part(item, f"{key}.{i}") for i, item in node.value.items()})
            else:
                problems.append(Problem(node.place, key, f"must be a list of parts, got {node}"))
        elif key in PARTS:
            own[key] = part(node, key)
        elif isinstance(DEFAULTS.get(key), dict) and not isinstance(node.value, dict):
            problems.append(Problem(node.place, key, f"must be a mapping, got {node}"))
    if problems:
        raise RecipeError(*problems)
    return replace(tree, value=own)
