"""Samplers: every mode against the plain equations, and what each promises."""

from __future__ import annotations

import warnings

import pytest
import torch

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create, list_parts, register
from qsattn_plugin.samplers import AttendsNowhere, QSAttnSampler, RandomSampler
from tests import equations
from tests.test_attention import Watch

SAMPLERS = [part.name for part in list_parts("sampler")]
N, WINDOW = 6, 5


def normal(*shape, s=1.0, seed=0):
    return s * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def brute_force(attention, significance, routing, source, features):
    """What the sampler's route gives for the features, in float64: (queries, (B, N, C))."""
    window = {"global": (None, None), "local": (WINDOW, WINDOW), "local_global": (WINDOW, None)}[attention]
    draws = torch.rand(source.shape[0], source.shape[2:].numel(), generator=generator())
    queries, out = [], []
    for f, values, draw in zip(source.double(), features.double(), draws, strict=True):
        a = equations.attention(f, window[0])
        rank = {
            "entropy": lambda a=a: -equations.entropy(a),
            "max_probability": lambda a=a: a.amax(1),
            "norm": lambda f=f: f.flatten(1).norm(dim=0),
            "random": lambda draw=draw: draw,
        }[significance]()
        ids = equations.largest_first(rank, N)
        routed_by = {"cross": f, "own": values, "select": None}[routing]
        flat = values.flatten(1).t()
        queries.append(ids)
        out.append(flat[ids] if routed_by is None else equations.attention(routed_by, window[1])[ids] @ flat)
    return queries, torch.stack(out)


@pytest.mark.parametrize("routing", ["cross", "own", "select"])
@pytest.mark.parametrize("significance", ["entropy", "max_probability", "norm", "random"])
@pytest.mark.parametrize("attention", ["global", "local", "local_global"])
def test_every_mode_is_its_equation(attention, significance, routing):
    source, target = normal(2, 4, 6, 5, s=0.7).requires_grad_(), normal(2, 4, 6, 5, s=0.7, seed=1).requires_grad_()
    sampler = QSAttnSampler(attention=attention, significance=significance, routing=routing, queries=N, window=WINDOW)
    (route,) = sampler.choose([source], generator=generator())
    upstream = normal(2, N, 4, seed=2)
    for features in (target, source):  # anchors, then positives
        queries, expected = brute_force(attention, significance, routing, source, features)
        got = route(features)
        assert route.queries.tolist() == queries
        assert (got - expected).abs().max() <= 1e-5 * expected.abs().max()
        inputs = (source, target) if features is target else (source,)
        options = {"allow_unused": True, "materialize_grads": True, "retain_graph": True}
        grads = torch.autograd.grad(got, inputs, upstream, **options)
        wanted = torch.autograd.grad(expected, inputs, upstream.double(), **options)
        bound = 1e-6 * upstream.abs().max() * features.detach().square().amax().clamp(min=1)
        for grad, want in zip(grads, wanted, strict=True):
            assert (grad - want).abs().max() <= bound


