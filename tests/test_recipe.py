"""Recipes: what they mean, how they stack, what they build, and how they are written down again."""
# ruff: noqa: F401, F811 - pytest finds fixtures by their names in the module

from __future__ import annotations

import json
import pickle
from pathlib import Path

import pytest

from qsattn_plugin import registry
from qsattn_plugin.registry.recipe import Recipe, RecipeError, load_recipe, shipped_recipes
from qsattn_plugin.registry.recipe.json_schema import json_schema
from qsattn_plugin.registry.recipe.schema import PIPELINE
from tests.recipe_parts import GOOD, Generator, load, parts


def test_defaults(load, parts):
    recipe = load(GOOD)
    assert (recipe.name, recipe.method, recipe.source) == ("my", "qsattn", "my.yaml")
    assert (recipe.data.type, recipe.data.arguments) == ("folders", {"root": parts / "x"})
    assert (recipe.data.direction, recipe.data.resize, recipe.data.crop) == ("AtoB", 286, 256)
    assert recipe.generator.type == "resnet_9blocks"
    assert recipe.sampler.arguments == {"queries": 64}  # the method's, over the part's own
    assert recipe.augmentations == []
    assert recipe.objective == {"gan": "lsgan", "weight": 2.0}  # the signature's and the method's
    assert (recipe.train.lr, recipe.train.decay_step, recipe.train.ema) == (1e-3, 50, 0)
    assert (recipe.checkpoint.keep, recipe.evaluate.images) == (2, 128)


@pytest.mark.parametrize(
    ("written", "value"),
    [("1e5", 100_000), ("533_600", 533_600), ("5.0", 5), ("0x10", 16), ("007", 7), ("+3", 3)],
)
def test_integers_as_people_write_them(load, written, value):
    steps = load(f"data: {{root: x}}\ntrain: {{steps: {written}}}").train.steps
    assert steps == value
    assert type(steps) is int


@pytest.mark.parametrize(
    ("written", "value"), [("2e-4", 2e-4), ("2.e-4", 2e-4), (".5", 0.5), ("1", 1.0), ("1_000.5", 1000.5)]
)
def test_floats_as_people_write_them(load, written, value):
    lr = load(GOOD, f"train.lr={written}").train.lr
    assert lr == value
    assert type(lr) is float


@pytest.mark.parametrize(
    "written", ["no", "on", "y", "1e5", "001", "2001-12-14", "12:30:45", "true", "0x1F", "'a: b'", ".inf", "1_000"]
)
def test_text_stays_as_written(load, written):
    recipe = load(f"data: {{root: x, note: {written}}}\ntrain: {{steps: 1}}")
    assert recipe.data.arguments["note"] == written.strip("'")
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def test_anchors_merge_keys_and_a_byte_order_mark(load):
    recipe = load(
        "\ufeffdata: {root: x}\n"
        "train: &t {steps: 9, seed: 1}\n"
        "generator: {<<: {width: 2, taps: [a, 1]}, width: 3}\n"
        "sampler: {queries: &n 7}\n"
        "evaluate: {every: *n}\n"
    )
    assert recipe.generator.arguments == {"width": 3, "taps": ("a", 1)}
    assert recipe.evaluate.every == 7


