"""Entropy maps: which places of an image say most, and where the queries lie (the paper's Figure 2)."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw
from torch import Tensor

from qsattn_plugin.attention import GlobalAttention
from qsattn_plugin.data.pixels import from_tensor, shown

Scale = Literal["rank", "log", "linear"]

# From cold to warm, evenly spaced: dark blue, teal, pale yellow, orange, dark red.
COLOURS = torch.tensor(
    [
        [0.10, 0.12, 0.42],
        [0.14, 0.49, 0.62],
        [0.65, 0.82, 0.64],
        [0.98, 0.85, 0.40],
        [0.93, 0.42, 0.18],
        [0.62, 0.04, 0.12],
    ]
)
_POINT = (255, 40, 200)
_GAP = 4
#: How much of the picture shows through its heat map.
GREY_SHARE = 0.25
_SMALLEST = 192


@dataclass(frozen=True)
class EntropyMap:
    """One image at one tap."""

    image: Tensor  # (C, H, W) in [-1, 1]
    log_entropy: Tensor  # (h, w), the natural logarithm of each position's row entropy in nats
    queries: Tensor  # (N, 2), the selected positions as (row, column), most significant first
    stride: int  # pixels that one position spans, of those that the encoder saw
    padded: tuple[int, int]  # (H', W') of what the encoder saw: the image, and padding on the right and below
    seen: tuple[int, int] | None = None  # (height, width) of the image in it; None: the image's own

    def centres(self) -> list[tuple[float, float]]:
        """Return where the queries lie in the image, as (x, y) in pixels; those in its padding come to its border."""
        _, height, width = self.image.shape
        h, w = self.log_entropy.shape
        seen = self.seen or (height, width)
        down, across = height / seen[0], width / seen[1]
        # An encoder pads all around: its maps are centred on what it saw.
        top, left = (h * self.stride - self.padded[0]) / 2, (w * self.stride - self.padded[1]) / 2
        return [
            (
                min(max(((x + 0.5) * self.stride - left) * across, 0.0), width - 1.0),
                min(max(((y + 0.5) * self.stride - top) * down, 0.0), height - 1.0),
            )
            for y, x in self.queries.tolist()
        ]

    def numbers(self) -> dict[str, Any]:
        """Return what JSON should hold: the shape, quantiles of the entropy in nats, and every position's value.

        The logarithm is None where the entropy is 0, as that of a single position.
        """
        entropy = self.log_entropy.double().exp()
        ordered = entropy.flatten().sort().values
        last = len(ordered) - 1
        return {
            "shape": list(entropy.shape),
            "stride": self.stride,
            "image_size": [self.image.shape[-1], self.image.shape[-2]],
            "entropy_quantiles": {f"{q}%": float(ordered[last * q // 100]) for q in (0, 10, 25, 50, 75, 90, 100)},
            "queries": self.queries.tolist(),
            "query_pixels": [[round(x, 2), round(y, 2)] for x, y in self.centres()],
            "log_entropy": [[round(v, 6) if math.isfinite(v) else None for v in r] for r in self.log_entropy.tolist()],
        }

    def draw(self, scale: Scale = "rank", bands: Sequence[int] | None = None) -> Image.Image:
        """Return the image, its heat map (warm: small entropy) and the image with its queries, side by side.

        Of an image with more than three channels the ``bands`` are shown, counted from 1.
        """
        _, height, width = self.image.shape
        factor = max(1, -(-_SMALLEST // min(height, width)))
        size = (width * factor, height * factor)
        picture = shown(self.image, bands).resize(size, Image.Resampling.BICUBIC)
        panels = [picture, self._heat(picture, scale), self._points(picture, factor)]
        sheet = Image.new("RGB", (3 * size[0] + 2 * _GAP, size[1]), "white")
        for index, panel in enumerate(panels):
            sheet.paste(panel, (index * (size[0] + _GAP), 0))
        return sheet

    def _repr_html_(self) -> str:
        """Return the map for a notebook: what :meth:`draw` draws, and the range of its entropy."""
        out, entropy = io.BytesIO(), self.log_entropy.double().exp()
        self.draw().save(out, "PNG")
        uri = f"data:image/png;base64,{base64.b64encode(out.getvalue()).decode()}"
        h, w = entropy.shape
        about = f"picture, entropy of {h} x {w} rows ({entropy.min():.3g} to {entropy.max():.3g} nats; warm is small)"
        about += f", {len(self.queries)} selected queries"
        return f'<figure><img src="{uri}" alt="{about}"><figcaption>{about}</figcaption></figure>'

    def warmth(self, scale: Scale = "rank") -> Tensor:
        """Return (h, w) in [0, 1], 1 for the smallest entropy.

        "rank" spreads the positions evenly, whatever the values: what selection sees. "linear" and "log" scale the
        entropy and its logarithm between their extremes; on saturated features "linear" is nearly everywhere 1.
        """
        value = self.log_entropy.double()
        if scale == "linear":
            value = value.exp()
        elif scale == "rank":
            # Equal values share the mean of their ranks.
            _, inverse, counts = value.flatten().unique(return_inverse=True, return_counts=True)
            value = (counts.cumsum(0) - counts / 2)[inverse].view(value.shape)
        else:
            value = value.clamp(min=-60)  # beyond any display: an entropy of 1e-26
        low, high = value.min(), value.max()
        return 1 - (value - low) / (high - low) if high > low else torch.full_like(value, 0.5)

    def _heat(self, picture: Image.Image, scale: Scale) -> Image.Image:
        position = self.warmth(scale).float() * (len(COLOURS) - 1)
        below = position.floor().long().clamp(max=len(COLOURS) - 2)
        part = (position - below).unsqueeze(-1)
        colour = (COLOURS[below] * (1 - part) + COLOURS[below + 1] * part).permute(2, 0, 1)
        full = F.interpolate(colour[None], scale_factor=float(self.stride), mode="bilinear", align_corners=False)[0]
        height, width = self.seen or self.image.shape[-2:]
        full = _centred(full, *self.padded)[:, :height, :width]
        heat = from_tensor(full * 2 - 1).resize(picture.size, Image.Resampling.BICUBIC)
        # A little of the picture's brightness shows through, so that one sees what is where.
        return Image.blend(heat, picture.convert("L").convert("RGB"), GREY_SHARE)

    def _points(self, picture: Image.Image, factor: int) -> Image.Image:
        canvas = Image.blend(picture, picture.convert("L").convert("RGB"), 0.6)
        draw = ImageDraw.Draw(canvas)
        radius = max(1.5, min(picture.size) / 130)
        for x, y in self.centres():
            x, y = x * factor, y * factor
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_POINT)
        return canvas


def _centred(x: Tensor, height: int, width: int) -> Tensor:
    """Cut or pad (C, h, w) to a size around its centre, as padded feature maps lie over the image."""
    top, left = (height - x.shape[-2]) // 2, (width - x.shape[-1]) // 2
    pad = (left, width - x.shape[-1] - left, top, height - x.shape[-2] - top)
    return F.pad(x[None], pad, mode="replicate")[0] if min(pad) >= 0 else F.pad(x, pad)


@torch.no_grad()
def entropy_map(
    image: Tensor,
    features: Tensor,
    sampler: Any,
    stride: int,
    draws: torch.Generator,
    padded: tuple[int, int] | None = None,
    seen: tuple[int, int] | None = None,
) -> EntropyMap:
    """Return the entropy map of one image from its features (1, C', h, w) at one tap; see :class:`EntropyMap`.

    ``sampler`` chooses the queries; one that does not look at entropy itself (``random``) is shown on the global one.
    """
    selector = getattr(sampler, "selector", None) or GlobalAttention()
    h, w = features.shape[-2:]
    queries = sampler.choose([features], generator=draws)[0].queries[0]
    rows = torch.stack([queries // w, queries % w], dim=1)
    log_entropy = selector.log_entropy(features)[0].view(h, w).float()
    size = padded or seen or (image.shape[-2], image.shape[-1])
    return EntropyMap(image.cpu(), log_entropy.cpu(), rows.cpu(), stride, size, seen)
