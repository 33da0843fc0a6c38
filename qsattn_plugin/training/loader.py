"""What a step eats: decoded images, cropped, augmented, on the device, and the step's own random generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from qsattn_plugin.data.batches import UnpairedBatches
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.store import Store
from qsattn_plugin.devices import send
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.building import augmentations

#: What a seed is for, mixed in beside step and rank.
_AUGMENT, _STEP = 100, 101


class TrainingLoader:
    """The training images of a recipe, batch by batch; "A" is what is translated, "B" what it should look like.

    Everything that :meth:`batch` gives is a pure function of the recipe's seed, the step and the rank.

    Args:
        recipe: its ``data``, ``augmentations`` and ``train`` sections.
        device: where batches go.
        progress: called as ``progress(what, done, total)`` while images are decoded.
        rank: this process's number.
        world: how many processes share a step; each of them decodes and keeps all images.
        multiple: of what the sides are of images that are seen whole: what the generator takes.
        first: the step that comes first, for which images are decoded at once.
    """

    def __init__(
        self,
        recipe: Recipe,
        device: torch.device,
        progress: Callable[[str, int, int], None] | None = None,
        rank: int = 0,
        world: int = 1,
        multiple: int = 4,
        first: int = 0,
    ):
        data = recipe.data
        self.seed = recipe.train.seed
        self.rank, self.world = rank, world
        self.device = device
        self.direction = data.direction
        self.dataset = recipe.build("data", channels=data.channels)
        prepare = Preprocess(data.preprocess, data.resize, data.crop, multiple)
        self._prepare_test = prepare.for_test()
        # From which step on images are prepared how.
        self._stages = {0: prepare}
        if data.random_crop == "until_decay" and data.preprocess.endswith("_and_crop"):
            self._stages[recipe.train.decay_from] = replace(prepare, resize=data.crop)
        # All that a step sees; the method divides it where gradients are accumulated.
        self._count = recipe.train.batch_size * recipe.train.accumulate
        self._progress = progress
        self._prepared: Preprocess | None = None
        self.stores: dict[str, Store] = {}
        self.prepare(first)
        self.augment = augmentations(recipe, "augmentations")

    def needs_decoding(self, step: int) -> bool:
        """Whether from this step on images are prepared in another way than they are."""
        return self._stage(step) != self._prepared

    def _stage(self, step: int) -> Preprocess:
        return max((stage for stage in self._stages.items() if stage[0] <= step), key=lambda stage: stage[0])[1]

    def prepare(self, step: int) -> None:
        """Decode the images anew if from this step on they are prepared in another way than before.

        Raises:
            UserError: they are no longer there.
        """
        prepare = self._stage(step)
        if prepare == self._prepared:
            return
        self.stores.clear()  # before the new ones are made: both need not fit into the memory
        self.batches = self._prepared = None
        for letter, domain in zip("AB", self.domains, strict=True):
            name = f"train{domain}"
            report = partial(self._progress, name) if self._progress else None
            self.stores[letter] = Store(self.dataset.split(name), prepare, progress=report)
        stores, crop = self.stores, prepare.crop_size
        self.batches = UnpairedBatches(stores["A"], stores["B"], self._count, crop, self.seed, self.rank, self.world)
        self._prepared = prepare

    @property
    def domains(self) -> str:
        """The data set's letters of the source and the target domain."""
        return "AB" if self.direction == "AtoB" else "BA"

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """The training images that could not be read, by folder and name, and why."""
        return [
            (f"train{domain}/{name}", reason)
            for letter, domain in zip("AB", self.domains, strict=True)
            for name, reason in self.stores[letter].skipped
        ]

    def batch(self, step: int) -> tuple[dict[str, Tensor], torch.Generator]:
        """Return the batch of a step, "A" and "B" as (B, C, h, w) in [-1, 1], and the generator of its other draws."""
        self.prepare(step)
        images = self.batches.batch(step)
        batch = {}
        for number, letter in enumerate("AB"):
            x = to_float(send(images[letter], self.device))
            if len(self.augment):
                draws = torch.Generator().manual_seed(derive_seed(self.seed, _AUGMENT, step, self.rank, number))
                x = self.augment(x, draws)
            batch[letter] = x
        return batch, torch.Generator().manual_seed(derive_seed(self.seed, _STEP, step, self.rank))

    def test_images(self, most: int | None = None, target: bool = False) -> Store | None:
        """Return the first ``most`` test images of a domain, prepared as at test time, if there are any.

        Args:
            most: all of them without it.
            target: of the target domain, instead of the source.
        """
        name = f"test{self.domains[target]}"
        if not self.dataset.has(name):
            return None
        images = self.dataset.split(name)
        return Store(_First(images, min(most or len(images), len(images))), self._prepare_test)


class _First:
    """The first images of a set."""

    def __init__(self, images: Any, count: int):
        self._images = images
        self._count = count
        self.names = images.names[:count]

    @property
    def skipped(self) -> list[tuple[str, str]]:
        return self._images.skipped

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> Tensor:
        return self._images[index]
