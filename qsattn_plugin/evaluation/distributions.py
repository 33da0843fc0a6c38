"""Figures of two folders of pictures taken as wholes: FID, KID and SWD."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from qsattn_plugin.distances import frechet_distance, kernel_distances
from qsattn_plugin.evaluation import fidelity
from qsattn_plugin.evaluation.features import Extractor, extract
from qsattn_plugin.evaluation.figures import Figure
from qsattn_plugin.evaluation.pictures import Pictures
from qsattn_plugin.evaluation.texture import DIRECTIONS, PATCH, PATCHES, texture_distance

if TYPE_CHECKING:
    from qsattn_plugin.evaluation.scoring import Evaluation, Stage

#: Pictures are brought to this side for SWD where no other is asked for, as in the papers.
_SWD_SIZE = 256


def inception_figures(
    wanted: Evaluation,
    metrics: tuple[str, ...],
    extractor: Extractor,
    about: dict[str, Any],
    given: Pictures,
    real: Pictures,
    stage: Stage,
) -> tuple[list[Figure], list[str]]:
    """Return FID or KID or both for every feature, FIDs first, and a warning where pictures are too few for an FID.

    torch-fidelity's own formulas judge its own network; those of :mod:`qsattn_plugin.distances`, which give the same
    numbers, judge any other, so that this needs nothing installed.

    Args:
        wanted: has the features' names and the settings of KID.
        metrics: "fid" and "kid" count.
        extractor: gives the features.
        about: what the report says of it.
        given: what is scored.
        real: what it is compared with.
        stage: shows progress.
    """
    features = []
    for what, pictures in (("features of the scored pictures", given), ("features of the real pictures", real)):
        with stage(what, len(pictures)) as done:
            features.append(extract(extractor, pictures, wanted.features, wanted.batch, done))
    a_of, b_of = features
    own = not isinstance(extractor, fidelity.Inception)
    size = min(wanted.subset_size, len(given), len(real))
    common = {"images": _counts(given, real), "resize": _resize(given, extractor), "better": "lower"}
    about = about | {"formulas": "qsattn_plugin" if own else f"torch-fidelity {fidelity.library().__version__}"}
    kid_settings = {"subsets": wanted.subsets, "subset_size": size, "seed": wanted.seed}
    kid_settings |= {"kernel": "(x y / width + 1)^3"}
    fids, kids, narrow = [], [], []
    for name, a in a_of.items():
        b = b_of[name]
        if "fid" in metrics:
            value = (frechet_distance if own else fidelity.fid)(a, b)
            fids.append(Figure(f"fid-{name}", value, settings={**about, "covariance": "n - 1, float64"}, **common))
            if min(len(a), len(b)) <= a.shape[1]:
                narrow.append(f"fid-{name}")
        if "kid" in metrics:
            if own:
                found = kernel_distances(a, b, wanted.subsets, size, wanted.seed)
                mean, deviation = float(found.mean()), float(found.std(correction=0))
            else:
                mean, deviation = fidelity.kid(a, b, wanted.subsets, size, wanted.seed)
            kids.append(Figure(f"kid-{name}", mean, settings=about | kid_settings, deviation=deviation, **common))
    warnings = []
    if narrow:
        warnings.append(
            f"{', '.join(narrow)}: no more pictures ({len(given)} and {len(real)}) than features, so the covariances "
            "are singular and the figures too high; compare them with figures of equal counts alone, or trust kid"
        )
    return fids + kids, warnings


def texture_figure(given: Pictures, real: Pictures, seed: int, stage: Stage) -> list[Figure]:
    """Return the sliced Wasserstein distance: the mean over the levels, which are told in its settings."""
    size = given.size or _SWD_SIZE
    sets = [Pictures(pictures.folder, pictures.paths, size) for pictures in (given, real)]
    with stage("patches of all pictures", len(given) + len(real)) as done:
        found = texture_distance(*sets, seed, done)
    settings = {
        "times": 1000,
        "levels": {str(level): value for level, value in found.items()},
        "patches": f"{PATCHES} of {PATCH} x {PATCH} a picture and level",
        "directions": DIRECTIONS,
        "seed": seed,
    }
    value = sum(found.values()) / len(found)
    resize = f"brought to {size} x {size} where they are not (bicubic, antialiased)"
    return [Figure("swd", value, "lower", _counts(given, real), resize, settings)]


def _counts(given: Pictures, real: Pictures) -> dict[str, int]:
    return {"scored": len(given), "real": len(real)}


def _resize(pictures: Pictures, extractor: Extractor) -> str:
    first = f"brought to {pictures.size} x {pictures.size} (bicubic, antialiased)" if pictures.size else "as they are"
    return f"{first}, then by the extractor: {getattr(extractor, 'resize', 'it does not say how')}"
