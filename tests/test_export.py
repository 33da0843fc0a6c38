"""Exports: every format against the original, with any size and batch, and what is refused."""

from __future__ import annotations

import errno
import importlib.util
import itertools
import json
import os
import re
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from PIL import Image
from torch import Tensor

from qsattn_plugin.cli import main
from qsattn_plugin.cli.export import command
from qsattn_plugin.data.pixels import to_channels
from qsattn_plugin.registry import REGISTRY, create, find, register
from qsattn_plugin.registry.generators import ResnetGenerator
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.translation.export import TOLERANCE, export, subject_of
from qsattn_plugin.translation.export.formats import FORMATS as WRITERS
from qsattn_plugin.translation.export.formats import cut_options, too_old
from qsattn_plugin.translation.load import load
from tests.test_cli import qsattn, refused
from tests.test_generators import cut_layout

FORMATS = {"onnx": ".onnx", "torchscript": ".pt", "pt2": ".pt2", "cut": ".pth"}
ARCHITECTURES = ("resnet_9blocks", "mobile_resnet_9blocks", "swift_resnet_6blocks", "unet_128")


def needs(format: str) -> None:
    """Skip where a format's extra is not installed, or PyTorch is too old."""
    if too_old(format):
        pytest.skip(f"{format} needs a newer PyTorch than {torch.__version__}")
    for package in ("onnxscript", "onnxruntime") if format == "onnx" else ():
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"the extra `onnx` is not installed: no {package}")


def weights_file(path: Path, name: str, seeds: dict[str, int] | None = None, **arguments: object) -> Path:
    """Write generators, wide awake rather than freshly drawn, as a run's checkpoint holds them."""
    defaults = {n: p.default for n, p in find("generator", name).signature.parameters.items()}
    arguments = {**defaults, "width": 4, **arguments}
    tensors, generators = {}, {}
    for which, seed in (seeds or {"forward": 0}).items():
        generator = create("generator", name, **arguments)
        draws = torch.Generator().manual_seed(seed)
        for key, value in generator.state_dict().items():
            moved = value.is_floating_point() and not key.endswith((".filt", "running_var"))
            tensors[f"{which}/{key}"] = value + 0.1 * torch.randn(value.shape, generator=draws) if moved else value
        generators[which] = {"type": name, "arguments": arguments, "prefix": f"{which}/"}
    document = {"generators": generators, "recipe": {"name": "mine"}, "step": 7}
    save_tensors(path, tensors, document)
    return path


def read(format: str, path: Path):
    """The function that a file is, and the document in it: read as docs/export.md says, without this package's code."""
    if format == "onnx":
        import onnxruntime

        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        document = session.get_modelmeta().custom_metadata_map["qsattn.json"]
        return lambda x: torch.from_numpy(session.run(None, {"images": x.numpy()})[0]), json.loads(document)
    extra = {"qsattn.json": ""}
    if format == "torchscript":
        return torch.jit.load(path, _extra_files=extra), json.loads(extra["qsattn.json"])
    return torch.export.load(path, extra_files=extra).module(), json.loads(extra["qsattn.json"])


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("format", "name"),
    [*itertools.product(["onnx", "torchscript", "pt2"], ARCHITECTURES), ("torchscript", "unet_256")],
)
def test_export_does_what_the_generator_does_at_any_size(tmp_path, format, name):
    needs(format)
    model = weights_file(tmp_path / "model.safetensors", name)
    said = qsattn("export", model, "--format", format, "-o", tmp_path / "out")
    assert said.exit_code == 0, said.output
    path = tmp_path / f"out/mine{FORMATS[format]}"
    assert str(path) in said.output and "equal to the original within" in said.output
    assert [p.name for p in path.parent.iterdir()] == [path.name], "nothing else is left there"

    original = load(model).eval()
    multiple = original.generator.multiple
    run, document = read(format, path)
    assert document["generator"] == name and document["name"] == "mine" and document["step"] == 7
    assert (document["range"], document["channels"], document["multiple"]) == ([-1, 1], 3, multiple)
    # Neither size nor batch is one that the export itself was traced or compared with.
    for batch, height, width in ((4, 1, 2), (1, 3, 1)) if multiple > 8 else ((4, 5, 23), (1, 30, 11), (2, 4, 4)):
        images = torch.rand(batch, 3, height * multiple, width * multiple) * 2 - 1
        expected, found = original(images), run(images)
        assert found.shape == expected.shape == images.shape
        # float32 in another order of operations; the largest difference seen, at full width, is 8e-6.
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)
    if format != "torchscript":  # which keeps where each operator came from, for its error messages
        assert str(Path(__file__).parents[1]).encode() not in path.read_bytes(), "folders of this machine"


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("resnet_9blocks", {}),
        ("resnet_9blocks", {"antialias": False, "antialias_up": False}),
        ("resnet_6blocks", {"norm": "batch", "in_channels": 1, "out_channels": 1}),
        ("unet_256", {}),
        ("unet_128", {"norm": "batch"}),
    ],
)
def test_cut_export_is_a_plain_state_dict_with_cuts_keys(tmp_path, name, arguments):
    model = weights_file(tmp_path / "model.safetensors", name, **arguments)
    folder = tmp_path / "checkpoints/mine.v2"  # as CUT names them: checkpoints/NAME/latest_net_G.pth
    said = qsattn("export", model, "--format", "cut", "-o", folder)
    assert said.exit_code == 0, said.output
    path = folder / "latest_net_G.pth"
    written = torch.load(path, weights_only=True)
    assert type(written) is OrderedDict and not hasattr(written, "_metadata")
    own = load(model).generator.state_dict()
    assert list(written) == list(own)
    assert all(torch.equal(written[key], own[key]) and written[key].dtype == own[key].dtype for key in own)
    if name == "resnet_9blocks":
        expected = cut_layout(9, 4, arguments.get("antialias", True), arguments.get("antialias_up", True))
        assert {k: v.shape for k, v in written.items()} == {k: v.shape for k, v in expected.items()}
    grey = arguments.get("in_channels") == 1  # which CUT's script cannot read
    assert (f"CUT builds this network with: --netG {name} --ngf 4" in said.output) != grey
    assert ("no options of CUT's or CycleGAN's" in said.output) == grey  # as it blurs, too
    assert ("--no_antialias --no_antialias_up" in said.output) == ("antialias" in arguments)
    # CycleGAN's networks do not blur.
    assert ("CycleGAN builds" in said.output) == (name.startswith("unet") or "antialias" in arguments)
    assert said.output.count(" --eval") == said.output.count("builds") * (arguments.get("norm") == "batch")


