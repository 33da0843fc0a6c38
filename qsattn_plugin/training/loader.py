"""Training batches: decoded images, cropped, augmented, on the device, with the step's random generator."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from statistics import median_low

import torch
from torch import Tensor

from qsattn_plugin.data.batches import UnpairedBatches
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.preprocess import Preprocess, known_side
from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.store import Store
from qsattn_plugin.devices import send
from qsattn_plugin.registry.interfaces import of_domain
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.building import augmentations, check_smallest

#: The purposes that seeds are derived for, beside step and rank.
_AUGMENT, _STEP = 100, 101


class TrainingLoader:
    """Loads the training batches of a recipe: "A" is the source domain, "B" the target domain.

    The result of :meth:`batch` is a pure function of the recipe's seed, the step and the rank.

    Args:
        recipe: its ``data``, ``augmentations`` and ``train`` sections are used.
        device: receives the batches.
        progress: called as ``progress(split, done, total)`` while images are decoded.
        rank: of this process, among the ``world`` that share a step; each decodes and keeps all images.
        multiple: sides of images that are not cropped are rounded to this multiple, which the generator needs.
        first: the first step; its images are decoded immediately.
        limit: use only the first so many images of each domain.

    Raises:
        UserError: the data set or an augmentation cannot be built, or its images do not fit the crop.
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
        limit: int | None = None,
    ):
        self._recipe, data = recipe, recipe.data
        self.seed = recipe.train.seed
        self.rank, self.world = rank, world
        self.device = device
        self.direction = data.direction
        self.dataset = recipe.build("data")
        prepare = Preprocess(data.preprocess, data.resize, data.crop, multiple)
        self._prepare_test = prepare.for_test()
        # The preprocessing from each of these steps on.
        self._stages = {0: prepare}
        if data.random_crop == "until_decay" and data.preprocess.endswith("_and_crop"):
            self._stages[recipe.train.decay_step] = replace(prepare, resize=data.crop)
        # Images per step; the method divides them if gradients are accumulated.
        self._count = recipe.train.step_images
        self._progress, self._limit = progress, limit
        self._prepared: Preprocess | None = None
        self.stores: dict[str, Store] = {}
        #: The shorter side of each domain's pictures that a generator gets to know.
        self.sides: dict[str, int] = {}
        self.augment = augmentations(recipe, "augmentations")
        self.prepare(first)

    def needs_decoding(self, step: int) -> bool:
        """Return whether this step needs images with another preprocessing than the decoded ones."""
        return self._stage(step) != self._prepared

    def _stage(self, step: int) -> Preprocess:
        return max((stage for stage in self._stages.items() if stage[0] <= step), key=lambda stage: stage[0])[1]

    def prepare(self, step: int) -> None:
        """Decode the images if this step needs another preprocessing than the decoded ones; UserError if that fails."""
        prepare = self._stage(step)
        if prepare == self._prepared:
            return
        self.stores.clear()  # first, so that old and new images need not both fit into memory
        self.batches = self._prepared = None
        for letter, domain in zip("AB", self.domains, strict=True):
            name = f"train{domain}"
            report = partial(self._progress, name) if self._progress else None
            store = Store(self.dataset.split(name), prepare, limit=self._limit, progress=report)
            if store.channels != (wanted := of_domain(self._recipe.data.channels, domain)):
                what = f"is {wanted}, but images of {name} have {store.channels} channels"
                raise self._recipe.error("data.channels", what)
            self.stores[letter] = store
        check_smallest(self._recipe, {f"train{d}": s for d, s in zip(self.domains, self.stores.values(), strict=True)})
        stores, crop = self.stores, prepare.crop_size
        self.sides = {letter: self._known_side(store, crop) for letter, store in stores.items()}
        self.batches = UnpairedBatches(stores["A"], stores["B"], self._count, crop, self.seed, self.rank, self.world)
        self._prepared = prepare

    def _known_side(self, store: Store, crop: int | None) -> int:
        side = median_low(map(min, store.sizes))
        whole, seen = self.augment.sides(side, crop or side)
        return known_side(whole, seen)

    @property
    def domains(self) -> str:
        """The data set's letters of the source and the target domain: "AB" or "BA"."""
        return "AB" if self.direction == "AtoB" else "BA"

    @property
    def skipped(self) -> list[tuple[str, str]]:
        """(split/name, reason) of the training images that could not be read."""
        return [
            (f"train{domain}/{name}", reason)
            for letter, domain in zip("AB", self.domains, strict=True)
            for name, reason in self.stores[letter].skipped
        ]

    @property
    def notes(self) -> list[str]:
        """What is to be said about the training images, in sentences."""
        domains = zip("AB", self.domains, strict=True)
        return [f"train{domain}: {note}" for letter, domain in domains for note in self.stores[letter].notes]

    def batch(self, step: int) -> tuple[dict[str, Tensor], torch.Generator]:
        """Return a step's batch, "A" and "B", each (B, C, h, w) in [-1, 1], and the generator for its further draws."""
        self.prepare(step)
        assert self.batches is not None  # ready now
        images = self.batches.batch(step)
        batch = {}
        for number, letter in enumerate("AB"):
            x = to_float(send(images[letter], self.device))
            if len(self.augment):
                draws = torch.Generator().manual_seed(derive_seed(self.seed, _AUGMENT, step, self.rank, number))
                x = self.augment(x, draws)
            batch[letter] = x
        return batch, torch.Generator().manual_seed(derive_seed(self.seed, _STEP, step, self.rank))

    @property
    def evaluated(self) -> tuple[str, str]:
        """The splits that are translated and compared with: the test images of the source and the target domain.

        A data set without them is evaluated on its training images.
        """
        source, target = (f"test{d}" if self.dataset.has(f"test{d}") else f"train{d}" for d in self.domains)
        return source, target

    def test_images(self, split: str, limit: int | None = None) -> Store:
        """Return the images of a split, the first so many, preprocessed for testing."""
        return Store(self.dataset.split(split), self._prepare_test, limit=limit)
