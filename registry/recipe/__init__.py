"""Recipes: YAML files that describe a training, checked while loading.

    recipe = load_recipe("horse2zebra", ["data.root=data/horses", "train.steps=1000"])
    generator = recipe.build("generator", in_channels=1, out_channels=1)

Mistakes are reported while loading, with file, line and key. The resolved recipe (:meth:`Recipe.to_yaml`) holds every
value and loads as the same recipe.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import qsattn_plugin
from qsattn_plugin import registry
from qsattn_plugin.errors import UserError, describe_error
from qsattn_plugin.registry.recipe.imports import import_named, import_parts
from qsattn_plugin.registry.recipe.merging import stack
from qsattn_plugin.registry.recipe.reading import Layer, follow, read_recipe, read_text, shipped_recipes, write_out
from qsattn_plugin.registry.recipe.schema import KEYS, PARTS, PIPELINE, Checkpoint, Data, Evaluate, PartSpec, Train
from qsattn_plugin.registry.recipe.sections import plain, read_sections, train_in_steps
from qsattn_plugin.registry.yaml_lines import Node, Place, Problem, RecipeError, from_plain, write

__all__ = ["PartSpec", "Recipe", "RecipeError", "load_recipe", "shipped_recipes"]


def load_recipe(source: str | Path, overrides: Sequence[str] = (), imports: Sequence[str] = ()) -> Recipe:
    """Return the checked recipe of a file, or of a shipped name such as ``toy``.

    Args:
        source: a path to a YAML file, or a shipped name.
        overrides: ``key=value`` with dotted keys, above everything else; later ones win. A part's arguments may stand
            before its name.
        imports: files or modules with parts, beside those that the recipe itself imports.

    Raises:
        RecipeError: the recipe or an override is not valid; one line per problem.
    """
    layer = read_recipe(source)
    return _assemble(follow(layer), overrides, layer.tree.place.source, import_named(imports))


@dataclass(frozen=True)
class Recipe:
    """A checked recipe. Recipes are equal if they describe the same run, wherever they were read.

    ``data``, ``train``, ``checkpoint`` and ``evaluate`` have their keys as attributes; ``generator``,
    ``discriminator``, ``encoder``, ``sampler`` and each of the augmentations are a :class:`PartSpec`.
    """

    name: str
    method: str
    data: Data
    generator: PartSpec
    discriminator: PartSpec
    encoder: PartSpec
    sampler: PartSpec
    augmentations: list[PartSpec]
    discriminator_augmentations: list[PartSpec]
    objective: dict[str, Any]
    train: Train
    checkpoint: Checkpoint
    evaluate: Evaluate
    imports: list[str] = field(default_factory=list)
    source: str = field(default="recipe", compare=False)
    tree: Node = field(default=Node({}, Place("recipe")), compare=False, repr=False)

    @classmethod
    def from_yaml(cls, text: str, source: str = "recipe", overrides: Sequence[str] = ()) -> Recipe:
        """Return the recipe of a YAML text; relative paths start from the current directory."""
        return _assemble(follow(read_text(text, Place(source), Path.cwd(), source)), overrides, source)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], source: str = "recipe") -> Recipe:
        """Return the recipe of the result of :meth:`to_dict`, which checkpoints hold.

        Its ``import`` is kept but not executed: a file of weights must not decide what code runs. To load a model with
        parts of your own, import them first.
        """
        layer = Layer(write_out(from_plain(dict(values), Place(source))), Path.cwd(), source)
        return _assemble([layer], (), source, run=False)

    def to_dict(self) -> dict[str, Any]:
        """Return the complete recipe as plain data (JSON-serialisable), in the form and order of a recipe."""
        found: dict[str, Any] = {}
        for key in KEYS:
            if key == "import" and self.imports:
                found[key] = list(self.imports)
            elif hasattr(self, key):
                found[key] = plain(getattr(self, key))
        return found

    def to_yaml(self) -> str:
        """Return the complete recipe as YAML with comments; equal recipes give equal text."""
        text = (
            f"# The recipe {self.name}, resolved by qsattn-plugin {qsattn_plugin.__version__}.\n"
            "# Arguments of parts that are not given here have the part's default, or come from the method.\n"
        )
        for key, value in self.to_dict().items():
            text += f"\n# {KEYS[key]}\n"
            if isinstance(value, dict) and value:
                text += f"{key}:\n" + "".join(f"  {write(k)}: {write(v)}\n" for k, v in value.items())
            elif isinstance(value, list) and value:
                text += f"{key}:\n" + "".join(f"  - {write(v)}\n" for v in value)
            else:
                text += f"{key}: {write(value)}\n"
        return text

    def error(self, key: str, text: str) -> RecipeError:
        """Return an error about a dotted key, with the file and line of it or of the nearest given key above."""
        return RecipeError(Problem(self._place(key), key, text))

    def part(self, section: str) -> PartSpec:
        """Return the part of a section: ``generator``, ``data``, ``method``, ``augmentations.0``, ..."""
        if section == "method":
            return PartSpec(self.method, self.objective)
        if section == "data":
            return PartSpec(self.data.type, self.data.arguments)
        name, _, index = section.partition(".")
        return getattr(self, name)[int(index)] if index else getattr(self, name)

    def build(self, section: str, **injected: Any) -> Any:
        """Build the part of a section.

        Args:
            section: as for :meth:`part`.
            injected: values such as ``in_channels``. The part gets those that its signature takes and the recipe does
                not set. A dataset gets the pipeline's values (``channels``, ...) this way.

        Raises:
            RecipeError: the part does not accept an argument; with the argument's file and line.
        """
        spec = self.part(section)
        kind = "method" if section == "method" else PARTS[section.partition(".")[0]]
        if section == "data":
            injected = {key: getattr(self.data, key) for key in PIPELINE} | injected
        takes = registry.find(kind, spec.type).signature.parameters
        given = {k: v for k, v in injected.items() if k in takes} | spec.arguments
        own = {*spec.arguments, *(PIPELINE if section == "data" else ())}
        try:
            return registry.create(kind, spec.type, **given)
        except RecipeError:
            raise
        except (UserError, ValueError) as error:
            key, text = section, str(error)
            argument = getattr(error, "argument", None) or text.partition(":")[0]
            if argument.partition(".")[0] in own:
                key = f"{'objective' if section == 'method' else section}.{argument}"
                text = text.removeprefix(f"{argument}: ")
            raise self.error(key, text) from error
        except Exception as error:  # such as PyTorch's about a width too large for memory, or that of a user's part
            raise self.error(section, f"{spec.type} cannot be built: {describe_error(error)}") from error

    def count_images(self, *splits: str) -> dict[str, int]:
        """Return the number of images of some splits.

        Raises:
            RecipeError: the data set cannot be built, or a split is missing or empty.
        """
        dataset = self.build("data")
        try:
            return {name: len(dataset.split(name)) for name in splits}
        except UserError as error:
            raise self.error("data.root" if "root" in self.data.arguments else "data", str(error)) from error

    def _place(self, key: str) -> Place:
        node = self.tree
        for name in key.split("."):
            below = node.get(name)
            if below is None:
                break
            node = below
        return node.place


def _assemble(
    layers: Sequence[Layer], overrides: Sequence[str], source: str, imported: Sequence[str] = (), run: bool = True
) -> Recipe:
    """Return the recipe of some layers, the lowest first; ``run`` their imports beside those that are ``imported``."""
    imports = [*(done for layer in layers for done in import_parts(layer, run)), *imported]

    def read() -> Recipe:
        tree = stack(layers, overrides)
        problems: list[Problem] = []
        values = read_sections(tree, layers[-1].name, problems)
        if problems:
            raise RecipeError(*problems)
        recipe = Recipe(**values, imports=list(dict.fromkeys(imports)), source=source, tree=tree)
        train = recipe.train
        if train.epochs is None:
            return recipe
        images = train.images or max(recipe.count_images("trainA", "trainB").values())
        in_steps = train_in_steps(tree.value["train"], train, images, problems)
        if in_steps is None:
            raise RecipeError(*problems)
        return replace(recipe, train=in_steps)

    try:
        return read()
    except RecipeError:
        if not registry.import_builtin():
            raise
    return read()
