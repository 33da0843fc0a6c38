"""One picture: found in a folder, read from a file of any kind, written; pixels.py turns it into a tensor and back."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from qsattn_plugin.data.pixels import memory_of
from qsattn_plugin.errors import UserError, nearest

__all__ = [
    "EXTENSIONS",
    "NoPictures",
    "UnreadableImage",
    "find_images",
    "normalise_mode",
    "open_image",
    "read_image",
    "show",
    "write_image",
]

#: File name endings of pictures, compared without regard to case. The forks' list and the kinds Pillow reads besides.
EXTENSIONS = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".webp", ".tif", ".tiff"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".gif", ".tga", ".jp2", ".avif"),
)

_LACKS = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


class UnreadableImage(UserError):
    """A picture that cannot be had. ``reason`` says why, in words; ``path`` is the file, where there is one."""

    def __init__(self, reason: str, path: str | os.PathLike | None = None):
        super().__init__(f"{show(path)}: {reason}" if path is not None else reason)
        self.reason = reason
        self.path = path


class NoPictures(UserError):
    """A folder without a picture."""


def show(path: str | os.PathLike) -> str:
    """Give a path as text that can be printed anywhere; bytes that are no UTF-8 become question marks."""
    return os.fspath(path).encode("utf-8", "replace").decode("utf-8")


def find_images(folder: str | os.PathLike, recursive: bool = True) -> list[Path]:
    """Find the pictures in a folder by their endings (:data:`EXTENSIONS`).

    Hidden files and folders (a leading dot) are left out; links to files and to folders are followed. The order is that
    of the relative paths' characters, the same whatever the locale and the file system.

    Args:
        folder: where to look.
        recursive: also look in folders below.

    Raises:
        NoPictures: there is none in it.
        UserError: there is no such folder, or it or one below cannot be looked into.
    """
    folder = Path(folder)
    if not folder.is_dir():
        if folder.exists():
            raise UserError(f"{show(folder)} is a file; a folder with pictures is wanted")
        beside = [p.name for p in folder.parent.iterdir() if p.is_dir()] if folder.parent.is_dir() else []
        raise UserError(f"there is no folder {show(folder)}{nearest(folder.name, beside)}")

    def refuse(error: OSError) -> None:  # os.walk's own way is to pass over what it may not read
        raise UserError(f"cannot look into {show(error.filename)}: {error.strerror}") from error

    found, others, seen = [], Counter(), set()
    for top, below, files in os.walk(folder, followlinks=True, onerror=refuse):
        place = os.path.realpath(top)
        if place in seen:  # a link to a folder above would go round for ever
            below.clear()
            continue
        seen.add(place)
        below[:] = sorted(name for name in below if recursive and not name.startswith("."))
        for name in files:
            ending = os.path.splitext(name)[1].lower()
            if name.startswith(".") or not os.path.isfile(os.path.join(top, name)):
                continue
            if ending in EXTENSIONS:
                found.append(Path(top, name))
            else:
                others[ending or "no ending"] += 1
    if not found:
        there = ", ".join(f"{n} x {ending}" for ending, n in others.most_common(4))
        raise NoPictures(
            f"no pictures in {show(folder)}: looked for {' '.join(EXTENSIONS)} "
            f"{'in it and below' if recursive else 'in it, not below'}; found {there or 'no files'}"
        )
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def read_image(path: str | os.PathLike) -> Image.Image:
    """Read one picture file, whatever its kind, upright.

    The result's mode is ``"L"``, ``"LA"``, ``"RGB"`` or ``"RGBA"``, with alpha where the file has transparency. The
    EXIF orientation is applied; palettes, 1-bit, CMYK (also as Adobe stores it, inverted) and other colour spaces are
    converted as Pillow does, without colour profiles, which is what the forks do. Of a file with several frames the
    first one is read. Deeper greyscale becomes 8 bits by a fixed scale, not stretched to the picture's own range:
    integers are 0 to 65535; floats are 0 to 1, or 0 to 255 where any of them is over 1.

    Args:
        path: the file.

    Raises:
        UnreadableImage: the file is missing, empty, not a picture, damaged, or has more pixels than Pillow's guard
            against decompression bombs allows (``PIL.Image.MAX_IMAGE_PIXELS``).
    """
    with open_image(path) as image:
        return normalise_mode(image)


@contextlib.contextmanager
def open_image(path: str | os.PathLike) -> Iterator[Image.Image]:
    """Open one picture file as Pillow does. Whatever goes wrong with it, then or while it is decoded, is

    Raises:
        UnreadableImage: see :func:`read_image`.
    """
    try:
        found = os.stat(path)
        if stat.S_ISDIR(found.st_mode):
            raise UnreadableImage("is a folder, not a picture")
        if not stat.S_ISREG(found.st_mode):  # opening a named pipe would wait for ever
            raise UnreadableImage("is not an ordinary file")
        if found.st_size == 0:
            raise UnreadableImage("the file is empty")
        # Pillow registers formats at the first open, and a second thread may then find its own missing: ask for all.
        Image.init()
        with Image.open(path) as image:
            yield image
    except UnreadableImage as error:
        raise UnreadableImage(error.reason, path) from None
    # Decoders raise nearly anything on damaged input (SyntaxError, struct.error, IndexError, ...): each one means the
    # same here. A lack of memory or of file handles is no property of the file and stays what it is.
    except Exception as error:
        if isinstance(error, MemoryError) or getattr(error, "errno", None) in _LACKS:
            raise
        raise UnreadableImage(_reason(error), path) from error


def _reason(error: Exception) -> str:
    """Say in plain words why reading failed."""
    text = str(error) or type(error).__name__
    if isinstance(error, FileNotFoundError):
        return "there is no such file"
    if isinstance(error, PermissionError):
        return "reading it is not permitted"
    if isinstance(error, UnidentifiedImageError):
        return "not a picture, or of a kind that Pillow cannot read"
    if isinstance(error, (Image.DecompressionBombError, Image.DecompressionBombWarning)):
        return f"too large: {text}"
    if "truncated" in text.lower() or isinstance(error, EOFError):
        return f"the file is cut off ({text})"
    if isinstance(error, OSError) and error.errno:
        return f"cannot be read: {os.strerror(error.errno)}"
    return f"damaged, or of a kind that Pillow cannot read ({text})"


def _upright(image: Image.Image) -> Image.Image:
    """Decode, then turn as the EXIF orientation says. EXIF data that cannot be parsed do not spoil a good picture."""
    image.load()
    try:
        return ImageOps.exif_transpose(image)
    except Exception:
        return image.copy()


def normalise_mode(image: Image.Image) -> Image.Image:
    """Return any picture as :func:`read_image` gives it: upright, of mode L, LA, RGB or RGBA.

    Raises:
        UnreadableImage: its values are out of the range of what they could be.
    """
    image = _upright(image)
    if image.mode.startswith(("I", "F")):
        return _eight_bits(image)
    if image.mode in ("1", "L", "La", "LA"):
        return image.convert("LA" if image.has_transparency_data else "L")
    return image.convert("RGBA" if image.has_transparency_data else "RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """Bring deep greyscale to 8 bits by the rule in :func:`read_image`."""
    floating, clear = image.mode == "F", image.info.get("transparency")  # the one value that is transparent
    image = image if image.mode in ("I", "F") else image.convert("I")
    values = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.float32 if floating else torch.int32).double()
    low, high = values.min().item(), values.max().item()
    if floating:
        if not (low >= 0 and high <= 255):  # also refuses NaN
            raise UnreadableImage(f"its float values go from {low:g} to {high:g}; wanted are 0 to 1, or 0 to 255")
        scale = 255.0 if high <= 1 else 1.0
    else:
        if low < 0 or high > 65535:
            raise UnreadableImage(f"its values go from {low:.0f} to {high:.0f}; wanted are the 0 to 65535 of 16 bits")
        scale = 1 / 257
    # Half up, not half to even; in float64 the quotients by 257 have no ties to argue about.
    pixels = (values * scale + 0.5).floor_().to(torch.uint8)
    grey = Image.frombytes("L", image.size, bytes(memory_of(pixels)))
    if not isinstance(clear, int):
        return grey
    alpha = torch.where(values == clear, 0, 255).to(torch.uint8)
    return Image.merge("LA", (grey, Image.frombytes("L", image.size, bytes(memory_of(alpha)))))


def write_image(image: Image.Image, path: str | os.PathLike) -> None:
    """Write a picture in the format that the file's ending names, whole or not at all.

    Missing folders are made. JPEG is written at quality 95 with full colour resolution, WebP at 95. Formats without
    alpha get the colours alone.

    Args:
        image: what :func:`~qsattn_plugin.data.pixels.from_tensor` or :func:`read_image` gave.
        path: the file; an existing one is replaced.

    Raises:
        UserError: the ending is no picture format, or the file cannot be written.
    """
    path = Path(path)
    Image.init()
    kind = Image.registered_extensions().get(path.suffix.lower())
    if kind not in Image.SAVE or path.suffix.lower() not in EXTENSIONS:
        raise UserError(
            f"{show(path)}: cannot write pictures of kind {path.suffix!r}{nearest(path.suffix, EXTENSIONS)}"
        )
    if image.mode in ("LA", "RGBA") and kind in ("JPEG", "PPM", "BMP"):
        image = image.convert(image.mode[:-1])
    options = {"JPEG": {"quality": 95, "subsampling": 0}, "WEBP": {"quality": 95}}.get(kind, {})
    # Hidden, so that find_images leaves it out; a part of the name, which may be as long as names can be.
    part = path.with_name(f".{path.name[:40]}.{os.getpid()}-{threading.get_ident()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(part, "wb") as file:
            image.save(file, format=kind, **options)
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"cannot write {show(path)}: {error.strerror or error}") from error
    finally:
        with contextlib.suppress(OSError):  # it is there only where writing failed midway
            part.unlink()
