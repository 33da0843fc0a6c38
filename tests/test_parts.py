"""Everything registered: builds with its defaults, runs, learns, is documented, and goes through a state_dict."""

from __future__ import annotations

import copy
import doctest
import importlib
import inspect
import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qsattn_plugin.attention import GlobalAttention
from qsattn_plugin.losses import WGANGP, AdversarialLoss, ContrastiveObjective
from qsattn_plugin.registry import KINDS, create, list_parts
from qsattn_plugin.registry.parts import argument_docs
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.registry.recipe.schema import INJECTED
from qsattn_plugin.registry.yaml_lines import RecipeError
from qsattn_plugin.training.session import Session
from tests.conftest import TINY

#: Arguments without a default.
NEEDED: dict[tuple[str, str], dict[str, Any]] = {
    ("encoder", "timm"): {"model": "test_convnext"},
    ("discriminator", "timm"): {"model": "test_convnext"},
    ("discriminator", "projected"): {"model": "test_convnext", "pretrained": False},
    ("discriminator", "ensemble"): {"of": ["pixel", {"type": "patchgan", "layers": 2, "width": 4}]},
}
#: Arguments that make a part small, for those parts that have them.
SMALL = {"width": 4, "size": 16, "queries": 16, "scales": 2, "tile": 16}
#: The smallest image that a U-Net takes.
SIDE = {"unet_256": 256, "unet_128": 128}
ALL = [part for kind in KINDS for part in list_parts(kind)]


def images(side: int = 64, count: int = 2) -> Tensor:
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def arguments(part, small: bool = True) -> dict[str, Any]:
    needed = NEEDED.get((part.kind, part.name), {})
    taken = part.signature.parameters
    return needed | ({k: v for k, v in SMALL.items() if k in taken} if small else {})


def of(*kinds: str):
    parts = [part for part in ALL if part.kind in kinds]
    return pytest.mark.parametrize("part", parts, ids=[f"{p.kind}-{p.name}" for p in parts])


def check_gradients(output: Tensor, module: nn.Module) -> None:
    """A backward pass gives every weight that learns a finite gradient, and some weight one that is not zero."""
    output.backward()
    gradients = [p.grad for p in module.parameters() if p.requires_grad]
    assert all(g is not None and g.isfinite().all() for g in gradients)
    assert not gradients or any(g.abs().max() > 0 for g in gradients)


@pytest.mark.parametrize("part", ALL, ids=[f"{p.kind}-{p.name}" for p in ALL])
def test_is_documented(part):
    assert part.summary.endswith((".", ")")) and len(part.summary) > 20
    if part.kind == "significance":  # called by samplers with what their module's docstring says
        return
    documented = argument_docs(part.target)
    assert [name for name in part.signature.parameters if not documented.get(name)] == []
    kinds = {p.kind for p in part.signature.parameters.values()}
    assert not kinds & {inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL}, "typos would pass unnoticed"


@of("generator", "discriminator", "encoder", "sampler", "objective", "augmentation")
def test_builds_with_its_defaults(part):
    create(part.kind, part.name, **arguments(part, small=False))


def numbers(part) -> list[str]:
    """The names of a part's arguments that are numbers, but for those that other parts give it."""
    named = part.signature.parameters.items()
    numeric = [n for n, p in named if type(p.default) in (int, float) or str(p.annotation).startswith(("int", "float"))]
    return [name for name in numeric if name not in INJECTED.get(part.kind, ())]


@of("generator", "discriminator", "encoder", "sampler", "objective", "augmentation")
def test_numbers_below_zero_are_refused_by_name(part):
    for name in numbers(part):
        with pytest.raises(ValueError, match=f"^{name}: "):
            create(part.kind, part.name, **(arguments(part, small=False) | {name: -1}))


