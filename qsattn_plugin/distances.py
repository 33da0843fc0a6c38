"""Distances of two sets of vectors, for scoring images.

The sliced Wasserstein distance says how alike two textures are, on their patches, wherever their features lie; the
kernel distance and the Frechet distance how alike two sets of images are, on the features of a trained network. Needs
torch alone, but for :func:`kernel_distances`, which takes NumPy's random numbers. Nothing here knows a data set, so
that any folder of images can be scored with it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def patches(images: Tensor, masks: Tensor | None = None, size: int = 7, coverage: float = 0.75) -> Tensor:
    """Cut every patch of some images, or those that lie in masks.

    Args:
        images: (N, C, H, W).
        masks: (N, H, W), 0 to 1; a patch counts where the mean of its mask is at least ``coverage``. None: all count.
        size: height and width of a patch in pixels.
        coverage: 0 to 1, see ``masks``.

    Returns:
        The patches of all images as rows, (P, C * size * size).

    Raises:
        ValueError: the images are smaller than a patch, or the masks do not fit them.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < size:
        raise ValueError(f"images: must be (N, C, H, W), at least {size} high and wide, got {tuple(images.shape)}")
    if masks is None:
        return F.unfold(images, size).transpose(1, 2).flatten(0, 1)
    if masks.shape != (len(images), *images.shape[-2:]):
        raise ValueError(f"masks: must be {(len(images), *images.shape[-2:])} as the images, got {tuple(masks.shape)}")
    # The mean of the mask over each patch is unfold's order of places; the slack is for rounding in that mean.
    wanted = (F.avg_pool2d(masks[:, None], size, stride=1) >= coverage - 1e-6).flatten(1)
    # One image at a time: the patches that are dropped are the most, and are never held together.
    cut = [F.unfold(image[None], size)[0].T[keep] for image, keep in zip(images, wanted, strict=True)]
    return torch.cat(cut) if cut else images.new_zeros(0, images.shape[1] * size * size)


def _quantiles(ordered: Tensor, at: Tensor) -> Tensor:
    """Values of sorted columns (P, K) at ``at`` (M,) in [0, 1], linear between neighbours."""
    place = at * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], (place - below)[:, None].to(ordered.dtype))


def sliced_wasserstein(
    a: Tensor,
    b: Tensor,
    projections: int = 256,
    seed: int = 0,
    power: int = 2,
    chunk: int = 64,
) -> float:
    """The sliced Wasserstein distance of two sets of vectors.

    Both sets are projected onto random unit vectors; along one direction the Wasserstein distance is the difference of
    the sorted values. The result is the mean over directions of its ``power``-th power, to the power 1 / ``power``:

        SW_p(a, b) = (E_theta  int_0^1 |F_a,theta^-1(q) - F_b,theta^-1(q)|^p dq) ^ (1/p)

    Sets of different sizes are compared at the quantiles of the larger one. Source: Rabin, Peyre, Delon and Bernot,
    "Wasserstein Barycenter and its Application to Texture Mixing", 2011; on patches of images as in Karras et al.,
    "Progressive Growing of GANs", 2018.

    Args:
        a: (P, D).
        b: (Q, D).
        projections: how many directions; the same ones for the same ``seed`` and D.
        seed: of the directions.
        power: p above, at least 1.
        chunk: directions held at once; more is faster and takes more memory.

    Returns:
        The distance, at least 0, in the units of the vectors. 0 for equal sets, whatever their order.

    Raises:
        ValueError: a set is empty, or the vectors differ in length.
    """
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"b: both sets must be (P, D) with the same D, got {tuple(a.shape)} and {tuple(b.shape)}")
    if not len(a) or not len(b):
        raise ValueError(f"{'b' if len(a) else 'a'}: must hold at least one vector")
    if projections < 1:
        raise ValueError(f"projections: must be at least 1, got {projections}")
    if power < 1:
        raise ValueError(f"power: must be at least 1, got {power}")
    # Drawn on the CPU, so that every device has the same directions.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(a)
    total = 0.0
    for some in directions.split(chunk, dim=1):
        x, y = (a @ some).sort(dim=0).values, (b @ some).sort(dim=0).values
        if len(x) != len(y):
            at = torch.linspace(0, 1, max(len(x), len(y)), device=a.device, dtype=torch.float64)
            x, y = _quantiles(x, at), _quantiles(y, at)
        total += float((x - y).abs().pow(power).mean(0).sum(dtype=torch.float64))
    return (total / projections) ** (1 / power)


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """The squared maximum mean discrepancy of two sets of vectors under a polynomial kernel, without bias.

        k(x, y) = (x . y / D + 1)^3
        MMD^2 = mean of k over pairs within a + mean of k over pairs within b - 2 * mean of k between a and b

    No vector is paired with itself: so the estimate has no bias, and is below 0 about half the time where both sets
    come from one distribution. On features of an Inception network this is the kernel inception distance, KID. Source:
    Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", 2018, equation 4 and section 4.

    Args:
        a: (P, D).
        b: (Q, D).
        subsets: where a set is larger than ``size``, the mean over this many random subsets; else one estimate is all.
        size: the most vectors of each set in a subset, at least 2.
        seed: of the subsets.

    Returns:
        The distance, in no unit; papers often give it times 100 or 1000.

    Raises:
        ValueError: a set has less than two vectors, the vectors differ in length, or an argument is out of range.
    """
    _check_pair(a, b)
    _check_subsets(subsets, size)
    # On the CPU: not every device has float64, and features of different sets are close, their kernels large.
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    if max(len(a), len(b)) <= size:
        return float(_mmd(a, b))
    generator = torch.Generator().manual_seed(seed)

    def some(vectors: Tensor) -> Tensor:
        return vectors[torch.randperm(len(vectors), generator=generator)[:size]]

    return float(torch.stack([_mmd(some(a), some(b)) for _ in range(subsets)]).mean())


