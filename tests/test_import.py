"""Imports: other projects' checkpoints in all the forms that are about, and what is refused."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.cut_weights import recognise
from qsattn_plugin.storage import read_document
from qsattn_plugin.translation.export import export, subject_of
from qsattn_plugin.translation.importing import import_weights
from qsattn_plugin.translation.load import load
from tests.conftest import TINY
from tests.test_cli import qsattn, refused
from tests.test_export import weights_file
from tests.test_generators import cut_layout


def weights_of(name: str, **arguments: object) -> dict[str, Tensor]:
    """The state_dict of a small generator."""
    torch.manual_seed(0)
    return dict(create("generator", name, **{"width": 4, **arguments}).state_dict())


def saved(path: Path, content: object, **how: object) -> Path:
    """A file that torch.save wrote."""
    torch.save(content, path, **how)
    return path


def same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    """Whether two state_dicts are the same, to the bit."""
    return found.keys() == expected.keys() and all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet_9blocks", {}),
        ("resnet_9blocks", {"antialias": False, "antialias_up": False, "out_channels": 1}),
        ("resnet_6blocks", {"norm": "batch"}),
        ("unet_256", {}),
        ("unet_128", {"norm": "batch", "in_channels": 1}),
        ("unet_128", {"norm": "none"}),
    ],
)
def test_import_of_a_cut_export_is_the_identity(tmp_path, name, arguments):
    model = weights_file(tmp_path / "model.safetensors", name, **arguments)
    before = load(model)
    cut = export(subject_of(before), "cut", tmp_path / "cut").path
    said = qsattn("import", cut, "-o", tmp_path / "back.safetensors")
    assert said.exit_code == 0, said.output
    after = load(tmp_path / "back.safetensors")
    assert same(after.generator.state_dict(), before.generator.state_dict())
    spec, expected = (t.document["generators"]["forward"] for t in (after, before))
    assert (spec["type"], spec["arguments"]) == (expected["type"], expected["arguments"])
    again = export(subject_of(after), "cut", tmp_path / "again").path
    assert same(torch.load(again, weights_only=True), torch.load(cut, weights_only=True))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_an_imported_file_translates_exports_and_starts_a_training(tmp_path, monkeypatch):
    from qsattn_plugin.registry.recipe import load_recipe
    from qsattn_plugin.training.session import Session

    monkeypatch.chdir(tmp_path)
    weights = weights_of("resnet_6blocks")
    saved(tmp_path / "latest_net_G.pth", weights)
    assert qsattn("import", "latest_net_G.pth", "-o", "mine.safetensors").exit_code == 0
    Image.new("RGB", (37, 50), "teal").save("photo.png")
    said = qsattn("translate", "photo.png", "-m", "mine.safetensors", "-o", "out", "--device", "cpu")
    assert said.exit_code == 0, said.output
    with Image.open("out/photo.png") as picture:
        assert picture.size == (37, 50)
    said = qsattn("export", "mine.safetensors", "--format", "torchscript", "-o", "mine.pt")
    assert said.exit_code == 0, said.output
    recipe = [o for o in TINY if not o.startswith("generator")]
    recipe += ["generator={type: resnet_6blocks, width: 4}", "train.init_from=mine.safetensors"]
    assert same(Session(load_recipe("toy_cut", recipe)).method.generator.state_dict(), weights)


@pytest.mark.parametrize(("side", "levels"), [(256, 8), (128, 7), (64, 6)])
@pytest.mark.parametrize("norm", ["instance", "batch", "none"])
def test_u_nets_are_recognised(side, levels, norm):
    arguments = {"width": 4, "in_channels": 2, "out_channels": 1, "norm": norm}
    weights = {f"module.{key}": value for key, value in weights_of(f"unet_{side}", **arguments).items()}
    name, found = recognise(weights)
    assert name == f"unet_{side}"
    assert {"norm": "instance", **found} == arguments
    deeper = {key: value for key, value in weights.items() if "1.model.3.model.3.model" not in key}
    with pytest.raises(UserError, match="not a U-Net"):
        recognise(deeper)


def with_old_norms(weights: dict[str, Tensor], norms: dict[str, int]) -> dict[str, Tensor]:
    """The same, as torch 0.3 wrote it: instance norms with statistics that nothing reads."""
    old = {key: value for key, value in weights.items() if not key.endswith(".filt")}
    for norm, channels in norms.items():
        old |= {f"{norm}.running_mean": torch.zeros(channels), f"{norm}.running_var": torch.ones(channels)}
    return old


@pytest.mark.parametrize(
    ("name", "arguments", "norms"),
    [
        ("unet_128", {}, {"model.model.1.model.2": 8, "model.model.1.model.6": 4}),
        (
            "resnet_6blocks",
            {"antialias": False, "antialias_up": False},
            {"model.2": 4, **{f"model.{b}.conv_block.{i}": 16 for b in range(10, 16) for i in (2, 6)}},
        ),
        ("resnet_9blocks", {}, {"model.2": 4}),
    ],
)
def test_old_files_with_a_wrapper_s_prefix(tmp_path, name, arguments, norms):
    weights = weights_of(name, **arguments)
    old = {f"module.{key}": value for key, value in with_old_norms(weights, norms).items()}
    file = saved(tmp_path / "latest_net_G_A.pth", old, _use_new_zipfile_serialization=False)  # torch before 1.6
    said = qsattn("import", file, "-o", tmp_path / "x.safetensors")
    assert said.exit_code == 0, said.output
    assert same(load(tmp_path / "x.safetensors").generator.state_dict(), weights)
    assert f"left out, not used: {next(iter(norms))}.running_mean, " in said.output
    assert ("filled in: model.11.filt" in said.output) == (name == "resnet_9blocks")
    report = read_document(tmp_path / "x.safetensors")["imported"]
    assert sorted(report["left_out"]) == sorted(f"{n}.{b}" for n in norms for b in ("running_mean", "running_var"))
    assert report["file"] == "latest_net_G_A.pth" and len(report["sha256"]) == 64


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_residual_blocks_with_dropout(tmp_path, norm):
    weights = weights_of("resnet_6blocks", norm=norm)
    shifted = {}
    for key, value in weights.items():
        head, inner, rest = key.partition(".conv_block.")
        layer, _, what = rest.partition(".")
        shifted[f"{head}{inner}{int(layer) + (int(layer) > 3)}.{what}" if inner else key] = value
    assert shifted.keys() != weights.keys()
    file = saved(tmp_path / "latest_net_G.pth", shifted)
    assert qsattn("import", file, "-o", tmp_path / "x.safetensors").exit_code == 0
    assert same(load(tmp_path / "x.safetensors").generator.state_dict(), weights)


def prefixed(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{key}": value for key, value in weights.items()}


G, OTHER = "resnet_4blocks", cut_layout(4, 4, True, True)
ADAM = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.zeros(4)}}, "param_groups": [{"lr": 1e-4}]}
JUDGE = {"model.0.weight": torch.zeros(4, 3, 4, 4), "model.0.bias": torch.zeros(4)}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        (lambda g: {"epoch": 3, "netG": g, "netD": JUDGE, "optimizer_G": ADAM}, "netG"),
        (lambda g: {"state_dict": prefixed("module.", g), "epoch": 3}, "state_dict"),
        (lambda g: {"state_dict": prefixed("netG.", g) | prefixed("netD.", JUDGE)}, "state_dict.netG"),
        (lambda g: {"models": {"G": {"ema": g}, "D": JUDGE}}, "models.G.ema"),
        (lambda g: prefixed("generator.", g), "generator"),
        (lambda g: {**g, "epoch": 3}, ""),
    ],
)
def test_whole_checkpoints(tmp_path, content, place):
    weights = weights_of(G)
    file = saved(tmp_path / "checkpoint.pth", content(weights))
    said = qsattn("import", file, "-o", tmp_path / "x.safetensors")
    assert said.exit_code == 0, said.output
    assert same(load(tmp_path / "x.safetensors").generator.state_dict(), weights)
    assert read_document(tmp_path / "x.safetensors")["imported"]["place"] == place
    assert (f" at {place!r}:" in said.output) == bool(place)


def test_one_of_several_networks_must_be_chosen(tmp_path):
    weights = weights_of(G)
    file = saved(tmp_path / "c.pth", {"netG_A": weights, "netG_B": OTHER, "netD": JUDGE})
    text = refused("import", file, "-o", tmp_path / "x.safetensors")
    assert "several generators: netG_A, netG_B; choose one with --key netG_A" in text
    assert qsattn("import", file, "-o", tmp_path / "x.safetensors", "--key", "netG_A").exit_code == 0
    assert same(load(tmp_path / "x.safetensors").generator.state_dict(), weights)
    text = refused("import", file, "-o", tmp_path / "y.safetensors", "--key", "netG_C")
    assert "no network at 'netG_C'; did you mean 'netG_" in text


def test_an_architecture_that_keys_do_not_tell(tmp_path):
    weights = weights_of("mobile_resnet_9blocks", width=8)
    file = saved(tmp_path / "c.pth", {"ema": weights, "judge": JUDGE})
    assert "not a generator of CUT" in refused("import", file, "-o", tmp_path / "x.safetensors")
    said = qsattn(
        *("import", file, "-o", tmp_path / "x.safetensors", "--arch", "mobile_resnet_9blocks", "-s", "width=8")
    )
    assert said.exit_code == 0, said.output
    assert same(load(tmp_path / "x.safetensors").generator.state_dict(), weights)
    assert read_document(tmp_path / "x.safetensors")["imported"]["place"] == "ema"


def test_settings_over_what_was_found(tmp_path):
    file = saved(tmp_path / "c.pth", weights_of(G, norm="none"))  # as with instance norm: neither has weights
    out = tmp_path / "x.safetensors"
    settings = ("-s", "generator.norm=none", "--arch", G, "--trained", 256)
    assert qsattn("import", file, "-o", out, *settings).exit_code == 0
    assert load(out).trained == 256
    arguments = read_document(out)["generators"]["forward"]["arguments"]
    assert (arguments["norm"], arguments["width"], arguments["antialias"]) == ("none", 4, True)


class Runs:
    """An object whose reading runs a command."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.system, (f"touch {self.marker}",)


