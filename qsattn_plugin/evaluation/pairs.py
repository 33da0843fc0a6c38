"""Figures of pictures in pairs: a translation and its source, a predicted label map and the true one."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F

from qsattn_plugin.data.images import show
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.toy.score import background_change
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.labels import LabelMaps, compare_labels, label_scores
from qsattn_plugin.evaluation.pictures import Pictures, partners

if TYPE_CHECKING:
    from qsattn_plugin.evaluation.fidelity import Lpips
    from qsattn_plugin.evaluation.scoring import Stage

#: A border of this share of the height around a mask is no background.
_MARGIN = 0.03


def perceptual_figure(lpips: Lpips, given: Pictures, source: Pictures, stage: Stage) -> Figure:
    """Return the mean LPIPS of translations and their sources.

    Raises:
        UserError: a pair differs in size.
    """
    values = []
    with stage("lpips", len(given)) as done:
        for index, other in enumerate(partners(given, source)):
            values.append(lpips(*_pair(given, index, source, other)))
            done(1)
    mean = torch.tensor(values, dtype=torch.float64)
    settings = {"network": "VGG16 with torch-fidelity's LPIPS weights", "deviation": "over the pictures"}
    spread = float(mean.std(correction=0))
    images = {"pairs": len(values)}
    return Figure("lpips", float(mean.mean()), "lower", images, _resize(given), settings, spread)


def background_figure(given: Pictures, source: Pictures, masks: Pictures, stage: Stage) -> Figure:
    """Return the mean absolute change outside the masks, on [-1, 1], averaged over pictures.

    Pictures whose mask leaves no background are passed over and counted.

    Raises:
        UserError: a pair differs in size, or no picture has a background.
    """
    values, resized = [], 0
    with stage("background", len(given)) as done:
        places = zip(partners(given, source), partners(given, masks), strict=True)
        for index, (other, mask_index) in enumerate(places):
            after, before = _pair(given, index, source, other)
            mask = masks.read(mask_index)[:1].float() / 255
            if mask.shape[-2:] != after.shape[-2:]:
                resized += 1
                mask = F.interpolate(mask[None], after.shape[-2:], mode="nearest-exact")[0]
            with contextlib.suppress(ValueError):  # the mask fills the picture
                values.append(background_change(to_float(after)[None], to_float(before)[None], mask, _MARGIN))
            done(1)
    if not values:
        raise UserError(f"the masks in {show(masks.folder)} leave no background in any picture; white is the object")
    images = {"pairs": len(values), "without background": len(given) - len(values)}
    resize = f"{_resize(given)}; {resized} masks brought to their picture's size (nearest)"
    settings = {"unit": "mean absolute difference on [-1, 1]", "margin": f"{_MARGIN:.0%} of the height"}
    value = sum(values) / len(values)
    return Figure("background", value, "lower", {k: v for k, v in images.items() if v}, resize, settings)


def label_figures(predicted: LabelMaps, true: LabelMaps, stage: Stage) -> list[Figure]:
    """Return pixel accuracy, class accuracy and mIoU over all pixels of all pairs, each 0 to 1."""
    with stage("label maps", len(predicted.pictures)) as done:
        table, resized = compare_labels(predicted, true, done)
    if not table.sum():
        raise UserError(f"no pixel in {show(true.pictures.folder)} has one of the 19 classes; are these label maps?")
    settings = {"classes": len(table), "predicted_kind": predicted.kind, "true_kind": true.kind}
    settings["classes in the truth"] = int((table.sum(1) > 0).sum())
    resize = f"as they are; {resized} predictions brought to their truth's size (nearest)"
    images = {"pairs": len(predicted.pictures)}
    return [Figure(name, value, "higher", images, resize, settings) for name, value in label_scores(table).items()]


def _pair(given: Pictures, index: int, source: Pictures, other: int) -> tuple[torch.Tensor, torch.Tensor]:
    after, before = given.read(index), source.read(other)
    if after.shape != before.shape:
        sizes = " and ".join(f"{tuple(x.shape)[2]} x {tuple(x.shape)[1]}" for x in (after, before))
        raise UserError(
            f"{show(given.paths[index])} and {show(source.paths[other])} differ in size ({sizes}); "
            "--size brings every picture to one"
        )
    return after, before


def _resize(pictures: Pictures) -> str:
    return f"brought to {pictures.size} x {pictures.size} (bicubic, antialiased)" if pictures.size else "as they are"