@of("method")
def test_a_method_s_numbers_below_zero_are_refused_by_name(part):
    for name in numbers(part):
        with pytest.raises(RecipeError, match=rf"^-s objective\.{name}=-1: objective.*{name}: must be "):
            Session(load_recipe("toy", (*TINY, f"method={part.name}", f"objective.{name}=-1")))


@of("generator", "discriminator")
def test_networks_run_learn_and_repeat(part):
    given = arguments(part) | ({"size": 64} if "size" in part.signature.parameters else {})
    x = images(SIDE.get(part.name, 64), 1)

    def build() -> nn.Module:
        torch.manual_seed(5)
        return create(part.kind, part.name, **given)

    def run(module: nn.Module) -> list[Tensor]:
        result = module(x)
        return result if isinstance(result, list) else [result]

    def same(one: nn.Module, other: nn.Module) -> bool:
        return all(torch.equal(a, b) for a, b in zip(run(one), run(other), strict=True))

    network, twin = build(), build()
    state = torch.random.get_rng_state()
    maps = run(network)
    assert torch.equal(torch.random.get_rng_state(), state), "only construction draws random numbers"
    for out in maps:
        assert out.shape[0] == 1 and out.isfinite().all()
        if part.kind == "generator":
            assert out.shape == x.shape and out.abs().max() <= 1
        else:
            assert out.shape[1] == 1
    run(twin)  # spectral norm counts passes
    assert same(network, twin), "the seed alone makes the weights"
    check_gradients(sum(out.square().mean() for out in maps), network)

    network.eval(), twin.eval()
    with torch.no_grad():
        for parameter in twin.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.linspace(0, 0.1, parameter.numel()).view_as(parameter))
    assert not same(network, twin)
    twin.load_state_dict(copy.deepcopy(network.state_dict()))
    assert same(network, twin)


def test_multi_scale_says_what_is_too_small():
    discriminator = create("discriminator", "multi_scale", scales=2, layers=3, width=4)
    assert [scores.shape[-1] for scores in discriminator(images(48))] == [4, 1]
    with pytest.raises(ValueError, match="at least 48 pixels"):
        discriminator(images(47))


@of("encoder")
def test_encoders_give_features_of_source_and_translation(part):
    generator = create("generator", "resnet_4blocks", width=4)
    extra = {"generator": generator} if "generator" in part.signature.parameters else {}
    encoder = create("encoder", part.name, **arguments(part) | extra)
    source = images()
    image, features = encoder.translate(generator, source)
    assert image.shape == source.shape
    assert len(encoder.taps) == len(features) == len(encoder.channels)
    assert [f.shape[1] for f in features] == encoder.channels
    again = encoder.features(generator, source)
    assert all(torch.equal(a, b) for a, b in zip(features, again, strict=True))
    sum(f.square().mean() for f in encoder.features(generator, image)).backward()
    assert all(p.grad.isfinite().all() for p in generator.parameters())
    assert isinstance(encoder.saved, bool)
    assert not encoder.load_state_dict(encoder.state_dict()).missing_keys


@of("sampler")
def test_samplers_choose_routes(part):
    sampler = create("sampler", part.name, **arguments(part))
    maps = [images(16)[:, :, :12].requires_grad_(), images(8)]
    draws, scores = torch.Generator(), torch.rand(2, 1, 4, 4)
    routes = sampler.choose(maps, taps=["0", "4"], generator=draws.manual_seed(0), observe=True, scores=scores)
    for route, features in zip(routes, maps, strict=True):
        routed = route(features)
        assert routed.shape == (*route.queries.shape, 3) and routed.isfinite().all()
        positions = features.shape[-2] * features.shape[-1]
        assert route.queries.min() >= 0 and route.queries.max() < positions
    routes[0](maps[0]).square().sum().backward()
    assert maps[0].grad.isfinite().all() and maps[0].grad.abs().max() > 0
    again = sampler.choose(maps, taps=["0", "4"], generator=draws.manual_seed(0), scores=scores)
    assert all(torch.equal(a.queries, b.queries) for a, b in zip(routes, again, strict=True))