def test_paths_are_absolute(load, monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    recipe = load(GOOD, "data.root=~/a/../b", "train.init_from=c.pth")
    assert recipe.data.arguments["root"] == Path("/home/somebody/b")
    assert recipe.train.init_from == Path.cwd() / "c.pth"


STACKS = [
    # mappings merge, lists are replaced, later wins
    ("train: {seed: 2}", "train: {seed: 3, batch_size: 4}", (), "train.seed", 3),
    ("train: {seed: 2}", "train: {batch_size: 4}", (), "train.seed", 2),
    ("augmentations: [flip]", "augmentations: [loose, {type: flip, p: 1}]", (), "augmentations.0.type", "loose"),
    ("augmentations: [flip]", "augmentations: []", (), "augmentations", []),
    ("sampler: {type: attention, options: {a: 1}}", "sampler: {options: {b: 2}}", (), "sampler.options.a", 1),
    # explicit keys lie over the method's defaults, in whichever file they stand
    ("train: {lr: 5}", "method: qsattn", (), "train.lr", 5),
    # a different type drops the arguments below it; the same type keeps them
    ("sampler: {type: attention, rows: high}", "sampler: points", (), "sampler", {"type": "points", "queries": 64}),
    ("sampler: {type: attention, rows: high}", "sampler: random", (), "sampler", {"type": "random"}),
    ("sampler: {type: attention, rows: high}", "sampler: attention", (), "sampler.rows", "high"),
    ("sampler: {grid: true}", "sampler: {type: attention}", (), "sampler", {"type": "attention"}),
    ("data: {note: a, crop: 8}", "data: toy", (), "data.crop", 8),
    # data keeps the pipeline's keys; the child's own arguments stay
    ("data: {note: a}", "data: {type: toy, size: 3}", (), "data.size", 3),
    # a different method has other defaults and other settings, and exchanges the parts that were left to it
    ("objective: {weight: 7}", "method: qsattn", (), "objective.weight", 7),
    ("objective: {weight: 7}", "method: cycle", (), "objective", {"cycle": 10.0}),
    ("sampler: {grid: true}", "method: cycle", (), "sampler", {"type": "attention"}),
    ("sampler: {type: points, grid: true}", "method: cycle", (), "sampler", {"type": "points", "grid": True}),
    # a recipe that extends another is not that one
    ("name: base", "", (), "name", "my"),
    # overrides
    ("train: {seed: 2}", "train: {seed: 3}", ("train.seed=4", "train.seed=5"), "train.seed", 5),
    ("", "sampler: {type: attention, rows: high}", ("sampler=random",), "sampler", {"type": "random"}),
    ("", "", ("train={seed: 8, betas: [0, 0.5]}",), "train.betas", [0.0, 0.5]),
    # what stands before the name of its part or method is said of it; what another name is given goes with that one
    ("", "", ("sampler.queries=8", "sampler=points"), "sampler", {"type": "points", "queries": 8}),
    ("", "", ("objective.cycle=3", "method=cycle"), "objective", {"cycle": 3.0}),
    ("", "", ("sampler={type: points, queries: 8}", "sampler=random"), "sampler", {"type": "random"}),
    ("", "sampler: {queries: 8}", ("method=cycle", "sampler=points"), "sampler.queries", 8),  # one layer together
    ("", "", ("train.images=30", "data.root=y", "train.epochs=2"), "train.steps", 60),  # images: of the data named
    ("", "augmentations: [loose]", ("augmentations.0.p=1", "augmentations.0=flip"), "augmentations.0.p", 1.0),
    ("", "", ("augmentations.0.p=1", "augmentations=[loose]"), "augmentations", [{"type": "loose"}]),
    ("", "augmentations: [flip]", ("augmentations.0.p=.25",), "augmentations", [{"type": "flip", "p": 0.25}]),
    ("", "augmentations: [{type: flip, p: 1}]", ("augmentations.0=loose",), "augmentations", [{"type": "loose"}]),
    (
        "",
        "augmentations: [{type: flip, p: 1}]",
        ("augmentations.0.type=loose",),
        "augmentations.0",
        {"type": "loose"},
    ),
    ("", "method: cycle", ("augmentations.0.p=1",), "augmentations.0.p", 1.0),  # the method's own list
    ("", "generator: {taps: [1, 2]}", ("generator.taps.1=stem",), "generator.taps", [1, "stem"]),
    ("augmentations: [flip]", "augmentations: {0: {p: 1}}", (), "augmentations", [{"type": "flip", "p": 1.0}]),
    ("", "", ("method=cycle", "name=007"), "name", "007"),
    ("", "train: {init_from: a}", ("train.init_from=",), "train.init_from", None),
    ("", "data: {note: a}", ("data.note=a=b:c",), "data.note", "a=b:c"),
]


@pytest.mark.parametrize(("parent", "child", "overrides", "key", "value"), STACKS)
def test_layers(load, parent, child, overrides, key, value):
    parent, child = f"extends: ground.yaml\n{parent}", f"extends: parent.yaml\n{child}"
    recipe = load(child, *overrides, ground=GOOD, parent=parent)
    found = recipe.to_dict()
    for step in key.split("."):
        found = found[int(step)] if isinstance(found, list) else found[step]
    assert found == value
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


@pytest.mark.parametrize(
    ("overrides", "nce"),
    [
        (("objective.nce.eps=0.2", "objective.nce=monce"), {"type": "monce", "eps": 0.2}),
        (("objective.nce=monce", "objective.nce.eps=0.2"), {"type": "monce", "eps": 0.2}),
        (("objective.nce={type: monce, eps: 0.2}", "objective.nce=negcut"), {"type": "negcut"}),
        (("objective.nce.weight=2",), {"type": "patchnce", "weight": 2.0}),  # the method's own
        (
            ("objective.nce=[patchnce, monce]", "objective.nce.1.eps=0.2"),
            ["patchnce", {"type": "monce", "eps": 0.2}],
        ),
    ],
)
def test_parts_inside_of_parts_by_their_names_or_as_mappings(overrides, nce):
    assert load_recipe("toy", overrides).objective["nce"] == nce


def test_a_part_inside_of_a_part_that_replaces_another_has_its_own_arguments(workplace):
    Path("a.yaml").write_text("extends: toy\nobjective: {nce: {temperature: 0.2, weight: 5}}\n")
    assert load_recipe("a.yaml").objective["nce"] == {"type": "patchnce", "temperature": 0.2, "weight": 5.0}
    for name in ("src", "monce"):
        Path("b.yaml").write_text(f"extends: a.yaml\nobjective: {{nce: {name}}}\n")
        assert (
            load_recipe("b.yaml").objective["nce"] == load_recipe("a.yaml", [f"objective.nce={name}"]).objective["nce"]
        )
        assert load_recipe("b.yaml").objective["nce"] == {"type": name}
    Path("c.yaml").write_text("extends: a.yaml\nobjective: {nce: [hdce, src]}\n")
    with pytest.raises(RecipeError, match=r"nce: is a list: name an item by its number \(objective\.nce\.0\)"):
        load_recipe("c.yaml", ["objective.nce.weight=2"])


PARTS_FILE = """
from qsattn_plugin.registry import register

@register("sampler", "mine")
def mine(queries: int = 3):
    return queries
"""


@pytest.mark.parametrize("name", ["./parts_of_test.py", "parts_of_test"])
def test_import_of_a_file_beside_the_recipe(load, name):
    Path("below").mkdir()
    Path("below/parts_of_test.py").write_text(PARTS_FILE)
    Path("below/ground.yaml").write_text(f"{GOOD}import: [{name}]\nsampler: mine\n")
    recipe = load("extends: below/ground.yaml\nimport: [json]\nsampler: {queries: 4}")
    assert recipe.imports == [str(Path("below/parts_of_test.py").absolute()), "json"]
    assert recipe.build("sampler") == 4
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe  # imports the same file once more
    assert Recipe.from_dict(recipe.to_dict()) == recipe


def test_a_recipe_out_of_a_checkpoint_runs_no_code(load):
    Path("evil_of_test.py").write_text("raise SystemExit('it ran')\n")
    values = load(GOOD).to_dict() | {"import": [str(Path("evil_of_test.py").absolute())]}
    assert Recipe.from_dict(values).imports == values["import"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("import nothing_like_this", "ModuleNotFoundError: No module named 'nothing_like_this' (broken.py, line 1)"),
        ("x = 1\ny = x / 0", "ZeroDivisionError: division by zero (broken.py, line 2)"),
        ("def (", "SyntaxError"),
        (PARTS_FILE.replace('"mine"', '"points"'), "PartError: sampler 'points' is already registered by"),
    ],
)
def test_import_of_a_broken_file(load, content, message):
    Path("broken.py").write_text(content)
    with pytest.raises(RecipeError, match=r"^my.yaml:3: import: ") as error:
        load(GOOD + "import: [broken.py]")
    assert message in str(error.value)


