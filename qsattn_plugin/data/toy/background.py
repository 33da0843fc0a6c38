"""The toy pictures' landscape: sky, clouds, hills, trees and a grassy ground.

The canvas has x to the right and y down, both in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy import ndarray

from qsattn_plugin.data.toy.noise import Noise, RandomSource, composite, coverage, rgb, sample_bilinear, smoothstep

#: Sky above, sky at the horizon, hills, far ground, near ground, the light's tint.
SCENES = (
    ("#5499eb", "#d1e8f7", "#669980", "#99b857", "#4f802b", "#fffffa"),  # meadow
    ("#73ade6", "#f2e8c7", "#999673", "#dbbf73", "#a8823b", "#fffaed"),  # savannah
    ("#736bad", "#fcbd8c", "#735c80", "#a38554", "#61522e", "#ffebd1"),  # dusk
    ("#9ec2de", "#f0f0e8", "#8fadb2", "#a3b880", "#61854c", "#faffff"),  # mist
    ("#61a1e0", "#ebe6d6", "#9e786b", "#d49461", "#a16138", "#fff7f0"),  # red earth
    ("#85b0d9", "#f0ebdb", "#b28047", "#bdab52", "#78702b", "#fff7e6"),  # autumn
)
#: Far and near ground in winter, whatever the palette.
SNOW = ("#dfe6f0", "#f4f6fb")
#: Every tree is somewhat green, so that none looks like a part of the animal.
LEAVES = rgb("#56743c")


class Canvas:
    """A square of pixels: their centres ``x`` and ``y``, each (H, W), and a ``pixel``'s width.

    Args:
        size: height and width in pixels.
    """

    def __init__(self, size: int):
        self.pixel = 1.0 / size
        self._centres = (np.arange(size, dtype=np.float32) + 0.5) / size
        self.y, self.x = np.meshgrid(self._centres, self._centres, indexing="ij")

    def look(self, noise: Noise, lower: float = 0.0) -> ndarray:
        """Return noise at the pixel centres, (H, W), shifted down by ``lower``."""
        return noise(self._centres + lower, self._centres)

    def ridge(self, noise: Noise) -> ndarray:
        """Return one row of noise across the canvas, (1, W)."""
        return noise(self._centres[:1], self._centres)

    def rows(self, top: float, bottom: float) -> slice:
        """Return the rows whose centres lie between two heights."""
        return slice(int((self._centres < top).sum()), int((self._centres <= bottom).sum()))

    def coverage(self, distance: ndarray) -> ndarray:
        """Return how much of each pixel a shape covers, from its signed distance."""
        return coverage(distance, self.pixel)


@dataclass
class Scene:
    """Colours, horizon and sun of a landscape."""

    sky: ndarray
    haze: ndarray
    hills: ndarray
    far: ndarray
    near: ndarray
    tint: ndarray
    horizon: float
    sun: tuple[float, float]

    def snowed(self) -> Scene:
        """Return the same landscape with snow on the ground."""
        far, near = (rgb(colour) * self.tint for colour in SNOW)
        return replace(self, far=far, near=near)

    @classmethod
    def draw(cls, random: RandomSource) -> Scene:
        """Draw a palette with some jitter, the horizon and the sun's place."""
        palette = [rgb(c) for c in random.choose(SCENES)]
        palette[:5] = [c * (1 + (random.array(3).reshape(3, 1, 1) - 0.5) * 0.1) for c in palette[:5]]
        sky, haze, hills, far, near, tint = palette
        horizon, sun = random.uniform(0.42, 0.56), (random.uniform(-0.1, 1.1), random.uniform(-0.05, 0.25))
        return cls(sky, haze, hills, far, near, tint, horizon, sun)


def _trees(random: RandomSource, canvas: Canvas, ground: ndarray, cells: int = 7) -> tuple[ndarray, ndarray]:
    """Return the coverage and the brightness, each (H, W), of round trees on the ridge ``ground`` (1, W)."""
    rolls = random.array(5, cells)
    cell = (canvas.x[:1] * cells).astype(np.int64).clip(0, cells - 1)
    present, place, tall, broad, lean = (r[cell] for r in rolls)
    height = 0.035 + 0.045 * tall
    x = canvas.x - (cell.astype(np.float32) + 0.3 + 0.4 * place) / cells
    y = canvas.y - ground
    crown_x, crown_y = x - 0.01 * (lean - 0.5), (y + height) / (0.75 + 0.2 * broad)
    radius = 0.36 * height + 0.012 * broad
    lobes = ((0.0, 0.0, 1.0), (-0.75, 0.45, 0.7), (0.8, 0.35, 0.75), (0.25, -0.5, 0.7))
    # Which lobe of the crown is nearest: round shapes a little longer than they are high.
    crown = np.min(
        [np.sqrt((crown_x - dx * radius) ** 2 + (crown_y - dy * radius) ** 2) - r * radius for dx, dy, r in lobes], 0
    )
    trunk = np.maximum(np.abs(x) - 0.006, np.abs(y + height * 0.4) - height * 0.4)
    lit = smoothstep(-1.0, 1.0, (crown_x * -0.4 - crown_y) / radius)
    return canvas.coverage(np.minimum(crown, trunk)) * (present < 0.4), lit