@of("significance")
def test_significances_rank_every_position(part):
    features = images(8)
    ranks = part.target(features, GlobalAttention(1.0, None), generator=torch.Generator().manual_seed(0))
    assert ranks.shape == (2, 64) and not ranks.isnan().any()
    assert ranks.std() > 0


@of("objective")
def test_objectives_learn(part):
    loss = create("objective", part.name)
    generator = torch.Generator().manual_seed(0)
    if isinstance(loss, ContrastiveObjective):
        assert re.search(r"\(.*[A-Z].* 20\d\d\)", part.summary), "`qsattn list objectives` names paper and year"
    else:  # contrastive ones are trained in tests/test_objectives.py, with every sampler
        assert isinstance(loss, AdversarialLoss), "a new kind of objective: say here how it runs"
        discriminator = create("discriminator", "multi_scale", width=4, scales=2)
        real, fake = images(), images().flip(-1).requires_grad_()
        first, second = loss.discriminator(discriminator(real), discriminator(fake.detach()))
        penalty = loss.gradient_penalty(discriminator, real, fake, generator)
        assert (penalty is not None) == loss.penalised
        check_gradients(first + second + (penalty if penalty is not None else 0), discriminator)
        loss.generator(discriminator(fake)).backward()
        assert fake.grad.isfinite().all() and fake.grad.abs().max() > 0
    assert loss.load_state_dict(loss.state_dict())


def test_wgan_penalty_is_the_equation():
    """For a linear critic the slope is known: the penalty is weight * (|w| - 1)^2, wherever it is taken."""

    class Linear(nn.Module):
        def __init__(self):
            super().__init__()
            self.slope = nn.Parameter(torch.full((1, 3, 4, 4), 0.5))

        def forward(self, x):
            # Two score maps: the first's mean has the slope w, the second's a quarter of it.
            score = (x * self.slope).sum((1, 2, 3), keepdim=True)
            return [score.expand(-1, 1, 2, 2), score / 4]

    critic, real = Linear(), images(4)
    norm = critic.slope.detach().norm()
    penalty = WGANGP(weight=3.0).gradient_penalty(critic, real, -real, torch.Generator().manual_seed(0))
    expected = 3 * ((norm - 1).square() + (norm / 4 - 1).square()) / 2
    torch.testing.assert_close(penalty, expected)  # float32's default tolerance
    penalty.backward()
    assert critic.slope.grad.abs().max() > 0


def test_wgan_penalty_draws_from_the_generator_alone():
    critic = create("discriminator", "pixel", width=4)
    loss, real, fake = WGANGP(), images(16), -images(16)
    state = torch.random.get_rng_state()
    first, again, other = (
        loss.gradient_penalty(critic, real, fake, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)
    )
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_wgan_penalty_goes_through_attention():
    critic = create("discriminator", "timm", model="test_vit", width=4, size=64)
    WGANGP().gradient_penalty(critic, images(), -images()).backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in critic.heads.parameters())


@of("augmentation")
def test_augmentations_repeat(part):
    augmentation = create("augmentation", part.name, **arguments(part))
    x = images(32, 4).requires_grad_()
    generator = torch.Generator().manual_seed(3)
    state = torch.random.get_rng_state()
    first = augmentation(x, generator)
    second = augmentation(x, generator)
    generator.manual_seed(3)
    assert torch.equal(augmentation(x, generator), first)
    assert torch.equal(augmentation(x, generator), second)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert first.shape[:2] == x.shape[:2] and first.abs().max() <= 1 and first.dtype == x.dtype
    first.square().mean().backward()
    assert x.grad.isfinite().all() and x.grad.abs().max() > 0
    assert augmentation.state_dict() == {}


@pytest.mark.parametrize("module", ["augmentations", "describe"])
def test_docstring_examples(module):
    result = doctest.testmod(importlib.import_module(f"qsattn_plugin.registry.{module}"))
    assert result.attempted and not result.failed
