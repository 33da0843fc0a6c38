"""Distances between two sets of vectors, for scoring images.

The sliced Wasserstein distance, on patches, compares two textures regardless of positions; the kernel distance and the
Frechet distance, on the features of a trained network, compare two sets of images.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from qsattn_plugin.errors import at_least


def patches(images: Tensor, masks: Tensor | None = None, size: int = 7, coverage: float = 0.75) -> Tensor:
    """Return all patches of some images, or those inside masks.

    Args:
        images: (N, C, H, W).
        masks: (N, H, W), 0 to 1; a patch is used if the mean of its mask is at least ``coverage``. None uses all.
        size: height and width of a patch in pixels.
        coverage: 0 to 1, see ``masks``.

    Returns:
        The patches of all images as rows, (P, C * size * size).

    Raises:
        ValueError: the images are smaller than a patch, or the masks have another shape.
    """
    if images.ndim != 4 or min(images.shape[-2:]) < size:
        raise ValueError(f"images: must be (N, C, H, W), at least {size} high and wide, got {tuple(images.shape)}")
    if masks is None:
        return F.unfold(images, size).transpose(1, 2).flatten(0, 1)
    if masks.shape != (len(images), *images.shape[-2:]):
        raise ValueError(f"masks: must be {(len(images), *images.shape[-2:])} as the images, got {tuple(masks.shape)}")
    # The means are in the order of unfold's patches; the tolerance is for rounding in the mean.
    wanted = (F.avg_pool2d(masks[:, None], size, stride=1) >= coverage - 1e-6).flatten(1)
    # One image at a time: most patches are dropped, and should not be in memory together.
    cut = [F.unfold(image[None], size)[0].T[keep] for image, keep in zip(images, wanted, strict=True)]
    return torch.cat(cut) if cut else images.new_zeros(0, images.shape[1] * size * size)


def _sorted(columns: Tensor) -> Tensor:
    """Return each column (P, K) sorted. On the CPU by NumPy, in a tenth of torch's time, which sorts indices along."""
    if columns.device.type != "cpu":
        return columns.sort(dim=0).values
    return torch.from_numpy(np.sort(columns.detach().T.contiguous().numpy(), axis=1)).T


def _quantiles(ordered: Tensor, at: Tensor) -> Tensor:
    """Return the quantiles ``at`` (M,) in [0, 1] of sorted columns (P, K), interpolated linearly: (M, K)."""
    place = at * (len(ordered) - 1)
    below = place.floor().long()
    above = (below + 1).clamp(max=len(ordered) - 1)
    return torch.lerp(ordered[below], ordered[above], (place - below)[:, None].to(ordered.dtype))


def sliced_wasserstein(
    a: Tensor, b: Tensor, projections: int = 256, seed: int = 0, power: int = 2, chunk: int = 64
) -> float:
    """Return the sliced Wasserstein distance of two sets of vectors.

    Both sets are projected onto random unit vectors; along one direction the Wasserstein distance is the difference of
    the sorted values. The result is the mean over directions of its ``power``-th power, to the power 1 / ``power``:

        SW_p(a, b) = (E_theta  int_0^1 |F_a,theta^-1(q) - F_b,theta^-1(q)|^p dq) ^ (1/p)

    Sets of different sizes are compared at the quantiles of the larger one. Source: Rabin, Peyre, Delon and Bernot,
    "Wasserstein Barycenter and its Application to Texture Mixing", 2011; on patches of images as in Karras et al.,
    "Progressive Growing of GANs", 2018.

    Args:
        a: (P, D).
        b: (Q, D).
        projections: number of directions; they are equal for equal ``seed`` and D.
        seed: seed of the directions.
        power: p above, at least 1.
        chunk: directions at a time; more are faster and need more memory.

    Returns:
        The distance, at least 0, in the units of the vectors. 0 for equal sets, whatever their order.

    Raises:
        ValueError: a set is empty, or the vectors differ in length.
    """
    _same_length(a, b)
    a, b = (v.to(torch.promote_types(v.dtype, torch.float32)) for v in (a, b))
    if not len(a) or not len(b):
        raise ValueError(f"{'b' if len(a) else 'a'}: must hold at least one vector")
    at_least(1, projections=projections, power=power)
    # Drawn on the CPU, so that every device has the same directions.
    generator = torch.Generator().manual_seed(seed)
    directions = torch.randn(a.shape[1], projections, generator=generator)
    directions = (directions / directions.norm(dim=0)).to(a)
    total = 0.0
    for some in directions.split(chunk, dim=1):
        x, y = _sorted(a @ some), _sorted(b @ some)
        if len(x) != len(y):
            at = torch.linspace(0, 1, max(len(x), len(y)), device=a.device, dtype=torch.float64)
            x, y = _quantiles(x, at), _quantiles(y, at)
        total += float((x - y).abs().pow(power).mean(0).sum(dtype=torch.float64))
    return (total / projections) ** (1 / power)


