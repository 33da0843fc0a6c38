"""TIFF: which files Pillow reads right, and a reader of the others with tifffile (extra ``scientific``)."""

from __future__ import annotations

import importlib.util
import io
import math
import os
import re
import struct
from typing import TYPE_CHECKING, Any

from PIL import Image

from qsattn_plugin.data.raster import MOST_BANDS, Raster, upright
from qsattn_plugin.data.unreadable import UnreadableImage

if TYPE_CHECKING:
    import numpy as np

#: What to do where Pillow does not suffice.
EXTRA = "pip install tifffile imagecodecs: they read it"

#: What a file of any of its kinds begins with.
MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
# Tags, by their numbers.
SUBFILE, BITS, _DESCRIPTION = 254, 258, 270
_COMPRESSION, _PHOTOMETRIC, _STRIPS, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 259, 262, 273, 277, 284, 338, 339
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_LZW = 5
#: Compressions that every build of Pillow knows: none, fax, LZW, JPEG, deflate, PackBits.
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
#: The most bytes that one byte of a file may become, by its compression: none, LZW, JPEG, deflate, PackBits.
_GROWTH = {1: 1, 5: 2000, 7: 2000, 8: 2000, 32773: 64, 32946: 2000}


def has_tifffile() -> bool:
    """Return whether tifffile is installed."""
    return importlib.util.find_spec("tifffile") is not None


def not_for_pillow(image: Image.Image) -> str:
    """Return what of a TIFF Pillow does not read right, in words; nothing for one that it reads right."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    samples, bits = tags.get(_SAMPLES, 1), tags.get(BITS, (1,))
    formats, extra = tags.get(_FORMAT, (1,)), tags.get(_EXTRA, ())
    photometric, planar = tags.get(_PHOTOMETRIC, 0), tags.get(_PLANAR, 1)
    bits = bits * samples if len(bits) == 1 else bits
    kinds: list[int] = sorted({*formats} if isinstance(formats, tuple) else {formats})
    compression = tags.get(_COMPRESSION, 1)
    if photometric != 6:  # its colours may have fewer places
        sides = max(image.width, tags.get(_TILE_WIDTH, 0)), max(image.height, tags.get(_TILE_LENGTH, 0))
        _check_length(sides, sum(bits), compression, os.stat(image.filename).st_size)  # type: ignore[attr-defined]
    if compression not in _COMPRESSIONS:
        return "this compression"
    if len(set(bits)) > 1 or len(kinds) > 1:
        return "bands of different depth"
    if _pillow_reads(photometric, samples, bits[0], kinds[0], tuple(extra), planar):
        return ""
    number = {1: "", 2: "signed ", 3: "float "}.get(kinds[0], "other ")
    layout = ", plane by plane" if planar == 2 else ""
    colour = {0: ", white is low", 2: " (RGB)"}.get(photometric, "")
    return f"{bits[0]}-bit {number}TIFF of {samples} band{'s' * (samples > 1)}{colour}{layout}"


def _check_length(size: tuple[int, int], bits: int, compression: int, length: int) -> None:
    """Raise :class:`UnreadableImage` if so many bytes cannot hold a picture, before memory is taken for it."""
    growth = _GROWTH.get(compression)
    if growth is not None and size[0] * size[1] * bits // 8 > growth * length:
        raise UnreadableImage(
            f"the file is cut off: {length} bytes cannot hold {size[0]} x {size[1]} pixels of {bits} bits"
        )


def _pillow_reads(colour: int, samples: int, bits: int, number: int, extra: tuple[int, ...], planar: int) -> bool:
    """Return whether Pillow reads such a TIFF right; arguments are values of its tags."""
    alpha = len(extra) == 1 and extra[0] in (1, 2)
    if number in (2, 3):  # signed, float
        return samples == 1 and colour == 1 and bits in ((16, 32) if number == 2 else (32,))
    if number != 1 or (extra and not alpha):
        return False
    if colour in (0, 1):
        grey = samples == 1 and (bits in (1, 2, 4, 8) or (bits in (16, 32) and colour == 1))
        return grey or (samples == 2 and alpha and bits == 8 and planar == 1 and colour == 1)
    if colour == 2:
        return samples == 3 + alpha and (bits == 8 or (bits == 16 and planar == 1))
    if colour == 3:  # a palette
        return samples == 1 and bits <= 8
    return bits == 8 and (colour, samples) in ((5, 4), (6, 3), (8, 3))  # CMYK, YCbCr, Lab


def stack_size(image: Image.Image) -> int:
    """Return how many pages ImageJ wrote under the one header of a TIFF, as it does beyond 4 GiB, uncompressed."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    said = re.match(r"ImageJ=.*?^images=(\d{1,9})$", str(tags.get(_DESCRIPTION, "")), re.DOTALL | re.MULTILINE)
    if not said or tags.get(_COMPRESSION, 1) != 1 or not tags.get(_STRIPS):
        return 1
    size = image.width * image.height * tags.get(_SAMPLES, 1) * tags.get(BITS, (1,))[0] // 8
    room = os.stat(image.filename).st_size - tags[_STRIPS][0]  # type: ignore[attr-defined]
    return int(said[1]) if 0 < int(said[1]) * size <= room else 1


