"""Generators: taps, features-only passes, other projects' checkpoints, and what the mobile one saves."""

from __future__ import annotations

import inspect

import pytest
import torch
from torch import nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.registry.cut_weights import load_cut_weights, recognise
from qsattn_plugin.registry.describe import describe
from qsattn_plugin.registry.layers import Downsample, bound

SIDE = {"unet_256": 256, "unet_128": 128}
NAMES = [part.name for part in list_parts("generators")]


@pytest.fixture(params=NAMES)
def case(request):
    """A small generator of every kind, and an image for it."""
    torch.manual_seed(0)
    side = SIDE.get(request.param, 64)
    return create("generator", request.param, width=4), torch.rand(1, 3, side, side) * 2 - 1


def test_taps_are_where_they_say(case):
    generator, x = case
    image, features = generator(x, taps=[tap.index for tap in generator.taps])
    for tap, feature in zip(generator.taps, features, strict=True):
        assert feature.shape[1] == tap.channels, tap
        first = next(generator.model.children())
        pad = 6 if isinstance(first, nn.ReflectionPad2d) else 0
        # Padding of the picture itself (3 pixels a side before the 7 x 7 convolutions) is the one exception.
        assert x.shape[-1] // tap.stride <= feature.shape[-1] <= x.shape[-1] // tap.stride + pad, tap
    assert torch.equal(features[-1], image), "the last tap is the translation"


def test_taps_go_by_index_and_by_name(case):
    generator, x = case
    found = generator.find_taps()
    assert len(found) >= 3 and [tap.stride for tap in found] == sorted(tap.stride for tap in found)
    for how in ("index", "name"):
        features = generator(x, taps=[getattr(tap, how) for tap in found], encode_only=True)
        both, with_image = generator(x, taps=[getattr(tap, how) for tap in found])
        assert torch.equal(both, generator(x))
        assert all(torch.equal(a, b) for a, b in zip(features, with_image, strict=True))
    assert len({tap.name for tap in generator.taps}) == len(generator.taps)
    with pytest.raises(UserError, match="no tap 'block_99'"):
        generator(x, taps=["block_99"])
    with pytest.raises(UserError, match="twice"):
        generator(x, taps=[found[0].index, found[0].name])


@pytest.mark.parametrize("mask", [False, True])
def test_a_change_of_any_tap_is_added_to_what_it_says(case, mask):
    generator, x = case
    if mask:
        if "mask" not in inspect.signature(type(generator)).parameters:
            pytest.skip("has no mask")
        generator = type(generator)(width=4, mask=True)
    for tap in generator.taps:
        image, (as_it_is,) = generator(x, taps=[tap.index])
        step = torch.full_like(as_it_is, 0.25)
        changed, (feature,) = generator(x, taps=[tap.index], change={tap.index: step})
        # Up to rounding: skips are joined after it.
        torch.testing.assert_close(feature, as_it_is + step, atol=1e-6, rtol=1e-6)
        assert not torch.equal(changed, image)


def test_features_alone_do_not_run_what_lies_behind(case):
    generator, x = case
    ran = []
    for name, layer in generator.named_modules():
        if isinstance(layer, (nn.Conv2d, nn.ConvTranspose2d)):
            layer.register_forward_hook(lambda *_, name=name: ran.append(name))
    generator(x)
    everything = len(ran)
    ran.clear()
    generator(x, taps=generator.default_taps, encode_only=True)
    assert 0 < len(ran) < everything
    assert not any(isinstance(generator.get_submodule(name), nn.ConvTranspose2d) for name in ran)


def test_grey_and_other_channels(case):
    generator, x = case
    name = next(part.name for part in list_parts("generators") if part.target is type(generator))
    other = create("generator", name, width=4, in_channels=1, out_channels=2)
    image, (first,) = other(x[:, :1], taps=[0])
    assert image.shape[1] == 2 and first.shape[1] == other.taps[0].channels


