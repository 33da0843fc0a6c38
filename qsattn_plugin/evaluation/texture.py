"""The sliced Wasserstein distance of two folders of pictures, scale by scale, as the QS-Attn paper reports it.

Its authors point to the code of CoCosNet's authors, which is that of Karras et al., "Progressive Growing of GANs",
2018, section 5: a Laplacian pyramid down to 16 pixels, 128 random 7 x 7 patches of each picture at each level, the
channels of each set brought to mean 0 and deviation 1, 512 directions, the mean absolute difference of the sorted
projections, times 1000, and the mean over the levels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.distances import sliced_wasserstein
from qsattn_plugin.evaluation.pictures import Pictures

PATCHES = 128
PATCH = 7
DIRECTIONS = 512
SMALLEST = 16
#: The batch that pictures are read in; figures do not depend on it.
_BATCH = 16


def texture_distance(
    a: Pictures, b: Pictures, seed: int = 0, done: Callable[[int], None] = lambda count: None
) -> dict[int, float]:
    """Return the distance at each level of the pyramid, by the level's height in pixels, largest first.

    About 0.4 MB of memory a picture (of 256 x 256) are taken. Sets of different counts are compared at the quantiles of
    the larger one, where the reference demands equal counts. Each set has its own draws of places, so that one and the
    same set is not 0 from itself: 120 zebras are about 15.

    Distances are times 1000, at least 0. ``seed`` is that of places and directions; the second set's places are drawn
    with ``seed + 1``. ``done`` is called with how many pictures were dealt with.

    Raises:
        ValueError: the sets have no size, or not the same.
        UserError: a picture cannot be read.
    """
    if a.size is None or a.size != b.size:
        raise ValueError(f"b: both sets must be brought to one size, got {a.size} and {b.size}")
    x, y = (descriptors(p.batches(_BATCH, done), a.size, s) for p, s in ((a, seed), (b, seed + 1)))
    return compare(x, y, a.size, seed)


def compare(a: list[Tensor], b: list[Tensor], size: int, seed: int) -> dict[int, float]:
    """Return the distance of two sets' :func:`descriptors` at each level, as :func:`texture_distance`."""
    return {
        level: 1000 * sliced_wasserstein(x, y, DIRECTIONS, seed, power=1)
        for level, x, y in zip(levels(size), a, b, strict=True)
    }


def levels(size: int) -> list[int]:
    """Return the heights of a pyramid's levels: halved as long as they have at least :data:`SMALLEST` pixels."""
    found = [size]
    while found[-1] // 2 >= SMALLEST:
        found.append((found[-1] + 1) // 2)  # every second row, beginning with the first
    return found


def descriptors(batches: Iterable[Tensor], size: int, seed: int) -> list[Tensor]:
    """Return, for each level of the pyramid, the patches of all pictures as rows (N * 128, 3 * 7 * 7), normalised.

    Args:
        batches: uint8 (B, 3, size, size) each; the result does not depend on how pictures are divided among them.
        size: height and width of the pictures, at least 7.
        seed: of the patches' places.
    """
    draws = torch.Generator().manual_seed(seed)
    sizes = levels(size)
    found: list[list[Tensor]] = [[] for _ in sizes]
    for images in batches:
        pyramid = laplacian_pyramid(images.float(), len(sizes))
        for index in range(len(images)):  # one picture after another: the draws do not depend on the batch
            for level, kept in zip(pyramid, found, strict=True):
                kept.append(_cut(level[index], draws))
    return [_normalised(torch.cat(kept)) for kept in found]


def _cut(image: Tensor, draws: torch.Generator) -> Tensor:
    """Random patches (:data:`PATCHES`, 3, 7, 7) of an image (3, H, W)."""
    height, width = (side - PATCH + 1 for side in image.shape[-2:])
    top = torch.randint(height, (PATCHES,), generator=draws)
    left = torch.randint(width, (PATCHES,), generator=draws)
    steps = torch.arange(PATCH)
    rows, columns = top[:, None] + steps, left[:, None] + steps
    return image[:, rows[:, :, None], columns[:, None, :]].transpose(0, 1)


def _normalised(patches: Tensor) -> Tensor:
    """Give each channel of patches (P, 3, 7, 7) mean 0 and deviation 1, and make rows of them."""
    deviation, mean = torch.std_mean(patches, dim=(0, 2, 3), keepdim=True, correction=0)
    return ((patches - mean) / deviation.clamp_min(1e-8)).flatten(1)


def laplacian_pyramid(images: Tensor, count: int) -> list[Tensor]:
    """Return ``count`` levels of (B, C, H, W), largest first: what is lost from one to the next, and the smallest.

    Each but the last is a Gaussian level minus the next one brought back to its size (Burt and Adelson, "The Laplacian
    Pyramid as a Compact Image Code", 1983).
    """
    found = [images]
    for _ in range(count - 1):
        smaller = _blurred(found[-1])[..., ::2, ::2]
        found[-1] = found[-1] - _enlarged(smaller, found[-1].shape[-2:])
        found.append(smaller)
    return found


def _blurred(images: Tensor) -> Tensor:
    """Convolve with the binomial 1 4 6 4 1 along both axes, the border mirrored."""
    taps = torch.tensor([1.0, 4.0, 6.0, 4.0, 1.0], dtype=images.dtype, device=images.device) / 16
    channels = images.shape[1]
    images = F.pad(images, (2, 2, 2, 2), mode="reflect")
    images = F.conv2d(images, taps.view(1, 1, 1, 5).expand(channels, 1, 1, 5), groups=channels)
    return F.conv2d(images, taps.view(1, 1, 5, 1).expand(channels, 1, 5, 1), groups=channels)


def _enlarged(images: Tensor, size: Sequence[int]) -> Tensor:
    """Double the size: zeros between the pixels, then the blur, four times as strong."""
    spread = images.new_zeros(*images.shape[:2], *size)
    spread[..., ::2, ::2] = images
    return 4 * _blurred(spread)
