"""Scores of translations with a known ground truth: the coat inside a silhouette, the background outside.

They are independent of the data set: images, ground truth and silhouettes are tensors.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.distances import patches, sliced_wasserstein

#: Larger pictures are averaged down to this side, so that a 7x7 patch covers a stripe and its neighbour.
RESOLUTION = 64


def _same_shape(silhouettes: Tensor, **images: Tensor) -> None:
    """Raise :class:`ValueError` unless all images have the same shape and the silhouettes match it."""
    (first, shape), *others = [(name, tuple(image.shape)) for name, image in images.items()]
    if len(shape) != 4 or not shape[0]:
        raise ValueError(f"{first}: must be (N, C, H, W) with at least one image, got {shape}")
    for name, other in others:
        if other != shape:
            raise ValueError(f"{name}: must be {shape} as {first}, got {other}")
    if tuple(silhouettes.shape) != (shape[0], *shape[2:]):
        raise ValueError(f"silhouettes: must be {(shape[0], *shape[2:])}, got {tuple(silhouettes.shape)}")


def _averaged(images: Tensor) -> Tensor:
    """Return the images, averaged down to at most :data:`RESOLUTION` in height and width."""
    height, width = images.shape[-2:]
    size = (min(height, RESOLUTION), min(width, RESOLUTION))
    return images if size == (height, width) else F.interpolate(images, size=size, mode="area")


def coat_distance(
    translated: Tensor, source: Tensor, target: Tensor, silhouettes: Tensor, projections: int = 256
) -> float:
    """Return the distance of the translated coats to the true ones, relative to that of the untranslated ones.

    Both are sliced Wasserstein distances between the 7x7 patches with at least three quarters in the silhouettes. 0 is
    the ground truth, 1 no change, and more is worse than no change. As sets of patches are compared, the position of a
    stripe on the body does not matter; two random draws of stripes for the same animals are about 0.05 apart.

    Images are (N, C, H, W), ``target`` shows the animals of ``source`` in the other coat, and silhouettes (N, H, W)
    are 0 to 1. The sliced distance has the same directions, ``projections`` of them, in every call.

    Raises:
        ValueError: shapes do not match, the silhouettes contain no patch, or source and target have equal coats.
    """
    _same_shape(silhouettes, translated=translated, source=source, target=target)
    masks = _averaged(silhouettes[:, None])[:, 0]
    got, before, truth = (patches(_averaged(images), masks) for images in (translated, source, target))
    if not len(truth):
        raise ValueError("silhouettes: contain no 7x7 patch; the animals are too small")
    untranslated = sliced_wasserstein(before, truth, projections)
    if untranslated == 0:
        raise ValueError("source: has the target's coat already, so there is nothing to compare with")
    return sliced_wasserstein(got, truth, projections) / untranslated


def background_change(translated: Tensor, source: Tensor, silhouettes: Tensor, margin: float = 0.03) -> float:
    """Return the mean absolute change of the pixels outside the silhouettes (N, H, W), in the images' units.

    A border around a silhouette is excluded too, as wide as ``margin``, a share of the height: a generator may soften
    outlines.

    Raises:
        ValueError: shapes do not match, or the silhouettes fill the images.
    """
    _same_shape(silhouettes, translated=translated, source=source)
    reach = math.ceil(margin * silhouettes.shape[-2])
    near = F.max_pool2d(silhouettes[:, None], 2 * reach + 1, stride=1, padding=reach)
    outside = (near < 1 / 255).expand_as(source)
    if not outside.any():
        raise ValueError("silhouettes: leave no background")
    return float((translated - source).abs()[outside].mean(dtype=torch.float64))
