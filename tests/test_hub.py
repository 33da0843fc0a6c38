"""torch.hub from a bare checkout: few packages, no installation, no network, weights that are checked."""

from __future__ import annotations

import runpy
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image

import qsattn_plugin
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]


def hub(entry: str = "qsattn_generator", **arguments):
    return torch.hub.load(str(ROOT), entry, source="local", **arguments)


@pytest.fixture
def checkout(tmp_path) -> Path:
    """What torch.hub downloads, without what no entry needs."""
    copy = tmp_path / "checkout"
    for folder in ("qsattn_plugin", "registry"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "hubconf.py", copy)
    return copy


#: A process that has torch, pillow, pyyaml and safetensors, but neither this package, its other needs nor a network.
#: `python -S` reads no .pth files, so that an editable installation of the package is not found.
BARE = """
import socket, sys, warnings
def refuse(*args, **kwargs):
    raise OSError("there is no network here")
socket.socket.connect = socket.create_connection = refuse
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "kornia", "pydantic", "click", "torchvision", "numpy"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
sys.meta_path.insert(0, Refuse())
sys.path += %r
import torch  # warns that numpy is not there
from PIL import Image
warnings.simplefilter("error", UserWarning)
checkout = %r
def load(entry, **arguments):
    return torch.hub.load(checkout, entry, source="local", **arguments)
"""


def bare(checkout: Path, program: str) -> subprocess.CompletedProcess:
    packages = [path for path in sys.path if path.endswith("site-packages")]
    command = [sys.executable, "-S", "-c", BARE % (packages, str(checkout)) + program]
    return subprocess.run(command, cwd=checkout.parent, capture_output=True, text=True)


def test_only_entries_are_public_and_their_help_reads_well():
    # torch.hub.list shows what is callable and begins with no underscore, torch.hub.help its docstring; neither takes a
    # local folder, so by hand:
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    assert {"qsattn_toy", "qsattn_horse2zebra", "qsattn_generator"} <= set(entries)
    assert all(entry.startswith("qsattn_") for entry in entries)
    for entry in entries:
        text = names[entry].__doc__
        assert "Args:" in text and "Returns:" in text and "torch.hub.load(" in text
    assert names["dependencies"] == ["torch", "PIL", "yaml", "safetensors"]


def test_a_bare_checkout_without_network_translates_and_refuses_tampered_weights(checkout):
    assert "ModuleNotFoundError" in bare(checkout, "import qsattn_plugin").stderr
    program = """
model = load("qsattn_toy")
picture = Image.radial_gradient("L").resize((70, 45)).convert("RGB")
print(model.translate(picture).size, model.training, next(model.parameters()).dtype)
again = load("qsattn_toy", device="cpu", progress=False)
x = torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
print(torch.equal(model(x), again(x)), torch.equal(model(x), load("qsattn_toy", pretrained=False)(x)))
print(tuple(load("qsattn_generator", type="resnet_4blocks", width=2)(x).shape))
"""
    done = bare(checkout, program)
    assert done.stdout == "(70, 45) False torch.float32\nTrue False\n(1, 3, 32, 32)\n", done.stderr
    file = next((checkout / "registry" / "weights").glob("toy*"))
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)
    done = bare(checkout, 'load("qsattn_toy")')
    assert "UserError" in done.stderr and "is not the file that was published" in done.stderr


def test_another_copy_of_the_package_is_noticed(checkout):
    with pytest.warns(UserWarning, match=r"has imported qsattn_plugin .* already"):
        torch.hub.load(str(checkout), "qsattn_generator", source="local", type="resnet_4blocks", width=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        hub(type="resnet_4blocks", width=2)


def test_a_trained_run_loads_and_translates(workplace):
    run = Run.create(load_recipe("toy", (*TINY, "train.steps=1")), workplace / "run")
    fit(run)
    model = hub(weights=str(workplace / "run"))
    assert not model.training
    picture = Image.linear_gradient("L").resize((50, 35))
    assert model.translate(picture).size == (50, 35)
    assert [p.size for p in model.translate([picture, picture.rotate(90, expand=True)])] == [(50, 35), (35, 50)]
    same = qsattn_plugin.load(run.checkpoints.path(1))
    x = torch.rand(1, 3, 32, 32) * 2 - 1
    assert torch.equal(same(x), model(x))
    with pytest.raises(UserError, match="do not give type, width"):
        hub(weights=str(workplace / "run"), type="unet_256", width=3)
    with pytest.raises(UserError, match="do not give width"):
        hub(weights=str(workplace / "run"), width=3)
    with pytest.raises(UserError, match="did you mean 'resnet_9blocks'"):
        hub(type="resnet_9block")
