"""How far translations are from a target domain, on the features of any timm model: a score for any data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.distances import kernel_distance
from qsattn_plugin.errors import nearest
from qsattn_plugin.registry.recipe import Recipe
from qsattn_plugin.registry.timm_features import TimmFeatures


class TimmEmbedder(nn.Module):
    """Images (B, C, H, W) in [-1, 1] to one feature vector each, (B, D): a timm model's deepest map, averaged.

    Images are resized to the side that the model was trained with, so that any size can be compared with any other.

    Args:
        model: a timm name.
        weights: a file with its weights; without it timm downloads them or takes them from its cache.

    Raises:
        UserError: there is no such model, or its weights cannot be had.
    """

    def __init__(self, model: str, weights: Path | None = None):
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            self.features = TimmFeatures(model, pretrained=weights is None, weights=weights, deepest=1)
        self.size: int = self.features.model.pretrained_cfg["input_size"][-1]

    @torch.inference_mode()
    def forward(self, images: Tensor) -> Tensor:
        """Return the vectors; a channel of transparency is not looked at."""
        images = images[:, : {2: 1, 4: 3}.get(images.shape[1], images.shape[1])].float()
        images = F.interpolate(images, (self.size, self.size), mode="bicubic", antialias=True).clamp(-1, 1)
        return self.features(images)[-1].mean((2, 3))


class KernelDistance:
    """The kernel inception distance, on features of one's choice, of translations to fixed target images.

    Args:
        vectors: images (B, C, H, W) in [-1, 1] to vectors (B, D), such as :class:`TimmEmbedder`.
        targets: images of the target domain, uint8 (C, H, W), of any size.
        device: where features are computed.
    """

    def __init__(self, vectors: nn.Module, targets: Iterable[Tensor], device: torch.device):
        self.vectors = vectors.to(device).eval()
        self.device = device
        self.targets = self._of(to_float(image) for image in targets)

    def __call__(self, images: Iterable[Tensor]) -> float:
        """Return the distance of ``images``, each (C, H, W) in [-1, 1]; about 0 or below is as good as it gets."""
        return kernel_distance(self._of(images), self.targets)

    def _of(self, images: Iterable[Tensor]) -> Tensor:
        # One at a time: they differ in size, and each is resized to the model's.
        return torch.cat([self.vectors(image[None].to(self.device)).cpu() for image in images])


def check_kid(recipe: Recipe) -> None:
    """See that the model of a recipe's ``evaluate.kid`` exists, without its weights.

    Raises:
        RecipeError: timm has no such model, or there is no such file.
    """
    kid = recipe.evaluate.kid
    if kid is None:
        return
    import timm

    name = kid.model.partition(".")[0]
    if ":" not in kid.model and not timm.is_model(name):  # with a colon it comes from a hub or a folder
        raise recipe.error("evaluate.kid", f"timm has no model {name!r}{nearest(name, timm.list_models())}")
    if kid.weights is not None and not Path(kid.weights).is_file():
        raise recipe.error("evaluate.kid", f"there is no file {kid.weights}")
