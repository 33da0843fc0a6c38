"""A picture as its file holds it: any number of bands, of any number type."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from qsattn_plugin.data.unreadable import UnreadableImage

if TYPE_CHECKING:
    import numpy as np

#: The most bands of a picture.
MOST_BANDS = 64

#: What to do about values whose meaning a file does not say.
HINT = "give the range of its values: data.range"


@dataclass(frozen=True)
class Raster:
    """A picture with the values of its file.

    Attributes:
        values: (H, W, C) of the file's own number type, upright, dark values low.
        alpha: whether the last band is transparency, not multiplied into the others.
        full: the values of black and of full brightness; None: the file does not say, as with floats.
        info: ``frames``, where the file has several and one of them is this; ``icc_profile`` and ``dpi``.
    """

    values: np.ndarray
    alpha: bool = False
    full: tuple[float, float] | None = None
    info: dict[str, Any] = field(default_factory=dict)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height."""
        return self.values.shape[1], self.values.shape[0]

    @property
    def bands(self) -> int:
        """The number of bands without transparency."""
        return self.values.shape[2] - self.alpha

    @property
    def kind(self) -> str:
        """What it is, for people."""
        return f"{self.values.dtype} with {self.bands} band{'s' * (self.bands > 1)}{' and alpha' * self.alpha}"

    def with_use(self) -> Raster:
        """Return it with ``info["used"]``: its kind, lowest and highest value, and the steps of its number type."""
        import numpy as np

        values = self.opaque().values
        top = 0.0 if values.dtype.kind == "f" else float(np.iinfo(values.dtype).max) - float(np.iinfo(values.dtype).min)
        used = (self.kind, float(values.min()), float(values.max()), top)
        return replace(self, info={**self.info, "used": used})

    def opaque(self) -> Raster:
        """Return the picture without its transparency; colours behind it appear."""
        return replace(self, values=self.values[..., :-1], alpha=False) if self.alpha else self

    def picture(self) -> Image.Image:
        """Return it in 8 bits, by the rules of :func:`~qsattn_plugin.data.images.read_image`.

        Raises:
            UnreadableImage: it is neither grey nor RGB, or its values have another range than those rules know.
        """
        import numpy as np

        if self.bands not in (1, 3):
            raise UnreadableImage(
                f"has {self.bands} bands that are neither grey nor RGB with transparency: data.range with "
                f"data.channels: {self.bands} takes them as they are (dtype, auto, or two numbers)"
            )
        values, top = self.values, 255.0
        if values.dtype != np.uint8:
            top = _brightest(values, self.full)
            if values.dtype == np.uint16 and self.bands == 3 and self.full == (0, 65535):
                values = (values >> 8).astype(np.uint8)  # as Pillow, which keeps the high byte of colours
            else:
                values = np.floor(values.astype(np.float64) * (255 / top) + 0.5).astype(np.uint8)
        mode = {1: "L", 3: "RGB"}[self.bands] + "A" * self.alpha
        image = Image.frombytes(mode, self.size, np.ascontiguousarray(values).tobytes())
        image.info.update(self.info)
        if self.values.dtype != np.uint8:
            image.info["used"] = (self.kind, float(self.values.min()), float(self.values.max()), top)
        return image


def _brightest(values: np.ndarray, full: tuple[float, float] | None) -> float:
    """Return the value that becomes 255, or raise :class:`UnreadableImage` if values lie outside what is known."""
    low, high = float(values.min()), float(values.max())
    if values.dtype.kind == "f":
        if not (low >= 0 and high <= 255):  # also refuses NaN
            expected = "expected 0 to 1, or 0 to 255"
            raise UnreadableImage(f"its float values range from {low:g} to {high:g}; {expected}: {HINT}")
        return 1.0 if high <= 1 else 255.0
    top = min(full[1], 65535) if full else 65535
    if low < 0 or high > top:
        raise UnreadableImage(
            f"its values range from {low:.0f} to {high:.0f}; expected 16 bits, 0 to {top:.0f}: {HINT}"
        )
    return top


def upright(values: np.ndarray, orientation: int) -> np.ndarray:
    """Turn (H, W, C) by EXIF's orientation."""
    if orientation in (5, 6, 7, 8):
        values = values.transpose(1, 0, 2)
    if orientation in (2, 3, 6, 7):
        values = values[:, ::-1]
    if orientation in (3, 4, 7, 8):
        values = values[::-1]
    return values
