"""Translates large pictures in tiles, in bounded memory, with the same result as whole.

:mod:`~qsattn_plugin.translation.tiles.chain` describes the generator, :mod:`~qsattn_plugin.translation.tiles.sweeps`
plans, and this module computes: every tile's input is larger by the layers' receptive field, padding happens only at
the picture's borders, and norms use the statistics of the whole map.
"""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from qsattn_plugin.data.pixels import NaNImageError, to_float
from qsattn_plugin.errors import UserError, at_least
from qsattn_plugin.translation.tiles.chain import Chain, Join, UnknownLayer, chain_of
from qsattn_plugin.translation.tiles.moments import Moments
from qsattn_plugin.translation.tiles.spill import DiskFull, Spill, format_bytes
from qsattn_plugin.translation.tiles.steps import Box, Norm, crop
from qsattn_plugin.translation.tiles.sweeps import Sweep, needed_boxes, plan_sweeps, tile_box

#: Bytes on disk for every pixel of the picture: 5 GB for 4096 x 4096.
SPILL = 298
#: By default, pictures of more than WHOLE x WHOLE pixels are translated in tiles of TILE x TILE.
WHOLE, TILE = 1024, 512


class CannotTile(UserError):
    """The generator has a layer for which it is not defined how it works on a part of a picture."""


def is_large(size: tuple[int, int], tile: int | None = None) -> bool:
    """Return whether a picture of this size is translated in tiles of side ``tile``; None: the default, 0: never."""
    return tile != 0 and size[0] * size[1] > (tile or WHOLE) ** 2


def translate_tiled(generator: nn.Module, picture: Tensor, tile: int, **options: Any) -> Tensor:
    """Translate one picture in tiles; for the arguments and errors see :class:`TiledTranslation`."""
    return TiledTranslation(generator, picture, tile, **options).run()


