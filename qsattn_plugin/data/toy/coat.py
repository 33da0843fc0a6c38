"""Painting the toy animal: limbs blended into one body, coat, stripes and light."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy import ndarray

from qsattn_plugin.data.toy.animal import Animal, Limb, extent
from qsattn_plugin.data.toy.noise import RandomSource, composite, coverage, rgb, smoothstep

#: Plain coats: body, mane and tail, and how dark the legs become towards the hooves (0 to 1).
PLAIN = (
    ("#994f24", "#542612", 0.1),  # chestnut
    ("#78401f", "#1c1412", 0.9),  # bay
    ("#54301f", "#1f140f", 0.6),  # dark brown
    ("#d49e57", "#8c5c2e", 0.0),  # palomino
    ("#ba8c57", "#241a14", 0.8),  # buckskin
    ("#948c8a", "#383333", 0.5),  # grey
    ("#a86b3d", "#402112", 0.2),  # sorrel
)
WHITE = "#ede6d9"
INK = "#1a1616"


@dataclass
class Coat:
    """The colours of one animal, for both coats."""

    body: ndarray
    hair: ndarray
    points: float
    socks: bool
    white: ndarray
    ink: ndarray
    muzzle: ndarray
    wobble: float

    @classmethod
    def draw(cls, random: RandomSource) -> Coat:
        """Return random colours for both coats."""
        body, hair, points = random.choose(PLAIN)
        tint = 1.0 + (random.array(3).reshape(3, 1, 1) - 0.5) * 0.08
        return cls(
            body=rgb(body) * tint * random.uniform(0.9, 1.1),
            hair=rgb(hair) * tint,
            points=points * random.uniform(0.7, 1.0),
            socks=random.chance(0.25),
            white=rgb(WHITE) * random.uniform(0.96, 1.04),
            ink=rgb(INK) * random.uniform(0.8, 1.3),
            muzzle=rgb("#2b211f"),
            wobble=random.uniform(0.1, 0.18),
        )


class Surface(NamedTuple):
    """A layer of limbs on the canvas; each field is (H, W), ``normal`` (3, H, W) of unit vectors."""

    distance: ndarray  # signed, negative inside
    normal: ndarray
    phase: ndarray
    dark: ndarray
    sock: ndarray


def blend(limbs: list[Limb], x: ndarray, y: ndarray, melt: float = 0.02, mingle: float = 0.055) -> Surface:
    """Blend limbs into one surface.

    The outline is the smooth union of the tapered capsules. Inside, each limb has weight softmax(-distance / mingle),
    and normals, stripes and colours are weighted means, so that neighbouring limbs blend over a few hundredths of the
    animal's height. ``x`` and ``y`` are the canvas in the animal's coordinates, (H, W); ``melt`` and ``mingle`` the
    smoothing lengths of the outline and of the surface.
    """
    table = np.array([(*m.a, *m.b, *m[2:]) for m in limbs], dtype=np.float32).T[:, :, None, None]
    ax, ay, bx, by, ra, rb, phase, rate, dark_a, dark_b, sock_a, sock_b = table
    dx, dy = bx - ax, by - ay
    length = np.sqrt(dx * dx + dy * dy)
    px, py = x - ax, y - ay
    along = (px * dx + py * dy) / length
    t = (along / length).clip(0, 1)
    radius = ra + t * (rb - ra)
    qx, qy = px - t * dx, py - t * dy
    away = np.sqrt(qx * qx + qy * qy)
    distance = away - radius
    nearest = distance.min(0)
    union = nearest - melt * np.log(np.exp((nearest - distance) / melt).sum(0))
    weight = np.exp((nearest - distance) / mingle)
    weight /= weight.sum(0)

    def mean(values: ndarray) -> ndarray:
        return (weight * values).sum(0)

    height = np.sqrt(np.maximum(1 - (away / radius) ** 2, 0))
    normal = np.stack([mean(qx / radius), mean(qy / radius), mean(height)])
    normal /= np.maximum(np.sqrt((normal**2).sum(0)), 1e-4)
    return Surface(
        union,
        normal,
        mean(phase + rate * along),
        mean(dark_a + t * (dark_b - dark_a)),
        mean(sock_a + t * (sock_b - sock_a)),
    )


@dataclass
class Light:
    """The direction of the light in the animal's coordinates, and its colour (3, 1, 1)."""

    x: float
    y: float
    z: float
    tint: ndarray

    def shade(self, normal: ndarray) -> ndarray:
        """Return a surface's brightness (H, W), about 0.35 (turned away) to 1.15 (facing the light)."""
        nx, ny, nz = normal
        facing = (nx * self.x + ny * self.y + nz * self.z) / math.sqrt(self.x**2 + self.y**2 + self.z**2)
        sky = 0.5 + 0.5 * ny
        return 0.34 + 0.16 * sky + 0.65 * np.maximum(facing, 0)


