"""The one line, with file, line and key, that each mistake in a recipe gets."""
# ruff: noqa: F401, F811 - pytest finds fixtures by their names in the module

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from qsattn_plugin.registry.recipe import RecipeError, load_recipe
from qsattn_plugin.training.describe import part_table
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.recipe_parts import GOOD, load, parts

BILLION = "a: &a [1,1,1,1,1,1,1,1,1]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcde", "bcdef", strict=True)
)

#: The text of my.yaml, and how the message's one line begins.
FILES = [
    # not a recipe at all
    (b"", "my.yaml: this recipe is empty"),
    ("# nothing\n", "my.yaml: this recipe is empty"),
    (b"\xff\xd8\xff\xe0\x00\x10JFIF", "my.yaml: this is not a text file, and so not a recipe"),
    ("name: caf\xe9".encode("latin-1"), "my.yaml:1: byte 0xE9 at offset 9 is not UTF-8, but perhaps Latin-1 or GBK"),
    ("name: x\n# \u9a6c".encode("gbk"), "my.yaml:2: byte 0xC2 at offset 10 is not UTF-8"),
    ("name: x".encode("utf-16"), "my.yaml: this is text in UTF-16; save the file as UTF-8"),
    (b"a: b\x00", "my.yaml: this is not YAML: unacceptable character"),
    (b"#" * 1_000_001, "my.yaml: this file is too large for a recipe"),
    ("hello there", "my.yaml:1: a recipe consists of 'key: value' lines, got 'hello there'"),
    ("- a\n- b\n", "my.yaml:1: a recipe consists of 'key: value' lines, got a list"),
    ("train: {steps: 1\nname: x\n", "my.yaml:2: this is not YAML: "),
    ("train:\n\tsteps: 1\n", "my.yaml:2: a tab indents this line; YAML takes spaces only"),
    ("name: a\n---\nname: b\n", "my.yaml:2: this is not YAML: but found another document"),
    ("name: " + "[" * 1500, "my.yaml: this is nested too deeply for a recipe"),
    # YAML that recipes refuse
    (
        "train:\n  steps: 1\n  lr: 1\n  steps: 2\n",
        "my.yaml:4: train.steps: this key is given on line 2; keep one",
    ),
    ("name: a\ntrain: {}\nname: a\n", "my.yaml:3: name: this key is given on line 1"),
    ("name: !!python/object/apply:os.system [x]\n", "my.yaml:1: name: the tag !!python/object/apply:os.system is not"),
    ("name: !mine x\n", "my.yaml:1: name: the tag !mine is not allowed"),
    ("? [a]\n: b\n", "my.yaml:1: a key must be text, not a list or a mapping"),
    ("a: &a\n  b: *a\n", "my.yaml:2: a.b: the alias is inside its own anchor, so it never ends"),
    ("train: {<<: 5}\n", "my.yaml:1: train.<<: only mappings can be merged in, got 5"),
    # unknown keys
    (GOOD + "nam: a\n", "my.yaml:3: nam: there is no such key; did you mean 'name'? (a recipe takes extends, import, "),
    ("data: {root: x}\ntrain:\n  steps: 1\n  stepz: 1\n", "my.yaml:4: train.stepz: there is no such key; did you mean"),
    (
        "data:\n  root: x\n  direktion: AtoB\ntrain: {steps: 1}\n",
        "my.yaml:3: data.direktion: there is no such key; did you mean 'direction'? (dataset 'folders' takes root",
    ),
    (
        GOOD + "generator:\n  widht: 5\n",
        "my.yaml:4: generator.widht: there is no such key; did you mean 'width'? (generator 'resnet_9blocks' takes",
    ),
    (
        GOOD + "objective: {gann: x}\n",
        "my.yaml:3: objective.gann: there is no such key; did you mean 'gan'? (method 'qsattn' takes gan, weight)",
    ),
    (GOOD + "objective: {networks: x}\n", "my.yaml:3: objective.networks: there is no such key ("),
    # unknown parts
    (
        GOOD + "sampler:\n  grid: true\n  type: point\n",
        "my.yaml:5: sampler.type: there is no sampler 'point'; did you mean 'points'? (samplers: attention, points",
    ),
    (GOOD + "sampler: poinst\n", "my.yaml:3: sampler.type: there is no sampler 'poinst'; did you mean 'points'?"),
    (
        GOOD + "augmentations:\n  - flip\n  - flop\n",
        "my.yaml:5: augmentations.1.type: there is no augmentation 'flop'; did you mean 'flip'?",
    ),
    (GOOD + "augmentations:\n  - p: 1\n", "my.yaml:4: augmentations.0.type: is missing; it names the augmentation"),
    (GOOD + "method: qsatn\n", "my.yaml:3: method: there is no method 'qsatn'; did you mean 'qsattn'? (methods: cyc"),
    (GOOD + "method: [qsattn]\n", "my.yaml:3: method: must be text, got a list"),
    # missing
    ("data: {root: x}\n", "my.yaml:1: train.steps: is missing, and has no default"),
    ("data: {root: x}\n\ntrain: {seed: 1}\n", "my.yaml:3: train.steps: is missing, and has no default"),
    ("train: {steps: 1}\n", "my.yaml:1: data.root: is missing; dataset 'folders' needs it"),
    # shapes of sections
    (GOOD + "checkpoint:\n", "my.yaml:3: checkpoint: must be a mapping, got nothing"),
    (GOOD + "evaluate: 5\n", "my.yaml:3: evaluate: must be a mapping, got 5"),
    (GOOD + "generator:\n", "my.yaml:3: generator: must be a part's name, or a mapping with 'type', got nothing"),
    (GOOD + "augmentations: flip\n", "my.yaml:3: augmentations: must be a list of parts, got 'flip'"),
    (GOOD + "augmentations: [[flip]]\n", "my.yaml:3: augmentations.0: must be a part's name, or a mapping with 'type'"),
    (
        GOOD + "name: ../x\n",
        "my.yaml:3: name: must be letters, digits, '.', '_' and '-', and begin with a letter or di",
    ),
    (
        "train: {steps: 4}\ndata:\n  root: x\n  resize: 28\n",
        "my.yaml:2: data: must be at most data.resize (28), got a crop of 256; set both",
    ),
    # extends and import
    ("extends: nowhere.yaml\n", "my.yaml:1: extends: nowhere.yaml does not exist"),
    ("name: a\nextends: ./\n", "my.yaml:2: extends: . is a folder, not a recipe"),
    (
        "extends: horse2zebr\n",
        "my.yaml:1: extends: there is no recipe 'horse2zebr'; did you mean 'horse2zebra'? (shipp",
    ),
    ("extends: [a, b]\n", "my.yaml:1: extends: must be one shipped name or path, got a list"),
    ("extends: my.yaml\n", "my.yaml:1: extends: the recipes extend each other in a circle: my.yaml -> my.yaml"),
    (GOOD + "import: ./nowhere.py\n", "my.yaml:3: import: must be a list, got './nowhere.py'"),
    (GOOD + "import:\n - ./nowhere.py\n", "my.yaml:4: import: nowhere.py does not exist"),
    (GOOD + "import: [no_such_module]\n", "my.yaml:3: import: there is no file no_such_module.py and no module 'no_s"),
]

