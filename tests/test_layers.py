"""The networks' shared layers."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.registry.layers import Downsample, normalisation
from qsattn_plugin.registry.layers.memory_saving import FusedSequential, ReflectionPad
from qsattn_plugin.samplers import QSAttnSampler

LAYOUTS = (torch.contiguous_format, torch.channels_last)


def plain_norm(x: Tensor, over: tuple[int, ...]) -> Tensor:
    mean, variance = x.mean(over, keepdim=True), x.var(over, keepdim=True, correction=0)
    return (x - mean) / (variance + 1e-5).sqrt()


def gradient(function, x: Tensor, upstream: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    function(x).backward(upstream)
    return x.grad


@pytest.mark.parametrize("upstream_layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize(("name", "over"), [("instance", (2, 3)), ("batch", (0, 2, 3))])
def test_norms_gradients_hang_on_no_memory_layout(name, over, batch, layout, upstream_layout):
    """PyTorch's are wrong on the CPU where the two layouts differ."""
    g = torch.Generator().manual_seed(0)
    x, upstream = (torch.randn(batch, 6, 5, 7, generator=g, dtype=torch.float64) for _ in range(2))
    expected = gradient(lambda x: plain_norm(x, over), x, upstream)
    x, upstream = x.contiguous(memory_format=layout), upstream.contiguous(memory_format=upstream_layout)
    norm = normalisation(name)(6).double()
    torch.testing.assert_close(gradient(norm, x, upstream), expected, rtol=1e-10, atol=1e-12)


def test_gradients_through_a_route_lie_as_the_features_do():
    """So that networks of others, with PyTorch's own norms, get the right gradients behind the taps."""
    features = torch.randn(1, 6, 5, 7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    (route,) = QSAttnSampler(taps="all", queries=4).choose([features.detach()])
    route(features).sum().backward()
    assert features.grad.is_contiguous()
    # Without the sum, whose gradient is expanded, and with a graph between.
    inner = features * 1.0
    seen = []
    inner.register_hook(lambda grad: seen.append(grad.is_contiguous()))
    route(inner).square().sum().backward()
    assert seen == [True]


MEMORY_SAVING = {
    "pad": (ReflectionPad((1, 2, 3, 0)), lambda x: F.pad(x, (1, 2, 3, 0), mode="reflect")),
    "blur": (
        Downsample(3),
        lambda x: F.conv2d(F.pad(x, (1,) * 4, mode="reflect"), Downsample(3).filt.to(x), stride=2, groups=3),
    ),
    "norm and relu": (
        FusedSequential(normalisation("instance")(3), nn.ReLU()),
        lambda x: F.relu(plain_norm(x, (2, 3))),
    ),
    "norm and leaky relu": (
        FusedSequential(normalisation("instance")(3), nn.LeakyReLU(0.2)),
        lambda x: F.leaky_relu(plain_norm(x, (2, 3)), 0.2),
    ),
}


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("size", [(6, 8), (5, 7)], ids=str)
@pytest.mark.parametrize("name", MEMORY_SAVING)
def test_layers_that_keep_less_compute_the_same(name, size, batch):
    layer, plain = MEMORY_SAVING[name]
    layer = layer.double()
    x = torch.randn(batch, 3, *size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for layout in LAYOUTS:
        x = x.detach().contiguous(memory_format=layout).requires_grad_()
        out, expected = layer(x), plain(x)
        torch.testing.assert_close(out, expected, rtol=1e-12, atol=1e-12)
        with torch.no_grad():
            torch.testing.assert_close(layer(x), expected, rtol=1e-12, atol=1e-12)
        # The slope of a slope, as penalties on slopes take it, and one that lies otherwise in memory.
        for upstream in (out.square(), (out.square().flatten(2).transpose(1, 2) * 1.0).transpose(1, 2).view_as(out)):
            found = []
            for y in (upstream, expected.square()):
                (slope,) = torch.autograd.grad(y.sum(), x, create_graph=True)
                (second,) = torch.autograd.grad(slope.pow(3).sum(), x, retain_graph=True)
                found.append((slope, second))
            torch.testing.assert_close(found[0], found[1], rtol=1e-9, atol=1e-9)


def test_a_tap_on_a_norm_sees_the_norm():
    layers = [normalisation("instance")(3), nn.ReLU(), normalisation("instance")(3), nn.LeakyReLU(0.2), nn.Tanh()]
    row, x = FusedSequential(*layers), torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    expected = {index: nn.Sequential(*layers[: index + 1])(x) for index in range(5)}
    for taps, indices in (([], [1, 3, 4]), ([0], [0, 1, 3, 4]), ([0, 2], [0, 1, 2, 3, 4])):
        found = dict(row.walk(x.clone().requires_grad_(), taps))
        assert list(found) == indices
        for index, out in found.items():
            torch.testing.assert_close(out, expected[index])
    assert [index for index, _ in FusedSequential(nn.ReLU()).walk(x)] == [0]


class _Louder(nn.InstanceNorm2d):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize("change", ["derived", "replaced", "hook", "pre-hook"])
def test_what_somebody_puts_in_place_of_a_norm_or_a_relu_runs_in_training_too(change):
    row = FusedSequential(_Louder(3) if change == "derived" else normalisation("instance")(3), nn.ReLU())
    seen = []
    if change == "replaced":
        row[1] = nn.SiLU()
    elif change == "hook":
        row[0].register_forward_hook(lambda layer, given, out: seen.append("norm"))
        row[1].register_forward_hook(lambda layer, given, out: -out)
    elif change == "pre-hook":
        row[0].register_forward_pre_hook(lambda layer, given: (given[0] ** 3,))
    x = torch.randn(1, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = nn.Sequential.forward(row, x)
        torch.testing.assert_close(row(x), expected)
    torch.testing.assert_close(row(x.clone().requires_grad_()), expected)
    assert seen == ["norm"] * 3 * (change == "hook")


def test_memory_saving_layers_save_no_image():
    kept: list[Tensor] = []
    x = torch.randn(1, 3, 6, 8, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        for name in ("pad", "blur"):
            MEMORY_SAVING[name][0].float()(x)
        assert all(t.shape != x.shape and t.numel() < 100 for t in kept)
        kept.clear()
        out = MEMORY_SAVING["norm and relu"][0].float()(x)
    assert [t.numel() for t in kept if t.numel() > 3] == [x.numel()]
    assert all(t.data_ptr() != out.data_ptr() for t in kept)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(torch.__version__ < "2.5", reason="PyTorch 2.4 pads no float16 on CPUs"),
        ),
    ],
    ids=str,
)
@pytest.mark.parametrize("size", [(6, 8), (5, 7), (2, 3)], ids=str)
def test_a_blurs_gradient_in_half_precision_is_that_of_the_blur(size, dtype):
    layer, _ = MEMORY_SAVING["blur"]
    g = torch.Generator().manual_seed(0)
    # Small whole numbers, whose sums of sixteenths half precision holds exactly.
    small = tuple(-(-n // 2) for n in size)
    x, upstream = (torch.randint(-1, 2, (2, 3, *s), generator=g) for s in (size, small))
    found = []
    for kind in (torch.float64, dtype):
        image, back = x.to(kind).requires_grad_(), upstream.to(kind).requires_grad_()
        (slope,) = torch.autograd.grad(layer.to(kind)(image), image, back, create_graph=True)
        (second,) = torch.autograd.grad(slope, back, torch.ones_like(slope))
        found.append((slope.double(), second.double()))
    torch.testing.assert_close(found[1], found[0], rtol=0, atol=0)
