"""Evaluation during training: the same test images every time, scored where a score is available."""

from __future__ import annotations

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.devices import out_of_memory
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.kid import KernelDistance, TimmEmbedder
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.translation.apply import evaluating, translate
from qsattn_plugin.translation.grid import picture_grid

_BATCH = 8


class Evaluator:
    """Translates and scores a fixed set of test images of a recipe, as its ``evaluate`` section says.

    Raises:
        RecipeError: the model of ``evaluate.kid`` cannot be loaded, or there are too few images to compare.
    """

    def __init__(self, recipe: Recipe, loader: TrainingLoader):
        self.loader = loader
        self.grid = recipe.evaluate.grid
        self.distance = _distance(recipe, loader)
        self.score = getattr(loader.dataset, "score", None)
        scored = self.score is not None or self.distance is not None
        images = loader.test_images(recipe.evaluate.images if scored else self.grid)
        self.images: list[Tensor] = [] if images is None else [images[i] for i in range(len(images))]
        if self.distance is not None and len(self.images) < 2:
            raise recipe.error("evaluate.kid", f"needs two test images to translate, there are {len(self.images)}")

    def __call__(
        self, generator: nn.Module, stop: Callable[[], bool] = lambda: False
    ) -> tuple[dict[str, float], Image.Image | None] | None:
        """Return the scores (smaller is better, the first one leads) and the picture grid; None for no test images.

        ``stop`` is called before every batch; if it returns true, the evaluation ends and the result is None.
        """
        if not self.images:
            return {}, None
        translated = self._translated(generator, stop)
        if translated is None:
            return None
        scores: dict[str, float] = {}
        if self.score is not None:
            scores = self.score(torch.stack(translated), self.loader.direction)
        if self.distance is not None:
            scores["kid"] = self.distance(translated)
        sources = [to_float(image) for image in self.images[: self.grid]]
        return scores, picture_grid([sources, translated[: self.grid]])

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
            return list(translate(generator, to_float(images.to(self.loader.device))).float().cpu())
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


def _distance(recipe: Recipe, loader: TrainingLoader) -> KernelDistance | None:
    kid = recipe.evaluate.kid
    if kid is None:
        return None
    targets = loader.test_images(target=True)
    if targets is None or len(targets) < 2:
        what = f"needs two test images of the target domain to compare with (test{loader.domains[1]})"
        raise recipe.error("evaluate.kid", what)
    try:
        vectors = TimmEmbedder(kid.model, kid.weights)
    except UserError as error:
        raise recipe.error("evaluate.kid", str(error)) from error
    return KernelDistance(vectors, (targets[i] for i in range(len(targets))), loader.device)
