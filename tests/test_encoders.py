"""The timm encoder and discriminator: any family of models, frozen or trained, weights from a file or the hub."""

from __future__ import annotations

import copy
import inspect
import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.swin_transformer import SwinTransformer

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.registry.timm_features import TimmFeatures
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.training.session import Session
from tests.conftest import TINY

#: Convolutional, a vision transformer (one stride, sizes bound to its patches) and a window transformer (NHWC).
FAMILIES = {
    "test_convnext": (64, None),
    "test_vit": (64, (0, 2)),
    "vit_tiny_patch16_224": (64, (1, 3)),
    "swin_tiny_patch4_window7_224": (64, (0, 1)),
}


def images(side: int, channels: int = 3) -> torch.Tensor:
    return torch.rand(2, channels, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1


def build(model: str = "test_convnext", **arguments) -> TimmFeatures:
    torch.manual_seed(0)
    return create("encoder", "timm", model=model, **arguments)


@pytest.mark.parametrize("model", FAMILIES)
def test_maps_are_as_feature_info_says(model):
    size, taps = FAMILIES[model]
    encoder = build(model, taps=taps, size=size)
    known = timm.create_model(model, features_only=True, out_indices=taps).feature_info
    if taps is not None:
        assert (encoder.taps, encoder.channels) == (list(taps), known.channels())
    image = images(size).requires_grad_()
    maps = encoder.features(None, image)
    for found, channels, stride in zip(maps, encoder.channels, encoder.strides, strict=True):
        assert found.shape == (2, channels, size // stride, size // stride)
        assert stride <= 16

    # Positions are where they belong, also where timm has channels last: a change in the upper left corner shows in the
    # upper left of the shallowest map most.
    changed = image.detach().clone()
    changed[:, :, :16, :16] = -changed[:, :, :16, :16]
    moved = (encoder(changed)[0] - maps[0]).abs().mean(dim=(0, 1))
    corner = max(1, 16 // encoder.strides[0])
    assert moved[:corner, :corner].mean() > 2 * moved[corner:, corner:].mean()

    sum(m.square().mean() for m in maps).backward()
    assert image.grad.isfinite().all() and image.grad.abs().max() > 0
    assert all(p.grad is None for p in encoder.parameters())
    # Another size than the one it was built for: maps of another size, or the image is resized.
    if "swin" in model and "dynamic_img_size" not in inspect.signature(SwinTransformer.__init__).parameters:
        pytest.skip("this timm builds window transformers for one size, and says so of others")
    assert [m.shape[1] for m in encoder(images(96))] == encoder.channels


def test_images_get_the_model_s_own_mean_and_deviation():
    encoder = build("test_vit", size=32)
    seen = []
    encoder.model.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    encoder(torch.stack([torch.full((3, 32, 32), v) for v in (-1.0, 1.0)]))
    mean, std = (torch.tensor(encoder.model.pretrained_cfg[k]).view(3, 1, 1) for k in ("mean", "std"))
    black, white = seen[0]
    torch.testing.assert_close(black, (-mean / std).expand_as(black))
    torch.testing.assert_close(white, ((1 - mean) / std).expand_as(white))


def test_grey_images_are_repeated():
    encoder = build(in_channels=1)
    grey = images(32, 1)
    for one, three in zip(encoder(grey), encoder(grey.expand(-1, 3, -1, -1)), strict=True):
        assert torch.equal(one, three)
    with pytest.raises(ValueError, match=r"^in_channels: "):
        build(in_channels=0)


@pytest.fixture
def file(tmp_path) -> str:
    """Weights of the small model, in a file."""
    torch.manual_seed(7)
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "weights.safetensors")
    return str(tmp_path / "weights.safetensors")


def test_a_frozen_encoder_stays_so(file):
    encoder = build(weights=file)
    assert not encoder.saved and encoder.state_dict() == {}
    outer = torch.nn.ModuleDict({"encoder": encoder}).train()
    assert not any(m.training for m in encoder.modules())
    assert not any(p.requires_grad for p in encoder.parameters())
    assert outer.state_dict() == {}
    before = encoder(images(32))
    again = build(weights=file)(images(32))
    assert all(torch.equal(a, b) for a, b in zip(before, again, strict=True))
    twin = copy.deepcopy(outer)
    twin.load_state_dict(outer.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(before, twin["encoder"](images(32)), strict=True))
    with pytest.raises(RuntimeError, match="Unexpected"):
        outer.load_state_dict({"other": torch.zeros(1)})


def test_finding_the_default_taps_draws_nothing():
    encoder = build()
    again = build(taps=tuple(encoder.taps))(images(32))
    assert all(torch.equal(a, b) for a, b in zip(encoder(images(32)), again, strict=True))


def test_a_training_goes_on_with_the_frozen_weights_that_it_had_alone(file, tmp_path):
    def session(weights: Path) -> Session:
        encoder = f"encoder={{type: timm, model: test_convnext, weights: {weights}}}"
        return Session(load_recipe("toy", (*TINY, "method=cut", encoder)))

    moved, other = tmp_path / "moved.safetensors", tmp_path / "other.safetensors"
    shutil.copy(file, moved)
    torch.manual_seed(8)
    save_file(timm.create_model("test_convnext").state_dict(), other)
    tensors, document = session(Path(file)).state()
    save_tensors(tmp_path / "one.safetensors", tensors, {**document, "step": 1})
    session(moved).restore(tmp_path / "one.safetensors")
    with pytest.raises(UserError, match="the frozen weights of encoder are not those that .*one.safetensors was"):
        session(other).restore(tmp_path / "one.safetensors")


def test_a_frozen_encoder_of_random_weights_is_saved_with_them():
    """They could not be had again."""
    encoder, other = build().train(), create("encoder", "timm", model="test_convnext")
    assert encoder.saved and not any(m.training for m in encoder.modules())
    assert not torch.equal(encoder(images(32))[0], other(images(32))[0])
    other.load_state_dict(encoder.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(encoder(images(32)), other(images(32)), strict=True))


def test_a_trained_encoder_learns_and_is_saved():
    encoder = build(trained=True, taps=(0, 1))
    assert encoder.saved and encoder.training and encoder.model.training
    assert not encoder.eval().model.training
    encoder.train()
    sum(m.square().mean() for m in encoder(images(32))).backward()
    gradients = {name: p.grad for name, p in encoder.named_parameters()}
    assert all(g is not None and g.isfinite().all() for g in gradients.values())
    other = create("encoder", "timm", model="test_convnext", trained=True, taps=(0, 1))
    other.load_state_dict(encoder.state_dict())
    for mine, theirs in zip(encoder.eval()(images(32)), other.eval()(images(32)), strict=True):
        assert torch.equal(mine, theirs)


def test_a_discriminator_on_frozen_features_saves_its_heads_alone(file):
    discriminator = create("discriminator", "timm", model="test_convnext", width=4, weights=file)
    keys = list(discriminator.state_dict())
    assert keys and all(key.startswith("heads.") for key in keys)
    image = images(64).requires_grad_()
    scores = discriminator(image)
    assert len(scores) == len(discriminator.features.taps)
    sum(s.mean() for s in scores).backward()
    assert image.grad.abs().max() > 0
    assert {n.split(".")[0] for n, p in discriminator.named_parameters() if p.grad is not None} == {"heads"}


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_come_from_a_file(tmp_path, suffix):
    torch.manual_seed(7)
    whole = timm.create_model("test_convnext")
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": whole.state_dict()}, path)
    else:
        save_file(whole.state_dict(), path)
    encoder = build(weights=str(path), taps=(1,))
    cfg = whole.pretrained_cfg
    x = (images(64) + 1) / 2
    x = (x - torch.tensor(cfg["mean"]).view(3, 1, 1)) / torch.tensor(cfg["std"]).view(3, 1, 1)
    (expected,) = whole.eval().forward_intermediates(x, indices=[1], intermediates_only=True)
    torch.testing.assert_close(encoder(images(64))[0], expected)


def test_wrong_files_are_refused(tmp_path):
    def refused(**arguments) -> str:
        with pytest.raises(UserError) as problem:
            build(**arguments)
        return str(problem.value)

    missing = str(tmp_path / "none.pth")
    assert f"there is no file {missing}" in refused(weights=missing)
    broken = tmp_path / "broken.safetensors"
    broken.write_bytes(b"not weights at all")
    assert "is not a file of weights" in refused(weights=str(broken))
    broken.write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    assert "is a Git LFS pointer" in refused(weights=str(broken))
    foreign = tmp_path / "foreign.pth"
    for other in ("test_vit", "test_resnet", "test_efficientnet"):
        torch.save(timm.create_model(other).state_dict(), foreign)
        for model in ("test_convnext", "test_vit2"):
            text = refused(model=model, weights=str(foreign))
            assert str(foreign) in text and model in text and "another model" in text
    torch.save({"epoch": 3}, foreign)
    assert "holds no weights" in refused(weights=str(foreign))
    harmful = tmp_path / "harmful.pth"
    torch.save({"model": build}, harmful)  # a pickled function, as harmful files hold
    assert "holds more than tensors" in refused(weights=str(harmful))
    with pytest.raises(ValueError, match=r"^weights: "):
        build(weights=str(foreign), pretrained=True)


def test_without_a_network_one_error_names_the_way_by_file(no_hub):
    with pytest.raises(UserError) as refused:
        build(pretrained=True)
    text = str(refused.value)
    assert "\n" not in text
    assert "could not get pretrained weights of test_convnext" in text and "weights: path/to/model.safetensors" in text
    assert "https://huggingface.co/timm/test_convnext" in text


def test_without_a_network_the_hub_s_cache_serves(no_hub):
    torch.manual_seed(3)
    whole = timm.create_model("test_convnext")
    folder = no_hub / ("models--" + whole.pretrained_cfg["hf_hub_id"].rstrip("/").replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(whole.state_dict(), snapshot / "model.safetensors")
    encoder = build(pretrained=True)
    assert torch.equal(encoder.model.stem_0.weight, whole.stem[0].weight)


def test_mistakes_are_named():
    for arguments, said in (
        ({"model": "convnext_atoo"}, "did you mean 'convnext_atto'"),
        ({"model": "test_convnext", "taps": (0, 9)}, "has the levels 0 to 3, but taps are [0, 9]"),
    ):
        with pytest.raises(UserError) as refused:
            build(**arguments)
        assert said in str(refused.value)
    for taps in ((), (1, 1), (-1,)):
        with pytest.raises(ValueError, match=r"^taps: "):
            build(taps=taps)