def read_tiff(path: str | os.PathLike, page: int | None, why: str) -> Raster:
    """Read a page of a TIFF with tifffile; ``why`` says what Pillow does not read right.

    Raises:
        UnreadableImage: tifffile is missing, or the header and what was decoded disagree.
    """
    try:
        import numpy as np
        import tifffile
    except ImportError:
        raise UnreadableImage(f"Pillow does not read this right ({why}); {EXTRA}") from None
    with tifffile.TiffFile(path) as file:
        every: list[Any] = list(file.pages)
        pages = [one for one in every if not int(one.subfiletype) & 5] or every[:1]
        count = len(pages)
        stacked = count == 1 and file.is_imagej and (file.imagej_metadata or {}).get("images", 1)
        if stacked and stacked > 1:  # ImageJ writes one header for a stack of any depth
            count = stacked
        if page is not None and page >= count:
            raise UnreadableImage(f"has {count} page{'s' * (count > 1)}, but page {page + 1} is wanted")
        found: Any = pages[0 if count != len(pages) else page or 0]
        _check_tiff(found, os.stat(path).st_size)
        if count != len(pages) and page:
            kind = np.dtype(found.dtype).newbyteorder(file.byteorder)
            at = found.dataoffsets[0] + page * found.nbytes
            values = np.fromfile(path, kind, math.prod(found.shape), offset=at).reshape(found.shape).astype(found.dtype)
        else:
            values = _read_lzw(found) if found.compression == _LZW else found.asarray()
        if values.shape != found.shape:
            raise UnreadableImage(f"the header says {found.shape}, the data are {values.shape}")
        values = values.reshape(_by_bands(found))
        if found.axes.startswith("S"):
            values = np.moveaxis(values, 0, -1)
        tag = found.tags.get("Orientation")
        turned = tag.value if tag is not None else 1
        made = _tiff_raster(found, np.atleast_3d(values))
        values = upright(made.values, turned)
        info: dict[str, Any] = {"frames": count} if page is None and count > 1 else {}
        if found.iccprofile:
            info["icc_profile"] = bytes(found.iccprofile)
        return Raster(np.ascontiguousarray(values), made.alpha, made.full, info)


