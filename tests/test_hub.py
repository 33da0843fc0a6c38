"""torch.hub from a bare checkout: few packages, no network, weights from a file."""

from __future__ import annotations

import runpy
import subprocess
import sys
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


def hub(**arguments):
    return torch.hub.load(str(ROOT), "qsattn_generator", source="local", **arguments)


def test_only_entries_are_public():
    # torch.hub.list shows what is callable and begins with no underscore; it takes no local folder, so by hand:
    names = runpy.run_path(str(ROOT / "hubconf.py"))
    entries = [name for name, value in names.items() if callable(value) and not name.startswith("_")]
    assert entries == ["qsattn_generator"]
    assert all("Args:" in names[entry].__doc__ for entry in entries)
    assert names["dependencies"] == ["torch", "PIL", "yaml", "safetensors"]


def test_needs_few_packages(tmp_path):
    program = f"""
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("timm", "kornia", "pydantic", "click", "torchvision"):
            raise ImportError(f"{{name}} is not here")
sys.meta_path.insert(0, Refuse())
import torch
model = torch.hub.load({str(ROOT)!r}, "qsattn_generator", source="local", type="resnet_4blocks", width=2)
print(tuple(model(torch.zeros(1, 3, 32, 32)).shape))
"""
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "(1, 3, 32, 32)\n", done.stderr


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
    with pytest.raises(UserError, match="do not give width"):
        hub(weights=str(workplace / "run"), width=3)
    with pytest.raises(UserError, match="did you mean 'resnet_9blocks'"):
        hub(type="resnet_9block")
