"""Every shipped recipe trains for two steps at a tiny size, and so do parts in the combinations that recipes allow."""

from __future__ import annotations

import json
import math

import pytest
from PIL import Image

from qsattn_plugin.registry import list_parts
from qsattn_plugin.registry.recipe import load_recipe, shipped_recipes
from qsattn_plugin.training.describe import part_table
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session

SMALL = (
    "generator.width=4",
    "discriminator.width=2",
    "train.steps=2",
    "train.log_every=1",
    "train.batch_size=2",
    "train.device=cpu",
    "evaluate={every: 2, grid: 1}",
)
FOLDERS = ("data.root=pictures", "data.resize=36", "data.crop=32")
TOY = ("data.size=32", "data.train=2", "data.test=1", "data.crop=32")


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("place")
    for number, split in enumerate(("trainA", "trainB", "testA", "testB")):
        (folder / "pictures" / split).mkdir(parents=True)
        for i in range(2):
            gradient = Image.linear_gradient("L").resize((40, 40)).rotate(90 * i + 30 * number)
            picture = Image.merge("RGB", (gradient, gradient.rotate(90), gradient.rotate(180)))
            picture.save(folder / "pictures" / split / f"{i}.png")
    return folder


def losses(run: Run) -> list[dict[str, float]]:
    lines = map(json.loads, (run.folder / "metrics.jsonl").read_text().splitlines())
    return [line["losses"] for line in lines if line["event"] == "train"]


def train(recipe, folder) -> None:
    run = Run.create(recipe, folder)
    fit(run)
    found = losses(run)
    assert len(found) == 2
    assert all(math.isfinite(v) for each in found for v in each.values())


@pytest.mark.parametrize("name", [name for name in shipped_recipes() if name.endswith("_cut")])
def test_the_baseline_differs_in_where_it_looks_alone(name):
    """Another method drops what was said about the first one's objective, and another sampler its arguments."""
    ours, baseline = (load_recipe(n).to_dict() for n in (name.removesuffix("_cut"), name))
    assert ours["sampler"].pop("type") == "qsattn_global" and baseline["sampler"].pop("type") == "random"
    assert {"queries": 256, **ours["sampler"]}["queries"] == {"queries": 256, **baseline["sampler"]}["queries"]
    for recipe in (ours, baseline):
        del recipe["name"], recipe["method"], recipe["sampler"]
    assert baseline == ours


# The systems of the paper are the same on each data set, and its comparisons are horse2zebra with other samplers.
TRAINED = [n for n in shipped_recipes() if not n.startswith(("cat2dog_", "cityscapes_", "compare_"))]


