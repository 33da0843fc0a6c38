"""A picture of what models make of the first pictures of a folder, failures included: for the model cards.

    python benchmarks/gallery.py -m horse2zebra --pictures datasets/horse2zebra/testA -o docs/images/horse2zebra.png

Rows of eight: the pictures as they are, and below them their translations, a row a model, which is named at its left.
With ``--maps``, lines instead: a picture, then for each model its entropy as a heat map (warm: small) and its 128 most
telling places. ``--labels`` gives the models other names than their own.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from qsattn_plugin import load
from qsattn_plugin.data.images import find_images
from qsattn_plugin.evaluation.mapping import draw_maps

ROW = 8
GAP = 2
LABEL = 20


def strip(label: str, length: int) -> Image.Image:
    """Return a strip of so many pixels with a label in its middle."""
    made = Image.new("RGB", (length, LABEL), "white")
    font = ImageFont.load_default(LABEL * 3 / 4)
    ImageDraw.Draw(made).text((length / 2, LABEL / 2), label, "black", font, anchor="mm")
    return made


def gallery(rows: dict[str, list[Image.Image]], side: int) -> Image.Image:
    """Return labelled rows of pictures in bands of eight columns: all rows of the first eight, then of the next."""
    count = max(map(len, rows.values()))
    columns, bands, step = min(ROW, count), -(-count // ROW), side + GAP
    height = bands * (len(rows) * step + 3 * GAP) - 4 * GAP
    sheet = Image.new("RGB", (LABEL + columns * step - GAP, height), "white")
    for r, (label, row) in enumerate(rows.items()):
        for band in range(bands):
            top = band * (len(rows) * step + 3 * GAP) + r * step
            sheet.paste(strip(label, side).transpose(Image.Transpose.ROTATE_90), (0, top))
            for column, picture in enumerate(row[band * ROW : (band + 1) * ROW]):
                small = picture.convert("RGB").resize((side, side), Image.Resampling.LANCZOS)
                sheet.paste(small, (LABEL + column * step, top))
    return sheet


def maps(files: list[Path], models: dict[str, str], side: int) -> Image.Image:
    """Return a line a picture: itself, and the heat map and the queries of each model's deepest tap."""
    step = side + GAP
    sheet = Image.new("RGB", ((1 + 2 * len(models)) * step - GAP, LABEL + len(files) * step - GAP), "white")
    sheet.paste(strip("picture", side), (0, 0))
    for m, (label, model) in enumerate(models.items()):
        for panel, name in ((1, "entropy"), (2, "queries")):
            sheet.paste(strip(f"{label}: {name}", side), ((2 * m + panel) * step, 0))
        with tempfile.TemporaryDirectory() as folder:
            drawn = draw_maps(files, model, Path(folder), sampler="qsattn_global", options={"queries": 128})
            for line, (place, _) in enumerate(drawn):
                with Image.open(place) as three:
                    width = three.width // 3
                    for panel in range(m > 0, 3):
                        left = panel * (three.width - width) // 2
                        part = three.crop((left, 0, left + width, three.height))
                        part = part.resize((side, side), Image.Resampling.LANCZOS)
                        sheet.paste(part, ((2 * m + panel) * step, LABEL + line * step))
    return sheet


def main() -> None:
    """Draw what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("-m", "--models", nargs="+", required=True, help="runs, weights files or published names")
    parser.add_argument("--labels", nargs="+", help="what to call them in the picture")
    parser.add_argument("--pictures", type=Path, nargs="+", required=True, help="files; of a folder its first by name")
    parser.add_argument("--count", type=int, default=16)
    parser.add_argument("--side", type=int, default=160, help="pixels of a picture in the sheet")
    parser.add_argument("--maps", action="store_true", help="entropy maps instead of translations")
    parser.add_argument("-o", "--output", type=Path, required=True)
    args = parser.parse_args()
    files = [file for path in args.pictures for file in (find_images(path) if path.is_dir() else [path])][: args.count]
    models = dict(zip(args.labels or args.models, args.models, strict=True))
    if args.maps:
        maps(files, models, args.side).save(args.output)
        return
    pictures = [Image.open(path).convert("RGB") for path in files]
    made = {label: load(model).eval().translate(pictures) for label, model in models.items()}
    gallery({"input": pictures, **made}, args.side).save(args.output)


if __name__ == "__main__":
    main()
