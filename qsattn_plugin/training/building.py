"""Building the parts that a recipe names for training, and checking that they fit together."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.data.store import Store
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.augmentations import Augmentations
from qsattn_plugin.registry.interfaces import attentive_layers, side_multiple
from qsattn_plugin.registry.recipe import Recipe, RecipeError

__all__ = ["RecipeParts", "augmentations", "check_smallest", "part_error"]


class RecipeParts:
    """Builds a recipe's parts for a method; implements :class:`qsattn_plugin.training.methods.base.Parts`.

    Each is tried on images of the crop's size or, where pictures are not cropped, of ``size``, (height, width), if that
    is given.
    """

    def __init__(self, recipe: Recipe, size: tuple[int, int] | None = None):
        self.recipe = recipe
        crop = recipe.data.crop
        self.size = (crop, crop) if "crop" in recipe.data.preprocess else size

    @property
    def alike(self) -> bool:
        source, target = self.recipe.data.ends("channels")
        return source == target

    def generator(self, back: bool = False) -> nn.Module:
        source, target = self.recipe.data.ends("channels", back)
        network = self._build("generator", in_channels=source, out_channels=target)
        shape, multiple = self._shape(source, "augmentations"), side_multiple(network, default=1)
        for side in shape[2:]:
            if side % multiple:
                what = f"{self.recipe.generator.type} takes multiples of {multiple} pixels, got {side}"
                raise self.recipe.error(self._shape_key(shape, "augmentations"), what)
        self._try("generator", _Translation(network, target), shape, "augmentations")
        return network

    def discriminator(self, back: bool = False) -> nn.Module:
        _, target = self.recipe.data.ends("channels", back)
        sections = ("augmentations", "discriminator_augmentations")
        shape = self._shape(target, *sections)
        size = max(shape[2:]) if "crop" in self.recipe.data.preprocess else self.recipe.data.crop
        network = self._build("discriminator", in_channels=target, size=size)
        self._try("discriminator", network, shape, *sections)
        return network

    def encoder(self, generator: nn.Module, back: bool = False, translations: bool = True) -> nn.Module:
        source, target = self.recipe.data.ends("channels", back)
        target = target if translations else source
        size = self.recipe.data.crop
        made = self._build("encoder", generator=generator, in_channels=source, target_channels=target, size=size)
        if lacking := [name for name in ("taps", "channels", "strides") if not hasattr(made, name)]:
            what = f"lacks the attributes {', '.join(lacking)}: each a list with one entry per tap"
            raise self.recipe.error("encoder.type", f"{self.recipe.encoder.type} {what}")
        for channels in dict.fromkeys((source, target)):
            self._try("encoder", _Features(made, generator), self._shape(channels, "augmentations"), "augmentations")
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

    def _shape(self, channels: int, *sections: str) -> tuple[int, ...]:
        """Return the shape of two images after the crop and these augmentations; () if their size is not known."""
        if self.size is None:
            return ()
        images = torch.zeros(2, channels, *self.size)
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
                text = f"cannot be applied to images of {_in_words(channels, *before)}: {what}"
                raise self.recipe.error(section, text) from error
        return tuple(images.shape)

    def _shape_key(self, shape: tuple[int, ...], *sections: str) -> str:
        """Return the recipe's key that determines this shape: that of the crop, or the last section with entries."""
        cropped = "data.crop" if "crop" in self.recipe.data.preprocess else "data.preprocess"
        if shape[2:] == self.size:
            return cropped
        return next((s for s in reversed(sections) if getattr(self.recipe, s)), cropped)

    def _build(self, section: str, **injected: Any) -> Any:
        """Build a network; its channels, where the recipe gives them, must be those of the images."""
        for name in ("in_channels", "out_channels", "target_channels"):
            given = self.recipe.part(section).arguments.get(name, injected.get(name))
            if given != injected.get(name):
                what = f"must be data.channels, {injected[name]}, got {given}; leave it out, or set data.channels"
                raise self.recipe.error(f"{section}.{name}", what)
        return self.recipe.build(section, **injected)

    def _try(self, section: str, network: nn.Module, shape: tuple[int, ...], *augmented: str) -> None:
        """Run a new network once on images of the training size, if that is known.

        Raises:
            RecipeError: it does not take them.
        """
        if not shape:
            return
        error = _problem(copy.deepcopy(network).to("meta"), shape)  # shapes only: nothing is computed
        if error is not None and not isinstance(error, ValueError | UserError):
            error = _problem(copy.deepcopy(network), shape)  # perhaps it cannot run without values
        if error is not None and not isinstance(error, torch.OutOfMemoryError):  # of which the training says more
            raise part_error(self.recipe, section, error, shape, self._shape_key(shape, *augmented)) from error


