"""Decoders of picture files: Pillow where it reads right, tifffile and imagecodecs (extra ``scientific``) elsewhere.

Pillow's decoder is chosen by what the file's own header says, not by whether it succeeds: it reads some good files
wrongly, and without a word. Which ones it reads right is listed in :func:`_pillow_reads`, and tested.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import logging
import os
import re
import struct
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from PIL import Image, ImageOps, UnidentifiedImageError

from qsattn_plugin.data.raster import MOST_BANDS, Raster
from qsattn_plugin.data.unreadable import UnreadableImage

if TYPE_CHECKING:
    import numpy as np

#: What to do where Pillow does not suffice.
EXTRA = "pip install tifffile imagecodecs: they read it"

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_NUMPY, _ZIP = b"\x93NUMPY", b"PK\x03\x04"
# TIFF's tags, by their numbers.
_SUBFILE, _BITS, _COMPRESSION, _PHOTOMETRIC, _SAMPLES, _PLANAR, _EXTRA, _FORMAT = 254, 258, 259, 262, 277, 284, 338, 339
_TILE_WIDTH, _TILE_LENGTH = 322, 323
_LZW = 5
#: Compressions that every build of Pillow knows: none, fax, LZW, JPEG, deflate, PackBits.
_COMPRESSIONS = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)
#: The most bytes that one byte of a file may become, by its compression: none, LZW, JPEG, deflate, PackBits.
_GROWTH = {1: 1, 5: 2000, 7: 2000, 8: 2000, 32773: 64, 32946: 2000}
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
        if image.format == "TIFF" and (why := _not_for_pillow(image)):
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
            why = _not_for_pillow(image)
            deep = not why and image.tag_v2.get(_BITS, (1,))[0] > 8  # type: ignore[attr-defined]
            if deep and (image.mode not in ("I;16", "F") or _has_tifffile()):
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


def _has_tifffile() -> bool:
    return importlib.util.find_spec("tifffile") is not None


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


def _pages(image: Image.Image) -> list[int]:
    if not getattr(image, "is_animated", False) or image.format == "MPO":
        return [0]
    count = image.n_frames  # type: ignore[attr-defined]  # of formats that are animated
    if image.format != "TIFF":
        return list(range(count))
    found = []
    for place in range(count):
        image.seek(place)
        if not image.tag_v2.get(_SUBFILE, 0) & 5:  # type: ignore[attr-defined]
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
    if head.startswith(_TIFF):
        return read_tiff(path, page, "a TIFF that Pillow does not know")
    if head.startswith((_NUMPY, _ZIP)):
        return _read_numpy(path, page)
    return None


def _not_for_pillow(image: Image.Image) -> str:
    """Return what of a TIFF Pillow does not read right, in words; nothing for one that it reads right."""
    tags: Any = image.tag_v2  # type: ignore[attr-defined]
    samples, bits = tags.get(_SAMPLES, 1), tags.get(_BITS, (1,))
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
            values = file.series[0].asarray().reshape(count, *found.shape)[page]
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
        values = _upright(made.values, turned)
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
    return Raster(values, alpha, full)


def _upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) by EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values


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
    return Raster(_upright(values, turned), values.shape[2] in (2, 4), (0.0, 2.0 ** _depth(path, image) - 1), info)


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


def _read_numpy(path: str | os.PathLike, page: int | None) -> Raster | None:
    """Read an array (H, W), (H, W, C) or (C, H, W) from .npy or .npz; None if it is neither."""
    import zipfile

    import numpy as np

    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as members:
            names = members.namelist()
            if not names or not all(name.endswith(".npy") for name in names):
                return None
            if len(names) > 1:
                listed = ", ".join(name.removesuffix(".npy") for name in names[:5])
                raise UnreadableImage(f"holds {len(names)} arrays ({listed}); a picture is a file with one")
            with members.open(names[0]) as member:
                _check_array(*_array_header(member))
        with np.load(path, allow_pickle=False) as arrays:
            values = arrays[names[0].removesuffix(".npy")]
    else:
        with open(path, "rb") as file:
            shape, dtype = _array_header(file)
            _check_array(shape, dtype)
            values = np.load(path, allow_pickle=False)
    if page:
        raise UnreadableImage(f"has 1 page, but page {page + 1} is wanted")
    if values.ndim == 3 and values.shape[2] > MOST_BANDS:
        values = np.moveaxis(values, 0, -1)
    values = np.atleast_3d(values)
    values = values.astype(np.uint8) * np.uint8(255) if values.dtype == bool else values
    values = np.ascontiguousarray(values.astype(values.dtype.newbyteorder("=")))
    full = None if values.dtype.kind == "f" else (0.0, float(np.iinfo(values.dtype).max))
    return Raster(values, full=full)


def _array_header(file: Any) -> tuple[tuple[int, ...], Any]:
    """Return the shape and the number type that an array's file begins with."""
    from numpy.lib import format as layout

    version = layout.read_magic(file)
    read = {(1, 0): layout.read_array_header_1_0, (2, 0): layout.read_array_header_2_0}.get(version)
    if read is None:
        raise UnreadableImage(f"is an array of version {version[0]}.{version[1]}; versions 1 and 2 are read")
    shape, _, dtype = read(file)
    return shape, dtype


def _check_array(shape: tuple[int, ...], dtype: Any) -> None:
    most = Image.MAX_IMAGE_PIXELS
    flat = len(shape) == 2 or (len(shape) == 3 and min(shape[0], shape[2]) <= MOST_BANDS)
    if not flat or not all(shape):
        raise UnreadableImage(f"holds an array {shape}; expected (H, W), (H, W, C) or (C, H, W), C up to {MOST_BANDS}")
    if dtype.kind not in "buif":
        raise UnreadableImage(f"holds {dtype} numbers; expected integers or floats")
    sides = sorted(shape)[-2:]
    if most is not None and sides[0] * sides[1] > 2 * most:
        raise UnreadableImage(f"too large: {sides[1]} x {sides[0]} pixels")
