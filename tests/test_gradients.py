"""One training step: its gradients are those of the step written down plainly, whatever makes ours faster."""

from __future__ import annotations

import copy
import functools
import os
import shutil
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qsattn_plugin.registry.generators import ResnetBlock, TappedGenerator
from qsattn_plugin.registry.layers import Downsample, Upsample, normalisation
from qsattn_plugin.registry.layers.memory_saving import ReflectionPad
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.methods.base import Method
from qsattn_plugin.training.session import Session
from qsattn_plugin.training.tuning import compile_networks
from tests.conftest import TINY

#: Relative to the largest gradient of the network. float64 rounds at 1e-16 and a gradient is a sum of some 1e5 terms,
#: which another order of adding changes by 1e-14 to 1e-12; a step that forgets a term, a factor or a detach is off by
#: 5e-4 or more (the least of those that were tried). float32 rounds at 6e-8, over the same sums and thirty layers.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 5e-5}

#: The papers' layers, which the recipe for the toy data leaves out.
PAPERS = ("generator.norm=instance", "discriminator={layers: 2, antialias: true}")

#: Images are two, and the second must not be forgotten.
BATCH = 2


def build(*settings: str, dtype: torch.dtype = torch.float64) -> Method:
    """A tiny method, its networks and optimizers in ``dtype``, with weights large enough for gradients everywhere."""
    method = Session(load_recipe("toy", (*TINY, *PAPERS, *settings))).method.to(dtype)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in method.parameters():
            deviation = 0.1 if parameter.ndim < 2 else parameter[0].numel() ** -0.5
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * deviation)
    return method


