"""The paper's equations in float64, written as they are read, for small maps; what the tests compare with."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor


def attention(features: Tensor, window: int | None = None, scale: float = 1.0) -> Tensor:
    """A, (HW, HW), of one image (C, H, W): softmax over all places, or over those of the window inside the image.

    The image may have any number of spatial dimensions.
    """
    points = list(itertools.product(*map(range, features.shape[1:])))
    f = features.double().flatten(1).t()
    rows = []
    for i, here in enumerate(points):
        places = [
            j
            for j, there in enumerate(points)
            if window is None or all(abs(a - b) <= window // 2 for a, b in zip(here, there, strict=True))
        ]
        probabilities = torch.softmax(scale * (f[places] @ f[i]), dim=0)
        rows.append(torch.zeros(len(points), dtype=torch.float64).index_put((torch.tensor(places),), probabilities))
    return torch.stack(rows)


def entropy(a: Tensor) -> Tensor:
    """-sum_j A_ij log A_ij, with 0 log 0 = 0."""
    return -torch.where(a > 0, a * a.clamp(min=1e-300).log(), 0.0).sum(1)


def largest_first(values: Tensor, n: int) -> list[int]:
    """The positions of the n largest values, the lower position first under ties."""
    values = values.tolist()
    return sorted(range(len(values)), key=lambda i: (-values[i], i))[:n]


def log_entropy(features: Tensor, rows: int = 1024) -> Tensor:
    """log H of every row of softmax(F F^T), F (HW, C), in float64, from sums that leave the row's maximum out."""
    f = features.double()
    out = []
    for some in f.split(rows):
        scores = some @ f.t()
        largest, place = scores.max(dim=1, keepdim=True)
        d = (scores - largest).scatter(1, place, -torch.inf)
        second = d.max(dim=1).values
        e = (d - second.unsqueeze(1)).exp()
        rest, weighted = e.sum(1), -(e * d.masked_fill(d == -torch.inf, 0)).sum(1)
        r = second.exp() * rest
        out.append(second + (rest * torch.where(r > 0, r.log1p() / r, 1.0) + weighted / (1 + r)).log())
    return torch.cat(out)
