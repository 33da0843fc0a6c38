"""Score translations of pictures of which one knows the truth: the coat inside a silhouette, the background outside.

Nothing here knows a data set: images, truths and silhouettes are given as tensors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.distances import patches, sliced_wasserstein

#: Larger pictures are averaged down to this many pixels, so that a 7x7 patch sees a stripe and its neighbour.
RESOLUTION = 64


def _same_shape(silhouettes: Tensor, **images: Tensor) -> None:
    """Raise :class:`ValueError` unless all images have one shape and the silhouettes are theirs."""
    (first, shape), *others = [(name, tuple(image.shape)) for name, image in images.items()]
    if len(shape) != 4 or not shape[0]:
        raise ValueError(f"{first}: must be (N, C, H, W) with at least one image, got {shape}")
    for name, other in others:
        if other != shape:
            raise ValueError(f"{name}: must be {shape} as {first}, got {other}")
    if tuple(silhouettes.shape) != (shape[0], *shape[2:]):
        raise ValueError(f"silhouettes: must be {(shape[0], *shape[2:])}, got {tuple(silhouettes.shape)}")


def _averaged(images: Tensor) -> Tensor:
    """The images averaged down to at most :data:`RESOLUTION` in height and width."""
    height, width = images.shape[-2:]
    size = (min(height, RESOLUTION), min(width, RESOLUTION))
    return images if size == (height, width) else F.interpolate(images, size=size, mode="area")


def coat_distance(
    translated: Tensor, source: Tensor, target: Tensor, silhouettes: Tensor, projections: int = 256
) -> float:
    """How far the translated coats are from the true ones, as a share of how far the untranslated ones are.

    Both distances are the sliced Wasserstein distance of the 7x7 patches of all images that lie at least to three
    quarters in the silhouettes. So 0 is the truth, 1 is nothing done, and more is worse than nothing. As whole sets of
    patches are compared, it does not matter where on the body a stripe lies; two draws of stripes for the same animals
    are about 0.05 apart.

    Args:
        translated: (N, C, H, W), float.
        source: what was translated, of the same shape.
        target: the same animals in the other coat, of the same shape.
        silhouettes: (N, H, W), 0 to 1.
        projections: directions of the sliced distance; the same ones in every call.

    Raises:
        ValueError: shapes that do not fit, no patch in the silhouettes, or source and target with equal coats.
    """
    _same_shape(silhouettes, translated=translated, source=source, target=target)
    masks = _averaged(silhouettes[:, None])[:, 0]
    got, before, truth = (patches(_averaged(images), masks) for images in (translated, source, target))
    if not len(truth):
        raise ValueError("silhouettes: hold no 7x7 patch; the animals are too small")
    untranslated = sliced_wasserstein(before, truth, projections)
    if untranslated == 0:
        raise ValueError("source: has the target's coat already, so there is nothing to compare with")
    return sliced_wasserstein(got, truth, projections) / untranslated


def background_change(translated: Tensor, source: Tensor, silhouettes: Tensor, margin: float = 0.03) -> float:
    """The mean absolute change of the pixels outside the silhouettes, in the images' units.

    Args:
        translated: (N, C, H, W), float.
        source: what was translated, of the same shape.
        silhouettes: (N, H, W), 0 to 1.
        margin: how far beyond the silhouette a pixel is still the animal's, as a share of the height: a generator may
            soften an outline.

    Raises:
        ValueError: shapes that do not fit, or silhouettes that fill the images.
    """
    _same_shape(silhouettes, translated=translated, source=source)
    reach = math.ceil(margin * silhouettes.shape[-2])
    near = F.max_pool2d(silhouettes[:, None], 2 * reach + 1, stride=1, padding=reach)
    outside = (near < 1 / 255).expand_as(source)
    if not outside.any():
        raise ValueError("silhouettes: leave no background")
    return float((translated - source).abs()[outside].mean(dtype=torch.float64))