@pytest.mark.parametrize("attention", ["global", "local", "local_global"])
def test_gradients_under_saturation(attention):
    """Largest probabilities of almost 1: the source's gradient is a difference of nearly equal numbers."""
    source, target = normal(1, 16, 6, 5, s=2).requires_grad_(), normal(1, 16, 6, 5, s=2, seed=1).requires_grad_()
    (route,) = QSAttnSampler(attention=attention, queries=N, window=WINDOW).choose([source])
    queries, expected = brute_force(attention, "entropy", "cross", source, target)
    assert route.queries.tolist() == queries
    upstream = normal(1, N, 16, seed=2)
    grads = torch.autograd.grad(route(target), (source, target), upstream)
    wanted = torch.autograd.grad(expected, (source, target), upstream.double())
    bound = 1e-6 * upstream.abs().max() * source.detach().square().amax()
    assert all((g - w).abs().max() <= bound for g, w in zip(grads, wanted, strict=True))


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_serves_maps_of_any_size(name):
    sampler = create("sampler", name, queries=16)
    maps = [normal(2, 3, 9, 7), normal(2, 5, 1, 1), normal(2, 4, 1, 40), torch.ones(2, 3, 8, 8), normal(2, 2, 70, 70)]
    routes = sampler.choose(maps, taps=["a", 1, 2, "b", "large"], observe=True, scores=normal(2, 1, 5, 5))
    assert len(routes) == len(maps)
    for route, features in zip(routes, maps, strict=True):
        positions = features.shape[2] * features.shape[3]
        n = route.queries.shape[1]
        assert n == min(16, positions) or (name == "grid" and 0 < n <= min(16, positions))
        assert route(features).shape == (2, n, features.shape[1])
        assert all(len(set(ids)) == n and 0 <= min(ids) <= max(ids) < positions for ids in route.queries.tolist())
        assert route.shape == tuple(features.shape[2:])
        assert all(value.ndim == 0 for value in route.stats.values())
        assert not route.stats["nonfinite"]


@pytest.mark.parametrize("name", SAMPLERS)
def test_choosing_is_reproducible_keeps_images_apart_and_reads_nothing_back(name):
    sampler = create("sampler", name, queries=16)
    features, scores = normal(3, 4, 12, 10, s=0.7), normal(3, 1, 5, 5)
    with Watch() as watch:
        (route,) = sampler.choose([features], generator=generator(5), observe=True, scores=scores)
    assert watch.read_back == []
    (again,) = sampler.choose([features], generator=generator(5), scores=scores)
    assert torch.equal(route.queries, again.queries)
    assert torch.equal(route(features), again(features))
    if name not in ("random", "mixture", "guided"):
        for i in range(3):
            (single,) = sampler.choose([features[i : i + 1]])
            assert torch.equal(single.queries[0], route.queries[i])
            torch.testing.assert_close(single(features[i : i + 1])[0], route(features)[i])


def test_random_positions_differ_by_image_and_draw_and_cover_the_map():
    features = torch.zeros(2, 1, 8, 8)
    g = generator()
    counts = torch.zeros(64)
    seen = set()
    for _ in range(400):
        (route,) = RandomSampler(16).choose([features], generator=g)
        assert not torch.equal(route.queries[0], route.queries[1])
        seen.add(tuple(route.queries[0].tolist()))
        counts += route.queries.flatten().bincount(minlength=64)
    assert len(seen) == 400
    # 800 images, each position with probability 1/4: mean 200, deviation 12.2; five deviations
    assert (counts - 200).abs().max() < 62


def test_grid_is_regular():
    (route,) = create("sampler", "grid", queries=16).choose([torch.zeros(1, 1, 8, 8)])
    assert route.queries[0].tolist() == [y * 8 + x for y in (1, 3, 5, 7) for x in (1, 3, 5, 7)]
    for height, width, queries in ((8, 32, 256), (3, 100, 20), (100, 3, 20), (5, 5, 3), (64, 64, 250)):
        (route,) = create("sampler", "grid", queries=queries).choose([torch.zeros(1, 1, height, width)])
        assert 0.7 * min(queries, height * width) <= route.queries.shape[1] <= queries


