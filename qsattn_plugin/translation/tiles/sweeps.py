"""In which sweeps over a large picture to translate it, and which feature maps to keep on disk between them.

An instance norm needs its whole input's mean and variance before anything behind it can be computed. So a picture is
translated in sweeps: each goes over all tiles, from maps that an earlier sweep kept (at first, from the picture) to the
next norm's input, whose statistics it gathers. It may keep one place of the chain that it came through, to begin the
next sweep there. What is not kept is computed again. :func:`plan_sweeps` finds the cheapest plan within a limit of
disk space.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from qsattn_plugin.translation.tiles.chain import Chain, Join
from qsattn_plugin.translation.tiles.steps import Box, Normalise, Span

#: Seconds for a multiply-add, a byte read back and a byte written: roughly one CPU core, or one accelerator, and a
#: disk. Only their proportions matter, and only to how fast a plan is.
_COSTS = {"cpu": (1.5e-11, 0.5e-9, 2e-9), "other": (2e-13, 0.7e-9, 2e-9)}
#: Tiles where the map is small have at least this many places a side: smaller ones are all overlap.
_LEAST_TILE = 32
#: No tile's step holds more numbers than this many of the widest map's at the size of a tile (input, output and halo),
#: or than this many where tiles are small.
_WIDTHS, _LEAST_NUMBERS = 2.5, 1 << 24


@dataclass(frozen=True)
class Sweep:
    """One pass over all tiles: from the maps at ``start`` to ``stop``, keeping on disk what ``keep`` needs."""

    start: int
    stop: int
    keep: int  # where the next sweep starts
    tile: int  # side of a tile of the map at ``stop``
    seconds: float  # a guess


@dataclass(frozen=True)
class _Stretch:
    """What it takes to compute ``stop`` from ``start`` in tiles."""

    tile: int
    seconds: float


def needed_boxes(chain: Chain, start: int, stop: int, wanted: dict[int, Box]) -> dict[int, Box]:
    """Return the part of every map from ``start`` to ``stop`` that the wanted parts of some of them need.

    Skip connections that begin before ``start`` have a box at their beginning, too.
    """
    boxes = dict(wanted)

    def want(position: int, box: Box) -> None:
        known = boxes.get(position, box)
        boxes[position] = tuple(a.hull(b) for a, b in zip(known, box, strict=True))

    for position in range(stop, start, -1):
        step, size, box = chain.steps[position - 1], chain.sizes[position - 1], boxes[position]
        want(position - 1, tuple(step.need(span, size[axis], axis) for axis, span in enumerate(box)))
        if isinstance(step, Join):
            want(step.fork, box)
    return boxes


def part_of(size: tuple[int, int], grid: tuple[int, int], tile: tuple[int, int]) -> Box | None:
    """Return a tile's part of a map, cut in proportion: every place falls to one tile. None if it is empty."""
    axes = zip(size, grid, tile, strict=True)
    box = tuple(Span(i * length // count, (i + 1) * length // count) for length, count, i in axes)
    return box if all(span.stop > span.start for span in box) else None


def _area(box: Box) -> int:
    return (box[0].stop - box[0].start) * (box[1].stop - box[1].start)


class _Prices:
    """What computing one position from another costs, found once for each end."""

    def __init__(self, chain: Chain, tile: int, itemsize: int, device: str):
        self.chain, self.tile, self.itemsize = chain, tile, itemsize
        self.work, self.read, self.write = _COSTS["cpu" if device == "cpu" else "other"]
        self.most = max(_LEAST_NUMBERS, _WIDTHS * max(chain.channels) * tile**2)
        self.found: dict[int, dict[int, _Stretch]] = {}

    def stretches(self, stop: int) -> dict[int, _Stretch]:
        """From every start from which ``stop`` can be had in bounded memory: how, and for how much."""
        if stop not in self.found:
            size, picture = self.chain.sizes[stop], self.chain.sizes[0]
            tile = max(-(-self.tile * max(size) // max(picture)), _LEAST_TILE)
            self.found[stop] = found = {}
            # Smaller tiles hold less but overlap more: take the largest that fits, for each start.
            while tile and len(found) <= stop:
                for start, seconds in self._with_tiles(stop, tile).items():
                    found.setdefault(start, _Stretch(tile, seconds))
                tile //= 2
        return self.found[stop]

    def _with_tiles(self, stop: int, tile: int) -> dict[int, float]:
        chain = self.chain
        grid = tuple(-(-length // tile) for length in chain.sizes[stop])
        tiles = grid[0] * grid[1]
        middle = part_of(chain.sizes[stop], grid, (grid[0] // 2, grid[1] // 2))
        boxes = needed_boxes(chain, 0, stop, {stop: middle})
        seconds, found = 0.0, {}
        for start in range(stop, -1, -1):
            sources = sum(_area(boxes[p]) * chain.channels[p] for p in chain.needed_at(start))
            found[start] = tiles * (seconds + sources * self.itemsize * self.read)
            if not start:
                break
            step = chain.steps[start - 1]
            before, after = (_area(boxes[p]) * chain.channels[p] for p in (start - 1, start))
            if before + after > self.most:
                break
            seconds += _area(boxes[start]) * step.work(chain.channels[start - 1]) * self.work
        return found


def plan_sweeps(chain: Chain, tile: int, limit: float, itemsize: int = 4, device: str = "cpu") -> list[Sweep]:
    """Find the fastest sweeps that translate a picture with tiles of this side.

    Args:
        chain: the generator on this picture.
        tile: side of a tile in pixels of the picture.
        limit: the most bytes that maps on disk may take at any moment. Where nothing fits, which happens with networks
            much wider than the usual ones, as little more as makes it possible is taken.
        itemsize: bytes of a number.
        device: kind of the device that computes.
    """
    prices = _Prices(chain, tile, itemsize, device)
    while (plan := _cheapest(chain, prices, limit)) is None:
        limit *= 1.25
    return plan


def _cheapest(chain: Chain, prices: _Prices, limit: float) -> list[Sweep] | None:
    """Dijkstra's algorithm over what is known: the position that is kept, and how many norms are measured."""
    stops = [p for p, step in enumerate(chain.steps) if isinstance(step, Normalise) and step.measured] + [chain.end]
    worth = {p + 1 for p, step in enumerate(chain.steps) if step.worth_storing or isinstance(step, Join)}
    sizes = {p: chain.area(p) * prices.itemsize for p in range(chain.end + 1)}
    best: dict[tuple[int, int], float] = {}
    number = itertools.count()  # so that ways themselves are never compared
    queue: list[tuple[float, int, int, int, tuple]] = [(0.0, 0, next(number), 0, ())]
    while queue:
        seconds, measured, _, kept, way = heapq.heappop(queue)
        if measured == len(stops):
            sweeps = []
            while way:
                way, sweep = way
                sweeps.append(sweep)
            return sweeps[::-1]
        if best.get((measured, kept), float("inf")) <= seconds:
            continue
        best[measured, kept] = seconds
        have = chain.needed_at(kept)
        norm = stops[measured]
        # A sweep ends at the next norm and keeps any place that it passes, or it ends earlier, at what it keeps.
        keeps = [p for p in worth if kept < p <= norm]
        ends = [(norm, p) for p in (kept, *keeps)] + [(p, p) for p in keeps if p < norm]
        for stop, keep in ends:
            stretch = prices.stretches(stop).get(kept)
            want = chain.needed_at(keep)
            if stretch is None or sum(sizes[p] for p in have | want) > limit:
                continue
            takes = stretch.seconds + sum(sizes[p] for p in want - have) * prices.write
            sweep = Sweep(kept, stop, keep, stretch.tile, takes)
            heapq.heappush(queue, (seconds + takes, measured + (stop == norm), next(number), keep, (way, sweep)))
    return None
