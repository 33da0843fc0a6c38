"""Arrays of NumPy as picture files: .npy, and .npz with one array."""

from __future__ import annotations

import os
from typing import Any

from PIL import Image

from qsattn_plugin.data.raster import MOST_BANDS, Raster
from qsattn_plugin.data.unreadable import UnreadableImage

#: What a file of either kind begins with.
MAGIC = (b"\x93NUMPY", b"PK\x03\x04")


def read_array(path: str | os.PathLike, page: int | None) -> Raster | None:
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