def _window(reach: tuple[float, float, float, float], x: ndarray, y: ndarray) -> tuple[slice, slice]:
    """Return the rows and columns of the canvas within a bounding box from :func:`extent`."""
    left, right, bottom, top = reach
    rows = ((y[:, 0] > bottom - 0.05) & (y[:, 0] < top + 0.05)).nonzero()[0].tolist()
    columns = ((x[0] > left - 0.05) & (x[0] < right + 0.05)).nonzero()[0].tolist()
    return slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)


def _skin(coat: Coat, surface: Surface, hair: bool, striped: bool, grain: ndarray, warp: ndarray) -> ndarray:
    """Return a layer's unlit colours (3, H, W); ``hair`` is mane and tail, the rest has muzzle, hooves and socks."""
    dark = smoothstep(0.3, 0.85, surface.dark)
    if striped:
        bands = np.cos(2 * math.pi * (surface.phase + coat.wobble * warp))
        # Stripes taper towards the belly, where a zebra is white.
        belly = smoothstep(0.25, 0.95, -surface.normal[1]) * (1 - surface.sock)
        bands = smoothstep(-0.32, 0.32, bands - 0.75 * belly)
        base = composite(coat.white * (1 + 0.03 * grain), coat.ink, bands)
        return composite(base, coat.ink if hair else coat.muzzle, dark)
    if hair:
        return coat.hair * (1 + 0.12 * np.cos(2 * math.pi * 2.7 * surface.phase))
    base = coat.body * (1 + 0.07 * grain)
    base = composite(base, coat.hair, coat.points * smoothstep(0.25, 0.7, surface.sock))
    if coat.socks:
        base = composite(base, rgb(WHITE), smoothstep(0.62, 0.7, surface.sock))
    return composite(base, coat.muzzle, dark)


def paint(
    picture: ndarray,
    animal: Animal,
    coat: Coat,
    striped: bool,
    x: ndarray,
    y: ndarray,
    light: Light,
    grain: ndarray,
    warp: ndarray,
) -> ndarray:
    """Paint an animal onto a picture (3, H, W), in place; return its silhouette (H, W), 0 to 1.

    ``x`` and ``y`` are the canvas in the animal's coordinates; ``grain`` is noise in about [-1, 1] that mottles the
    coat, ``warp`` slow noise that bends the stripes; all (H, W).
    """
    pixel = abs(float(x[0, 1] - x[0, 0]))
    silhouette = np.zeros_like(x)
    for limbs, hair, dim in (
        (animal.far, False, 0.62),
        (animal.tail, True, 1),
        (animal.mane, True, 1),
        (animal.body, False, 1),
    ):
        rows, columns = window = _window(extent(limbs), x, y)
        surface = blend(limbs, x[window], y[window])
        skin = _skin(coat, surface, hair, striped, grain[window], warp[window])
        skin = skin * light.tint * (light.shade(surface.normal) * dim)
        alpha = coverage(surface.distance, pixel)
        picture[:, rows, columns] = composite(picture[:, rows, columns], skin, alpha)
        silhouette[window] = np.maximum(silhouette[window], alpha)
    ring = coat.white * 0.82 if striped else coat.body * 0.9
    for (px, py), radius, tone in (
        (animal.eye, 0.038, ring * light.tint),
        (animal.eye, 0.026, rgb("#0d0a0a")),
        ((animal.eye[0] + 0.008, animal.eye[1] + 0.009), 0.008, rgb("#f2f2f2")),
        (animal.nose, 0.014, rgb("#0a0808")),
    ):
        rows, columns = window = _window((px - radius, px + radius, py - radius, py + radius), x, y)
        spot = coverage(np.sqrt((x[window] - px) ** 2 + (y[window] - py) ** 2) - radius, pixel)
        spot = spot * silhouette[window]
        picture[:, rows, columns] = composite(picture[:, rows, columns], tone, spot)
    return silhouette
