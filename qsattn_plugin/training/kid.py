"""The kernel inception distance on the features of any timm model: a score for any data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.data.pixels import colours, to_float
from qsattn_plugin.distances import kernel_distance
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.registry.timm_features import TimmFeatures, check_model


class TimmEmbedder(nn.Module):
    """Maps images (B, C, H, W) in [-1, 1] to feature vectors (B, D): a timm model's deepest feature map, averaged.

    Images are resized to the model's training size, so that images of any sizes can be compared. Without a file of
    weights they are downloaded, or taken from timm's cache.

    Raises:
        UserError: there is no such model, or its weights cannot be loaded.
    """

    def __init__(self, model: str, weights: Path | None = None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.features = TimmFeatures(model, pretrained=weights is None, weights=weights, deepest=1)
        config: Any = self.features.model.pretrained_cfg
        self.size: int = config["input_size"][-1]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors; of more than three channels the first three count, of two the first."""
        images = colours(images).float()
        images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.features(images)[-1].mean((2, 3))


class KernelDistance:
    """Computes the kernel inception distance between translations and target images, of any size.

    Target images are (C, H, W), uint8 or in [-1, 1].

    ``embedder`` maps images (B, C, H, W) in [-1, 1] to vectors (B, D), as :class:`TimmEmbedder` does.
    """

    def __init__(self, embedder: nn.Module, targets: Iterable[Tensor], device: torch.device):
        self.embedder = embedder.to(device).eval()
        self.device = device
        self.targets = self._embed(image if image.is_floating_point() else to_float(image) for image in targets)

    def __call__(self, images: Iterable[Tensor]) -> float:
        """Return the distance of ``images``, each (C, H, W) in [-1, 1]; near 0 or below is best."""
        return kernel_distance(self._embed(images), self.targets)

    def _embed(self, images: Iterable[Tensor]) -> Tensor:
        # One at a time: their sizes differ until the embedder resizes them.
        return torch.cat([self.embedder(image[None].to(self.device)).cpu() for image in images])


def check_kid(recipe: Recipe) -> None:
    """Check that the model of a recipe's ``evaluate.kid`` exists, without loading its weights.

    Raises:
        RecipeError: timm has no such model, or there is no such file.
    """
    kid = recipe.evaluate.kid
    if kid is None:
        return
    try:
        check_model(kid.model)
    except UserError as error:
        raise recipe.error("evaluate.kid", str(error)) from error
    if kid.weights is not None and not Path(kid.weights).is_file():
        raise recipe.error("evaluate.kid", f"there is no file {kid.weights}")
