"""A look at the model during training: the same test images every time, scored where the data set knows how."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor, nn

from qsattn_plugin.data.images import to_float
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.training.feed import Feed
from qsattn_plugin.translation.apply import translate
from qsattn_plugin.translation.grid import picture_grid

_BATCH = 8


class Evaluation:
    """Translates a fixed set of test images.

    Args:
        recipe: its ``evaluate`` section says how many.
        feed: has the data set.
    """

    def __init__(self, recipe: Recipe, feed: Feed):
        self.feed = feed
        self.grid = recipe.evaluate.grid
        scored = feed.dataset.score is not None
        images = feed.test_images(recipe.evaluate.images if scored else self.grid)
        self.images: list[Tensor] = [] if images is None else [images[i] for i in range(len(images))]

    def __call__(self, generator: nn.Module) -> tuple[dict[str, float], Image.Image | None]:
        """Return the scores (smaller is better, the first one leads) and the picture grid, if there are test images."""
        if not self.images:
            return {}, None
        training = generator.training
        generator.eval()
        translated: list[Tensor] = []
        for start in range(0, len(self.images), _BATCH):
            batch = self.images[start : start + _BATCH]
            same = len({image.shape for image in batch}) == 1
            for images in [torch.stack(batch)] if same else [image[None] for image in batch]:
                translated += translate(generator, to_float(images.to(self.feed.device))).float().cpu()
        generator.train(training)
        scores: dict[str, float] = {}
        if self.feed.dataset.score is not None:
            scores = self.feed.dataset.score(torch.stack(translated), self.feed.direction)
        sources = [to_float(image) for image in self.images[: self.grid]]
        return scores, picture_grid([sources, translated[: self.grid]])
