"""Attention, routes and samplers on features with one, two, three and four spatial dimensions."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from qsattn_plugin.attention import GlobalAttention, LocalAttention
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.samplers import QSAttnSampler
from tests import equations
from tests.test_samplers import WINDOW, N, brute_force, normal

SIZES = [(11,), (4, 5), (3, 4, 5), (2, 3, 2, 3)]


@pytest.mark.parametrize("routing", ["cross", "own", "select"])
@pytest.mark.parametrize("attention", ["global", "local", "local_global"])
@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}d")
def test_every_mode_is_its_equation_in_any_number_of_dimensions(sizes, attention, routing):
    source, target = (normal(2, 4, *sizes, s=0.7, seed=i).double().requires_grad_() for i in (0, 1))
    sampler = QSAttnSampler(attention=attention, routing=routing, queries=N, window=WINDOW)
    (route,) = sampler.choose([source])
    for features in (target, source):  # anchors, then positives
        queries, expected = brute_force(attention, "entropy", routing, source, features)
        assert route.queries.tolist() == queries
        # Both are float64; the sums are of some hundred terms.
        torch.testing.assert_close(route(features), expected, rtol=1e-10, atol=1e-12)
        grads, wanted = (
            torch.autograd.grad(
                out.square().sum(), (source, target), retain_graph=True, allow_unused=True, materialize_grads=True
            )
            for out in (route(features), expected)
        )
        torch.testing.assert_close(grads, wanted, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}d")
@pytest.mark.parametrize("attention", [GlobalAttention(), LocalAttention(3), LocalAttention(7, scale=0.5)])
def test_entropy_and_largest_probability_in_any_number_of_dimensions(attention, sizes):
    features = normal(2, 4, *sizes, s=0.7).double()  # the window of 7 is larger than most of these
    rows = [equations.attention(f, getattr(attention, "window", None), attention.scale) for f in features]
    for got, expected in (
        (attention.log_entropy(features).exp(), torch.stack([equations.entropy(a) for a in rows])),
        (attention.log_odds(features).sigmoid(), torch.stack([a.amax(1) for a in rows])),
    ):
        torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


@pytest.mark.parametrize("sizes", SIZES, ids=lambda sizes: f"{len(sizes)}d")
@pytest.mark.parametrize("name", [part.name for part in list_parts("sampler")])
def test_every_sampler_serves_features_of_any_number_of_dimensions(name, sizes):
    source, target = normal(2, 4, *sizes, s=0.7), normal(2, 3, *sizes, seed=1)
    scores = normal(2, 1, *(size // 2 for size in sizes), seed=2)
    sampler = create("sampler", name, queries=8)
    if sampler.guided and len(sizes) > 3:
        with pytest.raises(UserError, match="takes maps of 1 to 3 spatial dimensions, got 4"):
            sampler.choose([source], scores=scores)
        return
    (route,) = sampler.choose([source], observe=True, scores=scores)
    assert route.shape == sizes and route(target).shape == (2, route.queries.shape[1], 3)
    assert 0 < route.queries.shape[1] <= 8 and " x ".join(map(str, sizes)) in repr(route)
    with pytest.raises(UserError, match=f"of {' x '.join(map(str, sizes))} positions and cannot be applied"):
        route(target[..., None])


def test_a_volume_of_one_slice_is_an_image():
    image = normal(2, 4, 6, 5, s=0.7)
    for attention in ("global", "local", "local_global"):
        sampler = QSAttnSampler(attention=attention, queries=N, window=WINDOW)
        (flat,), (deep,) = sampler.choose([image]), sampler.choose([image.unsqueeze(2)])
        assert flat.queries.equal(deep.queries)
        torch.testing.assert_close(flat(image), deep(image.unsqueeze(2)))


@pytest.mark.parametrize(
    ("sizes", "queries"), [((9,), 4), ((6, 6, 6), 27), ((2, 8, 8), 32), ((4, 16, 16), 256), ((5, 5, 5), 3)]
)
def test_a_grid_is_regular_in_any_number_of_dimensions(sizes, queries):
    (route,) = create("sampler", "grid", queries=queries).choose([torch.zeros(1, 1, *sizes)])
    points = [list(itertools.product(*map(range, sizes)))[i] for i in route.queries[0]]
    axes = [sorted({p[d] for p in points}) for d in range(len(sizes))]
    assert route.queries[0].tolist() == [
        sum(c * math.prod(sizes[d + 1 :]) for d, c in enumerate(point)) for point in itertools.product(*axes)
    ]
    gaps = [{b - a for a, b in itertools.pairwise(axis)} for axis in axes]
    assert all(max(g) - min(g) <= 1 for g in gaps if g) and 0.5 * queries <= len(points) <= queries