@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_file_is_run(tmp_path, new):
    marker = tmp_path / "it-ran"
    for content in ({"netG": weights_of(G), "then": Runs(marker)}, create("generator", G, width=4)):
        file = saved(tmp_path / "c.pth", content, _use_new_zipfile_serialization=new)
        text = refused("import", file, "-o", tmp_path / "x.safetensors")
        assert "holds more than tensors (" in text and "torch.save(netG.state_dict()" in text
        assert text.count("\n") == 1
    assert not marker.exists() and not (tmp_path / "x.safetensors").exists()
    torch.load(saved(tmp_path / "c.pth", Runs(marker)), weights_only=False)
    assert marker.exists(), "what was kept from running does run"


def scripted() -> torch.jit.ScriptModule:
    return torch.jit.trace(torch.nn.Conv2d(3, 1, 1), torch.zeros(1, 3, 2, 2))


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("make", "extra", "message"),
    [
        (lambda p: p.write_text("<html>404</html>"), (), "is a web page, not a file of weights"),
        (
            lambda p: p.write_text("version https://git-lfs.github.com/spec/v1"),
            (),
            "is a Git LFS pointer, not the file",
        ),
        (lambda p: p.write_bytes(saved(p, OTHER).read_bytes()[:5000]), (), "or it is damaged"),
        (lambda p: None, (), "there is no file "),
        (lambda p: p.mkdir(), (), "there is no file "),
        (lambda p: torch.jit.save(scripted(), p), (), "a TorchScript program, not weights"),
        (lambda p: saved(p, {"o": argparse.Namespace(a=1), **OTHER}), (), "more than tensors (argparse.Namespace)"),
        (lambda p: saved(p, {"epoch": 3}), (), "there are no tensors with names in it"),
        (lambda p: saved(p, torch.zeros(3)), (), "there are no tensors with names in it"),
        (lambda p: saved(p, JUDGE), (), "0 residual blocks and 1 other convolutions among 2 tensors"),
        (lambda p: saved(p, OTHER), ("--arch", "resnet_9block"), "did you mean 'resnet_9blocks'?"),
        (lambda p: saved(p, OTHER), ("--arch", "resnet_6blocks", "-s", "width=4"), "they look like resnet_4blocks"),
        (lambda p: saved(p, OTHER), ("-s", "widht=4"), "-s widht=4: generator.widht: there is no such key; did you"),
        (lambda p: saved(p, OTHER), ("-s", "width=four"), "generator.width: must be an integer, got"),
        (lambda p: saved(p, OTHER), ("-s", "width=0"), "generator 'resnet_4blocks': width: must be at least 1"),
        (lambda p: saved(p, OTHER), ("-s", "width"), "expected key=value"),
        (lambda p: saved(p, OTHER), ("-s", "width=8"), "model.1.weight: 4 x 3 x 7 x 7, the generator has 8 x 3 x 7"),
        (lambda p: saved(p, {**OTHER, "extra": JUDGE["model.0.bias"]}), (), "extra: 4, the generator has no such lay"),
        (lambda p: saved(p, OTHER), ("--key", "netG"), "has no network at 'netG'"),
    ],
)
def test_import_refuses_with_a_clear_line(tmp_path, make, extra, message):
    make(tmp_path / "c.pth")
    text = refused("import", tmp_path / "c.pth", "-o", tmp_path / "x.safetensors", *extra)
    assert message in text
    assert not (tmp_path / "x.safetensors").exists()


