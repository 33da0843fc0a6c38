"""Random numbers for the toy pictures, the same at every picture size, and painting functions.

The pictures are computed with numpy, which stays in the calling thread. Torch would split the many small operations
over its own threads, which wait for each other when several pictures are drawn at once or the cores are busy: ten times
the processor time, measured on two busy cores.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar, cast

import numpy as np
import torch
from numpy import ndarray

_Values = TypeVar("_Values", ndarray, np.floating)


class RandomSource:
    """Random numbers from a seed; the number of draws never depends on the picture's size."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def array(self, *shape: int) -> ndarray:
        """Return uniform numbers in [0, 1), float32, of a shape."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float32).numpy()

    def uniform(self, low: float, high: float) -> float:
        """Return a uniform number in [low, high)."""
        return low + (high - low) * float(self.array())

    def chance(self, probability: float) -> bool:
        """Return True with the given probability."""
        return self.uniform(0.0, 1.0) < probability

    def choose(self, options: Sequence):
        """Return one of the options, all equally likely."""
        return options[int(torch.randint(len(options), (), generator=self._generator))]

    def noise(self, rows: int, columns: int, octaves: int) -> Noise:
        """Return smooth noise of several octaves.

        Args:
            rows: vertical cells of the coarsest octave.
            columns: horizontal cells of the coarsest octave.
            octaves: each doubles the cells and halves the amplitude.
        """
        return Noise([self.array(rows * 2**o + 4, columns * 2**o + 4) * 2 - 1 for o in range(octaves)])


class Noise:
    """A smooth function on the unit square, roughly in [-1, 1]: random lattices, interpolated by cubic splines."""

    def __init__(self, lattices: list[ndarray]):
        self._lattices = lattices

    def __call__(self, y: ndarray, x: ndarray) -> ndarray:
        """Return the values (H, W) on the grid of ``y`` (H,) and ``x`` (W,), which are clipped to [0, 1]."""
        octaves = (0.5**o * _between(_between(lattice, y).T, x).T for o, lattice in enumerate(self._lattices))
        return cast(ndarray, sum(octaves))


def _between(lattice: ndarray, at: ndarray) -> ndarray:
    """Interpolate between a lattice's rows (R, C) at ``at`` (M,) in [0, 1] by Catmull-Rom splines: (M, C)."""
    place = at.clip(0, 1) * (len(lattice) - 4)
    floor = np.floor(place)
    cell, t = floor.astype(np.int64), (place - floor)[:, None]
    weights = (
        ((2 - t) * t - 1) * t / 2,
        ((3 * t - 5) * t * t + 2) / 2,
        ((4 - 3 * t) * t + 1) * t / 2,
        (t - 1) * t * t / 2,
    )
    return sum(weight * lattice[cell + k] for k, weight in enumerate(weights))


def sample_bilinear(sheet: ndarray, v: ndarray, u: ndarray) -> ndarray:
    """Sample ``sheet`` (R, C) at points ``v``, ``u`` of any shape; bilinear, mirrored at the edges."""
    places = []
    for at, length in ((v, sheet.shape[0]), (u, sheet.shape[1])):
        place = np.abs(at % 2 - 1) * (length - 1)
        floor = np.minimum(np.floor(place), length - 2)
        places.append((floor.astype(np.int64), place - floor))
    (row, down), (column, across) = places
    above = sheet[row, column] * (1 - across) + sheet[row, column + 1] * across
    below = sheet[row + 1, column] * (1 - across) + sheet[row + 1, column + 1] * across
    return above * (1 - down) + below * down


def smoothstep(low: float, high: float, x: _Values) -> _Values:
    """Return 0 at ``low`` and beyond, 1 at ``high`` and beyond, a cubic between; either may be the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def composite(under: ndarray, over: ndarray, alpha: ndarray | np.floating | float) -> ndarray:
    """Composite ``over`` on ``under``; colours are (3, H, W) or (3, 1, 1), ``alpha`` (H, W).

    Exactly ``under`` where ``alpha`` is 0 and exactly ``over`` where it is 1.
    """
    return under * (1 - alpha) + over * alpha


def coverage(distance: ndarray, pixel: float) -> ndarray:
    """Return the share of each pixel that a shape covers, from its signed distance (negative inside)."""
    return (0.5 - distance / pixel).clip(0, 1)


def rgb(code: str) -> ndarray:
    """Return a colour written as ``#rrggbb`` as a float32 array (3, 1, 1) in [0, 1]."""
    rgb = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(rgb, dtype=np.float32).reshape(3, 1, 1)