@pytest.mark.parametrize(
    ("name", "arguments"), [("mobile_resnet_9blocks", {}), ("unet_64", {}), ("resnet_6blocks", {"norm": "none"})]
)
def test_cut_cannot_hold_everything(tmp_path, name, arguments):
    model = weights_file(tmp_path / "model.safetensors", name, **arguments)
    text = refused("export", model, "--format", "cut", "-o", tmp_path / "out")
    assert f"CUT and CycleGAN cannot read this {name}" in text.splitlines()[-1]
    assert not (tmp_path / "out").exists()


def test_cut_options_for_a_network_that_cuts_script_does_not_offer(tmp_path):
    subject = subject_of(load(weights_file(tmp_path / "model.safetensors", "resnet_4blocks")))
    assert cut_options(subject) == {}
    assert export(subject, "cut", tmp_path).path == tmp_path / "latest_net_G.pth"


def test_the_other_generator_of_a_pair(tmp_path):
    model = weights_file(tmp_path / "m.safetensors", "resnet_4blocks", {"backward": 1, "forward": 2})
    for which, extra in (("forward", ()), ("backward", ("--generator", "backward"))):
        said = qsattn("export", model, "--format", "cut", "-o", tmp_path / which / "g.pth", *extra)
        assert said.exit_code == 0, said.output
        written = torch.load(tmp_path / which / "g.pth", weights_only=True)
        expected = load(model, name=which).generator.state_dict()
        assert all(torch.equal(written[key], expected[key]) for key in expected)


