"""The sliced Wasserstein distance."""

from __future__ import annotations

from dataclasses import replace

from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.pictures import Pictures, Stage
from qsattn_plugin.evaluation.texture import DIRECTIONS, PATCH, PATCHES, texture_distance
from qsattn_plugin.registry import register

#: Side in pixels that pictures are resized to where no other is asked for, as in the papers.
_SIZE = 256


@register("metric", "swd")
def swd(scored: Pictures, real: Pictures, stage: Stage, seed: int = 2020) -> Figure:
    """Sliced Wasserstein distance of the scored and the real pictures' patches, the mean over a pyramid's levels.

    Args:
        scored: pictures to score.
        real: pictures of the target domain.
        stage: shows progress.
        seed: of the patches' places and the directions.
    """
    size = scored.size or _SIZE
    with stage("patches of all pictures", len(scored) + len(real)) as done:
        found = texture_distance(replace(scored, size=size), replace(real, size=size), seed, done)
    settings = {
        "times": 1000,
        "levels": {str(level): value for level, value in found.items()},
        "patches": f"{PATCHES} of {PATCH} x {PATCH} a picture and level",
        "directions": DIRECTIONS,
        "seed": seed,
    }
    value = sum(found.values()) / len(found)
    images = {"scored": len(scored), "real": len(real)}
    resize = f"brought to {size} x {size} where they are not (bicubic, antialiased)"
    return Figure("swd", value, "lower", images, resize, settings)
