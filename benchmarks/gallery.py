"""A picture of what models make of the first pictures of a folder, failures included: for the model cards.

    python benchmarks/gallery.py -m horse2zebra --pictures datasets/horse2zebra/testA -o docs/images/horse2zebra.png

Rows of eight: the pictures as they are, and below them their translations, a row a model. With ``--maps``, lines
instead: a picture, then for each model its entropy as a heat map (warm: small) and its 128 most telling places.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image

from qsattn_plugin import load
from qsattn_plugin.data.images import find_images
from qsattn_plugin.evaluation.mapping import draw_maps

ROW = 8
GAP = 2


def gallery(rows: list[list[Image.Image]], side: int) -> Image.Image:
    """Return rows of pictures as bands of eight columns: all rows of the first eight pictures, then of the next."""
    columns = min(ROW, len(rows[0]))
    bands = -(-len(rows[0]) // ROW)
    step = side + GAP
    height = bands * (len(rows) * step + 3 * GAP) - 4 * GAP
    sheet = Image.new("RGB", (columns * step - GAP, height), "white")
    for r, row in enumerate(rows):
        for k, picture in enumerate(row):
            band, column = divmod(k, ROW)
            at = (column * step, band * (len(rows) * step + 3 * GAP) + r * step)
            sheet.paste(picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS), at)
    return sheet


def maps(files: list[Path], models: list[str], side: int) -> Image.Image:
    """Return a line a picture: itself, and the heat map and the queries of each model's deepest tap."""
    sheet = Image.new("RGB", ((1 + 2 * len(models)) * (side + GAP) - GAP, len(files) * (side + GAP) - GAP), "white")
    for m, model in enumerate(models):
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_maps(files, model, Path(folder), sampler="qsattn_global", options={"queries": 128})
            for line, (place, _) in enumerate(drawn):
                with Image.open(place) as three:
                    width = three.width // 3
                    for panel in range(m > 0, 3):
                        left = panel * (three.width - width) // 2
                        part = three.crop((left, 0, left + width, three.height))
                        part = part.resize((side, side), Image.Resampling.LANCZOS)
                        sheet.paste(part, ((2 * m + panel) * (side + GAP), line * (side + GAP)))
    return sheet


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--models", nargs="+", required=True, help="runs, weights files or published names")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="files; of a folder its first by name")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--side", type=int, default=160, help="pixels of a picture in the sheet")
    parser.add_argument("--maps", action="store_true", help="entropy maps instead of translations")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    files = [file for path in args.pictures for file in (find_images(path) if path.is_dir() else [path])][: args.count]
    if args.maps:
        maps(files, args.models, args.side).save(args.output)
        return
    pictures = [Image.open(path).convert("RGB") for path in files]
    rows = [pictures, *(load(model).eval().translate(pictures) for model in args.models)]
    gallery(rows, args.side).save(args.output)


if __name__ == "__main__":
    main()