def test_import_replaces_nothing_unasked(tmp_path):
    file, out = saved(tmp_path / "c.pth", OTHER), tmp_path / "x.safetensors"
    out.write_text("precious")
    assert "exists already" in refused("import", file, "-o", out)
    assert out.read_text() == "precious"
    assert qsattn("import", file, "-o", out, "--overwrite").exit_code == 0
    assert "c.pth" in read_document(out)["imported"]["file"]
    before = file.read_bytes()
    refused("import", file, "-o", file)
    assert file.read_bytes() == before


def test_the_original_is_never_replaced(tmp_path):
    path = saved(tmp_path / "latest_net_G.pth", weights_of("resnet_4blocks", width=2))
    before = path.read_bytes()
    with pytest.raises(UserError, match="is the input itself"):
        import_weights(path, path, overwrite=True)
    assert path.read_bytes() == before


def test_resnets_without_a_norm_have_no_biases_in_their_project(tmp_path):
    """CUT's and CycleGAN's convolutions have biases beside instance norm alone; the last one always has."""
    generator = create("generator", "resnet_4blocks", width=4, norm="none")
    weights = generator.state_dict()
    for key in weights:
        if key.endswith(".bias") and key != [k for k in weights if k.endswith(".bias")][-1]:
            weights[key].zero_()
    generator.load_state_dict(weights)
    last = [k for k in weights if k.endswith(".bias")][-1]
    theirs = {key: value for key, value in weights.items() if not key.endswith(".bias") or key == last}
    assert recognise(theirs)[1]["norm"] == "none"
    done = import_weights(saved(tmp_path / "g.pth", theirs), tmp_path / "out.safetensors")
    assert done.arguments["norm"] == "none" and len(done.loaded.filled_in) > 10
    images = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    assert torch.equal(load(tmp_path / "out.safetensors")(images), generator.eval()(images))


def test_what_batch_norms_do_in_translations_is_said(tmp_path):
    path = saved(tmp_path / "g.pth", weights_of("resnet_4blocks", width=2, norm="batch"))
    done = qsattn("import", path, "-o", tmp_path / "out.safetensors")
    assert "batch norms use their running statistics here, as with test.py --eval" in done.output
