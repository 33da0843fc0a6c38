"""Python as a way in: the quick start runs, mistakes are answered in words, notebooks see runs and maps."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import qsattn_plugin as qs
from qsattn_plugin.attention import row_entropy, select_queries
from qsattn_plugin.translation.load import published

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "quickstart.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The names of the page's Python after it has run in an empty folder, and that folder."""
    folder = tmp_path_factory.mktemp("quickstart")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        names: dict = {}
        for block in re.findall(r"```python\n(.*?)```", PAGE, re.S):
            exec(block, names)
        yield names, folder


def test_the_quick_start_runs(executed):
    names, folder = executed
    assert names["zebra"].size == (120, 90)
    assert {path.name for path in (folder / "runs" / "mine" / "checkpoints").iterdir()} >= {
        "step-000000002.safetensors"
    }
    assert names["scores"] and names["run"].recipe.sampler.type == "qsattn_global"
    assert names["map_"].queries.shape[1] == 2 and (folder / "map.png").is_file()
    assert names["anchors"][0].shape == names["positives"][0].shape == (1, 128, 64)


def test_a_run_takes_files_and_lists_and_is_found_again(executed, tmp_path):
    names, folder = executed
    names["photo"].save(tmp_path / "photo.png")
    one, other = names["run"].translate([tmp_path / "photo.png", names["photo"]])
    assert one.tobytes() == other.tobytes() == names["zebra"].tobytes()
    again = qs.Training.open(folder / "runs" / "mine")
    assert isinstance(again, qs.Training) and again.recipe == names["run"].recipe
    assert again.fit() == names["scores"]  # it is done


def test_a_notebook_sees_runs_and_maps(executed):
    names, _ = executed
    text = names["run"]._repr_html_()
    assert "2 of 2" in text and "qsattn_global" in text and 'src="data:image/jpeg;base64,' in text
    text = names["map_"]._repr_html_()
    assert re.search(r"entropy of \d+ x \d+ rows", text) and 'src="data:image/png;base64,' in text


def test_a_new_run_is_shown_and_a_training_is_kept(workplace):
    run = qs.build("toy", folder="a<b", train={"steps": 900}, data={"size": 32, "crop": 32, "train": 4, "test": 2})
    assert "a&lt;b" in run._repr_html_() and "0 of 900" in run._repr_html_()
    (run.folder / "checkpoints").mkdir()
    (run.folder / "checkpoints" / "best.safetensors").write_bytes(b"")
    with pytest.raises(qs.UserError, match="replace it with --overwrite"):
        qs.build("toy", folder="a<b")


def test_mistakes_in_settings_name_the_key(workplace):
    with pytest.raises(qs.UserError, match="train.stepz.*steps"):
        qs.build("toy", train={"stepz": 2})
    with pytest.raises(qs.UserError, match="qsattn_lokal.*qsattn_local"):
        qs.build("toy", sampler="qsattn_lokal")
    with pytest.raises(qs.UserError, match=r"^sampler: must be a number, text, .* got <class .*QSAttnSampler'>"):
        qs.build("toy", sampler=qs.QSAttnSampler)
    assert not list(workplace.iterdir())


def test_settings_may_be_paths_and_numbers_of_other_libraries(workplace):
    (workplace / "d" / "trainA").mkdir(parents=True)
    for name in ("trainA/a.png", "trainB/b.png"):
        (workplace / "d" / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (64, 64)).save(workplace / "d" / name)
    train = {"lr": np.float64(1e-3), "seed": np.int64(3), "betas": torch.tensor([0.5, 0.75])}
    recipe = qs.build("toy", data={"type": "folders", "root": Path("d")}, train=train).recipe
    assert recipe.data.arguments["root"] == workplace / "d"
    assert (recipe.train.lr, recipe.train.seed, recipe.train.betas) == (1e-3, 3, (0.5, 0.75))


def test_models_by_pattern():
    assert qs.list_models("horse*") == ["horse2zebra", "horse2zebra_mobile"]
    assert "toy" in qs.list_models() and qs.list_models("no*") == []


MODEL_MISTAKES = [
    (lambda m: m(torch.zeros(3, 64, 64)), qs.UserError, r"must be \(B, 3, H, W\), got \(3, 64, 64\).*images\[None\]"),
    (lambda m: m(torch.zeros(1, 1, 64, 64)), qs.UserError, r"must be \(B, 3, H, W\), got \(1, 1, 64, 64\)$"),
    (lambda m: m(torch.zeros(1, 3, 64, 64, dtype=torch.uint8)), qs.UserError, "floats in .*127.5"),
    (lambda m: m.translate(torch.zeros(1, 3, 64, 64)), TypeError, "PIL images, got Tensor; call the model itself"),
    (lambda m: m.translate("photo.jpg"), TypeError, "PIL images, got str; open it with PIL.Image.open"),
    (
        lambda m: qs.QSAttnSampler().choose(torch.zeros(1, 8, 4, 4)),
        qs.UserError,
        r"a list of feature maps.*\[features\]",
    ),
    (lambda m: select_queries(torch.zeros(16), 2), ValueError, r"significance: must be \(B, HW\)"),
    (lambda m: row_entropy(torch.zeros(16, 8)), ValueError, r"features: must be \(B, HW, C\)"),
]


@pytest.mark.parametrize(("call", "kind", "words"), MODEL_MISTAKES)
def test_mistakes_are_answered_in_words(call, kind, words):
    with pytest.raises(kind, match=words):
        call(qs.load("toy"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("load", [qs.load, published, lambda *a, **k: published(*a, pretrained=False, **k)])
def test_a_device_that_is_not_there_is_told(load):
    with pytest.raises(qs.UserError, match="device 'meta' cannot be used here"):
        load("toy", device="meta")
    with pytest.raises(qs.UserError, match="device 'cuda' cannot be used here"):
        load("toy", device="cuda")


def test_the_module_is_the_command_line():
    done = subprocess.run(
        [sys.executable, "-m", "qsattn_plugin", "--version"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.stdout.startswith(f"qsattn, version {qs.__version__}"), done.stderr