def test_build_injects_what_the_recipe_leaves_open(load):
    recipe = load(GOOD, "data.channels=1", "augmentations=[flip, {type: flip, p: 1}]", "train.seed=3")
    assert recipe.build("generator", in_channels=1, unknown=2).in_channels == 1
    assert load(GOOD, "generator.in_channels=4").build("generator", in_channels=1).in_channels == 4
    assert recipe.build("data").channels == 1
    assert [recipe.build(f"augmentations.{i}") for i in (0, 1)] == [("flip", 0.5), ("flip", 1.0)]
    method = recipe.build("method", networks="n", nothing=1)
    assert (method.networks, method.gan, method.weight) == ("n", "lsgan", 2.0)
    assert recipe.part("augmentations.1").arguments == {"p": 1.0}


@pytest.mark.parametrize(
    ("text", "section", "message"),
    [
        ("generator:\n  width: 0\n", "generator", "my.yaml:4: generator.width: must be at least 1, got 0"),
        ("generator:\n  width: 1001\n", "generator", "my.yaml:3: generator: too wide for this machine"),
        ("method: qsattn\n", "method", "my.yaml:3: method: method 'qsattn' needs the argument 'networks'"),
    ],
)
def test_what_a_part_refuses_is_named_at_its_line(load, text, section, message):
    with pytest.raises(RecipeError) as error:
        load(GOOD + text).build(section)
    assert str(error.value) == message