PAGE = (Path(__file__).parents[1] / "docs/export.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("formats", "modules", "also"),
    [
        (["onnx"], "{'torch', 'qsattn_plugin'}", "assert translations.shape == images.shape"),
        (
            ["torchscript", "pt2"],
            "{'qsattn_plugin'}",
            "x = torch.rand(2, 3, 40, 36)\n"
            "with torch.inference_mode():\n"
            "    found, traced = model(x), torch.jit.load('mine.pt')\n"
            "    assert (found - traced(x)).abs().max() < 1e-5\n"  # float32 in another order, if at all
            "    double = traced.double()(x.double())\n"
            "assert double.dtype == torch.float64 and (found - double).abs().max() < 1e-4",
        ),
    ],
)
def test_the_page_s_programs_read_exports_without_this_package(tmp_path, formats, modules, also):
    """Run the page's programs in a fresh process; a TorchScript file may also change its precision."""
    subject = subject_of(load(weights_file(tmp_path / "m.safetensors", "resnet_4blocks")))
    for wanted in formats:
        needs(wanted)
        export(subject, wanted, tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    program = next(block for block in blocks if f"mine{FORMATS[formats[0]]}" in block)
    program += (
        f"{also}\nimport sys\nassert not {modules} & set(sys.modules)\nprint(facts['generator'], facts['multiple'])"
    )
    arguments = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(arguments, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "resnet_4blocks 4\n", done.stderr


def test_the_page_s_program_for_photographs_does_what_translate_does(tmp_path):
    needs("onnx")
    translator = load(weights_file(tmp_path / "m.safetensors", "resnet_4blocks"))
    translator.trained = 62  # padded to 64
    export(subject_of(translator), "onnx", tmp_path / "mine.onnx")
    photo = Image.effect_noise((150, 100), 60).resize((300, 200)).convert("RGB")
    photo.save(tmp_path / "photo.jpg", quality=100)
    (program,) = [block for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL) if "photo.jpg" in block]
    program += "import sys\nassert not {'torch', 'qsattn_plugin'} & set(sys.modules)\n"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    with Image.open(tmp_path / "photo.jpg") as photo:
        expected = to_channels(translator.translate(photo, at="trained"), 3).int()
    with Image.open(tmp_path / "translated.png") as found:
        difference = (to_channels(found, 3).int() - expected).abs()
    # The package rounds the small translation to 8 bits.
    assert difference.max() <= 2 and (difference > 0).float().mean() < 0.5


def test_the_command_offers_the_formats_there_are():
    (option,) = [option for option in command.params if option.name == "format"]
    assert list(option.type.choices) == [*WRITERS, "web"]


@pytest.fixture
def fickle():
    """Register generators whose exports are wrong, each in its own way; forget them afterwards."""

    def add(name: str, change) -> None:
        def forward(self, x: Tensor, taps=(), encode_only: bool = False) -> Tensor:
            return change(self, ResnetGenerator.forward(self, x))

        register("generator", name)(type(name, (ResnetGenerator,), {"blocks": 1, "forward": forward}))

    # Tracing keeps what Python found when it looked: here that it was tracing, and the width of that one image.
    add("fickle_value", lambda self, y: y + 2 * TOLERANCE if torch.jit.is_tracing() else y)
    add("fickle_size", lambda self, y: y + torch.zeros(int(y.shape[3])))
    add("fickle_shape", lambda self, y: y[..., :-4, :] if torch.jit.is_tracing() else y)
    add("fickle_python", lambda self, y: y if y.mean() > 5 else y * 1)
    yield
    for key in [key for key in REGISTRY._parts if key[1].startswith("fickle_")]:
        del REGISTRY._parts[key]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
@pytest.mark.parametrize(
    ("name", "format", "why"),
    [
        ("fickle_value", "torchscript", "random images of 1 x 3 x 64 x 68 it differs from the original by 0.002"),
        ("fickle_size", "torchscript", "it does not take images of 1 x 3 x 64 x 68: RuntimeError: "),
        ("fickle_shape", "torchscript", "it makes 1 x 3 x 60 x 68 of 1 x 3 x 64 x 68"),
        ("fickle_python", "pt2", "generator 'fickle_python' cannot be written as pt2: "),
    ],
)
def test_an_export_that_differs_is_refused_and_removed(tmp_path, fickle, name, format, why):
    needs(format)
    model = weights_file(tmp_path / "model.safetensors", name)
    out = tmp_path / f"out/model{FORMATS[format]}"
    text = refused("export", model, "--format", format, "-o", out)
    assert why in text
    assert not list(out.parent.iterdir())
    # What stood there before stands there still.
    out.write_text("precious")
    assert "exists already" in refused("export", model, "--format", format, "-o", out)
    refused("export", model, "--format", format, "-o", out, "--overwrite")
    assert [p.read_text() for p in out.parent.iterdir()] == ["precious"]


@pytest.mark.filterwarnings("ignore:`torch.jit:FutureWarning")
def test_a_generator_that_gives_no_numbers_is_refused(tmp_path):
    subject = subject_of(load(weights_file(tmp_path / "m.safetensors", "resnet_4blocks")))
    with torch.no_grad():
        next(subject.generator.parameters()).fill_(torch.nan)
    for wanted in ("torchscript", "cut"):
        with pytest.raises(Exception, match="differs from the original by nan") as caught:
            export(subject, wanted, tmp_path / "out")
        assert type(caught.value).__name__ == "UserError"
        assert not list((tmp_path / "out").iterdir())


def test_the_extra_is_named_where_it_is_missing(tmp_path, monkeypatch):
    model = weights_file(tmp_path / "m.safetensors", "resnet_4blocks")
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    text = refused("export", model, "--format", "onnx", "-o", tmp_path / "out.onnx")
    assert "onnxscript" in text and "pip install onnxscript onnxruntime" in text
    assert not (tmp_path / "out.onnx").exists()


def test_the_model_itself_is_never_overwritten(tmp_path):
    model = weights_file(tmp_path / "model.pth", "resnet_4blocks")
    before = model.read_bytes()
    text = refused("export", model, "--format", "cut", "-o", model, "--overwrite")
    assert "is the model itself" in text
    assert model.read_bytes() == before


@pytest.mark.parametrize("format", ["torchscript", "pt2", "cut"])
def test_a_full_disk_is_said_and_nothing_left(tmp_path, monkeypatch, format):
    """PyTorch's own writers end the process where there is no room: they write to memory."""
    needs(format)
    model = weights_file(tmp_path / "m.safetensors", "resnet_4blocks")

    def full(path: Path, content: bytes) -> None:
        assert len(content) > 10_000
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left on device" in refused("export", model, "--format", format, "-o", tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("model", ["toy", "pretrained/toy"])
def test_a_published_model_is_exported_by_its_name(workplace, model):
    done = CliRunner().invoke(main, ["export", model, "--format", "torchscript", "-o", "out/"])
    assert done.exit_code == 0, done.output
    assert [p.name for p in Path("out").iterdir()] == ["toy.pt"]