def check_smallest(recipe: Recipe, splits: Mapping[str, Store]) -> None:
    """Check that the parts take the smallest picture of all splits: that with the shortest side.

    Where pictures are cropped all have the size on which parts are tried when they are built.

    Raises:
        RecipeError: one does not; the message names the picture.
    """
    if "crop" in recipe.data.preprocess:
        return
    pictures = (
        (size, f"{split}/{name}") for split, s in splits.items() for size, name in zip(s.sizes, s.names, strict=True)
    )
    size, least = min(pictures, key=lambda picture: min(picture[0]))
    try:
        with torch.random.fork_rng(devices=[]):
            recipe.build("method", parts=RecipeParts(recipe, size))
    except RecipeError as error:
        which = f" ({least} is the smallest picture)"
        raise RecipeError(*(one._replace(text=f"{one.text}{which}") for one in error.problems)) from error


class _Translation(nn.Module):
    """A generator whose output is checked."""

    def __init__(self, generator: nn.Module, channels: int):
        super().__init__()
        self.generator, self.channels = generator, channels

    def forward(self, x: Tensor) -> Tensor:
        made = self.generator(x)
        if made.shape[1] != self.channels:
            raise RuntimeError(f"it gives {made.shape[1]} channels, and {self.channels} are wanted: data.channels")
        return made


class _Features(nn.Module):
    """An encoder with the generator that it may take its features from."""

    def __init__(self, encoder: nn.Module, generator: nn.Module):
        super().__init__()
        self.encoder, self.generator = encoder, generator

    def forward(self, x: Tensor) -> list[Tensor]:
        maps = self.encoder.features(self.generator, x)  # type: ignore[operator]
        found, said = [len(m[0]) for m in maps], list(self.encoder.channels)  # type: ignore[arg-type]
        if found != said:
            raise RuntimeError(f"it gives maps of {found} channels, and says {said} (its attribute channels)")
        return maps


def _problem(network: nn.Module, shape: tuple[int, ...]) -> Exception | None:
    """Return what a network raises on images of a shape, or None."""
    device = next((p.device for p in network.parameters()), torch.device("cpu"))
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            network(torch.zeros(shape, device=device))
    except Exception as error:  # noqa: BLE001 - of a custom part: any
        return error
    return None


def part_error(
    recipe: Recipe, section: str, error: Exception, shape: Sequence[int], size_key: str = "data.crop"
) -> RecipeError:
    """Return what a recipe has to say about an error that one of its parts raised on images of a size.

    Args:
        recipe: names the part.
        section: the part's, for :meth:`Recipe.part`.
        error: raised in the part; one that begins with an argument ("layers: ...") is about the size of the images.
        shape: (B, C, H, W) of the images.
        size_key: the key that determines their size.
    """
    said = str(error).partition("\n")[0]
    if isinstance(error, ValueError | UserError) and said.partition(": ")[0].isidentifier():
        return recipe.error(size_key, f"{section}.{said}")
    _, channels, height, width = shape
    what = f"{type(error).__name__}: {said}".removesuffix(": ")
    images = f"images of {_in_words(channels, height, width)}"
    return recipe.error(section, f"{recipe.part(section).type} fails on {images} ({what})")


def _in_words(channels: int, height: int, width: int) -> str:
    return f"{width} x {height} pixels and {channels} channel{'s' * (channels > 1)}"


def augmentations(recipe: Recipe, section: str) -> Augmentations:
    """Build the augmentations of a list section, in order."""
    return Augmentations([recipe.build(f"{section}.{i}") for i in range(len(getattr(recipe, section)))])