class TiledTranslation:
    """The translation of one picture in tiles.

    Args:
        generator: in evaluation mode, on the device to compute on.
        picture: (C, H, W), uint8 or float in [-1, 1].
        tile: side of a tile in pixels. Memory beside the picture and its translation grows with its square.
        spill: the most bytes that feature maps may take on disk at any moment; :data:`SPILL` a pixel without it.
        folder: where they lie; the system's folder for temporary files (``TMPDIR``) without it.
        progress: called after every tile with its share of the work.

    Raises:
        CannotTile: the generator cannot work in tiles.
        DiskFull: the disk is full.
    """

    @torch.inference_mode()
    def __init__(
        self,
        generator: nn.Module,
        picture: Tensor,
        tile: int,
        spill: float | None = None,
        folder: str | os.PathLike | None = None,
        progress: Callable[[float], None] = lambda share: None,
    ):
        at_least(1, tile=tile)
        weights = next(generator.parameters())
        self.device, self.dtype = weights.device, weights.dtype
        self.picture, self.progress = picture, progress
        height, width = picture.shape[-2:]
        self.chain = tiled_chain(generator, len(picture), (height, width))
        limit = SPILL * height * width if spill is None else spill
        self.sweeps = plan_sweeps(self.chain, tile, limit, self.dtype.itemsize, self.device.type)
        self.spill = Spill(folder)
        #: Factors and offsets of every norm, by its input's position; each (1, C, 1, 1).
        self.affine: dict[int, tuple[Tensor, Tensor]] = {}
        for position, step in enumerate(self.chain.steps):
            if isinstance(step, Norm) and not step.measured:
                self._set_affine(position, *step.scale_and_shift())
        self.out = picture.new_empty(self.chain.channels[-1], height, width)

    @torch.inference_mode()
    def run(self) -> Tensor:
        """Return the translation, (C, H, W) on the picture's device: uint8 for uint8, else float in [-1, 1]."""
        # In the weights' own precision: autocast would choose another from layer to layer, and tile to tile.
        with self.spill, torch.autocast(self.device.type, enabled=False):
            self._check_room()
            for sweep in self.sweeps:
                self._sweep(sweep)
        return self.out

    def _set_affine(self, position: int, *values: Tensor) -> None:
        scale, shift = (v.to(self.dtype).to(self.device)[None, :, None, None] for v in values)
        self.affine[position] = scale, shift

    def _check_room(self) -> None:
        """Raise before the first sweep if the disk is too small."""
        chain, most = self.chain, 0
        kept: frozenset[int] = frozenset()
        for sweep in self.sweeps:
            after = chain.needed_at(sweep.keep)
            most = max(most, sum(chain.elements(p) for p in kept | after) * self.dtype.itemsize)
            kept = after
        free = shutil.disk_usage(self.spill.folder).free
        if most > free:
            height, width = chain.sizes[0]
            raise DiskFull(
                f"a picture of {width} x {height} pixels takes {format_bytes(most)} in the temporary folder "
                f"{self.spill.folder}, where {format_bytes(free)} are free; set TMPDIR to a folder with more room"
            )

    def _sweep(self, sweep: Sweep) -> None:
        """Compute all tiles of a sweep."""
        chain, stop = self.chain, sweep.stop
        step = chain.steps[stop] if stop < chain.end and stop not in self.affine else None
        kept = chain.needed_at(sweep.keep)
        new = kept - self.spill.maps.keys()
        for position in new:
            self.spill.make(position, chain.channels[position], chain.sizes[position], self.dtype)
        moments = Moments(chain.channels[stop])
        height, width = chain.sizes[stop]
        grid = -(-height // sweep.tile), -(-width // sweep.tile)
        share = sweep.seconds / sum(s.seconds for s in self.sweeps) / (grid[0] * grid[1])
        for tile in itertools.product(range(grid[0]), range(grid[1])):
            boxes = {position: tile_box(chain.sizes[position], grid, tile) for position in (stop, *new)}
            cores = {position: box for position, box in boxes.items() if box is not None}
            x = self._compute(sweep.start, stop, cores, new)
            if stop == chain.end:
                self._put(x, cores[stop])
            elif isinstance(step, Norm):
                moments.add(x)
            self.progress(share)
        if isinstance(step, Norm):
            self._set_affine(stop, *step.scale_and_shift(moments.mean, moments.variance))
        self.spill.keep(kept)

    def _compute(self, start: int, stop: int, cores: dict[int, Box], keep: frozenset[int]) -> Tensor:
        """Return one tile of the map at ``stop``, and write the maps to keep on the way to disk."""
        chain = self.chain
        boxes = needed_boxes(chain, start, stop, cores)
        skips: dict[int, Tensor] = {}
        forks = {s.fork for s in chain.steps[start:stop] if isinstance(s, Join)}
        x, owned = self._read(start, boxes[start]), True
        for position in range(start, stop + 1):
            if position in keep and position in cores:
                self.spill.maps[position].write(cores[position], crop(x, boxes[position], cores[position]))
            if position == stop:
                break
            if position in forks:
                skips[position], owned = x, False
            step, size, want = chain.steps[position], chain.sizes[position], boxes[position + 1]
            need = step.need(want[0], size[0], 0), step.need(want[1], size[1], 1)
            x = crop(x, boxes[position], need)
            if isinstance(step, Join):
                skip = skips.pop(step.fork, None)
                if skip is None:
                    skip = self._read(step.fork, boxes[step.fork])
                skip = crop(skip, boxes[step.fork], want)
                x = step.join(skip, x, owned)
                owned = True
            elif isinstance(step, Norm):
                scale, shift = self.affine[position]
                x = torch.addcmul(shift, x, scale, out=x if owned else None)
                owned = True
            else:
                y = step.run(x, need, want, size, owned)
                owned = owned or y.data_ptr() != x.data_ptr()
                x = y.contiguous(memory_format=torch.channels_last)
        return crop(x, boxes[stop], cores[stop])

    def _read(self, position: int, box: Box) -> Tensor:
        if position:
            return self.spill.maps[position].read(box, self.device)
        part = crop(self.picture, self.chain.whole(0), box).to(self.device)
        part = to_float(part, self.dtype) if part.dtype == torch.uint8 else part.to(self.dtype, copy=True)
        return part[None].contiguous(memory_format=torch.channels_last)

    def _put(self, x: Tensor, box: Box) -> None:
        """Write a tile of the translation to the output."""
        x = x[0].clamp(-1, 1)
        if x.isnan().any():  # no pixel value stands for it
            raise NaNImageError("the translation holds NaN")
        if self.out.dtype == torch.uint8:
            x = ((x.float() + 1) * 127.5).round()
        rows, columns = box
        self.out[:, rows.start : rows.stop, columns.start : columns.stop] = x.to(self.out.device, self.out.dtype)


def tiled_chain(generator: nn.Module, channels: int, size: tuple[int, int]) -> Chain:
    """Return :func:`chain_of`, with an error for users.

    Raises:
        CannotTile: the generator has a layer that cannot work in tiles.
    """
    try:
        return chain_of(generator, channels, size)
    except UnknownLayer as error:
        raise CannotTile(
            f"{type(generator).__name__} cannot be translated in tiles: it is not defined how its layer {error} works "
            "on a part of a picture. A `primitives` method of the generator can define it "
            "(qsattn_plugin.registry.layers.primitives); `--tile 0` translates pictures whole, however much memory "
            "that takes"
        ) from error
