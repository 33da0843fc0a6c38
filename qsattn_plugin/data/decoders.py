"""Decoders of picture files: Pillow where it reads right, tifffile and imagecodecs (extra ``scientific``) elsewhere.

Pillow's decoder is chosen by what the file's own header says, not by whether it succeeds: it reads some good files
wrongly, and without a word. Which TIFFs it reads right, :mod:`qsattn_plugin.data.tiff` says; the tests compare.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

from PIL import Image, ImageOps, UnidentifiedImageError

from qsattn_plugin.data import arrays, tiff
from qsattn_plugin.data.raster import Raster, upright
from qsattn_plugin.data.tiff import EXTRA, has_tifffile, not_for_pillow, read_tiff
from qsattn_plugin.data.unreadable import UnreadableImage

#: Files whose depth Pillow does not tell, and imagecodecs' decoder of each.
_CODECS = {"PNG": "png", "JPEG2000": "jpeg2k", "AVIF": "avif"}

# Both packages log what they raise as well; without a handler Python prints that.
for _name in ("PIL", "tifffile"):
    logging.getLogger(_name).addHandler(logging.NullHandler())


@contextlib.contextmanager
def opened(path: str | os.PathLike, page: int | None = None) -> Iterator[Image.Image]:
    """Open a picture file, one page of it, in one of Pillow's modes; see :func:`~qsattn_plugin.data.images.read_image`.

    Raises:
        UnreadableImage: Pillow does not read such a file right, and the packages that do are missing, or do neither.
        Exception: of any kind, from the decoders.
    """
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        if (made := _beyond_pillow(path, page)) is None:
            raise
        yield made.picture()
        return
    with image:
        choose_page(image, page)
        if image.format == "TIFF" and (why := _not_for_pillow(image, page)):
            yield read_tiff(path, page, why).picture()
        elif (
            image.format == "JPEG2000" and image.mode != "I;16" and _depth(path, image) > 8
        ):  # Pillow's brightest values become 0
            yield _read_codec(path, image).picture()
        else:
            yield image


@contextlib.contextmanager
def rasters(path: str | os.PathLike, page: int | None = None) -> Iterator[Raster]:
    """Open a picture file, one page of it, with the values that it holds; raise as :func:`opened`."""
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        if (made := _beyond_pillow(path, page)) is None:
            raise
        yield made
        return
    with image:
        frames = choose_page(image, page)
        if image.format == "TIFF":
            why = _not_for_pillow(image, page)
            deep = not why and image.tag_v2.get(tiff.BITS, (1,))[0] > 8  # type: ignore[attr-defined]
            if deep and (image.mode not in ("I;16", "F") or has_tifffile()):
                why = "a TIFF of more than 8 bits"
            made = read_tiff(path, page, why) if why else of_pillow(image)
        elif image.format == "PPM" and image.mode in ("I", "RGB"):
            made = _read_pnm(path) or of_pillow(image)
        elif image.format in _CODECS and _depth(path, image) > 8 and (image.format, image.mode) != ("PNG", "I;16"):
            made = _read_codec(path, image)
        else:
            made = of_pillow(image)
        if frames > 1:
            made.info["frames"] = frames
        yield made


def choose_page(image: Image.Image, page: int | None) -> int:
    """Go to a page of an open file, counted from 0 (None: the first, and ``info["frames"]`` says how many there are).

    Return the number of pages. Reduced copies and masks in a TIFF, and a camera's previews, are no pages.

    Raises:
        UnreadableImage: there is no such page.
    """
    places = _pages(image)
    if page is None:
        image.info.pop("frames", None)
        if len(places) > 1:
            image.info["frames"] = len(places)
    elif page >= len(places):
        raise UnreadableImage(f"has {len(places)} page{'s' * (len(places) > 1)}, but page {page + 1} is wanted")
    if len(places) > 1:
        image.seek(places[page or 0])
    return len(places) if page is None else 1


def _not_for_pillow(image: Image.Image, page: int | None) -> str:
    own = not page or getattr(image, "n_frames", 1) > 1
    return not_for_pillow(image) or ("" if own else "a page without a header of its own")


def _pages(image: Image.Image) -> list[int]:
    """Return Pillow's number of each page; all are 0 where they share a header."""
    if image.format == "TIFF" and getattr(image, "n_frames", 1) == 1:
        return [0] * tiff.stack_size(image)
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return [0]
    count = image.n_frames  # type: ignore[attr-defined]  # of formats that are animated
    if image.format != "TIFF":
        return list(range(count))
    found = []
    for place in range(count):
        image.seek(place)
        if not image.tag_v2.get(tiff.SUBFILE, 0) & 5:  # type: ignore[attr-defined]
            found.append(place)
    image.seek(0)
    return found or [0]


