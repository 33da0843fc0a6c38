"""Value ranges: what a file's numbers mean, brought to [-1, 1] for networks and back.

With the limits (low, high) of a range, a value v and the network's x, out-of-range values clipped:

    x = 2 (v - low) / (high - low) - 1

Decoded images are kept as int16 with the code c, x = (c + 1/2) / 32767.5: 65,536 equal steps over the range, so that
16-bit integers of the range ``dtype`` are kept exactly.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.unreadable import UnreadableImage

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Range", "from_signal", "limits", "measured", "number_type", "to_codes", "to_signal"]

#: (low, high); or those of the file's number type, 0 and 1 for floats.
Range = tuple[float, float] | Literal["dtype"]

#: Shares of a set's values below and above which :func:`measured` cuts.
QUANTILES = (0.001, 0.999)
#: The most values that it takes from one picture.
_VALUES = 1 << 14
#: ITU-R 601's luminance.
_LUMA = (0.299, 0.587, 0.114)


def limits(value_range: Range, dtype: np.dtype) -> tuple[float, float]:
    """Return the values that become -1 and 1 in files of a number type."""
    import numpy as np

    if value_range != "dtype":
        return value_range  # type: ignore[return-value]  # mypy does not narrow a union with a literal
    if dtype.kind == "f":
        return 0.0, 1.0
    info = np.iinfo(dtype)
    return float(info.min), float(info.max)


def to_signal(raster: Raster, value_range: Range, channels: int) -> Tensor:
    """Return a picture for a network: float32 (C, H, W) in [-1, 1].

    Its bands must be as many as ``channels``, without or with its transparency; grey is repeated to three channels, and
    RGB becomes grey by its luminance.

    Raises:
        UnreadableImage: it has another number of bands, or holds NaN or infinite values.
    """
    import numpy as np

    if raster.values.shape[2] != channels:
        raster = raster.opaque()
    if raster.values.shape[2] not in (channels, 1 if channels == 3 else 3 if channels == 1 else channels):
        what = f"has {raster.bands} band{'s' * (raster.bands > 1)}, and {channels} are wanted (data.channels)"
        raise UnreadableImage(what)
    low, high = limits(value_range, raster.values.dtype)
    values = raster.values.astype(np.float64)
    if not np.isfinite(values).all():
        raise UnreadableImage("holds NaN or infinite values")
    values = (values - low) * (2 / (high - low)) - 1
    if values.shape[2] == 3 and channels == 1:
        values = values @ np.array(_LUMA)[:, None]
    signal = torch.from_numpy(np.ascontiguousarray(values.transpose(2, 0, 1), np.float32)).clamp_(-1, 1)
    return signal.expand(channels, -1, -1).contiguous()


def to_codes(signal: Tensor) -> Tensor:
    """Return an image in [-1, 1] as int16 codes, of the same shape."""
    return (signal.double() * 32767.5 - 0.5).round_().clamp_(-32768, 32767).to(torch.int16)


def from_signal(signal: Tensor, value_range: Range, dtype: str) -> np.ndarray:
    """Return a network's image (C, H, W) in [-1, 1] as values (H, W, C) of a number type; the inverse of the above."""
    import numpy as np

    kind = np.dtype(dtype)
    low, high = limits(value_range, kind)
    values = (signal.detach().double().cpu().clamp(-1, 1).permute(1, 2, 0).numpy() + 1) * ((high - low) / 2) + low
    if kind.kind != "f":
        info = np.iinfo(kind)
        most = float(info.max)  # of 64 bits: one more than there is
        values = np.clip(np.floor(values + 0.5), info.min, most if most <= info.max else np.nextafter(most, 0))
    return np.ascontiguousarray(values.astype(kind))


def number_type(value_range: Range, source: str | None = None) -> str:
    """Return the number type in which pictures of a range are written.

    That of the ``source`` picture where it holds the range; otherwise 16-bit integers where they do, else floats.
    """
    import numpy as np

    if value_range == "dtype":
        return source or "uint16"
    kinds = [source] if source else []
    for kind in (*kinds, "uint16", "int16"):
        real = np.dtype(kind).kind == "f"
        info: np.finfo | np.iinfo = np.finfo(kind) if real else np.iinfo(kind)
        # Whole numbers are no measure for a range such as [0, 1].
        fine = real or value_range[1] - value_range[0] >= 255
        if fine and float(info.min) <= value_range[0] and value_range[1] <= float(info.max):
            return str(kind)
    return "float32"


def measured(pictures: Iterable[Raster]) -> tuple[float, float]:
    """Return the range that all but a thousandth of the values at either end lie in.

    Raises:
        UnreadableImage: all values are the same, or none is finite.
    """
    import numpy as np

    samples, whole, draw = [], True, np.random.default_rng(0)
    for raster in pictures:
        values = raster.opaque().values
        whole = whole and values.dtype.kind != "f"
        pixels = values.reshape(-1, values.shape[2])
        count = max(1, _VALUES // pixels.shape[1])
        if len(pixels) > count:  # drawn: every n-th would be of few columns where n fits into the width
            pixels = pixels[draw.integers(len(pixels), size=count)]
        values = pixels.astype(np.float64)
        samples.append(values[np.isfinite(values)])
    values = np.concatenate(samples) if samples else np.zeros(0)
    if not len(values) or values.min() == values.max():
        raise UnreadableImage("its values are all the same, which gives no range")
    low, high = np.quantile(values, QUANTILES)
    if not low < high:
        low, high = values.min(), values.max()
    if whole:
        return float(np.floor(low)), float(np.ceil(high))
    return float(f"{low:.6g}"), float(f"{high:.6g}")


def translated(raster: Raster, signal: Tensor, value_range: Range) -> Raster:
    """Return a translation (C, H, W) in [-1, 1] as a picture of the kind of its source, whose transparency it keeps."""
    import numpy as np

    values = from_signal(signal, value_range, number_type(value_range, str(raster.values.dtype)))
    alpha = raster.alpha and values.dtype == raster.values.dtype and values.shape[2] == raster.bands
    if alpha:
        values = np.concatenate([values, raster.values[..., -1:]], 2)
    return replace(raster, values=values, alpha=alpha)
