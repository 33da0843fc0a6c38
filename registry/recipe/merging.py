"""Merge the layers of a recipe, the command line's overrides and the defaults into one mapping.

From the lowest: the schema's defaults, the method's defaults, the recipes that are extended, the recipe itself, the
overrides, which are one layer together. Mappings merge key by key; lists are replaced, or changed by a mapping of their
items' numbers. Arguments of a part do not apply to another part that replaces it: a different ``type`` drops the
arguments of lower layers (``data`` keeps the keys of its pipeline), and a different ``method`` drops their
``objective``. The length of the training is one value, in steps or in epochs, and the number of images goes with the
data that it counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from qsattn_plugin import registry
from qsattn_plugin.registry.recipe.checking import check, unknown_key
from qsattn_plugin.registry.recipe.reading import Layer, numbered, write_out
from qsattn_plugin.registry.recipe.schema import DEFAULTS, KEYS, PARTS, PIPELINE
from qsattn_plugin.registry.yaml_lines import Node, Place, Problem, RecipeError, from_plain, parse_assignment

__all__ = ["stack"]

#: Section -> the key that a text below it stands for: parts inside of parts may be given by their names alone.
_SHORT = {**dict.fromkeys(("objective", *PARTS), "type"), "evaluate": "model"}
del _SHORT["data"]  # its texts that may be mappings are no parts


def stack(layers: Sequence[Layer], overrides: Sequence[str] = ()) -> Node:
    """Return the merged layers (the lowest first), overrides and defaults, without ``extends`` and ``import``.

    Raises:
        RecipeError: the method is unknown, or an override is not valid.
    """
    options = [_read_override(text) for text in overrides]
    explicit: Node | None = None
    for layer in layers:
        own = {key: node for key, node in layer.tree.value.items() if key not in ("extends", "import")}
        if layer is not layers[-1]:
            own.pop("name", None)  # the name of the extended recipe is not that of this one
        tree = replace(layer.tree, value=own)
        explicit = tree if explicit is None else _over(explicit, tree)
    assert explicit is not None, "there is at least one layer"
    above = Node({}, explicit.place)
    for path, value in sorted(options, key=lambda option: option[0][0] != "data"):  # images: of the data that are named
        for key in reversed(path):
            value = Node({key: value}, value.place)
        above = _over(above, replace(write_out(value), place=explicit.place), same_layer=True)
    return _with_defaults(_over(explicit, above))


def _text_at(tree: Node, *path: str) -> str | None:
    """Return the value at a path as text, or None."""
    node: Node | None = tree
    for key in path:
        node = node and node.get(key)
    if node is None:
        return None
    return str(node.value) if node.text is None else node.text


def _exchanged(lower: Node, upper: Node, *path: str) -> bool:
    """Return whether both say a name, and not the same."""
    before, after = _text_at(lower, *path), _text_at(upper, *path)
    return None not in (before, after) and before != after


def _overlay(lower: Node, upper: Node, path: tuple[str, ...] = (), *, same_layer: bool = False) -> Node:
    """Return ``upper`` over ``lower``, key by key; below the sections, a part of another name replaces the whole.

    Arguments without a name are of the part that is named after them in the ``same_layer``; those of a lower layer are
    of the default.

    Raises:
        RecipeError: a list has no such item, or is changed as if it were one part.
    """
    if isinstance(lower.value, list) and numbered(upper):
        items = list(lower.value)
        for key, node in upper.value.items():
            if not lower.get(key):
                count = f"{len(items)} item" + "s" * (len(items) != 1)
                text = f"the list has {count}, numbered from 0; there is no {key!r}"
                raise RecipeError(Problem(node.place, ".".join((*path, key)), text))
            items[int(key)] = _overlay(items[int(key)], node, (*path, key), same_layer=same_layer)
        return replace(lower, value=items)
    short = _SHORT.get(path[0]) if len(path) > 1 else None
    if short and isinstance(lower.value, dict) != isinstance(upper.value, dict):
        lower, upper = (Node({short: n}, n.place) if isinstance(n.value, str) else n for n in (lower, upper))
    if short and isinstance(lower.value, list) and isinstance(upper.value, dict) and short not in upper.value:
        text = f"is a list: name an item by its number ({'.'.join(path)}.0), or give the whole with its {short}"
        raise RecipeError(Problem(upper.place, ".".join(path), text))
    if not (isinstance(lower.value, dict) and isinstance(upper.value, dict)):
        return upper
    if short and (_exchanged(lower, upper, short) or (not same_layer and short in upper.value.keys() - lower.value)):
        return upper
    both = dict(lower.value)
    for key, node in upper.value.items():
        both[key] = _overlay(both[key], node, (*path, key), same_layer=same_layer) if key in both else node
    return replace(upper, value=both)


def _without_exchanged(lower: Node, before: Node, after: Node) -> Node:
    """Return ``lower`` without the arguments of parts whose name, where it has one, differs between two states."""
    kept = dict(lower.value)
    for key, kind in PARTS.items():
        section = kept.get(key)
        if _exchanged(before, after, key, "type") and section and isinstance(section.value, dict):
            stays = PIPELINE if kind == "dataset" else ()
            kept[key] = replace(section, value={k: n for k, n in section.value.items() if k in stays})
    if _exchanged(before, after, "method"):
        kept["objective"] = Node({}, lower.place)
    return replace(lower, value=kept)


def _without_length(lower: Node, upper: Node) -> Node:
    """Return ``lower`` without the length of the training where ``upper`` gives it, or names other images."""
    train, data, above = lower.get("train"), upper.get("data"), upper.get("train")
    if train is None:
        return lower
    stale: set[str] = set()
    if above and above.value.keys() & {"steps", "epochs"}:
        stale |= {"steps", "epochs"}
    if data and data.value.keys() - {*PIPELINE}:
        stale |= {"images"}
    kept = {key: node for key, node in train.value.items() if key not in stale}
    return replace(lower, value={**lower.value, "train": replace(train, value=kept)})


def _over(lower: Node, upper: Node, *, same_layer: bool = False) -> Node:
    """Return an explicit layer over the lower ones; both may leave a part's type to the method's defaults."""
    before, after = lower, _overlay(lower, upper, same_layer=same_layer)
    if not same_layer:
        before, after = _with_defaults(before), _with_defaults(after)
    lower = _without_length(_without_exchanged(lower, before, after), upper)
    return _overlay(lower, upper, same_layer=same_layer)


def _with_defaults(explicit: Node) -> Node:
    """Return the explicit keys over the defaults of their method over those of the schema."""
    tree = from_plain(DEFAULTS, explicit.place)
    method = explicit.get("method") or tree.value["method"]
    problems: list[Problem] = []
    name = check(str, method, "method", problems)
    if problems:
        raise RecipeError(*problems)
    try:
        defaults = dict(registry.find("method", name).defaults)
    except registry.PartError as error:
        raise RecipeError(Problem(method.place, "method", str(error))) from None
    tree.value["method"] = method
    below = write_out(from_plain(defaults, Place(f"defaults of method {name!r}")))
    # Sections have the place of the recipe even if they hold only defaults: missing keys are reported there.
    sections = {key: replace(node, place=explicit.place) for key, node in below.value.items()}
    for upper in (replace(below, value=sections), explicit):
        both = _overlay(tree, upper)
        tree = replace(_overlay(_without_exchanged(tree, tree, both), upper), place=explicit.place)
    return tree


def _read_override(text: str) -> tuple[list[str], Node]:
    key, value = parse_assignment(text, "train.steps=100")
    path, place = key.split("."), value.place
    if path[0] in ("extends", "import"):
        raise RecipeError(Problem(place, path[0], "this key is only allowed in a recipe's file"))
    if path[0] not in KEYS:
        raise RecipeError(unknown_key(value, path[0], list(KEYS)[2:], "a recipe takes"))
    return path, value
