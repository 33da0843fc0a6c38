"""Picture grids: sources above, their translations below; and one picture in several versions."""

from __future__ import annotations

from collections.abc import Sequence

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from qsattn_plugin.data.pixels import shown

_GAP = 2
_COLUMNS = 8
_SMALLEST = 96
_PANELS = 3
_LARGEST = 768
_LABEL = 24


def picture_grid(rows: Sequence[Sequence[Tensor]], bands: Sequence[int] | None = None) -> Image.Image:
    """Return pictures, float (C, H, W) in [-1, 1], in rows (such as sources and their translations) on one RGB sheet.

    Smaller ones are centred in their cell; all are enlarged by an integer factor (nearest) where they are below 96
    pixels. Of more than three channels the ``bands`` are shown, counted from 1. Rows of more than eight continue below,
    as another block.
    """
    pictures = [[shown(p, bands) for p in row] for row in rows]
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


def labelled(panels: Sequence[tuple[str, Image.Image]]) -> Image.Image:
    """Return pictures in rows of three, each below its label, brought to at most 768 pixels a side; RGB."""
    size = max(max(picture.size) for _, picture in panels)
    factor = min(1.0, _LARGEST / size)
    small = [p.convert("RGB").resize([max(1, round(factor * side)) for side in p.size]) for _, p in panels]
    width, height = (max(p.size[axis] for p in small) + _GAP for axis in (0, 1))
    rows = -(-len(small) // _PANELS)
    sheet = Image.new("RGB", (min(_PANELS, len(small)) * width + _GAP, rows * (height + _LABEL) + _GAP), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(_LABEL * 2 / 3)
    for index, (picture, (label, _)) in enumerate(zip(small, panels, strict=True)):
        x, y = _GAP + index % _PANELS * width, _GAP + index // _PANELS * (height + _LABEL)
        draw.text((x + _GAP, y + _GAP), label, "black", font)
        sheet.paste(picture, (x, y + _LABEL))
    return sheet
