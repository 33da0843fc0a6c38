"""Entropy maps of a few test images at the attentive taps, for a training's report."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.evaluation.mapping import choose_sampler
from qsattn_plugin.evaluation.maps import entropy_map
from qsattn_plugin.evaluation.sources import FeatureSource
from qsattn_plugin.storage import replacing
from qsattn_plugin.training.session import Session
from qsattn_plugin.translation.apply import evaluating

#: The number of test images drawn.
IMAGES = 3
_GAP = 6


@torch.no_grad()
def write_maps(session: Session, images: Sequence[Tensor], folder: Path) -> list[Path]:
    """Write ``step-N-tap-T.png`` for each attentive tap, one row per image: its entropy (warm is small), its queries.

    Of the images (C, H, W), the first :data:`IMAGES` are drawn; without an attentive sampler none.
    """
    method = session.method
    sampler, encoder = getattr(method, "sampler", None), getattr(method, "encoder", None)
    if sampler is None or getattr(sampler, "selector", None) is None or encoder is None or not images:
        return []
    generator = next(iter(session.translators().values()))
    spec = session.recipe.to_dict()["sampler"]
    source = FeatureSource(generator, encoder, len(images[0]), spec, tuple(encoder.taps))
    chooser = choose_sampler(source, None, {})
    sheets: dict[str, list[Image.Image]] = {}
    with evaluating(generator, encoder):
        for image in images[:IMAGES]:
            image = to_float(image)
            whole, size = source.sees(image[None].to(session.device))
            features = source.features(whole)
            flags = sampler.attentive([f for f, _ in features.values()], list(features))
            for attends, (tap, (found, stride)) in zip(flags, features.items(), strict=True):
                if attends:
                    # A generator of their own: drawing maps must not change the training.
                    draws = torch.Generator().manual_seed(0)
                    made = entropy_map(image, found, chooser, stride, draws, (whole.shape[-2], whole.shape[-1]), size)
                    sheets.setdefault(tap, []).append(made.draw(bands=session.recipe.evaluate.bands))
    return [_write(rows, folder / _name(session.step, tap)) for tap, rows in sheets.items()]


def _name(step: int, tap: str) -> str:
    return f"step-{step:09d}-tap-{re.sub(r'[^A-Za-z0-9_.-]', '_', tap)}.png"


def _write(rows: list[Image.Image], path: Path) -> Path:
    width = max(row.width for row in rows)
    sheet = Image.new("RGB", (width, sum(row.height + _GAP for row in rows) - _GAP), "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + _GAP
    with replacing(path) as temporary:
        sheet.save(temporary, "PNG")
    return path
