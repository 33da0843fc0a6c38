"""The page on parts of one's own: its file is trained with, and every other command takes what came out."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from qsattn_plugin.data.images import read_image
from qsattn_plugin.evaluation.scoring import Evaluation
from qsattn_plugin.registry import register
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from tests.test_cli import qsattn, refused

PAGE = (Path(__file__).parents[1] / "docs" / "parts.md").read_text(encoding="utf-8")
SMALL = ("data.crop=32", "train.batch_size=2", "train.device=cpu", "evaluate={every: 4, grid: 1}")
CONTRASTIVE = ("objective={head_width: 8, gan: logistic}", "train.log_every=1")


pytestmark = pytest.mark.usefixtures("parts_go_again")


@pytest.fixture
def place(workplace):
    """A folder with the page's file and recipe."""
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    assert len(blocks) == 10
    Path("parts.py").write_text("\n".join(blocks))
    (recipe,) = re.findall(r"```yaml\n(.*?)```", PAGE, re.S)
    Path("mine.yaml").write_text(recipe)
    return workplace


@pytest.mark.parametrize(
    "settings",
    [
        (),
        ("train.precision=fp16",),
        ("method=cut", "sampler={type: centre, queries: 16}", *CONTRASTIVE),
        ("method=qsattn", "sampler={type: qsattn_global, queries: 16, significance: variance}", *CONTRASTIVE),
        ("method=qsattn", "encoder=averages", "sampler={type: qsattn_global, queries: 16}", *CONTRASTIVE),
        ("method=cut", "sampler={type: random, queries: 16}", *CONTRASTIVE, "objective.nce=[patchnce, bilinear]"),
    ],
    ids=["its method", "its method in fp16", "its sampler", "its significance", "its encoder", "its objective"],
)
def test_the_page_s_parts_train_and_carry_on_with_the_same_bytes(place, settings):
    ends = []
    for name, stops in (("whole", (None,)), ("parts", (2, None))):
        run = Run.create(load_recipe(Path("mine.yaml"), (*SMALL, *settings)), Path(name))
        for stop in stops:
            fit(run, max_steps=stop)
        ends.append(run.checkpoints.path(4).read_bytes())
    assert ends[0] == ends[1]


def test_what_was_trained_with_parts_of_ones_own_is_a_model_like_others(place):
    run = Run.create(load_recipe(Path("mine.yaml"), SMALL), Path("runs/mine"))
    fit(run)
    Image.effect_noise((51, 40), 60).convert("RGB").save("a.png")
    for arguments in (
        ("translate", "a.png", "-m", "mine", "-o", "out"),
        ("translate", "a.png", "-m", "mine", "-o", "tiles", "--tile", "32"),
        ("map", "a.png", "-m", "mine", "-o", "maps", "--queries", 9),
        ("export", "mine", "--format", "torchscript", "-o", "mine.pt"),
    ):
        done = qsattn(*arguments)
        assert done.exit_code == 0, done.output
    assert read_image(Path("out/a.png")).size == (51, 40)
    assert qsattn("publish", "mine", "-o", "published").exit_code == 0
    card = Path("published/README.md").read_text()
    assert "the parts of `parts.py`: import them first" in card and "--import FILE" in card
    (numbers,) = (json.loads(path.read_text()) for path in Path("maps").glob("*.json"))
    assert numbers["tap"] == "2" and len(numbers["queries"]) == 9


def test_parts_of_a_published_model_are_imported_by_the_command(place):
    Image.effect_noise((51, 40), 60).convert("RGB").save("a.png")
    run = Run.create(load_recipe(Path("mine.yaml"), SMALL), Path("runs/mine"))
    fit(run, max_steps=1)
    done = qsattn("publish", "mine", "-o", "mine.safetensors")
    assert done.exit_code == 0, done.output
    shutil.rmtree("runs")
    translate = (sys.executable, "-m", "qsattn_plugin.cli", "translate", "a.png", "-m", "mine.safetensors", "-o", "out")
    without = subprocess.run(translate, capture_output=True, text=True)
    assert without.returncode == 1 and "trained with parts from parts.py" in without.stderr
    assert "(--import FILE)" in without.stderr
    subprocess.run([*translate, "--import", "parts.py"], check=True, capture_output=True)
    assert read_image(Path("out/a.png")).size == (51, 40)