def _read_lzw(page: Any) -> np.ndarray:
    """Return the values of a page compressed by LZW, with Pillow's decoder: damaged data crash imagecodecs'."""
    import numpy as np

    page.compression = 1  # `decode` undoes the predictor, and puts parts into their places
    out = np.zeros(page.shaped, page.dtype)
    samples = page.samplesperpixel if page.planarconfig == 1 else 1
    line = -(-(page.tilewidth if page.is_tiled else page.imagewidth) * samples * page.bitspersample // 8)
    length = None if page.is_tiled else page.imagelength
    rows = page.tilelength if length is None else min(page.rowsperstrip, length)
    strips = 1 if length is None else -(-length // rows)
    for data, index in page.parent.filehandle.read_segments(page.dataoffsets, page.databytecounts):
        height = rows if length is None else min(rows, length - index % strips * rows)
        part, (plane, depth, top, left, _), shape = page.decode(_lzw(data, line, height), index)
        part = part[: page.imagedepth - depth, : page.imagelength - top, : page.imagewidth - left]
        out[plane, depth : depth + shape[0], top : top + shape[1], left : left + shape[2]] = part
    return out.reshape(page.shape)


def _lzw(data: bytes, line: int, rows: int) -> bytes:
    """Return so many rows of so many bytes, decompressed: the strip of a TIFF made for Pillow."""
    tags = {256: line, 257: rows, 258: 8, 259: _LZW, 262: 1, 273: 8, 277: 1, 278: rows, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    even = data + bytes(len(data) % 2)
    content = struct.pack("<2sHI", b"II", 42, 8 + len(even)) + even + struct.pack("<H", len(tags)) + entries + bytes(4)
    with Image.open(io.BytesIO(content)) as image:
        return image.tobytes()


def _by_bands(page: Any) -> tuple[int, ...]:
    """Return the shape (H, W), (H, W, C) or (C, H, W) of a page."""
    if page.axes not in ("YX", "YXS", "SYX"):
        raise UnreadableImage(f"is not a flat picture: its axes are {page.axes} {page.shape}")
    return page.shape


def _check_tiff(page: Any, length: int) -> None:
    """Raise :class:`UnreadableImage` for pages that are too large, cut off, or of a kind that has no meaning here."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    if not (height and width and samples and page.dtype is not None):
        raise UnreadableImage(
            f"its header gives {width} x {height} pixels of {samples} bands, {page.bitspersample} bits"
        )
    most = Image.MAX_IMAGE_PIXELS
    if most is not None and height * width > 2 * most:
        raise UnreadableImage(f"too large: {width} x {height} pixels")
    if samples > MOST_BANDS:
        raise UnreadableImage(f"has {samples} bands; at most {MOST_BANDS} are read")
    if page.dtype.kind not in "buif":
        raise UnreadableImage(f"holds {page.dtype} numbers; expected integers or floats")
    if page.photometric not in (0, 1, 2):
        name = getattr(page.photometric, "name", page.photometric)
        raise UnreadableImage(f"is a TIFF of {page.bitspersample} bits with colours by {name}, which is not read")
    segments = 1
    for count in page.chunked:
        segments *= count
    places = list(zip(page.dataoffsets, page.databytecounts, strict=False))
    if len(page.dataoffsets) != len(page.databytecounts) or (len(places) < segments and not page.is_contiguous):
        raise UnreadableImage(f"its header names {len(places)} of {segments} parts of the picture")
    if any(not start or not size for start, size in places):
        raise UnreadableImage("parts of the picture have no data in the file")
    sides = max(width, page.tilewidth), max(height, page.tilelength)
    _check_length(sides, samples * page.bitspersample, int(page.compression), length)
    if any(start + size > length for start, size in places):
        raise UnreadableImage("the file is cut off (its data end before the picture does)")


def _tiff_raster(page: Any, values: np.ndarray) -> Raster:
    """Return the picture of a page's values (H, W, C): polarity and transparency as its tags say."""
    import numpy as np

    values = values.astype(np.uint8) if values.dtype == bool else values.astype(values.dtype.newbyteorder("="))
    whole = values.dtype.kind == "u"
    top = 2**page.bitspersample - 1 if whole else np.iinfo(values.dtype).max if values.dtype.kind == "i" else 0
    full = None if values.dtype.kind == "f" else (0.0, float(top))
    extra = [int(kind) for kind in page.extrasamples]
    alpha = len(extra) == 1 and extra[0] in (1, 2)
    if page.photometric == 0:  # white is low
        if not whole or alpha or values.shape[2] > 1:
            raise UnreadableImage("white is low (MinIsWhite), which is read for unsigned grey integers alone")
        values = values.dtype.type(top) - values
    if alpha and extra[0] == 1:  # colours are multiplied by it
        share = values[..., -1:].astype(np.float64) / (top or 1.0)
        colours = np.divide(values[..., :-1], share, out=np.zeros(values[..., :-1].shape), where=share > 0)
        colours = colours if not whole else np.minimum(np.floor(colours + 0.5), top)
        values = np.concatenate([colours.astype(values.dtype), values[..., -1:]], -1)
    if whole and page.bitspersample < 8:  # as Pillow reads them
        values, full = np.floor(values * (255 / top) + 0.5).astype(np.uint8), (0.0, 255.0)
    return Raster(values, alpha, full)