#: An override of a good recipe, and how the message goes on after "-s OVERRIDE: ".
OVERRIDES = [
    # how an override is written
    ("train.steps", "expected key=value, for example -s train.steps=100"),
    ("train..steps=1", "expected key=value"),
    ("trian.steps=1", "trian: there is no such key; did you mean 'train'?"),
    ("train.steps=[", "this is not YAML"),
    ("train={steps: 1, steps: 2}", "steps: this key is given twice"),
    ("extends=toy", "extends: this key is only allowed in a recipe's file"),
    ("augmentations.0.p=1", "augmentations.0: the list has 0 items, numbered from 0; there is no '0'"),
    ("train=5", "train: must be a mapping, got 5"),
    ("data.root=own #2", "# begins a comment"),
    ("data.root=#2", "# begins a comment"),
    # types
    ("train.steps=abc", "train.steps: must be an integer, got 'abc'"),
    ("train.steps='5'", "train.steps: must be an integer, got '5'"),
    ("train.steps=1.5", "train.steps: must be an integer, got 1.5"),
    ("train.seed=true", "train.seed: must be an integer, got true"),
    ("train.lr=yes", "train.lr: must be a number, got 'yes'"),
    ("train.lr=.inf", "train.lr: must be a finite number, got .inf"),
    ("train.betas=0.5", "train.betas: must be a list, got 0.5"),
    ("train.betas=[0.5]", "train.betas: must have at least 2 values, got 1"),
    ("train.betas=[0.5, 0.9, 1]", "train.betas: must have at most 2 values, got 3"),
    ("train.betas=[0.5, x]", "train.betas.1: must be a number, got 'x'"),
    ("sampler.grid=no", "sampler.grid: must be true or false, got 'no'"),
    ("sampler.grid=1", "sampler.grid: must be true or false, got 1"),
    ("data.note=[a]", "data.note: must be text, got a list"),
    ("data.root={a: b}", "data.root: must be text, got a mapping"),
    ("generator.taps=5", "generator.taps: must be a list, got 5"),
    ("generator.taps=[1, [2]]", "generator.taps.1: must be an integer or text, got a list"),
    ("sampler={type: attention, options: {a: b}}", "sampler.options.a: must be a number, got 'b'"),
    # ranges and choices
    ("train.steps=0", "train.steps: must be at least 1, got 0"),
    ("train.lr=0", "train.lr: must be greater than 0.0, got 0"),
    ("train.ema=1", "train.ema: must be less than 1.0, got 1"),
    ("data.channels=65", "data.channels: must be at most 64"),
    ("train.images=banana", "train.images: must be an integer, got 'banana'"),
    ("train.epochs=0", "train.epochs: must be greater than 0.0, got 0"),
    ("train={steps: 3, epochs: 2}", "train.epochs: give the length as steps or as epochs, not as both"),
    ("train.epoch=2", "train.epoch: there is no such key; did you mean 'epochs'? (train takes steps, epochs, images"),
    ("train.decay_from=101", "train.decay_from: must be at most train.steps (100), got 101; set both"),
    (
        "train.precision=fp8",
        "train.precision: must be 'auto', 'fp32', 'bf16' or 'fp16', got 'fp8'; did you mean 'fp32'?",
    ),
    ("data.direction=AtB", "data.direction: must be 'AtoB' or 'BtoA', got 'AtB'; did you mean 'AtoB'?"),
    ("objective.gan=hing", "objective.gan: must be 'lsgan' or 'hinge', got 'hing'; did you mean 'hinge'?"),
    (
        "train.device=cudda",
        "train.device: must be auto or a torch device such as cuda:0, got 'cudda'; did you mean 'cuda'",
    ),
    ("train.device=auto:1", "train.device: must be auto or"),
    ("data.crop=300", "data.crop: must be at most data.resize (286), got a crop of 300; set both"),
    ("data.crop=30", "data.crop: must be a multiple of 4, got 30"),
]

