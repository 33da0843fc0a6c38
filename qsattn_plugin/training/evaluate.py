"""Evaluation during training: the same test images every time, scored where a score is available."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.pixels import colours, shown, to_channels, to_float
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.pictures import resized
from qsattn_plugin.evaluation.texture import SMALLEST, compare, descriptors
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.finite_guard import NonFiniteLossError
from qsattn_plugin.training.kid import KernelDistance, TimmEmbedder
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.translation.apply import evaluating, translate
from qsattn_plugin.translation.grid import picture_grid

_BATCH = 8
#: Maps translations to figures by their name.
_Score = Callable[[list[Tensor]], dict[str, float]]
#: Of the places and directions of the sliced Wasserstein distance, as the metric `swd` has them.
_SEED = 2020


class Evaluator:
    """Translates and scores a fixed set of test images, or of training images where the data set has no others.

    The leading score is the data set's own, else ``evaluate.kid``, else the sliced Wasserstein distance, which needs
    no network (:mod:`qsattn_plugin.evaluation.texture`). At most ``most`` images are used.

    Raises:
        RecipeError: the model of ``evaluate.kid`` cannot be loaded, or there are too few images to compare.
    """

    def __init__(self, recipe: Recipe, loader: TrainingLoader, most: int | None = None):
        self.loader = loader
        self.grid, self.bands = recipe.evaluate.grid, recipe.evaluate.bands
        #: Names of the splits that are translated and compared with.
        self.source, self.target = loader.evaluated
        count = min(filter(None, (recipe.evaluate.images, most)), default=None)
        images = loader.test_images(self.source, count)
        digest = hashlib.sha256(repr(self.bands).encode())
        self.images: list[Tensor] = list(_noted(images, digest))
        self.scores: list[_Score] = []
        own = getattr(loader.dataset, "score", None) if self.source.startswith("test") else None
        if own is not None:
            self.scores.append(lambda translated: own(torch.stack(translated), loader.direction))
        if recipe.evaluate.kid is not None:
            self.scores.append(self._kernel_distance(recipe, most, hashlib.sha256() if own else digest))
        if own is None:
            size = max(recipe.data.crop, SMALLEST)
            digest.update(str(size).encode())
            targets = list(_noted(loader.test_images(self.target, count), digest))
            self.scores.append(_TextureScore(targets, size, self.bands))
        #: Tells whether the scores of two evaluators compare: a digest of the pictures, and of what leads.
        self.scored_on = digest.hexdigest()[:16]

    def __call__(
        self, generator: nn.Module, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], Image.Image] | None:
        """Return the scores (smaller is better, the first one leads) and the picture grid.

        ``stop`` is called before every batch; if it returns true, the evaluation ends and the result is None.

        Raises:
            NonFiniteLossError: a translation is not finite.
            UserError: there is not enough memory for one image.
        """
        translated = self._translated(generator, stop)
        if translated is None:
            return None
        scores: dict[str, float] = {}
        for score in self.scores:
            scores |= {name: float(value) for name, value in score(translated).items()}
        sources = [to_float(image) for image in self.images[: self.grid]]
        return scores, picture_grid([sources, translated[: self.grid]], self.bands)

    def _kernel_distance(self, recipe: Recipe, most: int | None, digest: Any) -> _Score:
        kid = recipe.evaluate.kid
        assert kid is not None
        targets = self.loader.test_images(self.target, most)
        for images, split in ((self.images, self.source), (targets, self.target)):
            if len(images) < 2:
                raise recipe.error("evaluate.kid", f"needs two images of {split}, there is one")
        try:
            vectors = TimmEmbedder(kid.model, kid.weights)
        except UserError as error:
            raise recipe.error("evaluate.kid", str(error)) from error
        for weight in vectors.parameters():
            digest.update(weight.detach().numpy())
        scored = map(self._scored, _noted(targets, digest))
        distance = KernelDistance(vectors, scored, self.loader.device)
        return lambda translated: {"kid": distance(map(self._scored, translated))}

    def _scored(self, image: Tensor) -> Tensor:
        """Return an image in [-1, 1] as the kernel distance takes it: the bands that are shown."""
        return colours(image if image.is_floating_point() else to_float(image), self.bands)

    def _translated(self, generator: nn.Module, stop: Callable[[], bool]) -> list[Tensor] | None:
        translated: list[Tensor] = []
        with evaluating(generator):
            for start in range(0, len(self.images), _BATCH):
                if stop():
                    return None
                batch = self.images[start : start + _BATCH]
                same = len({image.shape for image in batch}) == 1
                for images in [torch.stack(batch)] if same else [image[None] for image in batch]:
                    translated += self._pictures(generator, images)
        return translated

    def _pictures(self, generator: nn.Module, images: Tensor) -> list[Tensor]:
        """Translate a batch; one image at a time if memory runs out, and UserError if it runs out for one."""
        try:
            made = translate(generator, to_float(images.to(self.loader.device))).float().cpu()
            if not made.isfinite().all():
                raise NonFiniteLossError.of("the translations are NaN or infinite")
            return list(made)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if len(images) == 1:
                height, width = images.shape[-2:]
                raise UserError(
                    f"out of memory on {self.loader.device} in translating a test image of {height} x {width} pixels: "
                    "use smaller images, or a smaller generator.width"
                ) from error
        return [picture for image in images for picture in self._pictures(generator, image[None])]


def _noted(images: Any, digest: Any) -> Iterator[Tensor]:
    """Yield images, and note their sizes and values in a digest."""
    for index in range(len(images)):
        image = images[index]
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.contiguous().numpy())
        yield image


class _TextureScore:
    """The sliced Wasserstein distance of translations to target images, as ``qsattn evaluate --metrics swd --size``."""

    def __init__(self, targets: list[Tensor], size: int, bands: tuple[int, int, int] | None = None):
        self.size, self.bands = size, bands
        self.targets = self._descriptors(targets, _SEED + 1)

    def __call__(self, translated: list[Tensor]) -> dict[str, float]:
        found = compare(self._descriptors(translated, _SEED), self.targets, self.size, _SEED)
        return {"swd": sum(found.values()) / len(found)}

    def _descriptors(self, images: Iterable[Tensor], seed: int) -> list[Tensor]:
        pictures = (to_channels(shown(image, self.bands), 3) for image in images)
        return descriptors((resized(picture, self.size)[None] for picture in pictures), self.size, seed)
