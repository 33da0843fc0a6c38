"""Discriminators on frozen features and several at once: what they compute, learn, save and refuse."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.losses import HingeGAN
from qsattn_plugin.registry import create
from qsattn_plugin.registry.recipe import Recipe, load_recipe
from qsattn_plugin.storage import load_tensors
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.methods.adversary import Adversary
from qsattn_plugin.training.resuming import check_architecture
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from tests.conftest import TINY

MODEL = "test_efficientnet"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> Path:
    """Weights of a small network, in a file."""
    torch.manual_seed(7)
    path = tmp_path_factory.mktemp("weights") / "network.safetensors"
    save_file(timm.create_model(MODEL).state_dict(), path)
    return path


def images(side: int = 64, channels: int = 3, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1), dtype=dtype) * 2 - 1


def build(file: Path | None = None, seed: int = 0, **arguments) -> nn.Module:
    torch.manual_seed(seed)
    given = {"model": MODEL, "width": 4} | ({"weights": file} if file else {"pretrained": False})
    return create("discriminator", "projected", **given | arguments)


def restated(discriminator: nn.Module, file: Path, x: Tensor) -> list[Tensor]:
    """The paper's equations, written out: one level after the other, from the state_dict."""
    from safetensors.torch import load_file

    network = timm.create_model(MODEL).to(x.dtype).eval()
    network.load_state_dict(load_file(file))
    mean, std = (torch.tensor(network.pretrained_cfg[k]).to(x.dtype).view(3, 1, 1) for k in ("mean", "std"))
    levels = discriminator.features.taps
    maps = timm.create_model(MODEL, features_only=True, out_indices=levels).to(x.dtype).eval()
    maps.load_state_dict({k: v for k, v in network.state_dict().items() if k in maps.state_dict()})
    features = maps(((x + 1) / 2 - mean) / std)
    w = discriminator.state_dict()
    mixed: list[Tensor] = []
    for level in reversed(range(len(features))):
        own = torch.einsum("oi,bihw->bohw", w[f"across_channels.{level}.weight"][..., 0, 0], features[level])
        own = own + w[f"across_channels.{level}.bias"].view(-1, 1, 1)
        if mixed:
            name = f"across_scales.{level}"
            below = F.conv2d(mixed[0], w[f"{name}.weight"], w[f"{name}.bias"], padding=1)
            own = (own + F.interpolate(below, own.shape[-2:], mode="bilinear", align_corners=False)) / 2**0.5
        mixed.insert(0, own)
    scores = []
    for head, m in zip(discriminator.heads, mixed, strict=True):
        for layer in head:
            m = F.conv2d(m, layer.weight, layer.bias, padding=layer.padding) if hasattr(layer, "weight") else layer(m)
        scores.append(m)
    return scores


def test_scores_and_gradients_are_those_of_a_plain_restatement(file):
    discriminator = build(file).double().eval()  # else spectral norm moves with every pass
    found = []
    for run in (discriminator, lambda x: restated(discriminator, file, x)):
        x = images(dtype=torch.float64).requires_grad_()
        scores = run(x)
        loss = sum(s.sin().mean() for s in scores)
        heads = [p for p in discriminator.parameters() if p.requires_grad]
        found.append((*scores, *torch.autograd.grad(loss, [x, *heads])))
    assert len(found[0]) == 4 + 1 + 4 * 6  # four levels; the image; a weight and a bias for each of three layers a head
    for ours, plain in zip(*found, strict=True):
        torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)  # float64 in another order of sums
        assert ours.abs().max() > 0


def test_only_heads_learn_and_what_is_drawn_follows_from_the_seed(file):
    one, same, other = build(file), build(file), build(file, seed=1)
    assert {n.split(".")[0] for n, p in one.named_parameters() if p.requires_grad} == {"heads"}
    state = one.state_dict()
    assert {key.split(".")[0] for key in state} == {"across_channels", "across_scales", "heads"}
    assert all(torch.equal(v, same.state_dict()[k]) for k, v in state.items())
    assert not torch.equal(state["across_scales.0.weight"], other.state_dict()["across_scales.0.weight"])
    x = images().requires_grad_()
    first = sum(s.mean() for s in one(x))
    first.backward()
    assert x.grad.abs().max() > 0