@pytest.mark.parametrize("random", [0.0, 0.25, 1.0])
def test_the_guided_sampler_takes_the_lowest_scores_of_some_random_positions_and_random_ones(random):
    scores = normal(2, 1, 12, 10)
    sampler = create("sampler", "guided", queries=16, oversample=4, random=random)
    (route,) = sampler.choose([normal(2, 3, 12, 10)], generator=generator(3), scores=scores)
    guided = 16 - int(16 * random)
    drawn = torch.rand(2, 120, generator=generator(3))  # the first draw ranks the positions that are looked at
    for image in range(2):
        looked_at = drawn[image].sort(descending=True).indices[:64].tolist()
        lowest = sorted(looked_at, key=lambda place: scores[image].flatten()[place])[:guided]
        chosen = route.queries[image].tolist()
        assert chosen[:guided] == lowest and len(set(chosen)) == 16
    everything = create("sampler", "guided", queries=16, oversample=8, random=0.0)
    (route,) = everything.choose(
        [torch.zeros(1, 3, 24, 20)], scores=scores[:1].repeat_interleave(2, 2).repeat_interleave(2, 3)
    )
    assert route.queries.shape == (1, 16)  # of maps with fewer positions than are looked at, too
    with pytest.raises(UserError, match="GuidedSampler needs the discriminator's scores"):
        sampler.choose([torch.zeros(1, 3, 4, 4)])


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_mixture_has_its_share_of_significant_queries_first(share):
    features = normal(2, 4, 12, 10, s=0.7)
    (pure,) = QSAttnSampler(queries=16).choose([features])
    (route,) = create("sampler", "mixture", share=share, queries=16).choose([features], generator=generator())
    k = round(16 * share)
    assert torch.equal(route.queries[:, :k], pure.queries[:, :k])
    assert all(len(set(ids)) == 16 for ids in route.queries.tolist())
    assert type(route) is type(pure)
    (other,) = create("sampler", "mixture", share=share, queries=16).choose([features], generator=generator(1))
    assert torch.equal(route.queries, other.queries) == (share == 1)


def test_taps_say_where_attention_is():
    maps = [normal(1, 3, 66, 66), normal(1, 3, 64, 64), normal(1, 3, 8, 8)]
    names = [0, 8, "deep"]

    def attentive(taps):
        routes = QSAttnSampler(taps=taps, queries=4, significance="norm").choose(maps, taps=names)
        return [type(route).__name__ == "AttentionRoute" for route in routes]

    assert attentive(None) == [False, True, True]
    assert attentive("all") == [True, True, True]
    assert attentive((0, "deep")) == [True, False, True]
    assert attentive(("8",)) == [False, True, False]
    assert attentive(()) == [False, False, False]
    with pytest.raises(UserError, match=r"names tap dep, but .* 0, 8, deep; did you mean 'deep'"):
        attentive(("dep",))
    with pytest.raises(UserError, match="got 3 feature maps, but 2 tap names"):
        QSAttnSampler().choose(maps, taps=[0, 8])


@pytest.mark.parametrize("bad", [float("inf"), float("-inf"), float("nan")])
@pytest.mark.parametrize("name", SAMPLERS)
def test_nonfinite_features_are_flagged_at_their_tap(name, bad):
    maps = [normal(2, 3, 6, 6), normal(2, 3, 6, 6), normal(2, 3, 6, 6).bfloat16()]
    maps[1][1, 2, 3, 4] = bad
    routes = create("sampler", name, queries=4).choose(maps, scores=normal(2, 1, 3, 3))
    assert [bool(route.stats["nonfinite"]) for route in routes] == [False, True, False]


@pytest.mark.parametrize("routing", ["cross", "own", "select"])
@pytest.mark.parametrize("attention", ["global", "local", "local_global"])
@pytest.mark.parametrize("significance", ["entropy", "max_probability"])
def test_observed_figures(significance, attention, routing):
    features = normal(2, 4, 6, 5, s=0.7)
    sampler = QSAttnSampler(attention=attention, significance=significance, routing=routing, queries=N, window=WINDOW)
    (route,) = sampler.choose([features], observe=True)
    select, by = {"global": (None, None), "local": (WINDOW, WINDOW), "local_global": (WINDOW, None)}[attention]
    entropies = torch.cat([equations.entropy(equations.attention(f, select)) for f in features]).sort().values
    rows = [equations.attention(f, by)[ids] for f, ids in zip(features, route.queries, strict=True)]
    expected = {f"entropy_q{q:02d}": entropies[round(59 * q / 100)] for q in (0, 25, 50, 75, 100)}
    expected["largest_probability"] = torch.stack(rows).amax(-1).mean()
    for name, value in expected.items():
        assert route.stats[name].item() == pytest.approx(value.item(), rel=1e-5)


