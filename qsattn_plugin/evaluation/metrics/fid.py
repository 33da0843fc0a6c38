"""The Frechet inception distance."""

from __future__ import annotations

from collections.abc import Callable

from qsattn_plugin.distances import frechet_distance
from qsattn_plugin.evaluation import fidelity
from qsattn_plugin.evaluation.features import FeatureSets
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.registry import register


@register("metric", "fid")
def fid(features: FeatureSets, warn: Callable[[str], None]) -> list[Figure]:
    """Frechet inception distance of the scored and the real pictures; one figure for each layer of features.

    Args:
        features: of the scored and the real pictures.
        warn: called where there are too few pictures for the width of the features.
    """
    distance = fidelity.fid if features.published else frechet_distance
    settings = features.settings | {"covariance": "n - 1, float64"}
    figures, narrow = [], []
    for name, a in features.scored.items():
        b = features.real[name]
        figures.append(Figure(f"fid-{name}", distance(a, b), "lower", features.images, features.resize, settings))
        if min(len(a), len(b)) <= a.shape[1]:
            narrow.append(f"fid-{name}")
    if narrow:
        counts = " and ".join(map(str, features.images.values()))
        warn(
            f"{', '.join(narrow)}: no more pictures ({counts}) than features, so the covariances are singular and the "
            "figures too high; compare them with figures of equal counts alone, or trust kid"
        )
    return figures
