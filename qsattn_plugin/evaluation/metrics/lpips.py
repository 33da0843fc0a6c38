"""The learned perceptual distance."""

from __future__ import annotations

import torch

from qsattn_plugin.evaluation.fidelity import Lpips
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.pictures import Pictures, Stage, read_pair
from qsattn_plugin.registry import register


@register("metric", "lpips")
def lpips(scored: Pictures, source: Pictures, lpips_network: Lpips, stage: Stage) -> Figure:
    """Learned perceptual distance (LPIPS, VGG16) of each scored picture from its source, the mean over pairs.

    Args:
        scored: translations.
        source: what each of them was translated from, of the same size.
        lpips_network: gives the distance of two pictures.
        stage: shows progress.
    """
    values = []
    with stage("lpips", len(scored)) as done:
        for index in range(len(scored)):
            values.append(lpips_network(*read_pair(scored, source, index)))
            done(1)
    each = torch.tensor(values, dtype=torch.float64)
    settings = {"network": "VGG16 with torch-fidelity's LPIPS weights", "deviation": "over the pictures"}
    deviation = float(each.std(correction=0))
    return Figure("lpips", float(each.mean()), "lower", {"pairs": len(values)}, scored.resize, settings, deviation)