def test_of_random_features_everything_is_saved():
    one, other = build(), build(seed=1)
    other.load_state_dict(one.state_dict())
    one.eval(), other.eval()
    assert all(torch.equal(a, b) for a, b in zip(one(images()), other(images()), strict=True))


@pytest.mark.parametrize("taps", [(1,), (2, 3), None])
@pytest.mark.parametrize("channels", [1, 3])
def test_any_levels_and_grey_images(file, taps, channels):
    discriminator = build(file, taps=taps, in_channels=channels)
    scores = discriminator(images(channels=channels))
    assert len(scores) == len(taps or range(4))
    assert [s.shape[-1] for s in scores] == [64 // stride for stride in discriminator.features.strides]


def test_a_file_comes_before_a_download(file):
    """So that a recipe that downloads takes a file by one override."""
    assert torch.equal(build(file, pretrained=True)(images())[0], build(file)(images())[0])


def test_transformers_whose_levels_are_of_one_size():
    discriminator = create("discriminator", "projected", model="test_vit", pretrained=False, width=4, size=64)
    assert len({s.shape for s in discriminator(images())}) == 1


def test_projected_mistakes_are_named(file):
    with pytest.raises(ValueError, match="set pretrained: true to download .* or weights: FILE"):
        create("discriminator", "projected", model=MODEL)
    with pytest.raises(UserError, match=r"has the levels 0 to \d, but taps are \[9\]"):
        build(file, taps=(9,))
    with pytest.raises(ValueError, match="at least 32 pixels a side, got .16, 16.; use finer levels"):
        build(file)(images(16))
    with pytest.raises(ValueError, match="in_channels: must be at least 1"):
        build(file, in_channels=0)
    with pytest.raises(
        UserError, match=r"data\.crop: discriminator\.taps: level 4 of the network needs images of .* 32 pixels"
    ):
        Session(load_recipe("toy", (*TINY, "data.crop=24", f"discriminator={{type: projected, {said(file)}}}")))


def test_taking_weights_from_a_file_says_nothing(file, caplog):
    """timm names the classifier's tensors, which features have no use for."""
    build(file)
    assert not caplog.records


def said(file: Path) -> str:
    return f"model: {MODEL}, width: 4, weights: {file}"


RECIPES = {
    "projected": "discriminator={{type: projected, {}}}",
    "ensemble": "discriminator={{type: ensemble, of: [{{type: projected, {}}}, "
    "{{type: patchgan, width: 4, layers: 1}}], weights: [1, 0.5], r1: [0, 0.1]}}",
}


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("projected", ()),
        ("ensemble", ("train.accumulate=2", "train.precision=bf16")),  # it has a projected one
        ("ensemble", ("method=cyclegan",)),
    ],
)
def test_a_run_that_stops_and_carries_on_ends_with_the_same_bytes(workplace, file, name, settings):
    ends = []
    for folder, stops in (("whole", (None,)), ("parts", (1, 2, None))):
        recipe = load_recipe("toy", (*TINY, RECIPES[name].format(said(file)), *settings))
        run = Run.create(recipe, workplace / folder)
        for stop in stops:
            fit(run, max_steps=stop)
        ends.append(run.checkpoints.path(4).read_bytes())
    assert ends[0] == ends[1]
    tensors, _ = load_tensors(run.checkpoints.path(4))
    assert any("across_scales" in key for key in tensors if key.startswith("model/"))
    assert not any("features" in key or "across" in key for key in tensors if key.startswith("optimizer/"))


def test_an_ensemble_is_the_weighted_sum_of_its_judges():
    of = [{"type": "patchgan", "width": 4, "layers": 1}, {"type": "pixel", "width": 4}, {"type": "pixel", "width": 8}]
    weights, slopes = (1.0, 0.5, 2.0), (0.3, 0.0, 0.0)
    torch.manual_seed(0)
    ensemble = create("discriminator", "ensemble", of=of, weights=weights, r1=slopes)
    assert list(ensemble.judges) == ["patchgan", "pixel_1", "pixel_2"]
    together = Adversary(ensemble, HingeGAN(), r1=9.0)
    real, fake, log = images(), images().flip(0), {}
    judged = together.discriminator_loss(real, fake, torch.Generator(), log, "_back")
    fooled = together.generator_loss(fake, torch.Generator(), log)
    expected = torch.zeros(2)
    for (name, judge), weight, slope in zip(ensemble.judges.items(), weights, slopes, strict=True):
        alone, own = Adversary(judge, HingeGAN(), r1=slope), {}
        expected[0] += weight * alone.discriminator_loss(real, fake, torch.Generator(), own)
        expected[1] += weight * alone.generator_loss(fake, torch.Generator(), own)
        assert all(log.pop(f"D_{part}_{name}_back") == own[f"D_{part}"] for part in ("real", "fake"))
        assert log.pop(f"G_GAN_{name}") == own["G_GAN"]
    assert list(log) == ["D_R1_patchgan_back"]
    torch.testing.assert_close(torch.stack([judged, fooled]), expected)
    assert together.compilable() == list(ensemble.judges.values())[1:]
    assert sum(s.numel() for s in ensemble(real)) > 0


