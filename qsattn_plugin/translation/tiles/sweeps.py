"""Plans the sweeps in which a large picture is translated, and which feature maps stay on disk between them.

An instance norm needs the mean and variance of its whole input before anything after it can be computed. So a picture
is translated in sweeps: each goes over all tiles, from maps that an earlier sweep kept (at first, from the picture) to
the next norm's input, whose statistics it gathers. It may keep the maps of one position on its path, where the next
sweep begins. What is not kept is computed again. :func:`plan_sweeps` finds the cheapest plan within a limit of disk
space.
"""

from __future__ import annotations

import heapq
import itertools
from dataclasses import dataclass

from qsattn_plugin.translation.tiles.chain import Chain, Join
from qsattn_plugin.translation.tiles.steps import Box, Norm, Span

#: Seconds for a multiply-add, a byte read and a byte written: roughly one CPU core, or one accelerator, and a disk.
#: Only their proportions matter, and only for the speed of a plan.
_COSTS = {"cpu": (1.5e-11, 0.5e-9, 2e-9), "other": (2e-13, 0.7e-9, 2e-9)}
#: The smallest side of a tile on small maps: smaller ones are nearly all overlap.
_LEAST_TILE = 32
#: Most elements that a step holds for a tile (input, output and halo), as a multiple of the widest map's at the size of
#: a tile; where tiles are small, this many elements.
_PEAK_FACTOR, _LEAST_ELEMENTS = 2.5, 1 << 24


@dataclass(frozen=True)
class Sweep:
    """One pass over all tiles: from the maps at ``start`` to ``stop``, keeping on disk what ``keep`` needs."""

    start: int
    stop: int
    keep: int  # where the next sweep starts
    tile: int  # side of a tile of the map at ``stop``
    seconds: float  # estimated


@dataclass(frozen=True)
class _Segment:
    """The side of the tiles in which one position is computed from another, and the estimated time."""

    tile: int
    seconds: float


def needed_boxes(chain: Chain, start: int, stop: int, wanted: dict[int, Box]) -> dict[int, Box]:
    """Return the box of every map from ``start`` to ``stop`` that is needed to compute the wanted boxes.

    Skip connections that begin before ``start`` have a box at their beginning, too.
    """
    boxes = dict(wanted)

    def want(position: int, box: Box) -> None:
        known = boxes.get(position, box)
        boxes[position] = known[0].hull(box[0]), known[1].hull(box[1])

    for position in range(stop, start, -1):
        step, size, box = chain.steps[position - 1], chain.sizes[position - 1], boxes[position]
        want(position - 1, (step.need(box[0], size[0], 0), step.need(box[1], size[1], 1)))
        if isinstance(step, Join):
            want(step.fork, box)
    return boxes


def tile_box(size: tuple[int, int], grid: tuple[int, int], tile: tuple[int, int]) -> Box | None:
    """Return a tile's box of a map that a grid divides evenly; None if it is empty."""
    axes = zip(size, grid, tile, strict=True)
    rows, columns = (Span(i * length // count, (i + 1) * length // count) for length, count, i in axes)
    return (rows, columns) if rows.stop > rows.start and columns.stop > columns.start else None


def _area(box: Box) -> int:
    return (box[0].stop - box[0].start) * (box[1].stop - box[1].start)


class _CostModel:
    """Estimates what computing one position from another costs; caches the estimates for each end."""

    def __init__(self, chain: Chain, tile: int, itemsize: int, device: str):
        self.chain, self.tile, self.itemsize = chain, tile, itemsize
        self.work, self.read, self.write = _COSTS["cpu" if device == "cpu" else "other"]
        self.most = max(_LEAST_ELEMENTS, _PEAK_FACTOR * max(chain.channels) * tile**2)
        self._cache: dict[int, dict[int, _Segment]] = {}

    def segments(self, stop: int) -> dict[int, _Segment]:
        """Return, for every start from which ``stop`` can be computed in bounded memory, tiles and cost."""
        if stop not in self._cache:
            size, picture = self.chain.sizes[stop], self.chain.sizes[0]
            tile = max(-(-self.tile * max(size) // max(picture)), _LEAST_TILE)
            found = self._cache.setdefault(stop, {})
            # Smaller tiles hold less but overlap more: take the largest that fits, for each start.
            while tile and len(found) <= stop:
                for start, seconds in self._with_tiles(stop, tile).items():
                    found.setdefault(start, _Segment(tile, seconds))
                tile //= 2
        return self._cache[stop]

    def _with_tiles(self, stop: int, tile: int) -> dict[int, float]:
        chain = self.chain
        height, width = chain.sizes[stop]
        grid = -(-height // tile), -(-width // tile)
        tiles = grid[0] * grid[1]
        middle = tile_box(chain.sizes[stop], grid, (grid[0] // 2, grid[1] // 2))
        assert middle is not None  # there are at most as many tiles as positions
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
    """Return the fastest sweeps that translate a picture with tiles of this side, in pixels of the picture.

    Maps on disk take at most ``limit`` bytes at any moment. Where no plan fits, which happens with networks much wider
    than the usual ones, it is raised in steps of a quarter until one does.
    """
    costs = _CostModel(chain, tile, itemsize, device)
    while (plan := _cheapest(chain, costs, limit)) is None:
        limit *= 1.25
    return plan


def _cheapest(chain: Chain, costs: _CostModel, limit: float) -> list[Sweep] | None:
    """Run Dijkstra's algorithm; a node is the position whose maps are kept, and the number of norms measured."""
    stops = [p for p, step in enumerate(chain.steps) if isinstance(step, Norm) and step.measured] + [chain.end]
    worth = {p + 1 for p, step in enumerate(chain.steps) if step.worth_storing or isinstance(step, Join)}
    sizes = {p: chain.elements(p) * costs.itemsize for p in range(chain.end + 1)}
    best: dict[tuple[int, int], float] = {}
    number = itertools.count()  # breaks ties: paths have no order
    queue: list[tuple[float, int, int, int, tuple]] = [(0.0, 0, next(number), 0, ())]
    while queue:
        seconds, measured, _, kept, path = heapq.heappop(queue)
        if measured == len(stops):
            sweeps = []
            while path:
                path, sweep = path
                sweeps.append(sweep)
            return sweeps[::-1]
        if best.get((measured, kept), float("inf")) <= seconds:
            continue
        best[measured, kept] = seconds
        have = chain.needed_at(kept)
        norm = stops[measured]
        # A sweep ends at the next norm and keeps any position that it passes, or it ends earlier, at what it keeps.
        keeps = [p for p in worth if kept < p <= norm]
        ends = [(norm, p) for p in (kept, *keeps)] + [(p, p) for p in keeps if p < norm]
        for stop, keep in ends:
            segment = costs.segments(stop).get(kept)
            want = chain.needed_at(keep)
            if segment is None or sum(sizes[p] for p in have | want) > limit:
                continue
            takes = segment.seconds + sum(sizes[p] for p in want - have) * costs.write
            sweep = Sweep(kept, stop, keep, segment.tile, takes)
            heapq.heappush(queue, (seconds + takes, measured + (stop == norm), next(number), keep, (path, sweep)))
    return None
