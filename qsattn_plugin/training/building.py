"""Building the parts that a recipe names for training, and checking that they fit together."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.augmentations import Augmentations
from qsattn_plugin.registry.interfaces import attentive_layers, side_multiple
from qsattn_plugin.registry.recipe import Recipe

__all__ = ["RecipeParts", "augmentations"]


class RecipeParts:
    """Builds a recipe's parts for a method; implements :class:`qsattn_plugin.training.methods.base.Parts`."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.channels = recipe.data.channels

    def generator(self) -> nn.Module:
        network = self.recipe.build("generator", in_channels=self.channels, out_channels=self.channels)
        shape, multiple = self._shape("augmentations"), side_multiple(network, default=1)
        for side in shape[2:]:
            if side % multiple:
                what = f"{self.recipe.generator.type} takes multiples of {multiple} pixels, got {side}"
                raise self.recipe.error(self._shape_key(shape, "augmentations"), what)
        return self._checked(network, shape, "augmentations")

    def discriminator(self) -> nn.Module:
        sections = ("augmentations", "discriminator_augmentations")
        shape = self._shape(*sections)
        size = max(shape[2:], default=self.recipe.data.crop)
        network = self.recipe.build("discriminator", in_channels=self.channels, size=size)
        return self._checked(network, shape, *sections)

    def encoder(self, generator: nn.Module) -> nn.Module:
        made = self.recipe.build("encoder", generator=generator, in_channels=self.channels, size=self.recipe.data.crop)
        if lacking := [name for name in ("taps", "channels", "strides") if not hasattr(made, name)]:
            what = f"lacks the attributes {', '.join(lacking)}: each a list with one entry per tap"
            raise self.recipe.error("encoder.type", f"{self.recipe.encoder.type} {what}")
        return made

    def augmentation(self) -> Augmentations:
        return augmentations(self.recipe, "discriminator_augmentations")

    def sampler(self, taps: Sequence[int | str]) -> Any:
        sampler = self.recipe.build("sampler")
        try:  # report a tap that the encoder does not have now, not at the first step
            attentive_layers(sampler, [torch.empty(1, 1, 1, 1)] * len(taps), [str(tap) for tap in taps])
        except UserError as error:
            raise self.recipe.error("sampler.taps", str(error).removeprefix("taps: ")) from error
        return sampler

    def _shape(self, *sections: str) -> tuple[int, ...]:
        """Return the shape of two images after the crop and these augmentations; () if images are not cropped."""
        data = self.recipe.data
        if "crop" not in data.preprocess:
            return ()
        images = torch.zeros(2, self.channels, data.crop, data.crop)
        for section in sections:
            if not getattr(self.recipe, section):
                continue
            before = tuple(images.shape[2:])
            parts = augmentations(self.recipe, section)
            try:
                with torch.random.fork_rng(devices=[]):  # a custom part may draw from the global generator
                    images = parts(images, torch.Generator().manual_seed(0))
            except Exception as error:  # kornia's, about sizes; or any of a custom part
                what = f"{type(error).__name__}: {str(error).partition(chr(10))[0]}"
                text = f"cannot be applied to images of {before[0]} x {before[1]} pixels: {what}"
                raise self.recipe.error(section, text) from error
        return tuple(images.shape)

    def _shape_key(self, shape: tuple[int, ...], *sections: str) -> str:
        """Return the recipe's key that determines this shape: ``data.crop``, or the last section with entries."""
        if shape[2:] == (self.recipe.data.crop,) * 2:
            return "data.crop"
        return next((s for s in reversed(sections) if getattr(self.recipe, s)), "data.crop")

    def _checked(self, network: nn.Module, shape: tuple[int, ...], *sections: str) -> nn.Module:
        """Return the network; raise RecipeError if it does not accept the training size."""
        if shape:
            ghost = copy.deepcopy(network).to("meta")  # shapes only: nothing is computed
            try:
                ghost(torch.empty(shape, device="meta"))
            except ValueError as error:
                raise self.recipe.error(self._shape_key(shape, *sections), str(error)) from error
            except Exception:  # noqa: BLE001
                pass  # a custom part that cannot run on the meta device; its errors show at the first step
        return network


def augmentations(recipe: Recipe, section: str) -> Augmentations:
    """Build the augmentations of a list section, in order."""
    return Augmentations([recipe.build(f"{section}.{i}") for i in range(len(getattr(recipe, section)))])