@pytest.mark.parametrize("name", sorted(SIDE))
def test_unet_refuses_sizes_that_it_cannot_halve(name):
    with pytest.raises(ValueError, match=f"multiples of {SIDE[name]}"):
        create("generator", name, width=4)(torch.zeros(1, 3, 192, SIDE[name]))


def test_unet_keys_are_pix2pix_s():
    """Layer by layer, as a pix2pix checkpoint at 64 pixels has them: nested blocks, and no bias beside batch norm."""
    keys, inside = [], "model.model."
    for level in range(6):
        conv, inner = (0, 1) if level == 0 else (1, 3)
        keys += [f"{inside}{conv}.weight"]
        if level in (1, 2, 3, 4):
            keys += [f"{inside}2.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")]
        up = 3 if level in (0, 5) else 5
        keys += [f"{inside}{up}.weight"] + ([f"{inside}{up}.bias"] if level == 0 else [])
        if level:
            norm = up + 1
            keys += [
                f"{inside}{norm}.{n}" for n in ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")
            ]
        inside += f"{inner}.model."
    network = create("generator", "unet_64", width=4, norm="batch")
    assert sorted(network.state_dict()) == sorted(keys)


@pytest.mark.parametrize("antialias", [True, False])
def test_mobile_resnet_takes_a_seventh_of_the_arithmetic(antialias):
    taken = {
        name: describe(create("generator", name, antialias=antialias, antialias_up=antialias), 256).multiply_adds
        for name in ("resnet_9blocks", "mobile_resnet_9blocks")
    }
    assert taken["mobile_resnet_9blocks"] * 7 <= taken["resnet_9blocks"]


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("swift_resnet_6blocks", {}),
        *((name, {"norm": "none", "init": "orthogonal"}) for name in ("mobile_resnet_9blocks", "resnet_4blocks")),
    ],
)
def test_residual_generators_begin_with_a_small_change_of_the_picture(name, more):
    x = torch.rand(2, 3, 64, 48, generator=torch.Generator().manual_seed(0)) * 2 - 1
    more = {"width": 16, "init_gain": 1.0, **more}
    torch.manual_seed(0)
    painter = create("generator", name, residual=True, **more)
    change = painter(x) - x
    assert 1e-3 < change.abs().mean() < 0.2
    assert painter(x).abs().max() <= 1
    torch.manual_seed(0)
    plain = create("generator", name, residual=False, **more)
    assert (plain(x) - x).abs().mean() > 0.3, "without the picture nothing of it is there yet"
    masked = create("generator", "swift_resnet_6blocks", width=16, mask=True)
    assert 1e-3 < (masked(x) - x).abs().mean() < 0.2
    with torch.no_grad():
        masked.model[-1][3].weight.zero_()
        masked.model[-1][3].bias.fill_(0.25)[-4:] = 20.0
    # Float32 rounds x + (y - x) to y but for two units in the last place of numbers below 2.
    torch.testing.assert_close(masked(x), torch.full_like(x, 0.25).tanh(), rtol=0, atol=5e-7)
    with pytest.raises(ValueError, match="mask: mixes the output with the image"):
        create("generator", "swift_resnet_6blocks", residual=False, mask=True)
    with pytest.raises(ValueError, match="residual: images of 1 input and 3 output channels"):
        create("generator", name, residual=True, in_channels=1)


def test_the_bound_of_a_residual_generator_lets_pixels_come_back():
    x = torch.tensor([-1.5, -1.5, -0.5, 0.5, 1.5, 1.5], requires_grad=True)
    grad = torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, -1.0])  # descent moves a value against its sign
    bound(x).backward(grad)
    assert x.grad.tolist() == [0, -1, 1, -1, 1, 0]
    assert bound(x).tolist() == x.clamp(-1, 1).tolist()

    torch.manual_seed(0)
    painter = create("generator", "resnet_4blocks", width=8, residual=True)
    paint = painter.model[-1]
    with torch.no_grad():
        paint.bias.fill_(-3.0)
    image = torch.rand(1, 3, 32, 32)
    dark = painter(image)
    assert (dark == -1).all()
    (dark - image).square().mean().backward()
    assert (paint.bias.grad < 0).all(), "descent brightens what is too dark"