def kernel_distances(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Tensor:
    """:func:`kernel_distance` on random subsets, one by one, for a mean with its deviation.

    The subsets are those that torch-fidelity draws (NumPy's ``RandomState(seed)``, without replacement), so that the
    numbers are the same. A set that is no larger than a subset is taken whole each time: then the deviation is that of
    the other set alone, and is 0 where both are.

    Args:
        a: (P, D).
        b: (Q, D).
        subsets: how many.
        size: vectors of each set in a subset; where a set has fewer, as many as the smaller set has.
        seed: of the subsets.

    Returns:
        The distances, float64 (subsets,), on the CPU.

    Raises:
        ValueError: as :func:`kernel_distance`.
    """
    _check_pair(a, b)
    _check_subsets(subsets, size)
    import numpy as np

    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    size = min(size, len(a), len(b))
    draws = np.random.RandomState(seed)  # torch has no generator with the same draws

    def some(vectors: Tensor) -> Tensor:
        return vectors[torch.from_numpy(draws.choice(len(vectors), size, replace=False))]

    return torch.stack([_mmd(some(a), some(b)) for _ in range(subsets)])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """The Frechet distance of two sets of vectors, each taken for a normal distribution; on Inception features, FID.

        |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)),  S the covariances, with n - 1 in the denominator

    In float64 and without a matrix square root: with S_a = A^T A and S_b = B^T B, the trace of (S_a S_b)^(1/2) is the
    sum of the singular values of A B^T. That is exact where there are fewer vectors than numbers in each, too, where
    the covariances are singular. Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium", 2017, equation 6.

    Args:
        a: (P, D).
        b: (Q, D).

    Returns:
        The distance, at least 0 but for rounding. It grows as sets become smaller: compare figures of equal counts.

    Raises:
        ValueError: a set has less than two vectors, or the vectors differ in length.
    """
    _check_pair(a, b)
    a, b = a.detach().cpu().double(), b.detach().cpu().double()
    apart = (a.mean(0) - b.mean(0)).square().sum()
    roots = [_root(vectors) for vectors in (a, b)]
    spread = sum(root.square().sum() for root in roots)
    return float(apart + spread - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())


def _root(vectors: Tensor) -> Tensor:
    """A matrix R (at most D rows) with R^T R the covariance of vectors (P, D)."""
    centred = (vectors - vectors.mean(0)) / (len(vectors) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def _check_pair(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"b: both sets must be (P, D) with the same D, got {tuple(a.shape)} and {tuple(b.shape)}")
    for name, vectors in (("a", a), ("b", b)):
        if len(vectors) < 2:
            raise ValueError(f"{name}: must hold at least two vectors, got {len(vectors)}")


def _check_subsets(subsets: int, size: int) -> None:
    for name, value, least in (("subsets", subsets, 1), ("size", size, 2)):
        if value < least:
            raise ValueError(f"{name}: must be at least {least}, got {value}")


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()