def test_what_a_dataset_refuses_is_named_at_its_line(load):
    with pytest.raises(RecipeError, match=r"^my.yaml:2: data.root: there are no images below .*empty$"):
        load("data:\n  root: empty\ntrain: {steps: 1}").build("data")


def test_errors_have_the_place_of_their_key(load):
    recipe = load("data: {root: x}\ntrain:\n  seed: 1\n  steps: 5\n", "train.lr=1", "augmentations=[flip]")
    places = {
        "train.steps": "my.yaml:4",
        "train.lr": "-s train.lr=1",
        "augmentations.0.p": "-s augmentations=[flip]",
        "sampler.queries": "defaults of method 'qsattn'",
        "evaluate.every": "my.yaml:1",
    }
    assert {key: str(recipe.error(key, "no").problems[0].place) for key in places} == places
    assert str(recipe.error("train.seed", "no")) == "my.yaml:3: train.seed: no"


def test_dump_is_complete_deterministic_and_the_same_recipe(load):
    recipe = load(
        GOOD,
        "generator={width: 2, taps: [1, '1', 'no', '2e-4', '', 'a, b', 'x: y', \"line\\nline\", <<, '~', '#']}",
        "sampler={type: attention, options: {'1': 1e-5, 'on': 3e+20}}",
        "augmentations=[flip, {type: loose, list: [{a: [null, true, 'true', 1.0, 1e16]}], text: 'é ☃ '}]",
        "encoder.anything={}",
    )
    text = recipe.to_yaml()
    again = Recipe.from_yaml(text, "run/recipe.yaml")
    assert again == recipe
    assert again.to_yaml() == text
    values = json.loads(json.dumps(recipe.to_dict()))
    assert values == recipe.to_dict()
    assert Recipe.from_dict(values) == recipe
    assert recipe.generator.arguments["taps"][:4] == (1, "1", "no", "2e-4")
    assert pickle.loads(pickle.dumps(recipe)) == recipe
    assert "\ntrain:\n  steps: 100\n  decay_from: null\n" in text
    assert recipe != load(GOOD)


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        (["train.epochs=2"], (20, 10)),
        (["train.epochs=0.5", "train.decay_from=0.6"], (5, 3)),
        (["train.epochs=2", "train.batch_size=2", "train.accumulate=2"], (5, 2)),
        (["train.epochs=1e-3"], (1, 0)),
        (["train.epochs=2", "train.steps=7"], (7, 3)),
        (["train.steps=7", "train.epochs=2"], (20, 10)),
        (["train.epochs=3", "data.train=6"], (18, 9)),  # other images are counted
        (["train.epochs=3", "data.train=6", "train.images=4"], (12, 6)),
        (["train.epochs=3", "data.crop=32"], (30, 15)),
    ],
)
def test_a_length_in_epochs_becomes_steps(settings, steps):
    text = "data: {type: toy, train: 20}\ntrain: {images: 10, steps: 3}\n"
    recipe = Recipe.from_yaml(text, "my.yaml", settings)
    assert (recipe.train.steps, recipe.train.decay_step) == steps
    assert Recipe.from_yaml(recipe.to_yaml(), "my.yaml") == recipe
    assert not {"epochs", "images"} & recipe.to_dict()["train"].keys()


