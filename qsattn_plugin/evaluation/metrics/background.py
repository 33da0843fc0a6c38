"""How much a translation changes outside the object."""

from __future__ import annotations

import contextlib

import torch.nn.functional as F

from qsattn_plugin.data.images import show
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.toy.score import background_change
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.pictures import Pictures, Stage, read_pair
from qsattn_plugin.registry import register

#: A border of this share of the height around a mask is no background.
_MARGIN = 0.03


@register("metric", "background")
def background(scored: Pictures, source: Pictures, masks: Pictures, stage: Stage) -> Figure:
    """Mean absolute change outside the masks, on [-1, 1], averaged over pictures.

    Pictures whose mask leaves no background are left out and counted.

    Args:
        scored: translations.
        source: what each of them was translated from, of the same size.
        masks: white, or of any bright colour, where a change is wanted.
        stage: shows progress.

    Raises:
        UserError: a pair differs in size, or no picture has a background.
    """
    values, resized = [], 0
    with stage("background", len(scored)) as done:
        for index in range(len(scored)):
            after, before = read_pair(scored, source, index)
            mask = masks.read(index).amax(0, keepdim=True).float() / 255
            if mask.shape[-2:] != after.shape[-2:]:
                resized += 1
                mask = F.interpolate(mask[None], after.shape[-2:], mode="nearest-exact")[0]
            with contextlib.suppress(ValueError):  # the mask fills the picture
                values.append(background_change(to_float(after)[None], to_float(before)[None], mask, _MARGIN))
            done(1)
    if not values:
        what = "leave no background in any picture; it is black, and the object white"
        raise UserError(f"the masks in {show(masks.folder)} {what}")
    images = {"pairs": len(values), "without background": len(scored) - len(values)}
    resize = f"{scored.resize}; {resized} masks brought to their picture's size (nearest)"
    settings = {"unit": "mean absolute difference on [-1, 1]", "margin": f"{_MARGIN:.0%} of the height"}
    value = sum(values) / len(values)
    return Figure("background", value, "lower", {k: v for k, v in images.items() if v}, resize, settings)