def test_without_r1_of_its_own_an_ensemble_has_the_method_s():
    ensemble = create("discriminator", "ensemble", of=["pixel", {"type": "pixel", "width": 4}])
    log: dict[str, Tensor] = {}
    Adversary(ensemble, HingeGAN(), r1=0.1).discriminator_loss(images(), images(), torch.Generator(), log)
    assert {"D_R1_pixel_0", "D_R1_pixel_1"} < log.keys()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("of: []", r"my.yaml:4: discriminator\.of: must name at least one"),
        ("of: patchgan", r"my.yaml:4: discriminator\.of: must be a list, got 'patchgan'"),
        ("weights: [1]", r"my.yaml:3: discriminator\.of: is missing; discriminator 'ensemble' needs it"),
        ("of: [patchgun]", r"my.yaml:4: discriminator\.of\.0: .* did you mean 'patchgan'"),
        ("of: [pixel, {width: 3}]", r"my.yaml:4: discriminator\.of\.1\.type: is missing; it names the discriminator"),
        ("of: [{type: pixel, widht: 3}]", r"my.yaml:4: discriminator\.of\.0\.widht: .* did you mean 'width'"),
        ("of: [{type: pixel, width: x}]", r"my.yaml:4: discriminator\.of\.0\.width: must be an integer"),
        ("of: [{type: pixel, width: 0}]", r"my.yaml:4: discriminator\.of\.0\.width: must be at least 1"),
        ("of: [{type: ensemble, of: [pixel]}]", r"my.yaml:4: discriminator\.of: ensemble 0 is an ensemble itself"),
        ("of: [projected]", r"my.yaml:4: discriminator\.of\.0: pretrained: .* set pretrained: true"),
        ("of: [pixel]\n  weights: [1, 2]", r"my.yaml:5: discriminator\.weights: needs a number for each of the 1"),
        ("of: [pixel]\n  weights: [0]", r"my.yaml:5: discriminator\.weights: must be above 0"),
        ("of: [pixel]\n  r1: [-1]", r"my.yaml:5: discriminator\.r1: must be at least 0"),
    ],
)
def test_mistakes_in_an_ensemble_are_said_where_they_stand(workplace, text, message):
    Path("my.yaml").write_text(f"extends: toy\nmethod: cut\ndiscriminator:\n  {text}\n  type: ensemble\n")
    with pytest.raises(UserError, match=message):
        Session(load_recipe("my.yaml", [s for s in TINY if not s.startswith("discriminator")]))


def test_a_training_goes_on_with_an_ensemble_that_is_written_in_another_way(tmp_path):
    weights, copied = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    save_file(timm.create_model("test_convnext").state_dict(), weights)
    shutil.copy(weights, copied)

    def recipe(of: str, *more: str) -> Recipe:
        return load_recipe("toy", (*TINY, f"discriminator={{type: ensemble, of: {of}}}", *more))

    projected = "{{type: projected, model: test_convnext, weights: {}}}"
    before = {"recipe": recipe(f"[{projected.format(weights)}, {{type: patchgan, width: 4}}, patchgan]").to_dict()}
    same = f"[{projected.format(copied)}, {{width: 4, layers: 3, type: patchgan}}, {{type: patchgan}}]"
    check_architecture(recipe(same), before, tmp_path)
    check_architecture(recipe(same, "discriminator.r1=[0, 1, 2]", "discriminator.weights=[1, 2, 3]"), before, tmp_path)
    with pytest.raises(UserError, match=r"discriminator\.of: is .*'layers': 2.* was trained with .*'layers': 3"):
        check_architecture(recipe(same.replace("layers: 3", "layers: 2")), before, tmp_path)