SMALL = [setting for setting in TINY if not setting.startswith("data.")]


@pytest.mark.parametrize(
    ("text", "overrides", "message"),
    [(text, (), message) for text, message in FILES]
    + [(GOOD, (text,), f"-s {text}: {message}") for text, message in OVERRIDES]
    + [(GOOD, ("objective.weight=7", "method=cycle"), "-s objective.weight=7: objective.weight: there is no such key")],
    ids=lambda value: value[:40] if isinstance(value, str) else None,
)
def test_mistakes(load, text, overrides, message):
    with pytest.raises(RecipeError) as error:
        load(text, *overrides)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)


def test_a_quoted_sharp_is_text(load):
    for value in ("'own #2'", ' "own #2"'):
        assert load(GOOD, f"data.note={value}").data.arguments["note"] == "own #2"
    assert load(GOOD, "data= {note: 'own #2'} # why").data.arguments["note"] == "own #2"


@pytest.mark.parametrize("leave", ["sys.exit()", "raise KeyError(1)"])
def test_a_file_of_parts_that_ends_the_program_is_named(load, tmp_path, leave):
    (tmp_path / "leaves.py").write_text(f"import sys\n{leave}\n")
    with pytest.raises(RecipeError, match=r"my.yaml:3: import: .*leaves.py.*(SystemExit|KeyError)"):
        load(GOOD + "import: [./leaves.py]\n")


