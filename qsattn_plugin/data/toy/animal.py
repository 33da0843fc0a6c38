"""The toy animal's pose: a side view built of tapered capsules, in units of its height at the withers.

Coordinates are the animal's own: x points forward, y up, the ground is y = 0.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import NamedTuple

from qsattn_plugin.data.toy.noise import RandomSource

Point = tuple[float, float]


class Limb(NamedTuple):
    """A tapered capsule from ``a`` to ``b``, with attributes of its surface.

    ``phase`` is the stripes' phase at ``a`` in cycles, ``rate`` the cycles per unit from ``a`` towards ``b``. ``dark``
    is the share of the colour of muzzle and hooves at either end, 0 to 1; ``sock`` the position along a leg, 0 to 1,
    for coats with white or black socks.
    """

    a: Point
    b: Point
    radius_a: float
    radius_b: float
    phase: float
    rate: float
    dark_a: float = 0.0
    dark_b: float = 0.0
    sock_a: float = 0.0
    sock_b: float = 0.0

    def phase_at(self, p: Point) -> float:
        """Return the stripes' phase at a point, projected on this limb's axis."""
        dx, dy = self.b[0] - self.a[0], self.b[1] - self.a[1]
        return self.phase + self.rate * ((p[0] - self.a[0]) * dx + (p[1] - self.a[1]) * dy) / math.hypot(dx, dy)


@dataclass
class Animal:
    """The limbs by layer, back to front, and the positions of eye and nostril."""

    far: list[Limb] = field(default_factory=list)
    tail: list[Limb] = field(default_factory=list)
    body: list[Limb] = field(default_factory=list)
    mane: list[Limb] = field(default_factory=list)
    eye: Point = (0.0, 0.0)
    nose: Point = (0.0, 0.0)

    @property
    def limbs(self) -> list[Limb]:
        """All limbs, back to front."""
        return [*self.far, *self.tail, *self.mane, *self.body]


def extent(limbs: list[Limb]) -> tuple[float, float, float, float]:
    """Return the limbs' bounding box: smallest x, largest x, smallest y, largest y."""
    ends = [(p, r) for m in limbs for p, r in ((m.a, m.radius_a), (m.b, m.radius_b))]
    xs = [p[0] + side * r for p, r in ends for side in (-1, 1)]
    ys = [p[1] + side * r for p, r in ends for side in (-1, 1)]
    return min(xs), max(xs), min(ys), max(ys)


def _along(p: Point, angle: float, length: float) -> Point:
    return p[0] + length * math.cos(angle), p[1] + length * math.sin(angle)


def _mid(p: Point, q: Point, t: float) -> Point:
    return p[0] + t * (q[0] - p[0]), p[1] + t * (q[1] - p[1])


def _joint(top: Point, foot: Point, upper: float, lower: float, side: float) -> Point:
    """Return the knee between ``top`` and ``foot`` for two bone lengths; ``side`` +1 bends it forward, -1 back."""
    dx, dy = foot[0] - top[0], foot[1] - top[1]
    reach = min(math.hypot(dx, dy), (upper + lower) * 0.999)
    turn = math.acos(max(-1.0, min(1.0, (upper**2 + reach**2 - lower**2) / (2 * upper * reach))))
    return _along(top, math.atan2(dy, dx) + side * turn, upper)


def _leg(top: Point, foot: Point, hind: bool, phase: float, rate: float) -> list[Limb]:
    """Return upper leg, lower leg and hoof. Stripes become rings, continuing from ``phase`` at the top."""
    upper, lower = (0.325, 0.335) if hind else (0.31, 0.3)
    knee = _joint(top, foot, upper, lower, -1.0 if hind else 1.0)
    # Along the trunk the phase grows towards the rump. It keeps growing down a hind leg and falling down a fore leg,
    # so that bands turn into rings without a seam.
    rate = rate if hind else -rate
    thigh = Limb(top, knee, 0.165 if hind else 0.11, 0.066 if hind else 0.062, phase, rate, 0, 0, 0, 0.45)
    ankle = _mid(knee, foot, 0.86)
    shin = Limb(knee, ankle, 0.064 if hind else 0.06, 0.05, thigh.phase_at(knee), rate * 1.12, 0, 0, 0.45, 1)
    tip = (foot[0] + 0.022, foot[1])
    hoof = Limb(ankle, tip, 0.05, 0.056, shin.phase_at(ankle), rate, 0.5, 1, 1, 1)
    return [thigh, shin, hoof]


