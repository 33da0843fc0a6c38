"""Drawing one toy picture: an animal in a landscape, with either coat, from a seed."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.toy.animal import extent, pose
from qsattn_plugin.data.toy.background import Canvas, Scene, landscape, tufts
from qsattn_plugin.data.toy.coat import Coat, Light, paint
from qsattn_plugin.data.toy.noise import RandomSource, composite

#: Pictures are drawn at this multiple of their size and averaged down, for antialiasing.
SUPERSAMPLING = 2


class Drawing(NamedTuple):
    """A picture (3, H, W), uint8 RGB; the shares of each pixel that are the animal and the ground, (H, W) in [0, 1]."""

    picture: Tensor
    silhouette: Tensor
    ground: Tensor


def draw(seed: int, size: int, striped: bool, snow: bool = False) -> Drawing:
    """Draw an animal in a landscape.

    Only the coat depends on ``striped``, and only the ground on ``snow``: the drawings of a seed are equal wherever the
    silhouette, or the ground's share, is 0. A seed gives the same scene at every size, in pixels, at least 16.
    """
    random = RandomSource(seed)
    canvas = Canvas(size * SUPERSAMPLING)
    scene = Scene.draw(random)
    picture, ground = landscape(random, canvas, scene, snow)

    animal = pose(random)
    left, right, bottom, top = extent(animal.limbs)
    width = random.uniform(0.7, 0.86)
    unit = min(width / (right - left), 0.72 / (top - bottom))
    feet = random.uniform(0.86, 0.93)
    facing = 1.0 if random.chance(0.5) else -1.0
    free = max(0.0, 0.97 - unit * (right - left))
    middle = 0.5 + random.uniform(-0.5, 0.5) * free
    x = (canvas.x - middle) * (facing / unit) + (left + right) / 2
    y = (feet - canvas.y) / unit
    coat = Coat.draw(random)

    rows = [scene.horizon + (1 - scene.horizon) * t for t in (0.12, 0.27, 0.45, 0.62)] + [feet + 0.012, 1.01]
    grass = tufts(random, canvas, scene.snowed() if snow else scene, rows)
    for band, shade, opacity in grass[:4]:
        picture[:, band] = composite(picture[:, band], shade, opacity)

    # The animal's shadow falls away from the sun.
    cast = (scene.sun[0] - 0.5) * -0.25 * facing
    reach = ((x - cast) / 0.62) ** 2 + ((y - 0.05) / 0.13) ** 2
    picture *= 1 - 0.42 * np.exp(-reach * np.sqrt(reach))

    light = Light((scene.sun[0] - 0.5) * 1.3 * facing, 0.75, 0.75, scene.tint)
    grain, warp = canvas.look(random.noise(16, 16, 3)), canvas.look(random.noise(5, 5, 2))
    silhouette = paint(picture, animal, coat, striped, x, y, light, grain, warp)
    for band, shade, opacity in grass[4:]:
        picture[:, band] = composite(picture[:, band], shade, opacity)
        silhouette[band] = silhouette[band] * (1 - opacity)

    whole = np.concatenate((picture.clip(0, 1), silhouette[None], (ground * (1 - silhouette))[None]))
    small = whole.reshape(5, size, SUPERSAMPLING, size, SUPERSAMPLING).mean((2, 4))
    pixels = np.rint(small[:3] * 255).astype(np.uint8)
    return Drawing(torch.from_numpy(pixels), torch.from_numpy(small[3]), torch.from_numpy(small[4]))


def picture_seed(seed: int, group: int, index: int) -> int:
    """Return the seed of one picture of a data set, different for every group, 0 to 15, and index, 0 to 2**28 - 1.

    torch's generator uses 32 bits of its seed. Multiplication by an odd number permutes them, so no two pictures of a
    data set share a seed, which a hash could not guarantee.
    """
    return (derive_seed(seed) + (group << 28 | index) * 0x9E3779B1) & 0xFFFFFFFF
