"""Routes: what they gather, and what can be done with them."""

from __future__ import annotations

import copy

import pytest
import torch

from qsattn_plugin.attention import GlobalAttention, LocalAttention
from qsattn_plugin.attention.routes import OwnRoute, PointRoute
from qsattn_plugin.errors import UserError
from tests import equations

QUERIES = torch.tensor([[0, 8, 62, 31, 13], [6, 56, 30, 7, 61]])  # of 9 x 7 positions, corners among them


def normal(*shape, s=1.0, seed=0):
    return s * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def make(kind, source, queries=QUERIES, detach=False):
    if kind == "point":
        return PointRoute(queries, source.shape[-2:])
    if kind == "own":
        return OwnRoute(LocalAttention(3), queries, source.shape[-2:], detach)
    return {"global": GlobalAttention(), "window": LocalAttention(5)}[kind].route(source, queries, detach)


KINDS = ["point", "global", "window", "own"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_applies_many_times_to_any_number_of_channels(kind):
    route = make(kind, normal(2, 4, 9, 7, s=0.6))
    for channels in (1, 3, 16):
        target = normal(2, channels, 9, 7, seed=channels)
        first = route(target)
        assert first.shape == (2, 5, channels)
        assert torch.equal(first, route(target))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(1, 4, 9, 7), (2, 4, 7, 9), (2, 4, 63), (2, 4, 9, 8)])
def test_other_shapes_are_refused(kind, shape):
    route = make(kind, normal(2, 4, 9, 7))
    with pytest.raises(UserError, match=r"chosen on 2 image\(s\) of 9 x 7 positions"):
        route(torch.zeros(shape))


@pytest.mark.parametrize("kind", ["global", "window", "own"])
def test_detach_keeps_the_values_and_drops_the_gradient_through_the_rows(kind):
    source = normal(2, 4, 9, 7, s=0.6).requires_grad_()
    target = normal(2, 4, 9, 7, seed=1)
    route = make(kind, source)
    for without in (route.detach(), make(kind, source, detach=True)):
        values = target.clone().requires_grad_()
        out = without(values)
        torch.testing.assert_close(out, route(target))
        (values_grad,) = torch.autograd.grad(out.sum(), values)
        assert values_grad.isfinite().all()
        if kind == "own":  # its rows are the target's: only the values' share of the gradient is left
            rows = OwnRoute(LocalAttention(3), QUERIES, (9, 7)).attention.route(target, QUERIES)
            (share,) = torch.autograd.grad(rows(values).sum(), values)
            torch.testing.assert_close(values_grad, share)
        else:
            assert route(target).requires_grad
            assert not without(target).requires_grad


@pytest.mark.parametrize("kind", KINDS)
def test_a_route_moves_to_another_device_with_all_it_holds(kind):
    route = make(kind, normal(2, 4, 9, 7))
    route.stats["nonfinite"] = torch.tensor(False)
    moved = route.to("meta")
    assert moved.queries.device.type == moved.stats["nonfinite"].device.type == "meta"
    assert moved(torch.empty(2, 3, 9, 7, device="meta")).shape == (2, 5, 3)
    assert route.queries.device.type == "cpu"
    copy.deepcopy(route)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(torch.__version__ < "2.4", reason="PyTorch 2.1 has no float16 autocast on CPUs"),
        ),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_routes_compute_in_float32_whatever_the_autocast(kind, dtype):
    source, target = normal(2, 4, 9, 7, s=0.6).to(dtype), normal(2, 3, 9, 7, seed=1).to(dtype)
    expected = make(kind, source.float())(target.float())
    with torch.autocast("cpu", dtype=dtype):
        out = make(kind, source)(target)
    assert out.dtype == torch.float32
    assert torch.equal(out, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_float64_features_stay_float64(kind):
    source = normal(2, 4, 9, 7).double()
    assert make(kind, source)(source).dtype == torch.float64


def test_window_rows_leave_the_border_out():
    source = normal(2, 4, 9, 7, s=0.6)
    rows = LocalAttention(5).rows(source, QUERIES).double()
    for b in range(2):
        whole = equations.attention(source[b], 5)
        for n, i in enumerate(QUERIES[b].tolist()):
            for place in range(25):
                y, x = i // 7 + place // 5 - 2, i % 7 + place % 5 - 2
                expected = whole[i, y * 7 + x] if 0 <= y < 9 and 0 <= x < 7 else 0.0
                assert rows[b, n, place].item() == pytest.approx(float(expected), rel=1e-5, abs=0)


@pytest.mark.parametrize("kind", KINDS)
def test_second_derivatives_and_repeated_backward_are_the_same_each_time(kind):
    source = normal(2, 4, 9, 7, s=0.6).requires_grad_()
    grads = [torch.autograd.grad(make(kind, source)(source).square().sum(), source)[0] for _ in range(3)]
    assert torch.equal(grads[0], grads[1])
    assert torch.equal(grads[0], grads[2])
    exact = normal(1, 2, 3, 3, s=0.5).double().requires_grad_()
    queries = torch.tensor([[0, 4, 5]])
    assert torch.autograd.gradgradcheck(lambda f: make(kind, f, queries)(f), exact)


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="the operators are compiled from PyTorch 2.4 on")
@pytest.mark.parametrize("kind", ["global", "window", "own"])
def test_compiled_routes_have_the_eager_values_and_gradients(kind):
    source, target = normal(2, 4, 9, 7, s=0.6), normal(2, 3, 9, 7, seed=1)

    def apply(source, target):
        return make(kind, source)(target)

    results = []
    for function in (apply, torch.compile(apply, fullgraph=True, backend="aot_eager")):
        a, b = source.clone().requires_grad_(), target.clone().requires_grad_()
        out = function(a, b)
        out.square().sum().backward()
        results.append((out.detach(), b.grad, a.grad if kind != "own" else b.grad))
    for got, expected in zip(*results, strict=True):
        torch.testing.assert_close(got, expected)
