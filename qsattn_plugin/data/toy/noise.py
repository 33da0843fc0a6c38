"""Randomness for the toy pictures, the same at every picture size, and a few words to paint with.

The pictures are computed with numpy, whose operations stay in the thread that asks for them. Torch would split these
many small ones over its own threads, and where several pictures are drawn side by side, or the cores are busy, those
wait for each other: ten times the processor time, measured on two busy cores.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy import ndarray


class RandomSource:
    """Random numbers from a seed; how many are drawn never depends on the picture's size."""

    def __init__(self, seed: int):
        self._generator = torch.Generator().manual_seed(seed)

    def array(self, *shape: int) -> ndarray:
        """Numbers in [0, 1) of a shape, float32."""
        return torch.rand(shape, generator=self._generator, dtype=torch.float32).numpy()

    def uniform(self, low: float, high: float) -> float:
        """A number in [low, high)."""
        return low + (high - low) * float(self.array())

    def chance(self, probability: float) -> bool:
        """True with the given probability."""
        return self.uniform(0.0, 1.0) < probability

    def choose(self, options: Sequence):
        """One of the options, all equally likely."""
        return options[int(torch.randint(len(options), (), generator=self._generator))]

    def noise(self, rows: int, columns: int, octaves: int) -> Noise:
        """Smooth noise of several octaves.

        Args:
            rows: cells of the coarsest octave, downwards.
            columns: the same, across.
            octaves: each doubles the cells and halves the amplitude.
        """
        return Noise([self.array(rows * 2**o + 4, columns * 2**o + 4) * 2 - 1 for o in range(octaves)])


class Noise:
    """A smooth function on the unit square, roughly in [-1, 1]: random lattices with cubic splines between."""

    def __init__(self, lattices: list[ndarray]):
        self._lattices = lattices

    def __call__(self, y: ndarray, x: ndarray) -> ndarray:
        """Its values at every height ``y`` (H,) and place ``x`` (W,), clipped to [0, 1]: (H, W)."""
        octaves = (0.5**o * _between(_between(lattice, y).T, x).T for o, lattice in enumerate(self._lattices))
        return sum(octaves)


def _between(lattice: ndarray, at: ndarray) -> ndarray:
    """Values between a lattice's rows (R, C) at ``at`` (M,) in [0, 1], by the Catmull-Rom spline: (M, C)."""
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
    """A sheet (R, C) at any points, linear between its values, mirrored at its edges: the points' shape."""
    places = []
    for at, length in ((v, sheet.shape[0]), (u, sheet.shape[1])):
        place = np.abs(at % 2 - 1) * (length - 1)
        floor = np.minimum(np.floor(place), length - 2)
        places.append((floor.astype(np.int64), place - floor))
    (row, down), (column, across) = places
    above = sheet[row, column] * (1 - across) + sheet[row, column + 1] * across
    below = sheet[row + 1, column] * (1 - across) + sheet[row + 1, column + 1] * across
    return above * (1 - down) + below * down


def smoothstep(low: float, high: float, x: ndarray | float) -> ndarray | float:
    """0 at ``low`` and beyond, 1 at ``high`` and beyond, a smooth cubic between; either may be the larger one."""
    t = np.clip((x - low) / (high - low), 0, 1)
    return t * t * (3 - 2 * t)


def composite(under: ndarray, over: ndarray, alpha: ndarray | float) -> ndarray:
    """``over`` laid on ``under`` with opacity ``alpha``; colours are (3, H, W) or (3, 1, 1), ``alpha`` (H, W).

    Exactly ``under`` where ``alpha`` is 0 and exactly ``over`` where it is 1.
    """
    return under * (1 - alpha) + over * alpha


def coverage(distance: ndarray, pixel: float) -> ndarray:
    """How much of a pixel a shape covers, 0 to 1, from its signed distance, negative inside, and a pixel's width."""
    return (0.5 - distance / pixel).clip(0, 1)


def rgb(code: str) -> ndarray:
    """A colour written as ``#rrggbb`` as a (3, 1, 1) array in [0, 1]."""
    rgb = [int(code[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    return np.array(rgb, dtype=np.float32).reshape(3, 1, 1)