def kernel_distance(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 0) -> float:
    """Return the unbiased squared maximum mean discrepancy of two sets of vectors under a polynomial kernel.

        k(x, y) = (x . y / D + 1)^3
        MMD^2 = mean of k over pairs within a + mean of k over pairs within b - 2 * mean of k between a and b

    No vector is paired with itself: therefore the estimate is unbiased, and negative about half the time for two sets
    of one distribution. On features of an Inception network this is the kernel inception distance, KID. Source:
    Binkowski, Sutherland, Arbel and Gretton, "Demystifying MMD GANs", 2018, equation 4 and section 4.

    Args:
        a: (P, D).
        b: (Q, D).
        subsets: number of random subsets to average over if a set is larger than ``size``; otherwise there is one.
        size: largest number of vectors of each set in a subset, at least 2.
        seed: seed of the subsets.

    Returns:
        The distance, without a unit; papers often give it times 100 or 1000.

    Raises:
        ValueError: a set has less than two vectors, the vectors differ in length, or an argument is out of range.
    """
    a, b = _checked_pair(a, b, subsets, size)
    if max(len(a), len(b)) <= size:
        return float(_mmd(a, b))
    generator = torch.Generator().manual_seed(seed)

    def some(vectors: Tensor) -> Tensor:
        return vectors[torch.randperm(len(vectors), generator=generator)[:size]]

    return float(torch.stack([_mmd(some(a), some(b)) for _ in range(subsets)]).mean())


def kernel_distances(a: Tensor, b: Tensor, subsets: int = 100, size: int = 1000, seed: int = 2020) -> Tensor:
    """Return :func:`kernel_distance` on random subsets, float64 (subsets,), for a mean with a standard deviation.

    The subsets, of at most as many vectors as the smaller set has, are those that torch-fidelity draws (NumPy's
    ``RandomState(seed)``, without replacement), so that the numbers are the same. A set that is no larger than a subset
    is used whole each time: then the deviation is only that of the other set, and 0 if both are.
    """
    a, b = _checked_pair(a, b, subsets, size)
    size = min(size, len(a), len(b))
    draws = np.random.RandomState(seed)  # torch has no generator with the same draws

    def some(vectors: Tensor) -> Tensor:
        return vectors[torch.from_numpy(draws.choice(len(vectors), size, replace=False))]

    return torch.stack([_mmd(some(a), some(b)) for _ in range(subsets)])


def frechet_distance(a: Tensor, b: Tensor) -> float:
    """Return the Frechet distance of two sets of vectors, as normal distributions; on Inception features, the FID.

        |mean_a - mean_b|^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)),  S the covariances, with n - 1 in the denominator

    In float64 and without a matrix square root: with S_a = A^T A and S_b = B^T B, the trace of (S_a S_b)^(1/2) is the
    sum of the singular values of A B^T. That is also exact for fewer vectors than dimensions, where the covariances are
    singular. Source: Heusel et al., "GANs Trained by a Two Time-Scale Update Rule Converge to a
    Local Nash Equilibrium", 2017, equation 6.

    Args:
        a: (P, D).
        b: (Q, D).

    Returns:
        The distance, at least 0 up to rounding. It grows for smaller sets: compare only values for equal counts.

    Raises:
        ValueError: a set has less than two vectors, or the vectors differ in length.
    """
    a, b = _checked_pair(a, b)
    apart = (a.mean(0) - b.mean(0)).square().sum()
    roots = [_root(vectors) for vectors in (a, b)]
    spread = sum(root.square().sum() for root in roots)
    return float(apart + spread - 2 * torch.linalg.svdvals(roots[0] @ roots[1].T).sum())


def _root(vectors: Tensor) -> Tensor:
    """Return a matrix R with at most D rows, where R^T R is the covariance of vectors (P, D)."""
    centred = (vectors - vectors.mean(0)) / (len(vectors) - 1) ** 0.5
    return centred if len(centred) <= centred.shape[1] else torch.linalg.qr(centred, mode="r").R


def _same_length(a: Tensor, b: Tensor) -> None:
    if a.ndim != 2 or b.ndim != 2 or a.shape[1] != b.shape[1]:
        raise ValueError(f"b: both sets must be (P, D) with the same D, got {tuple(a.shape)} and {tuple(b.shape)}")


def _checked_pair(a: Tensor, b: Tensor, subsets: int = 1, size: int = 2) -> tuple[Tensor, Tensor]:
    """Return two sets in float64 on the CPU: not every device has float64, and kernels of close features are large."""
    _same_length(a, b)
    for name, vectors in (("a", a), ("b", b)):
        if len(vectors) < 2:
            raise ValueError(f"{name}: must hold at least two vectors, got {len(vectors)}")
    at_least(1, subsets=subsets)
    at_least(2, size=size)
    return a.detach().cpu().double(), b.detach().cpu().double()


def _mmd(a: Tensor, b: Tensor) -> Tensor:
    def kernel(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x: Tensor) -> Tensor:
        k = kernel(x, x)
        return (k.sum() - k.diagonal().sum()) / (len(x) * (len(x) - 1))

    return within(a) + within(b) - 2 * kernel(a, b).mean()
