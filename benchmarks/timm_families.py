"""Which of timm's families can be an encoder? One small model of each goes through what `qsattn build` checks.

    python -m benchmarks.timm_families > docs/measured/timm-families.md

Weights are random, nothing is downloaded. A model that is refused must be so in one message with file, line and key;
anything else ends this command with an error.
"""

from __future__ import annotations

import argparse
import re
import tempfile
import warnings
from collections.abc import Iterator
from pathlib import Path

import timm
import torch
from torch import nn

from qsattn_plugin.registry.recipe import RecipeError, load_recipe
from qsattn_plugin.training.building import RecipeParts

#: Words in the names of small models, the smallest first; others come last, in timm's order.
SMALL = (
    *("femto", "atto", "zepto", "pico", "nano", "xxs", "xx_small", "xxt", "050", "micro", "xs", "x_small", "xtiny"),
    *("mini", "tiny", "t_", "s0", "b0", "lite0", "small", "s12", "18", "26"),
)
RECIPE = """\
extends: toy
data: {{size: {side}, crop: {side}}}
encoder: {{type: timm, model: {model}}}
"""
PAGE = """\
# timm's families as encoders

One small model of each of timm {version}'s {families} families, with random weights, through the checks of `qsattn
build`: a recipe with `encoder: {{type: timm, model: NAME}}`, two images of `data.crop` pixels, run for the shapes of
what comes out. {both} are taken at 128 and at 256 pixels. The others are refused before any training, each with one
message: file, line, key, what is wrong, and what would fit.

    python -m benchmarks.timm_families > docs/measured/timm-families.md

## Refused

| family | model | 128 px | 256 px |
|---|---|---|---|
{refused}

## Taken at both sizes

{taken}
"""


def families() -> Iterator[tuple[str, str]]:
    """Yield each of timm's families that has models, and a small model of it."""

    def size(name: str) -> int:
        return next((i for i, word in enumerate(SMALL) if word in f"{name}_"), len(SMALL))

    for family in timm.list_modules():
        names = timm.list_models(module=family)
        whole = [name for name in names if not name.startswith("test_")] or names
        if whole:
            yield family, min(whole, key=size)


def refusal(model: str, side: int, folder: Path) -> str | None:
    """Return the message that refuses a model as an encoder of images of this side, or None.

    Raises:
        AssertionError: the message does not say where in the recipe it belongs.
    """
    path = folder / "recipe.yaml"
    path.write_text(RECIPE.format(side=side, model=model))
    recipe = load_recipe(path)
    try:
        with torch.device("meta"):  # shapes only; real weights where a model needs values
            RecipeParts(recipe).encoder(nn.Identity())
        return None
    except Exception:  # noqa: BLE001 - of a constructor that needs values, or a refusal: which, the next says
        pass
    try:
        RecipeParts(recipe).encoder(nn.Identity())
        return None
    except RecipeError as error:
        said = str(error)
        found = re.fullmatch(r"(.*recipe\.yaml:\d+): ([a-z.]+): ([^\n]+)", said)
        assert found, f"{model} at {side} px: {said}"
        return f"`{found[2]}`: {found[3]}"


def main() -> None:
    """Do what the command line says."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("family", nargs="*", help="only these")
    chosen = parser.parse_args().family
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    refused, taken = [], []
    with tempfile.TemporaryDirectory() as folder:
        for family, model in families():
            if chosen and family not in chosen:
                continue
            said = [refusal(model, side, Path(folder)) for side in (128, 256)]
            if any(said):
                cells = ["taken" if text is None else text.replace("|", "\\|") for text in said]
                cells[1] = "the same" if cells[0] == cells[1] else cells[1]
                refused.append(f"| {family} | {model} | {cells[0]} | {cells[1]} |")
            else:
                taken.append(f"{family} ({model})")
    print(
        PAGE.format(
            version=timm.__version__,
            families=len(refused) + len(taken),
            both=len(taken),
            refused="\n".join(refused),
            taken=", ".join(taken) + ".",
        ),
        end="",
    )


if __name__ == "__main__":
    main()