def test_a_significance_of_ones_own_is_a_registered_function():
    def variance(features, attention, generator=None):
        """Channels differ most."""
        return features.var(dim=1).flatten(1)

    register("significance", "test_variance")(variance)
    try:
        features = normal(1, 4, 6, 5)
        (route,) = QSAttnSampler(significance="test_variance", queries=3).choose([features])
        assert route.queries[0].tolist() == equations.largest_first(features.var(dim=1).flatten(), 3)
    finally:
        from qsattn_plugin.registry import REGISTRY

        del REGISTRY._parts["significance", "test_variance"]


def test_detach_stops_the_gradient_into_the_source():
    source = normal(1, 4, 6, 5).requires_grad_()
    target = normal(1, 4, 6, 5, seed=1)
    for detach in (False, True):
        (route,) = QSAttnSampler(queries=4, detach=detach).choose([source])
        assert route(target).requires_grad is not detach


def test_detached_rows_of_each_domains_own_are_constants():
    source, target = normal(1, 4, 6, 5), normal(1, 4, 6, 5, seed=1).requires_grad_()
    sampler = QSAttnSampler(queries=N, routing="own", detach=True)
    (route,) = sampler.choose([source])
    rows = equations.attention(target.detach()[0])[route.queries[0]]
    upstream = normal(1, N, 4, seed=2)
    (gradient,) = torch.autograd.grad(route(target), target, upstream)
    torch.testing.assert_close(
        gradient[0].flatten(1).t().double(), rows.t() @ upstream[0].double(), rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize(
    ("name", "arguments", "at_fault"),
    [
        ("random", {"queries": 0}, "queries"),
        ("grid", {"queries": -1}, "queries"),
        ("qsattn_local", {"window": 6}, "window"),
        ("qsattn_global", {"scale": -1.0}, "scale"),
        ("qsattn_global", {"tile": 0}, "tile"),
        ("qsattn_global", {"taps": "deep"}, "taps"),
        ("qsattn_global", {"routing": "crossed"}, "routing"),
        ("qsattn_global", {"significance": "entrpy"}, "significance"),
        ("mixture", {"attention": "globl"}, "attention"),
        ("mixture", {"share": 1.5}, "share"),
    ],
)
def test_bad_arguments_are_named(name, arguments, at_fault):
    with pytest.raises(ValueError, match=f"^{at_fault}: "):
        create("sampler", name, **arguments)


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="the operators are compiled from PyTorch 2.4 on")
@pytest.mark.parametrize("name", SAMPLERS)
def test_choosing_and_routing_compiles_without_a_graph_break(name):
    sampler = create("sampler", name, queries=8)
    source, target = normal(2, 4, 9, 7, s=0.6), normal(2, 4, 9, 7, seed=1)

    def step(source, target):
        (route,) = sampler.choose([source], scores=source[:, :1])
        return route(target), route(source), route.queries, route.stats["nonfinite"]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    if name in ("random", "mixture", "guided"):  # their draws are another stream when compiled
        assert compiled(source, target)[0].shape == (2, 8, 4)
        return
    for got, expected in zip(compiled(source, target), step(source, target), strict=True):
        torch.testing.assert_close(got, expected)


def test_attention_that_would_look_nowhere_says_so():
    maps = [torch.randn(1, 4, 12, 12), torch.randn(1, 4, 9, 9)]
    with pytest.warns(AttendsNowhere, match=r"at most 50 positions \(the smallest has 81\).* set its positions"):
        create("sampler", "qsattn_global", positions=50).choose(maps)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        create("sampler", "qsattn_global", positions=81).choose(maps)
