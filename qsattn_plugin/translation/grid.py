"""Picture grids: sources above, their translations below."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image
from torch import Tensor

from qsattn_plugin.data.pixels import from_tensor

_GAP = 2
_COLUMNS = 8
_SMALLEST = 96


def picture_grid(rows: Sequence[Sequence[Tensor]]) -> Image.Image:
    """Return pictures, float (C, H, W) in [-1, 1], in rows (such as sources and their translations) on one RGB sheet.

    Smaller ones are centred in their cell; all are enlarged by an integer factor (nearest) where they are below 96
    pixels. Rows of more than eight continue below, as another block.
    """
    pictures = [[from_tensor(p).convert("RGB") for p in row] for row in rows]
    flat = [p for row in pictures for p in row]
    scale = max(1, -(-_SMALLEST // max(max(p.size) for p in flat)))
    cell_w, cell_h = (scale * max(p.size[axis] for p in flat) + _GAP for axis in (0, 1))
    count = max(len(row) for row in pictures)
    columns = min(_COLUMNS, count)
    blocks = -(-count // columns)
    size = columns * cell_w + _GAP, blocks * (len(rows) * cell_h + 3 * _GAP) - 2 * _GAP
    sheet = Image.new("RGB", size, "white")
    for r, row in enumerate(pictures):
        for i, p in enumerate(row):
            block, column = divmod(i, columns)
            p = p.resize((p.width * scale, p.height * scale), Image.Resampling.NEAREST)
            x = _GAP + column * cell_w + (cell_w - _GAP - p.width) // 2
            y = _GAP + block * (len(rows) * cell_h + 3 * _GAP) + r * cell_h + (cell_h - _GAP - p.height) // 2
            sheet.paste(p, (x, y))
    return sheet