def test_an_epoch_has_the_images_of_the_larger_domain(tmp_path):
    for split, count in (("trainA", 3), ("trainB", 5), ("testA", 9)):
        (tmp_path / split).mkdir()
        for i in range(count):
            (tmp_path / split / f"{i}.png").touch()  # counted without being read
    epochs = ["train.epochs=4"]
    assert load_recipe("horse2zebra", [f"data.root={tmp_path}", *epochs]).train.steps == 20
    assert load_recipe("horse2zebra_mobile", [*epochs, f"data.root={tmp_path}"]).train.steps == 20
    assert load_recipe("horse2zebra_mobile", epochs).train.steps == 4 * 1334
    with pytest.raises(RecipeError, match=r"-s data.root=gone: data.root: the data folder .*gone does not exist"):
        load_recipe("horse2zebra", ["data.root=gone"])


def test_variants_are_recipes_like_others(tmp_path):
    train = ["train.steps=600", "train.decay_from=0.5", "train.batch_size=4", "train.lr=4e-4"]
    own = ["method=cyclegan", "generator.residual=false", *train, "name=toy_cyclegan"]
    spelled = load_recipe("toy", own)
    assert load_recipe("toy_cyclegan") == spelled
    (tmp_path / "my.yaml").write_text("extends: horse2zebra_fastcut\ntrain: {epochs: 1}\n")
    mine = load_recipe(tmp_path / "my.yaml")
    assert (mine.name, mine.method, mine.train.steps, mine.train.decay_step) == ("my", "fastcut", 1334, 1000)
    assert shipped_recipes()["cat2dog_cut"] == "cat2dog with method: cut"
    table = Path(registry.__file__).with_name("variants.yaml")
    (line,) = (i for i, text in enumerate(table.read_text().splitlines(), 1) if text.startswith("toy_cyclegan:"))
    assert str(load_recipe("toy_cyclegan").error("train.steps", "no")) == f"{table}:{line}: train.steps: no"


def test_a_part_that_hints_at_what_pydantic_cannot_check(load):
    @registry.register("sampler", "odd")
    def odd(schema: int = 1, network: Generator | None = None, late: Unknown = None):  # noqa: F821
        return schema, network, late

    @registry.register("sampler", "network")
    def network(network: Generator | None = None):
        return network

    assert load(GOOD + "sampler: {type: odd, schema: 2, late: x}").build("sampler") == (2, None, "x")
    assert load(GOOD + "sampler: network").build("sampler", network=7) == 7
    with pytest.raises(RecipeError, match=r"sampler.network: must be left out \(the method gives it\), got 5"):
        load(GOOD + "sampler: {type: network, network: 5}")


def test_json_schema_describes_every_part(parts):
    schema = json_schema()
    assert json.loads(json.dumps(schema)) == schema
    assert not schema["additionalProperties"]
    assert set(schema["properties"]["train"]["properties"]) >= {"steps", "lr", "decay_from"}
    assert schema["properties"]["train"]["properties"]["steps"]["description"]
    section = schema["properties"]["generator"]
    # Branches by type, not oneOf: an editor then names the wrong key instead of saying that nothing fits.
    assert section["if"] == {"type": "object"}
    names, mapping = section["else"], section["then"]
    assert {"const": "resnet_9blocks", "description": "A generator."} in names["oneOf"]
    case = next(c["then"] for c in mapping["allOf"] if c["if"]["properties"]["type"]["const"] == "resnet_9blocks")
    width = case["properties"]["width"]
    assert width == {"type": "integer", "default": 64, "description": "channels of the first layer."}
    assert not case["additionalProperties"]
    (settings,) = (c["then"] for c in schema["allOf"] if c["if"]["properties"]["method"]["const"] == "qsattn")
    assert set(settings["properties"]["objective"]["properties"]) == {"gan", "weight"}
    folders = schema["properties"]["data"]["then"]["allOf"][0]["then"]
    assert set(folders["properties"]) == {"type", "root", "note", *PIPELINE}
    several = schema["properties"]["augmentations"]
    assert several["then"]["items"]["then"]["required"] == ["type"]
    assert "required" not in several["else"]["patternProperties"]["^[0-9]+$"]["then"]


@pytest.mark.parametrize("name", list(shipped_recipes()))
def test_shipped_recipes(name, tmp_path):
    recipe = load_recipe(name)
    assert recipe.name == name
    (tmp_path / "recipe.yaml").write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(tmp_path / "recipe.yaml") == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe
