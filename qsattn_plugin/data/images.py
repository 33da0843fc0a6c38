"""Picture files: finding, reading and writing them; pixels.py converts pictures to tensors and back."""

from __future__ import annotations

import contextlib
import errno
import functools
import io
import os
import stat
import warnings
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError

from qsattn_plugin.data import decoders
from qsattn_plugin.data.pixels import memory_of
from qsattn_plugin.data.raster import HINT, Raster
from qsattn_plugin.data.unreadable import UnreadableImage, show
from qsattn_plugin.errors import UserError, nearest
from qsattn_plugin.storage import replacing

#: File name endings of arrays, which are read as pictures.
ARRAYS = (".npy", ".npz")

#: File name endings of pictures, in lower case: those of CUT and its forks, and others that Pillow reads.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tga", ".jp2", ".avif"),
    *ARRAYS,
)

#: Those of pictures that are not read: what of them lies in a folder is said, not passed over as other files are.
_UNREAD = (
    *(".heic", ".heif", ".jxl", ".psd", ".exr", ".hdr", ".dcm", ".svs", ".czi"),
    *(".dng", ".cr2", ".cr3", ".nef", ".arw", ".raf", ".orf", ".rw2"),
)

_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)
#: Pixels for which any process that can train has the memory: where these do not fit, it is not the picture's fault.
_FEW = 1 << 24


class OneFrame(UserWarning):
    """Of a file with several pages or frames, only the first is looked at."""


class LeftOut(UserWarning):
    """Pictures in a folder have a format that is not read."""


class NoPictures(UserError):
    """A folder contains no pictures."""


def find_images(folder: str | os.PathLike) -> list[Path]:
    """Return the pictures in a folder and its subfolders, found by their endings (:data:`EXTENSIONS`).

    Hidden files and folders (with a leading dot) are ignored; links to files and folders are followed. A warning
    (:class:`LeftOut`) counts pictures of formats that are not read, such as HEIC. The result is sorted by the
    characters of the relative paths, independent of the locale and the file system.

    Raises:
        NoPictures: the folder contains no pictures.
        UserError: there is no such folder, or it or a subfolder cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{show(folder)} is a file; expected a folder with pictures")
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no folder {show(folder)}{nearest(folder.name, beside)}")

    def refuse(error: OSError) -> None:  # by default os.walk skips folders that it cannot read
        raise UserError(f"cannot read the folder {show(error.filename)}: {error.strerror}") from error

    found, seen = [], set()
    others: Counter[str] = Counter()
    for top, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(top)
        if place in seen:  # a link to a parent folder would recurse for ever
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(name for name in below if not name.startswith("."))
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            path = os.path.join(top, name)
            # A link to what is not there is a picture that cannot be read, and not none.
            if name.startswith(".") or (os.path.exists(path) and not os.path.isfile(path)):
                continue
            if ending in EXTENSIONS:
                found.append(Path(top, name))
            else:
                others[ending or "no ending"] += 1
    if not found:
        there = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(4))
        looked = f"looked for {' '.join(EXTENSIONS)} in it and its subfolders"
        raise NoPictures(f"no pictures in {show(folder)}: {looked}; found {there or 'no files'}")
    if unread := ", ".join(f"{n} x {ending}" for ending, n in others.most_common() if ending in _UNREAD):
        text = f"{show(folder)} holds pictures that are not read, and left out: {unread}; convert them to JPEG or PNG"
        warnings.warn(text, LeftOut, stacklevel=2)
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: str | os.PathLike, page: int | None = None) -> Image.Image:
    """Read a picture file of any kind, upright, in 8 bits.

    The result's mode is ``"L"``, ``"LA"``, ``"RGB"`` or ``"RGBA"``, with alpha where the file has transparency. The
    EXIF orientation is applied; palettes, 1-bit, CMYK (also inverted, as Adobe stores it) and other colour spaces are
    converted as Pillow does; RGB with a colour profile other than sRGB (a camera's wide gamut) is converted to sRGB by
    it, where CUT and its forks take the numbers as they are. What Pillow does not read right is read
    with tifffile and imagecodecs (the extra ``scientific``), or refused.

    Greyscale of more than 8 bits is scaled by a constant, not to the picture's own range: integers from 0..65535 (or
    what the header says, as for 12 bits); floats from [0, 1], or from [0, 255] if any value is greater than 1. Of
    deeper colours the high byte is kept. Other ranges, and more bands, are for :func:`read_raster`.

    Args:
        path: the file.
        page: of a file with several pages or frames, counted from 0. None: the first, and the picture's
            ``info["frames"]`` says how many there are, if there are more.

    Raises:
        UnreadableImage: the file is missing, empty, not a picture, damaged, has more pixels than Pillow's guard against
            decompression bombs allows (``PIL.Image.MAX_IMAGE_PIXELS``), or cannot become 8 bits of grey or RGB.
    """
    with open_image(path, page) as image:
        found = normalise_mode(image)
        found.info |= {
            key: image.info[key] for key in ("frames", "icc_profile", "dpi") if key in image.info
        } | found.info
        return found


def read_raster(path: str | os.PathLike, page: int | None = None) -> Raster:
    """Read a picture file of any kind, upright, with the bands and the values that it holds.

    Arguments and errors are those of :func:`read_image`; number types are 8 to 64 bits, signed, unsigned or floating.
    Fewer than 8 bits are stretched to them.
    """
    with _converting(path), decoders.rasters(path, page) as found:
        return found


def read_first(path: str | os.PathLike) -> Image.Image:
    """Read a picture as :func:`read_image` does; warn (:class:`OneFrame`) where the file has more of them."""
    picture = read_image(path)
    if frames := picture.info.get("frames"):
        warnings.warn(f"{show(path)} has {frames} pages or frames: only the first is looked at", OneFrame, stacklevel=2)
    return picture


def count_pages(path: str | os.PathLike) -> int:
    """Return the number of pages or frames of a picture file; 1 for one that cannot be read, which says so later."""
    try:
        with _converting(path):
            return decoders.count_pages(path)
    except UnreadableImage:
        return 1


@contextlib.contextmanager
def open_image(path: str | os.PathLike, page: int | None = None) -> Iterator[Image.Image]:
    """Open a picture file in one of Pillow's modes; errors, also of the context in decoding it, are converted.

    Raises:
        UnreadableImage: see :func:`read_image`.
    """
    with _converting(path), decoders.opened(path, page) as image:
        yield image


@contextlib.contextmanager
def _converting(path: str | os.PathLike) -> Iterator[None]:
    """Convert what the context raises about a picture file to :class:`UnreadableImage`."""
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise UnreadableImage("is a folder, not a picture")
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImage("is not a regular file")
        if found.st_size == 0:
            raise UnreadableImage("the file is empty")
        # Pillow registers formats lazily at the first open, which is not thread-safe: register all now.
        Image.init()
        yield
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    # Decoders raise nearly anything on damaged input (SyntaxError, struct.error, IndexError, ...). Running out of
    # file handles is not the file's fault and is raised as it is, and so is running out of memory in a small picture.
    except Exception as error:
        if isinstance(error, MemoryError):
            size = _claimed_size(path)
            if size is None or size[0] * size[1] > _FEW:
                what = "it" if size is None else f"its {size[0]} x {size[1]} pixels"
                raise UnreadableImage(f"there is not enough memory for {what}", path) from error
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _LACKS:
            raise
        raise UnreadableImage(_reason(error), path) from error


def _claimed_size(path: str | os.PathLike) -> tuple[int, int] | None:
    """Return the width and height that a file's header says; None where it cannot be read."""
    with contextlib.suppress(Exception), Image.open(path) as image:
        return image.size
    return None


def _reason(error: Exception) -> str:
    """Return a phrase for why reading failed."""
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "reading it is not permitted"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or in a format that Pillow cannot read (HEIC? Convert it to JPEG or PNG)"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: {text}"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut off ({text})"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read: {os.strerror(error.errno)}"
    return f"damaged, or in a format that Pillow cannot read ({text})"


def normalise_mode(image: Image.Image) -> Image.Image:
    """Return a picture as :func:`read_image` does: upright, in mode L, LA, RGB or RGBA.

    Raises:
        UnreadableImage: its values are out of range.
    """
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception:  # noqa: BLE001 - EXIF that cannot be read: the picture as it is stored
        image = image.copy()
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image)
    if image.mode in ("1", "L", "La", "LA"):
        return image.convert("LA" if image.has_transparency_data else "L")
    return _in_srgb(image.convert("RGBA" if image.has_transparency_data else "RGB"))