def count_pages(path: str | os.PathLike) -> int:
    """Return the number of pages of a picture file; raise as :func:`opened`."""
    try:
        with Image.open(path) as image:
            return len(_pages(image))
    except UnidentifiedImageError:
        made = _beyond_pillow(path, None)
        return 1 if made is None else made.info.get("frames", 1)


def _beyond_pillow(path: str | os.PathLike, page: int | None) -> Raster | None:
    """Return the picture in a file that Pillow does not know; None if nothing here does."""
    with open(path, "rb") as file:
        head = file.read(8)
    if head.startswith(tiff.MAGIC):
        return read_tiff(path, page, "a TIFF that Pillow does not know")
    if head.startswith(arrays.MAGIC):
        return arrays.read_array(path, page)
    return None


def of_pillow(image: Image.Image) -> Raster:
    """Return a picture that Pillow reads right with its own values: 8 bits, or one deep band."""
    import numpy as np

    image.load()
    info: dict[str, Any] = {k: image.info[k] for k in ("icc_profile", "dpi", "frames") if k in image.info}
    with contextlib.suppress(Exception):  # EXIF that cannot be read: the picture as it is stored
        image = ImageOps.exif_transpose(image)
    if image.mode.startswith(("I", "F")):
        values = np.asarray(image)[..., None]
        values = values.astype(values.dtype.newbyteorder("="))
        if values.dtype == np.int32 and values.min() >= 0 and values.max() <= 65535:
            values = values.astype(np.uint16)  # Pillow's mode for a deep PNG or PGM
        full = None if values.dtype.kind == "f" else (0.0, float(np.iinfo(values.dtype).max))
        return Raster(values, full=full, info=info)
    alpha = image.has_transparency_data
    mode = ("L" if image.mode in ("1", "L", "La", "LA") else "RGB") + "A" * alpha
    values = np.atleast_3d(np.asarray(image.convert(mode)))
    return Raster(values, alpha, (0.0, 255.0), info)


def _depth(path: str | os.PathLike, image: Image.Image) -> int:
    """Return the bits of a band of a PNG, JPEG 2000 or AVIF, which Pillow does not tell, from the file's header."""
    with open(path, "rb") as file:
        head = file.read(1 << 16)
    if image.format == "PNG":
        return head[24]  # of IHDR
    if image.format == "AVIF":
        start = head.find(b"av1C")  # its third byte has a flag for 10 and one for 12 bits
        flags = head[start + 6] if 0 < start < len(head) - 6 else 0
        return 12 if flags & 0x60 == 0x60 else 10 if flags & 0x40 else 8
    start = head.find(b"\xff\x51")  # JPEG 2000's SIZ: sizes, then the first band's depth less one
    return 1 + (head[start + 40] & 0x7F) if 0 <= start < len(head) - 40 else 8


def _read_codec(path: str | os.PathLike, image: Image.Image) -> Raster:
    """Read a file of more than 8 bits with imagecodecs."""
    import numpy as np

    try:
        import imagecodecs
    except ImportError:
        raise UnreadableImage(f"Pillow does not read this right (colour of more than 8 bits); {EXTRA}") from None
    with open(path, "rb") as file:
        values = np.atleast_3d(getattr(imagecodecs, f"{_CODECS[str(image.format)]}_decode")(file.read()))
    if values.shape[:2] != image.size[::-1]:
        raise UnreadableImage(f"the header says {image.width} x {image.height}, the data are {values.shape}")
    turned = image.getexif().get(0x0112, 1) if image.format == "PNG" else 1
    info: dict[str, Any] = {key: image.info[key] for key in ("icc_profile", "dpi") if key in image.info}
    return Raster(upright(values, turned), values.shape[2] in (2, 4), (0.0, 2.0 ** _depth(path, image) - 1), info)


def _read_pnm(path: str | os.PathLike) -> Raster | None:
    """Read a binary PGM or PPM of more than 8 bits; None for others. Pillow scales their values to 16 or to 8 bits."""
    import numpy as np

    with open(path, "rb") as file:
        content = file.read()
    token = rb"(?:\s|#[^\n]*\n)+(\d+)"
    found = re.match(rb"P([56])" + 3 * token + rb"\s", content)
    if found is None or int(found[4]) < 256:
        return None
    bands = 1 if found[1] == b"5" else 3
    width, height, top = (int(number) for number in found.groups()[1:])
    if len(content) - found.end() < 2 * width * height * bands:
        raise UnreadableImage("the file is cut off")
    values = np.frombuffer(content, ">u2", width * height * bands, found.end()).astype(np.uint16)
    return Raster(values.reshape(height, width, bands), full=(0.0, float(top)))