def test_a_patchgan_that_shrinks_what_it_sees_judges_larger_patches():
    def patch(**arguments: object) -> int:
        torch.manual_seed(0)
        judge = create("discriminator", "patchgan", width=4, norm="none", antialias=False, **arguments)
        x = torch.zeros(1, 3, 256, 256, requires_grad=True)
        scores = judge(x)
        scores[0, 0, scores.shape[2] // 2, scores.shape[3] // 2].backward()
        rows = x.grad[0].abs().sum(dim=(0, 2)).nonzero()
        return int(rows.max() - rows.min()) + 1

    assert patch() == 70  # Isola et al. 2017
    assert patch(shrink=2) == 140
    assert patch(shrink=2, layers=2) == 68
    with pytest.raises(
        ValueError, match="at least 48 pixels a side, got \\(47, 64\\); set fewer layers, or a smaller shrink"
    ):
        create("discriminator", "patchgan", shrink=2)(torch.zeros(1, 3, 47, 64))
    for arguments in ({}, {"shrink": 2, "antialias": False}, {"layers": 2}):
        judge = create("discriminator", "patchgan", width=2, **arguments)
        assert judge(torch.zeros(2, 3, judge.smallest, judge.smallest)).shape == (2, 1, 1, 1)
    with pytest.raises(ValueError, match="shrink: must be at least 1, got 0"):
        create("discriminator", "patchgan", shrink=0)


def test_describe_counts_what_convolutions_do():
    network = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), Downsample(8), nn.ConvTranspose2d(8, 2, 4, stride=2, padding=1), nn.ReLU()
    )
    # A convolution does in * out * k^2 a position of its output, the fixed blur 9 a channel; a transposed convolution
    # does as much a position of its input.
    expected = 3 * 8 * 9 * 16**2 + 8 * 9 * 8**2 + 8 * 2 * 16 * 8**2
    found = describe(network, 16)
    assert found.multiply_adds == expected
    assert found.parameters == 3 * 8 * 9 + 8 + 8 * 2 * 16 + 2
    assert network[0].weight.device.type == "cpu", "the network itself is left as it is"
    generator = create("generator", "resnet_4blocks", width=4)
    assert describe(generator, 64).taps == generator.taps