def _in_srgb(image: Image.Image) -> Image.Image:
    """Convert RGB or RGBA from its own colour profile to sRGB; a profile that cannot be used is ignored."""
    profile = image.info.get("icc_profile")
    if not profile or profile[16:20] != b"RGB ":
        return image
    try:
        transform = _transform_to_srgb(profile)
        if transform is None:
            return image
        converted = ImageCms.applyTransform(image.convert("RGB"), transform)
    except (ImageCms.PyCMSError, ImportError, OSError):
        return image
    assert converted is not None  # a new picture, as it is not converted in place
    if image.mode == "RGBA":
        converted.putalpha(image.getchannel("A"))
    converted.info = {**image.info, "icc_profile": transform.output_profile.tobytes()}
    return converted


#: LittleCMS' cmsFLAGS_NOCACHE. Pillow 10.1 has no name for it.
_NOCACHE: Any = 0x0040


@functools.lru_cache(maxsize=64)  # a set's pictures have few profiles, and making a transform takes as long as reading
def _transform_to_srgb(profile: bytes) -> ImageCms.ImageCmsTransform | None:
    """Return what converts RGB of a colour profile to sRGB; None if it is that already."""
    own = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    if "srgb" in ImageCms.getProfileDescription(own).lower():
        return None
    srgb = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))
    # Without the cache of the last pixel, threads can share it.
    return ImageCms.buildTransform(own, srgb, "RGB", "RGB", flags=_NOCACHE)


def carried(source: Image.Image, mode: str) -> dict[str, Any]:
    """Return what a picture of a mode made from another keeps of its ``info``: colour profile and resolution."""
    kept = {key: source.info[key] for key in ("icc_profile", "dpi") if source.info.get(key)}
    # What JPEG can hold; microscopes write more, and a rational number may be 0 / 0.
    dpi = kept.pop("dpi", None)
    if isinstance(dpi, tuple) and all(0 < value < 65536 for value in dpi):
        kept["dpi"] = dpi
    space = b"RGB " if mode.startswith("RGB") else b"GRAY"
    if kept.get("icc_profile", b"")[16:20] != space:
        kept.pop("icc_profile", None)
    return kept


def _eight_bits(image: Image.Image) -> Image.Image:
    """Convert deep greyscale to 8 bits by the rule of :func:`read_image`."""
    floating, clear = image.mode == "F", image.info.get("transparency")  # the one value that is transparent
    image = image if image.mode in ("I", "F") else image.convert("I")
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32 if floating else torch.int32).double()
    low, high = values.min().item(), values.max().item()
    if floating:
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise UnreadableImage(
                f"its float values range from {low:g} to {high:g}; expected 0 to 1, or 0 to 255: {HINT}"
            )
        scale = 255.0 if high <= 1 else 1.0
    else:
        if low < 0 or high > 65535:
            raise UnreadableImage(
                f"its values range from {low:.0f} to {high:.0f}; expected 16 bits, 0 to 65535: {HINT}"
            )
        scale = 1 / 257
    # Round half up; in float64 the quotients by 257 have no ties.
    pixels = (values * scale + 0.5).floor_().to(torch.uint8)
    found = Image.frombytes("L", image.size, bytes(memory_of(pixels)))
    if isinstance(clear, int):
        alpha = torch.where(values == clear, 0, 255).to(torch.uint8)
        found = Image.merge("LA", (found, Image.frombytes("L", image.size, bytes(memory_of(alpha)))))
    found.info["used"] = ("float" if floating else "16-bit", low, high, round(255 / scale))
    return found


def write_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture atomically, in the format of the file's ending.

    Missing folders are created, an existing file is replaced. JPEG is written at quality 95 without chroma subsampling,
    WebP at quality 95. Alpha is dropped for formats that do not support it. The picture's colour profile and resolution
    (``info["icc_profile"]``, ``info["dpi"]``) are written where the format has a place for them.

    Raises:
        UserError: the ending is not a picture format, or the file cannot be written.
    """
    path = Path(path)
    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE or path.suffix.lower() not in EXTENSIONS:
        near = "; this Pillow lacks it" if path.suffix.lower() in EXTENSIONS else nearest(path.suffix, EXTENSIONS)
        near = "; it is for pictures with a value range" if path.suffix.lower() in ARRAYS else near
        raise UserError(f"{show(path)}: cannot write pictures of format {path.suffix!r}{near}")
    if image.mode in ("LA", "RGBA") and kind in ("JPEG", "PPM", "BMP"):
        image = image.convert(image.mode[:-1])
    options: dict[str, Any] = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(kind, {})
    options = options | carried(image, image.mode)
    with replacing(path) as temporary:
        image.save(temporary, format=kind, **options)
