"""The kernel inception distance."""

from __future__ import annotations

from qsattn_plugin.distances import kernel_distances
from qsattn_plugin.evaluation import fidelity
from qsattn_plugin.evaluation.features import FeatureSets
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.registry import register


@register("metric", "kid")
def kid(features: FeatureSets, subsets: int = 100, subset_size: int = 1000, seed: int = 2020) -> list[Figure]:
    """Kernel inception distance of the scored and the real pictures; one figure for each layer of features.

    Args:
        features: of the scored and the real pictures.
        subsets: how many random subsets the mean and the deviation are taken over.
        subset_size: pictures in a subset, at most as many as the smaller set has.
        seed: of the subsets.
    """
    size = min(subset_size, *features.images.values())
    settings = features.settings | {"subsets": subsets, "subset_size": size, "seed": seed}
    settings |= {"kernel": "(x y / width + 1)^3"}
    figures = []
    for name, a in features.scored.items():
        b = features.real[name]
        if features.published:
            mean, deviation = fidelity.kid(a, b, subsets, size, seed)
        else:
            found = kernel_distances(a, b, subsets, size, seed)
            mean, deviation = float(found.mean()), float(found.std(correction=0))
        figures.append(Figure(f"kid-{name}", mean, "lower", features.images, features.resize, settings, deviation))
    return figures