def pictures(count: int = BATCH, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {letter: torch.rand(count, 3, 32, 32, generator=generator).to(dtype) * 2 - 1 for letter in "AB"}


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def double(monkeypatch):
    """Let what is computed in float32 at least, heads and losses, stay in float64 where it came in float64."""
    to_float = torch.Tensor.float
    monkeypatch.setattr(torch.Tensor, "float", lambda t: t if t.dtype == torch.float64 else to_float(t))


def gradients(network: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in network.named_parameters() if p.grad is not None}


def taken(method: Method, name: str) -> dict[str, Tensor]:
    """The gradients of a method's only step so far: Adam's first moment, without its factor."""
    role = name.partition("_")[0] if name.startswith("discriminator") else "generator"
    prefix, suffix = f"{role}/{name}.", "/exp_avg"
    state = method.optimizer_state().items()
    return {k[len(prefix) : -len(suffix)]: v / (1 - 0.5) for k, v in state if k.startswith(prefix) and suffix in k[-8:]}


def assert_equal(got: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Compare within ``tolerance`` times the largest expected value.

    The scale is the network's, not each parameter's: a bias before instance norm has no gradient but rounding.
    """
    assert got.keys() == expected.keys()
    assert got
    largest = max(e.abs().max() for e in expected.values())
    assert largest > 0
    for name, value in expected.items():
        difference = (got[name] - value).abs().max()
        assert difference <= tolerance * largest, f"{name}: {difference / largest:.1e} of the largest gradient"


# The plain step -------------------------------------------------------------------------------------------------------


def plain_routes(features: Tensor, attends: bool, queries: Tensor, count: int) -> Any:
    """Return the gather of one layer: rows of the whole attention matrix, or the given places."""
    values = features.flatten(2).transpose(1, 2)
    if not attends:
        index = queries.unsqueeze(-1)
        return lambda v: v.gather(1, index.expand(-1, -1, v.shape[-1]))
    attention = torch.bmm(values, values.transpose(1, 2)).softmax(dim=-1)
    entropy = -torch.special.xlogy(attention, attention).sum(dim=-1)
    chosen = entropy.sort(dim=-1).indices[:, :count].unsqueeze(-1)
    rows = attention.gather(1, chosen.expand(-1, -1, attention.shape[-1]))
    return lambda v: torch.bmm(rows, v)


def plain_nce(m: Method, source: Tensor, image: Tensor, mirrored: bool, queries: list[Tensor], attends: list) -> Tensor:
    """CUT's contrastive loss, every image encoded by itself."""
    encoded = m.generator(image, taps=m.encoder.taps, encode_only=True)
    if mirrored:
        encoded = [f.flip(-1) for f in encoded]
    origin = m.generator(source, taps=m.encoder.taps, encode_only=True)
    total = 0.0
    for index, (anchor, positive) in enumerate(zip(encoded, origin, strict=True)):
        route = plain_routes(positive, attends[index], queries[index], m.sampler.queries)
        head = getattr(m.heads, f"mlp_{index}")
        anchor, positive = (head(route(f.flatten(2).transpose(1, 2))) for f in (anchor, positive))
        anchor, positive = (v / (v.norm(dim=-1, keepdim=True) + 1e-7) for v in (anchor, positive))
        logits = torch.bmm(anchor, positive.detach().transpose(1, 2)) / 0.07
        places = torch.arange(logits.shape[1]).expand(len(logits), -1)
        total = total + F.cross_entropy(logits.transpose(1, 2), places, reduction="none").mean()
    return total / len(encoded)


def plain_step(m: Method, batch: dict[str, Tensor], mirrored: bool, queries: list, attends: list) -> dict[str, dict]:
    """The step as one would write it down: one pass over both images, one backward of the sum, plain Adam.

    Returns the gradients of discriminator, generator and heads; the discriminator is stepped.
    """
    optimizer = torch.optim.Adam(m.discriminator.parameters(), lr=m.base_lr, betas=(0.5, 0.999), foreach=False)
    seen = batch["A"].flip(-1) if mirrored else batch["A"]
    kept = batch["B"].flip(-1) if mirrored else batch["B"]
    both = m.generator(torch.cat((seen, kept)) if m.identity else seen)
    fake, same = both[:BATCH], both[BATCH:]
    real = m.discriminator(batch["B"])
    (0.5 * ((real - 1) ** 2).mean() + 0.5 * (m.discriminator(fake.detach()) ** 2).mean()).backward()
    found = {"discriminator": gradients(m.discriminator)}
    optimizer.step()
    nce = plain_nce(m, batch["A"], fake, mirrored, queries[0], attends)
    if m.identity:
        nce = 0.5 * (nce + plain_nce(m, batch["B"], same, mirrored, queries[1], attends))
    distance = (same - kept).abs().mean() if m.identity_l1 else 0.0
    (((m.discriminator(fake) - 1) ** 2).mean() + m.nce_weight * nce + m.identity_l1 * distance).backward()
    return found | {"generator": gradients(m.generator), "heads": gradients(m.heads)}


CASES = {
    "cut": (["method=cut"], 0, False),
    "qsattn": (["method=qsattn", "sampler.positions=256", "objective.gan=lsgan"], 0, False),
    "fastcut": (["method=fastcut"], 1, False),
    "fastcut, mirrored": (["method=fastcut"], 3, True),
    "cut, mirrored": (["method=cut", "objective={flip_equivariance: true, identity_l1: 0.5}"], 3, True),
}


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_the_plain_step(double, monkeypatch, case, dtype):
    settings, seed, mirrored = CASES[case]
    ours = build(*settings, dtype=dtype)
    plain = copy.deepcopy(ours)
    chosen: list[list[Tensor]] = []
    choose = ours.sampler.choose

    def spy(*args: Any, **kwargs: Any) -> list:
        routes = choose(*args, **kwargs)
        chosen.append([route.queries for route in routes])
        return routes

    monkeypatch.setattr(ours.sampler, "choose", spy)
    if ours.flip_equivariance:
        assert bool(torch.rand((), generator=draws(seed)) < 0.5) == mirrored
    batch = pictures(dtype=dtype)
    ours.step(batch, draws(seed))
    shapes = ours.generator(batch["A"], taps=ours.encoder.taps, encode_only=True)
    attends = ours.sampler.attentive(shapes, [str(t) for t in ours.encoder.taps])
    if case == "qsattn":
        assert 0 < sum(attends) < len(attends)  # both kinds of taps are compared
    expected = plain_step(plain, batch, mirrored, chosen, [a and case == "qsattn" for a in attends])
    for name, gradient in expected.items():
        assert_equal(taken(ours, name), gradient, TOLERANCE[dtype])
    # One step of Adam moves every weight by the rate at most; what rounding decides moves by far less.
    for mine, theirs in zip(ours.discriminator.parameters(), plain.discriminator.parameters(), strict=True):
        assert (mine - theirs).abs().max() <= 1e-2 * ours.base_lr


# What must not change it ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("setting", ["method=qsattn", "method=cyclegan"])
def test_gradients_of_two_batches_of_one_are_those_of_one_batch_of_two(double, setting):
    """Objectives that look at each image by itself; every tap is attended to, so that no draw tells the two apart."""
    more = ("sampler={type: qsattn_global, queries: 16, taps: all}",) if setting == "method=qsattn" else ()
    whole, halves = (build(setting, *more, f"train.accumulate={n}") for n in (1, 2))
    losses = [method.step(pictures(), draws()) for method in (whole, halves)]
    assert losses[0].keys() == losses[1].keys()
    for name, value in losses[0].items():
        torch.testing.assert_close(losses[1][name], value, rtol=1e-10, atol=1e-12)
    for name, network in whole.named_children():
        if list(network.parameters()):
            assert_equal(taken(halves, name), taken(whole, name), TOLERANCE[torch.float64])


def test_a_batch_that_cannot_be_divided_is_refused():
    with pytest.raises(ValueError, match="batch: 3 and 3 images are not 2 equal parts"):
        build("train.accumulate=2").step(pictures(3), draws())


@pytest.mark.parametrize("setting", ["method=qsattn", "method=cyclegan"])
def test_gradients_with_the_channels_side_by_side(double, setting):
    plain, last = (build(setting, f"train.channels_last={on}") for on in ("false", "true"))
    for method in (plain, last):
        method.step(pictures(), draws())
    assert_equal(taken(last, "generator"), taken(plain, "generator"), TOLERANCE[torch.float64])
    weight = last.generator.model[4].weight
    assert weight.is_contiguous(memory_format=torch.channels_last)
    assert not weight.is_contiguous()
    # A resumed optimizer lies in memory as the weights do: fused kernels walk through both side by side.
    state = {name: t.contiguous() for name, t in last.optimizer_state().items()}
    last.load_optimizer_state(state)
    adam = last.optimizers["generator"].state[weight]
    assert adam["exp_avg"].stride() == weight.stride()
    assert all(torch.equal(t, state[name]) for name, t in last.optimizer_state().items())


class OfEachLayer(TappedGenerator):
    """A residual ResNet generator with one step down, one block and one step up, which leaves the range."""

    default_taps = (0, 5, 6)
    residual = True

    def __init__(self) -> None:
        super().__init__()
        norm = normalisation("instance")
        stem = ReflectionPad(3), nn.Conv2d(3, 4, 7), norm(4), nn.ReLU(), Downsample(4)
        back = Upsample(4), ReflectionPad(3), nn.Conv2d(4, 3, 7)
        self.finish([*stem, ResnetBlock(4, "instance"), *back], {5: "block"}, 3, "xavier", 1.0)


compiles = pytest.mark.skipif(torch.__version__ < (2, 11), reason="train.compile is refused with an older PyTorch")


@compiles
@pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None, reason="torch.compile needs a C++ compiler on the CPU"
)
def test_compiled_gradients_are_the_eager_ones(monkeypatch):
    """Reflection padding has had wrong gradients under torch.compile. Each kind of layer once: kernels take seconds."""
    eager = OfEachLayer()
    compiled = copy.deepcopy(eager)
    compile_networks([compiled], torch.device("cpu"))
    monkeypatch.setattr(torch._inductor.config, "compile_threads", 1)  # no pool of processes for a few kernels
    images = pictures(dtype=torch.float32)["A"][..., :16, :16]
    found = []
    for network in (eager, compiled):
        x = images.clone().requires_grad_()
        image, features = network(x, taps=network.default_taps)
        (image.square().sum() + sum(f.square().sum() for f in features)).backward()
        found.append((image.detach(), gradients(network) | {"images": x.grad}))
    torch.testing.assert_close(found[1][0], found[0][0], rtol=1e-4, atol=1e-5)
    assert_equal(found[1][1], found[0][1], TOLERANCE[torch.float32])


@compiles
@pytest.mark.parametrize(
    ("method", "discriminator"),
    [
        ("fastcut", "{type: patchgan, width: 4, layers: 1}"),
        ("cut", "{type: projected, model: test_efficientnet, width: 4, pretrained: false}"),
        ("cut", "{type: ensemble, of: [pixel, {type: patchgan, width: 4, layers: 1}]}"),
    ],
    ids=["patchgan", "projected", "ensemble"],
)
def test_a_step_of_compiled_networks_is_that_of_eager_ones(monkeypatch, method, discriminator):
    """Graphs are captured and differentiated by torch.compile, and run without making kernels, which takes minutes."""
    monkeypatch.setattr(nn.Module, "compile", functools.partialmethod(nn.Module.compile, backend="aot_eager"))
    settings = (f"method={method}", f"discriminator={discriminator}")
    eager, compiled = (build(*settings, f"train.compile={on}") for on in ("false", "true"))
    # FastCUT is not mirrored, and mirrored: other passes through the generator.
    for seed in (1, 3) if method == "fastcut" else (1,):
        for one in (eager, compiled):
            one.step(pictures(), draws(seed))
        for name in ("generator", "heads", "discriminator"):
            assert_equal(taken(compiled, name), taken(eager, name), TOLERANCE[torch.float32])  # as losses round
    assert all(network._compiled_call_impl is not None for network in compiled.compilable())
    assert compiled.state_dict().keys() == eager.state_dict().keys()