def cut_layout(blocks: int, width: int, antialias: bool, antialias_up: bool) -> dict[str, torch.Tensor]:
    """Keys and shapes of CUT's ``latest_net_G.pth`` with instance norm, written down from its layer numbers."""
    found: dict[str, torch.Tensor] = {}
    index = 1

    def put(key: str, *shape: int) -> None:
        found[key] = torch.randn(shape, generator=torch.Generator().manual_seed(len(found))) * 0.05

    def conv(at: str, before: int, after: int, k: int) -> None:
        put(f"{at}.weight", after, before, k, k)
        put(f"{at}.bias", after)

    def blur(at: int, row: tuple[float, ...], gain: float, channels: int) -> None:
        line = torch.tensor(row)
        kernel = torch.outer(line, line)
        found[f"model.{at}.filt"] = (kernel * gain / kernel.sum()).repeat(channels, 1, 1, 1)

    conv("model.1", 3, width, 7)
    index = 4
    channels = width
    for _ in range(2):
        conv(f"model.{index}", channels, 2 * channels, 3)
        channels *= 2
        index += 3
        if antialias:
            blur(index, (1.0, 2.0, 1.0), 1.0, channels)
            index += 1
    for _ in range(blocks):
        conv(f"model.{index}.conv_block.1", channels, channels, 3)
        conv(f"model.{index}.conv_block.5", channels, channels, 3)
        index += 1
    for _ in range(2):
        if antialias_up:
            blur(index, (1.0, 3.0, 3.0, 1.0), 4.0, channels)
            conv(f"model.{index + 1}", channels, channels // 2, 3)
            index += 4
        else:
            put(f"model.{index}.weight", channels, channels // 2, 3, 3)
            put(f"model.{index}.bias", channels // 2)
            index += 3
        channels //= 2
    conv(f"model.{index + 1}", channels, 3, 7)
    return found


@pytest.mark.parametrize(("antialias", "antialias_up"), [(True, True), (False, False), (True, False), (False, True)])
@pytest.mark.parametrize("blocks", [9, 6])
def test_cut_weights_load(blocks, antialias, antialias_up):
    weights = cut_layout(blocks, 8, antialias, antialias_up)
    name, arguments = recognise(weights)
    assert name == f"resnet_{blocks}blocks"
    expected = {"antialias": antialias, "antialias_up": antialias_up, "in_channels": 3, "out_channels": 3}
    assert arguments == {"width": 8, **expected}
    generator = create("generator", name, **arguments)
    report = load_cut_weights(generator, weights)
    assert (report.loaded, report.left_out, report.filled_in) == (len(weights), [], [])
    own = generator.state_dict()
    assert own.keys() == weights.keys()
    assert all(torch.equal(own[key], weights[key]) for key in weights if not key.endswith("filt"))


def test_cut_weights_with_a_wrapper_s_prefix_and_an_old_torch_s_buffers():
    weights = cut_layout(9, 8, True, True)
    old = {f"module.{key}": value for key, value in weights.items() if not key.endswith("filt")}
    norms = [f"module.model.{index}" for index in (2, 5, 9)] + [f"module.model.{12 + b}.conv_block.2" for b in range(9)]
    for name in norms:
        old |= {f"{name}.running_mean": torch.zeros(8), f"{name}.running_var": torch.ones(8)}
        old[f"{name}.num_batches_tracked"] = torch.tensor(7)
    generator = create("generator", "resnet_9blocks", width=8)
    report = load_cut_weights(generator, old)
    assert len(report.left_out) == 3 * len(norms)
    assert report.filled_in == sorted(key for key in weights if key.endswith("filt"))
    own = generator.state_dict()
    for key, value in weights.items():
        torch.testing.assert_close(own[key], value)  # the blur filters too, which were filled in


def test_cut_weights_that_do_not_fit_are_listed_and_nothing_is_loaded():
    weights = cut_layout(9, 8, True, True)
    weights["model.26.weight"] = torch.zeros(4, 16, 3, 3)  # the last step up: half its channels
    weights["model.99.weight"] = torch.zeros(2, 2)
    del weights["model.1.bias"]
    weights["model.7.filt"] = weights["model.7.filt"].flip(0) * 2
    generator = create("generator", "resnet_9blocks", width=8)
    before = {key: value.clone() for key, value in generator.state_dict().items()}
    with pytest.raises(UserError) as refused:
        load_cut_weights(generator, weights)
    text = str(refused.value)
    for line in (
        "model.1.bias: missing, the generator has 8",
        "model.26.weight: 4 x 16 x 3 x 3, the generator has 8 x 16 x 3 x 3",
        "model.99.weight: 2 x 2, the generator has no such layer",
        "model.7.filt: 16 x 1 x 3 x 3, not the generator's blur filter",
    ):
        assert line in text
    assert all(torch.equal(before[key], value) for key, value in generator.state_dict().items())


def test_cut_weights_of_another_shape_name_what_they_look_like():
    with pytest.raises(UserError, match=r"look like resnet_6blocks with width=8, antialias=False, antialias_up=True"):
        load_cut_weights(create("generator", "resnet_9blocks", width=8), cut_layout(6, 8, False, True))
    for odd in ({}, {"epoch": 3}, {"a.weight": torch.zeros(1)}):
        with pytest.raises(UserError):
            recognise(odd)