def pose(random: RandomSource) -> Animal:
    """Return a random pose with its stripe layout; the animal faces right."""
    u = random.uniform
    animal = Animal()
    tilt = u(-0.05, 0.05)
    stout = u(0.94, 1.07)
    rate = u(3.75, 4.2)  # cycles per unit of length along the trunk: about 6 to 7 pixels a cycle at 64 pixels
    centre = (0.0, 0.755 + u(-0.015, 0.015))

    def trunk(x: float, y: float) -> Point:
        return centre[0] + x * math.cos(tilt) - y * math.sin(tilt), centre[1] + x * math.sin(tilt) + y * math.cos(tilt)

    rump, belly, chest = trunk(-0.34, 0.025), trunk(0.0, -0.01), trunk(0.33, 0.02)
    back = Limb(belly, rump, 0.205 * stout, 0.212 * stout, u(0, 1), rate)
    front = Limb(belly, chest, 0.205 * stout, 0.2 * stout, back.phase, -rate)

    # Neck: two segments, the upper one leaning further forward (the crest of the neck is arched).
    lift = u(0.42, 1.12)
    base = trunk(0.37, 0.07)
    bend = _along(base, lift + 0.1, 0.25)
    poll = _along(bend, lift - 0.16, u(0.22, 0.27))
    neck = Limb(base, bend, 0.165, 0.118, front.phase_at(base), -rate * 1.05)
    nape = Limb(bend, poll, 0.118, 0.088, neck.phase_at(bend), -rate * 1.15)

    # Head: a held-up neck carries it level, a low one lets it hang.
    nod = -0.3 - 0.35 * (1.0 - lift) + u(-0.22, 0.16)
    nod = min(nod, lift - 0.75)
    cheek = _along(poll, nod, 0.05)
    muzzle = _along(poll, nod - 0.03, u(0.32, 0.36))
    bridge = _mid(cheek, muzzle, 0.55)
    head = Limb(cheek, bridge, 0.1, 0.073, nape.phase_at(cheek), -rate * 1.35, 0, 0.0)
    nose = Limb(bridge, muzzle, 0.073, 0.07, head.phase_at(bridge), -rate * 1.35, 0.0, 1.0)
    ear_root = _along(poll, nod + 2.0, 0.07)
    prick = nod + 1.75 + u(-0.15, 0.35)
    ear = Limb(ear_root, _along(ear_root, prick, 0.12), 0.045, 0.016, nape.phase_at(poll), -rate * 1.4, 0, 0.5)
    far_root = _along(ear_root, nod, 0.05)
    far_ear = Limb(far_root, _along(far_root, prick - 0.25, 0.11), 0.04, 0.016, ear.phase, ear.rate, 0, 0.5)

    # Legs: two swing forward, two back, as in a walk; a leg that is off the ground is bent by its knee.
    stride = u(0.02, 0.16)
    beat = u(0, 2 * math.pi)
    hip, shoulder = trunk(-0.36, -0.06), trunk(0.3, -0.1)
    legs = {}
    for key, top, hind, shift, offset in (
        ("hind", hip, True, 0.0, -0.05),
        ("fore", shoulder, False, math.pi * 0.55, 0.02),
        ("far hind", (hip[0] + 0.07, hip[1]), True, math.pi, -0.02),
        ("far fore", (shoulder[0] + 0.06, shoulder[1]), False, math.pi * 1.55, 0.03),
    ):
        swing = math.cos(beat + shift) * stride
        raised = max(0.0, math.sin(beat + shift)) * stride * 0.7
        depth = 0.03 if "far" in key else 0.0
        foot = (top[0] + offset + swing, 0.056 + raised + depth)
        phase = (back if hind else front).phase_at(top)
        legs[key] = _leg(top, foot, hind, phase, rate * 1.25)
    animal.far = [*legs["far hind"], *legs["far fore"], far_ear]
    animal.body = [back, front, neck, nape, head, nose, ear, *legs["hind"], *legs["fore"]]

    # Mane: a crest along the back of the neck, from the withers to a forelock between the ears.
    withers = _along(base, lift + 0.1 + math.pi / 2, 0.155)
    crest = _along(bend, lift + math.pi / 2, 0.122)
    top = _along(poll, lift + math.pi / 2 - 0.2, 0.085)
    lock = _along(poll, nod + 1.25, 0.1)
    thick = u(0.05, 0.062)
    animal.mane = [
        Limb(withers, crest, thick * 0.55, thick, neck.phase_at(withers), neck.rate),
        Limb(crest, top, thick, thick, nape.phase_at(crest), nape.rate),
        Limb(top, lock, thick, thick * 0.55, nape.phase_at(top), nape.rate),
    ]
    dock = trunk(-0.53, 0.115)
    sway = u(-0.35, 0.4)
    hang = _along(dock, math.pi * 1.18 - 0.25 * sway, 0.12)
    swish = _along(hang, math.pi * 1.47 - sway, 0.2)
    end = _along(swish, math.pi * 1.5 - 0.6 * sway, 0.15)
    animal.tail = [
        Limb(dock, hang, 0.035, 0.042, back.phase_at(dock), rate, 0, 0.4),
        Limb(hang, swish, 0.042, 0.06, back.phase_at(dock) + 0.5, rate, 0.4, 1),
        Limb(swish, end, 0.06, 0.018, back.phase_at(dock) + 1.3, rate, 1, 1),
    ]
    animal.eye = _along(_mid(cheek, muzzle, 0.2), nod + math.pi / 2, 0.036)
    animal.nose = _along(_mid(cheek, muzzle, 1.08), nod + math.pi / 2, 0.018)
    return animal
