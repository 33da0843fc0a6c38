"""The toy pictures' landscape: sky, clouds, hills, trees and a grassy ground.

The canvas has x to the right and y down, both in [0, 1].
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy import ndarray

from qsattn_plugin.data.toy.noise import Dice, Noise, colour, cover, lay, look_up, step

#: Sky above, sky at the horizon, hills, far ground, near ground, the light's tint.
SCENES = (
    ("#5499eb", "#d1e8f7", "#669980", "#99b857", "#4f802b", "#fffffa"),  # meadow
    ("#73ade6", "#f2e8c7", "#999673", "#dbbf73", "#a8823b", "#fffaed"),  # savannah
    ("#736bad", "#fcbd8c", "#735c80", "#a38554", "#61522e", "#ffebd1"),  # dusk
    ("#9ec2de", "#f0f0e8", "#8fadb2", "#a3b880", "#61854c", "#faffff"),  # mist
    ("#61a1e0", "#ebe6d6", "#9e786b", "#d49461", "#a16138", "#fff7f0"),  # red earth
    ("#85b0d9", "#f0ebdb", "#b28047", "#bdab52", "#78702b", "#fff7e6"),  # autumn
)
#: Every tree is somewhat green, so that none is taken for a part of the animal before it.
LEAVES = colour("#56743c")


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
        """Noise at the pixels, or at places by ``lower`` further down, (H, W)."""
        return noise(self._centres + lower, self._centres)

    def ridge(self, noise: Noise) -> ndarray:
        """A line of noise across the canvas, (1, W)."""
        return noise(self._centres[:1], self._centres)

    def rows(self, top: float, bottom: float) -> slice:
        """The rows whose centres lie between two heights."""
        return slice(int((self._centres < top).sum()), int((self._centres <= bottom).sum()))

    def cover(self, distance: ndarray) -> ndarray:
        """How much of a pixel a shape covers, from its signed distance."""
        return cover(distance, self.pixel)


@dataclass
class Scene:
    """What the landscape is made of, beside its noise."""

    sky: ndarray
    haze: ndarray
    hills: ndarray
    far: ndarray
    near: ndarray
    tint: ndarray
    horizon: float
    sun: tuple[float, float]

    @classmethod
    def draw(cls, dice: Dice) -> Scene:
        """Draw a palette with some jitter, the horizon and the sun's place."""
        palette = [colour(c) for c in dice.choose(SCENES)]
        palette[:5] = [c * (1 + (dice.table(3).reshape(3, 1, 1) - 0.5) * 0.1) for c in palette[:5]]
        return cls(*palette, dice.uniform(0.42, 0.56), (dice.uniform(-0.1, 1.1), dice.uniform(-0.05, 0.25)))


def _trees(dice: Dice, canvas: Canvas, ground: ndarray, cells: int = 7) -> tuple[ndarray, ndarray]:
    """Round trees standing on the ridge ``ground`` (1, W): their cover and how lit they are, each (H, W)."""
    rolls = dice.table(5, cells)
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
    lit = step(-1.0, 1.0, (crown_x * -0.4 - crown_y) / radius)
    return canvas.cover(np.minimum(crown, trunk)) * (present < 0.4), lit


def landscape(dice: Dice, canvas: Canvas, scene: Scene) -> ndarray:
    """Paint sky, hills, trees and ground, (3, H, W), without the grass tufts."""
    x, y, horizon = canvas.x, canvas.y, scene.horizon
    picture = lay(scene.sky, scene.haze, (y / horizon).clip(0, 1) ** 0.8)
    glow = np.exp(-((x - scene.sun[0]) ** 2 + (y - scene.sun[1]) ** 2) / 0.09)
    picture = lay(picture, colour("#fff7db"), 0.55 * glow)

    puffs = dice.noise(5, 3, 5)
    low = dice.uniform(0.05, 0.4)
    clouds = step(low, low + 0.75, canvas.look(puffs)) * step(1.0, 0.55, y / horizon).clip(0, 1)
    shadow = step(low, low + 1.5, canvas.look(puffs, 0.025))
    cloud = lay(colour("#ffffff"), scene.haze * 0.86, 0.75 * shadow)
    picture = lay(picture, cloud * scene.tint, 0.85 * clouds)

    for depth, lift, cells in ((0.62, 0.065, 3), (0.25, 0.02, 4)):
        ridge = horizon - lift - lift * 0.9 * canvas.ridge(dice.noise(1, cells, 3))
        tone = lay(scene.hills, scene.haze, depth) * (1 + 0.05 * canvas.look(dice.noise(12, 12, 3)))
        tone = tone * (0.9 + 0.2 * step(0.12, 0.0, y - ridge))
        if depth < 0.5:
            trees, lit = _trees(dice, canvas, ridge)
            leaf = lay(lay(scene.hills * 0.55, scene.near * 1.05, 0.55 * lit), LEAVES * (0.6 + 0.6 * lit), 0.45)
            picture = lay(picture, leaf, trees)
        picture = lay(picture, tone, canvas.cover(ridge - y))

    # The ground's noise is looked up in perspective: wide and flat at the horizon, open in front.
    depth = np.maximum(y - horizon, 0.0) + 0.06
    u = (x - 0.5) * 0.11 / depth
    v = 0.066 / depth
    places = np.linspace(0, 1, 128, dtype=np.float32)
    patches = look_up(dice.noise(10, 10, 4)(places, places), v, u)
    blades = canvas.look(dice.noise(24, 48, 2))
    near = ((y - horizon) / (1 - horizon)).clip(0, 1)
    ground = lay(scene.far, scene.near, step(-0.1, 1.0, near)) * (1 + 0.16 * patches + 0.09 * near * blades)
    edge = horizon + 0.008 * canvas.ridge(dice.noise(1, 6, 3))
    return lay(picture, ground, canvas.cover(edge - y))


def tufts(dice: Dice, canvas: Canvas, scene: Scene, rows: list[float]) -> list[tuple[slice, ndarray, ndarray]]:
    """Rows of grass tufts, back to front.

    Args:
        dice: draws them.
        canvas: where they stand.
        scene: its horizon and colours.
        rows: the height of each row's foot on the canvas, 0 to 1.

    Returns:
        For each row the rows of pixels it touches, its colours (3, h, W) and its opacity (h, W).
    """
    found = []
    for foot in rows:
        near = (foot - scene.horizon) / (1 - scene.horizon)
        tall = 0.022 + 0.055 * near
        cells = round(13 - 6 * near)
        rolls = dice.table(6, cells)
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
            blade = canvas.cover(np.abs(centre - bend) - half) * (t > 0) * (t < reach)
            opacity = np.maximum(opacity, blade)
        opacity = opacity * (present < 0.55) * (0.55 + 0.45 * near)
        base = lay(scene.far, scene.near, step(-0.1, 1.0, np.float32(near)))
        shade = base * (0.66 + 0.4 * t.clip(0, 1) * (0.7 + 0.8 * tone))
        found.append((band, shade, opacity))
    return found