def test_a_metric_of_ones_own_is_scored_with(place):
    load_recipe(Path("mine.yaml"))
    for name, shade in (("a", 60), ("b", 100)):
        Path(name).mkdir()
        for index in range(2):
            Image.new("RGB", (16, 16), (shade,) * 3).save(f"{name}/{index}.png")
    scores = Evaluation("a", real="b", metrics=("swd", "brightness")).run()
    assert [figure.name for figure in scores.figures] == ["swd", "brightness"]
    assert scores["brightness"].value == 40
    assert "brightness needs --real, a folder" in refused("evaluate", "a", "--metrics", "brightness")
    assert "metric/brightness  Distance of the mean" in qsattn("list", "metrics").output
    assert "scored: anything" in qsattn("show", "metric/brightness").output
    of_all = Evaluation("a", real="b", extractor="tests.metric_parts:small", features=("6",)).run()
    assert [figure.name for figure in of_all.figures] == ["fid-6", "kid-6", "swd"]  # one's own must be named


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        (lambda scored, reel: None, "metric 'odd' asks for 'reel', which no evaluation has; did you mean 'real'?"),
        (lambda scored: 1.5, "metric 'odd' must return a Figure or a list of them, got 1.5"),
    ],
)
def test_metrics_that_cannot_be_used_are_refused_in_words(workplace, metric, message):
    register("metric", "odd")(metric)
    Path("a").mkdir()
    Image.new("RGB", (16, 16)).save("a/0.png")
    assert message in refused("evaluate", "a", "--metrics", "odd")


@pytest.mark.parametrize("given", [{}, {"source": "c", "masks": "b"}], ids=["without", "with"])
def test_what_a_metric_can_do_without_is_given_where_it_is_there(workplace, given):
    seen = {}

    @register("metric", "odd")
    def odd(scored, source=None, masks=None, unheard_of=None):
        seen.update(source=source and source.names, masks=masks and masks.names, unheard_of=unheard_of)
        return []

    for name, names in (("a", "12"), ("b", "012"), ("c", "2143")):
        Path(name).mkdir()
        for picture in names:
            Image.new("RGB", (16, 16)).save(f"{name}/{picture}.png")
    assert Evaluation("a", metrics=("odd",), **given).run().figures == []
    partners = ["1", "2"] if given else None  # of b's and c's three and four pictures, in the order of a's
    assert seen == {"source": partners, "masks": partners, "unheard_of": None}


GENERATORS = """
import enum
import pathlib
from torch import nn
from qsattn_plugin.registry import register

class Kind(enum.Enum):
    plain = "plain"

class Net(nn.Module):
    def __init__(self, channels):
        super().__init__()
        self.layer = nn.Conv2d(channels, channels, 1)
    def forward(self, x):
        return self.layer(x)

@register("generator", "needs-channels")
def needs(in_channels: int):
    '''Its channels have no default.'''
    return Net(in_channels)

@register("generator", "takes-none")
def none(act: type = nn.ReLU, kind: Kind = Kind.plain):
    '''It is for three channels, and has a default that is no JSON.'''
    return Net(3)

@register("generator", "takes-a-file")
def file(path: pathlib.Path, kind: Kind = Kind.plain):
    '''It is told a file.'''
    assert str(path).endswith("parts.py")
    return Net(3)
"""


@pytest.mark.parametrize(
    "generator",
    ["needs-channels", "takes-none", "{type: takes-a-file, path: parts.py, kind: plain}"],
    ids=["needs channels", "takes none", "takes a file"],
)
def test_generators_with_arguments_of_other_kinds_train_and_load(workplace, generator):
    Path("parts.py").write_text(GENERATORS)
    text = f"extends: toy_cyclegan\nimport: [./parts.py]\ngenerator: {generator}\ntrain: {{steps: 1}}\n"
    Path("mine.yaml").write_text(text)
    run = Run.create(load_recipe(Path("mine.yaml"), (*SMALL, "data={size: 32, train: 2, test: 1}")), Path("runs/mine"))
    fit(run)
    Image.new("RGB", (20, 16)).save("a.png")
    done = qsattn("translate", "a.png", "-m", "mine", "-o", "out")
    assert done.exit_code == 0, done.output


DEAF = """
import torch
from qsattn_plugin.registry import register

@register("augmentation", "deaf")
class Deaf(torch.nn.Module):
    '''Does nothing.'''

    def forward(self, x):
        return x
"""


def test_an_augmentation_that_takes_no_generator_is_refused_in_words(workplace):
    Path("parts.py").write_text(DEAF)
    Path("mine.yaml").write_text("extends: toy\nimport: [./parts.py]\naugmentations: [deaf]\n")
    done = qsattn("build", "mine.yaml")
    assert done.exit_code == 1 and "mine.yaml:3: augmentations: cannot be applied" in done.output, done.output


def test_a_generator_without_layers_to_look_at_is_refused_in_words(workplace):
    Path("parts.py").write_text(GENERATORS)
    Path("mine.yaml").write_text("extends: toy\nimport: [./parts.py]\ngenerator: needs-channels\n")
    done = qsattn("build", "mine.yaml")
    assert done.exit_code == 1 and "derive it from TappedGenerator" in done.output