def test_aliases_that_unfold_without_end(load):
    with pytest.raises(RecipeError, match="the aliases expand to more than 20000 values"):
        load(BILLION)


def test_several_mistakes_get_one_line_each_in_the_files_order(load):
    with pytest.raises(RecipeError) as error:
        load("sampler: {querys: 1}\ntrain:\n  steps: x\n  lr: -1\nfoo: 1\n")
    expected = [
        "my.yaml:1: data.root: is missing",
        "my.yaml:1: sampler.querys: there is no such key; did you mean 'queries'?",
        "my.yaml:3: train.steps: must be an integer, got 'x'",
        "my.yaml:4: train.lr: must be greater than 0.0, got -1",
        "my.yaml:5: foo: there is no such key",
    ]
    lines = str(error.value).splitlines()
    assert [line[: len(start)] for line, start in zip(lines, expected, strict=True)] == expected
    assert str(pickle.loads(pickle.dumps(error.value))) == str(error.value)


def test_a_mistake_below_is_named_in_its_own_file(load):
    Path("below").mkdir()
    Path("below/parent.yaml").write_text("extends: ground.yaml\ntrain: {batch_size: 0}\n")
    Path("below/ground.yaml").write_text(GOOD)
    with pytest.raises(RecipeError, match=r"^below/parent.yaml:2: train.batch_size: must be at least 1, got 0$"):
        load("extends: below/parent.yaml\n")


def test_a_circle_of_files(load):
    with pytest.raises(RecipeError, match=r"^a.yaml:1: extends: .* circle: my.yaml -> b.yaml -> a.yaml -> my.yaml"):
        load("extends: b.yaml", b="extends: ./a.yaml", a="extends: my.yaml")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("tooy", "there is no recipe 'tooy'; did you mean 'toy'? (shipped: "),
        ("nowhere.yaml", "nowhere.yaml: the file does not exist"),
        ("./nowhere", "./nowhere: the file does not exist"),
        (Path("nowhere"), "nowhere: the file does not exist"),
        (Path(), "is a folder, not a recipe"),
    ],
)
def test_no_such_recipe(parts, source, message):
    with pytest.raises(RecipeError) as error:
        load_recipe(source)
    assert message in str(error.value)


def test_what_a_part_dies_of_is_said_with_its_key_and_line(tmp_path):
    """A width that no memory holds, and a mistake in somebody's own part: no traceback, but where it was."""
    with pytest.raises(RecipeError, match=r"generator: resnet_4blocks cannot be built: \w+: .*line \d+\)"):
        load_recipe("toy", ["generator.width=9000000000000"]).build("generator")
    (tmp_path / "broken.py").write_text(
        "from qsattn_plugin.registry import register\n\n@register('generator', 'broken_one')\nclass Broken:\n"
        '    """Is."""\n    def __init__(self):\n        self.missing + 1\n'
    )
    (tmp_path / "r.yaml").write_text("extends: toy\nimport: [./broken.py]\ngenerator: {type: broken_one}\n")
    with pytest.raises(RecipeError, match=r"r.yaml:3: generator: broken_one .* AttributeError: .*broken.py, line 7\)"):
        load_recipe(tmp_path / "r.yaml").build("generator")


def test_devices_and_folders_that_are_not_there_are_said_with_their_key(tmp_path):
    with pytest.raises(RecipeError, match=r"train\.device: device 'mps' cannot be used here"):
        Session(load_recipe("toy", ["train.device=mps"]))
    with pytest.raises(RecipeError, match=r"data\.root: the data folder .*nowhere does not exist"):
        part_table(Session(load_recipe("horse2zebra", [f"data.root={tmp_path / 'nowhere'}", *SMALL])))
