"""Writes pictures with the numbers and the bands that they have, as TIFF, PNG or NumPy's arrays."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from PIL import Image

from qsattn_plugin.data.images import ARRAYS, show, write_image
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.errors import UserError
from qsattn_plugin.storage import replacing

#: File name endings that hold any number type and number of bands.
ANY = (".tif", ".tiff", *ARRAYS)

_INSTALL = "pip install tifffile imagecodecs, or write .npy"


def write_raster(raster: Raster, path: str | os.PathLike) -> None:
    """Write a picture atomically, exactly as it is, in the format of the file's ending.

    Missing folders are created, an existing file is replaced. A TIFF is compressed without loss.

    Raises:
        UserError: the format cannot hold such numbers or bands, a package is missing, or the file cannot be written.
    """
    import numpy as np

    path, values = Path(path), raster.values
    ending, bands = path.suffix.lower(), values.shape[2]
    plain = values.dtype == np.uint8 and raster.bands in (1, 3) and bands <= 4 and not ending.endswith(ANY)
    if plain:
        write_image(raster.picture(), path)
        return
    if ending not in (*ANY, ".png"):
        raise UserError(f"{show(path)}: {ending} cannot hold {raster.kind}; write .tif or .npy")
    if ending == ".png" and (values.dtype not in (np.uint8, np.uint16) or bands > 4):
        raise UserError(f"{show(path)}: a PNG cannot hold {raster.kind}; write .tif or .npy")
    with replacing(path) as temporary:
        if ending == ".npy":
            with open(temporary, "wb") as file:
                np.save(file, values[..., 0] if bands == 1 else values)
        elif ending == ".npz":
            with open(temporary, "wb") as file:
                np.savez_compressed(file, picture=values[..., 0] if bands == 1 else values)
        elif ending == ".png":
            _write_png(raster, temporary)
        else:
            _write_tiff(raster, temporary)


def _write_png(raster: Raster, path: Path) -> None:
    import numpy as np

    values, bands = raster.values, raster.values.shape[2]
    if values.dtype == np.uint8:  # the last of 2 or 4 bands lies where other readers look for transparency
        Image.frombytes({2: "LA", 4: "RGBA"}[bands], raster.size, values.tobytes()).save(path, "PNG")
        return
    if bands == 1:
        Image.frombytes("I;16", raster.size, values.tobytes()).save(path, "PNG")
        return
    try:
        import imagecodecs
    except ImportError:
        raise UserError(f"a PNG of {raster.kind} is not written by Pillow; {_INSTALL}") from None
    path.write_bytes(imagecodecs.png_encode(np.ascontiguousarray(values)))


def _write_tiff(raster: Raster, path: Path) -> None:
    values, bands = raster.values, raster.values.shape[2]
    try:
        import tifffile
    except ImportError:
        mode = {"uint16": "I;16", "float32": "F"}.get(str(values.dtype))
        if bands > 1 or mode is None:
            raise UserError(f"a TIFF of {raster.kind} is not written by Pillow; {_INSTALL}") from None
        Image.frombytes(mode, raster.size, values.tobytes()).save(path, "TIFF")
        return
    colour = raster.bands == 3 and values.dtype.kind in "uf"
    options: dict[str, Any] = {"photometric": "rgb" if colour else "minisblack", "compression": "zlib"}
    if bands > 1:
        extra = bands - (3 if colour else 1)
        options |= {"planarconfig": "contig"}
        options |= {"extrasamples": ["unassalpha"] if raster.alpha else ["unspecified"] * extra} if extra else {}
    if raster.info.get("dpi"):
        options |= {"resolution": raster.info["dpi"], "resolutionunit": "INCH"}
    if colour and raster.info.get("icc_profile", b"")[16:20] == b"RGB ":
        options |= {"iccprofile": raster.info["icc_profile"]}
    tifffile.imwrite(path, values[..., 0] if bands == 1 else values, metadata=None, **options)