@pytest.mark.parametrize("name", TRAINED)
def test_every_shipped_recipe_trains(name, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(pictures)
    whole = load_recipe(name)
    data = TOY if whole.data.type == "toy" else FOLDERS
    settings = [s for s in (*SMALL, *data) if not (s.startswith("data.resize") and whole.data.preprocess == "crop")]
    if "shrink" in whole.discriminator.arguments:
        settings += ["data.resize=108", "data.crop=96"]
    if "pretrained" in whole.discriminator.arguments:  # which the tests do not download
        settings += ["discriminator={type: projected, model: test_efficientnet, pretrained: false, width: 2}"]
    if "pretrained" in whole.encoder.arguments:
        settings += ["encoder={type: timm, model: test_convnext, pretrained: false, taps: [0, 1]}"]
    recipe = load_recipe(name, settings)
    assert {row[0] for row in part_table(Session(recipe))} >= {"method", "data", "generator", "discriminator"}
    train(recipe, tmp_path / "run")


SYSTEMS = {  # method, sampler, epochs, epochs until the learning rate falls
    "": ("qsattn", "qsattn_global", 400, 200),
    "_qsattn_local": ("qsattn", "qsattn_local", 400, 200),
    "_qsattn_local_global": ("qsattn", "qsattn_local_global", 400, 200),
    "_cut": ("cut", "random", 400, 200),
    "_fastcut": ("fastcut", "random", 200, 150),
    "_cyclegan": ("cyclegan", "random", 200, 100),
}


@pytest.mark.parametrize(("data", "images"), [("horse2zebra", 1334), ("cat2dog", 5153), ("cityscapes", 2975)])
@pytest.mark.parametrize("system", SYSTEMS)
def test_every_system_of_the_paper_is_shipped_for_each_of_its_data_sets(system, data, images):
    method, sampler, epochs, constant = SYSTEMS[system]
    recipe = load_recipe(data + system)
    assert (recipe.name, recipe.method, recipe.sampler.type) == (data + system, method, sampler)
    assert (recipe.train.steps, recipe.train.decay_step) == (epochs * images, constant * images)
    assert recipe.data.arguments["root"].name == data
    assert recipe.generator.arguments.get("antialias", True) == (method != "cyclegan")


@pytest.mark.parametrize(
    ("name", "different"),
    [
        ("compare_attention_local", {"type": "qsattn_local"}),
        ("compare_attention_local_global", {"type": "qsattn_local_global"}),
        ("compare_routing_own", {"type": "qsattn_global", "routing": "own"}),
        ("compare_routing_select", {"type": "qsattn_global", "routing": "select"}),
        ("compare_significance_max_probability", {"type": "qsattn_global", "significance": "max_probability"}),
        ("compare_significance_norm", {"type": "qsattn_global", "significance": "norm"}),
        ("compare_significance_random", {"type": "qsattn_global", "significance": "random"}),
    ],
)
def test_comparisons_differ_from_horse2zebra_in_the_sampler_alone(name, different):
    recipe, base = load_recipe(name), load_recipe("horse2zebra").to_dict()
    compared = recipe.to_dict()
    sampler = recipe.build("sampler")
    assert all(getattr(sampler, key) == value for key, value in different.items() if key != "type")
    kept = base["sampler"] if different["type"] == base["sampler"]["type"] else {"queries": 256}
    assert compared == base | {"name": name, "sampler": kept | different}


ENCODERS = {
    "generator": "encoder={type: generator}",
    "timm": "encoder={type: timm, model: test_convnext.r160_in1k, taps: [0, 1]}",
}


@pytest.mark.parametrize("encoder", ENCODERS)
@pytest.mark.parametrize("sampler", [part.name for part in list_parts("samplers")])
def test_every_sampler_runs_on_every_encoder(sampler, encoder, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(pictures)
    recipe = load_recipe("toy", (*SMALL, *TOY, ENCODERS[encoder], f"sampler={{type: {sampler}, queries: 5}}"))
    train(recipe, tmp_path / "run")


# A method asks a generator for translations and features, or as CycleGAN for translations alone.
GENERATORS, METHODS = ([part.name for part in list_parts(kind)] for kind in ("generators", "methods"))
PAIRS = {(g, m) for g in GENERATORS for m in ("qsattn", "cyclegan")} | {("resnet_4blocks", m) for m in METHODS}


@pytest.mark.filterwarnings("ignore:no feature map has at most")  # the toy recipe's sampler with a U-Net's maps
@pytest.mark.parametrize(("generator", "method"), sorted(PAIRS))
def test_every_generator_and_every_method_trains(generator, method, pictures, monkeypatch, tmp_path):
    monkeypatch.chdir(pictures)
    side = {"unet_256": 256, "unet_128": 128, "unet_64": 64}.get(generator, 32)
    settings = [s for s in (*SMALL, *TOY) if not s.startswith("generator") and not s.endswith("32")]
    size = (
        f"data.size={side}",
        f"data.crop={side}",
        f"generator={{type: {generator}, width: 4}}",
        "sampler.queries=8",
    )
    train(load_recipe("toy", (*settings, f"method={method}", *size, "train.batch_size=1")), tmp_path / "run")