def landscape(random: RandomSource, canvas: Canvas, scene: Scene, snow: bool = False) -> tuple[ndarray, ndarray]:
    """Paint sky, hills, trees and ground, without the grass tufts.

    Return the picture (3, H, W), and the share (H, W) of each pixel that is ground.
    """
    x, y, horizon = canvas.x, canvas.y, scene.horizon
    picture = composite(scene.sky, scene.haze, (y / horizon).clip(0, 1) ** 0.8)
    glow = np.exp(-((x - scene.sun[0]) ** 2 + (y - scene.sun[1]) ** 2) / 0.09)
    picture = composite(picture, rgb("#fff7db"), 0.55 * glow)

    puffs = random.noise(5, 3, 5)
    low = random.uniform(0.05, 0.4)
    clouds = smoothstep(low, low + 0.75, canvas.look(puffs)) * smoothstep(1.0, 0.55, y / horizon).clip(0, 1)
    shadow = smoothstep(low, low + 1.5, canvas.look(puffs, 0.025))
    cloud = composite(rgb("#ffffff"), scene.haze * 0.86, 0.75 * shadow)
    picture = composite(picture, cloud * scene.tint, 0.85 * clouds)

    for depth, lift, cells in ((0.62, 0.065, 3), (0.25, 0.02, 4)):
        ridge = horizon - lift - lift * 0.9 * canvas.ridge(random.noise(1, cells, 3))
        tone = composite(scene.hills, scene.haze, depth) * (1 + 0.05 * canvas.look(random.noise(12, 12, 3)))
        tone = tone * (0.9 + 0.2 * smoothstep(0.12, 0.0, y - ridge))
        if depth < 0.5:
            trees, lit = _trees(random, canvas, ridge)
            leaf = composite(
                composite(scene.hills * 0.55, scene.near * 1.05, 0.55 * lit), LEAVES * (0.6 + 0.6 * lit), 0.45
            )
            picture = composite(picture, leaf, trees)
        picture = composite(picture, tone, canvas.coverage(ridge - y))

    # The ground's noise is looked up in perspective: wide and flat at the horizon, open in front.
    below = np.maximum(y - horizon, 0.0) + 0.06
    u = (x - 0.5) * 0.11 / below
    v = 0.066 / below
    places = np.linspace(0, 1, 128, dtype=np.float32)
    patches = sample_bilinear(random.noise(10, 10, 4)(places, places), v, u)
    blades = canvas.look(random.noise(24, 48, 2))
    near = ((y - horizon) / (1 - horizon)).clip(0, 1)
    floor = scene.snowed() if snow else scene
    ground = composite(floor.far, floor.near, smoothstep(-0.1, 1.0, near)) * (1 + 0.16 * patches + 0.09 * near * blades)
    edge = horizon + 0.008 * canvas.ridge(random.noise(1, 6, 3))
    share = canvas.coverage(edge - y)
    return composite(picture, ground, share), share


def tufts(
    random: RandomSource, canvas: Canvas, scene: Scene, rows: list[float]
) -> list[tuple[slice, ndarray, ndarray]]:
    """Return rows of grass tufts, back to front, by the height of each row's foot on the canvas, 0 to 1.

    For each: the pixel rows it covers, its colours (3, h, W) and its opacity (h, W).
    """
    found = []
    for foot in rows:
        near = (foot - scene.horizon) / (1 - scene.horizon)
        tall = 0.022 + 0.055 * near
        cells = round(13 - 6 * near)
        rolls = random.array(6, cells)
        band = canvas.rows(foot - tall * 1.3, foot + 0.025)
        x, y = canvas.x[band], canvas.y[band]
        cell = (x[:1] * cells).astype(np.int64).clip(0, cells - 1)
        present, place, grown, lean, tone, sink = (r[cell] for r in rolls)
        height = tall * (0.65 + 0.6 * grown)
        centre = x - (cell.astype(np.float32) + 0.35 + 0.3 * place) / cells
        t = (foot + 0.02 * sink - y) / height
        opacity = np.zeros_like(t)
        for fan in (-1.0, -0.5, 0.0, 0.45, 0.95):
            reach = 1 - 0.35 * abs(fan)
            s = (t / reach).clip(0, 1)
            bend = height * (fan * 0.5 + (lean - 0.5) * 0.5) * s**1.6 + height * 0.12 * fan
            half = height * 0.1 * (1 - s)
            blade = canvas.coverage(np.abs(centre - bend) - half) * (t > 0) * (t < reach)
            opacity = np.maximum(opacity, blade)
        opacity = opacity * (present < 0.55) * (0.55 + 0.45 * near)
        base = composite(scene.far, scene.near, smoothstep(-0.1, 1.0, np.float32(near)))
        shade = base * (0.66 + 0.4 * t.clip(0, 1) * (0.7 + 0.8 * tone))
        found.append((band, shade, opacity))
    return found
