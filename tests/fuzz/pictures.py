"""Pictures of every format that can be written here, with damaged bytes and headers that lie."""

from __future__ import annotations

import functools
import io
import random
from pathlib import Path

from PIL import Image

from qsattn_plugin.data.images import read_image
from tests.fuzz import Case, damage

_KINDS = {
    "PNG": "RGBA",
    "JPEG": "RGB",
    "BMP": "RGB",
    "GIF": "P",
    "TIFF": "RGB",
    "WEBP": "RGB",
    "PPM": "L",
    "TGA": "RGBA",
}


@functools.cache
def _written(kind: str, mode: str, side: int) -> bytes:
    out = io.BytesIO()
    Image.linear_gradient("L").resize((side, side)).convert(mode).save(out, kind)
    return out.getvalue()


def make(draw: random.Random, folder: Path) -> Case:
    kind = draw.choice(list(_KINDS))
    mode = draw.choice((_KINDS[kind], "L")) if kind != "TIFF" else draw.choice(("RGB", "L", "I;16", "F", "1", "CMYK"))
    content = damage(draw, _written(kind, mode, draw.choice((1, 17, 64))))
    if kind == "BMP" and draw.random() < 0.5 and len(content) > 26:  # the size that its header claims
        width, height = (draw.choice((0, 1, 17, 2**15, 2**27 + 1, 2**31 - 1)) for _ in range(2))
        content = content[:18] + width.to_bytes(4, "little") + height.to_bytes(4, "little") + content[26:]
    path = folder / f"picture.{draw.choice(('png', 'jpg', 'bmp', kind.lower()))}"
    path.write_bytes(content)
    return lambda: read_image(path)
