"""The kernel inception distance: by hand, without bias, and as the score of a data set that has none of its own."""

from __future__ import annotations

import math

import pytest
import timm
import torch
from safetensors.torch import save_file

from qsattn_plugin.data.pixels import as_pil, to_float
from qsattn_plugin.data.toy import ToyHorses
from qsattn_plugin.distances import kernel_distance
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import Recipe, load_recipe
from qsattn_plugin.training.describe import part_table
from qsattn_plugin.training.kid import KernelDistance, TimmEmbedder
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.report import write_report
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.translation.apply import translate
from qsattn_plugin.translation.load import load
from tests.conftest import TINY
from tests.test_fit import events

MODEL = "test_convnext"


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A file with weights of a small timm model, as they are drawn."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(timm.create_model(MODEL).state_dict(), path)
    return path


def draws(count: int, seed: int, shift: float = 0.0, length: int = 4) -> torch.Tensor:
    return torch.randn(count, length, generator=torch.Generator().manual_seed(seed)) + shift


def test_kernel_distance_by_hand():
    # k(x, y) = (x y + 1)^3: within a 1, within b 27, between them (1 + 1 + 8 + 27) / 4.
    assert kernel_distance(torch.tensor([[0.0], [1.0]]), torch.tensor([[1.0], [2.0]])) == 1 + 27 - 2 * 37 / 4
    # Two numbers a vector: the inner product is divided by 2. Within a (0/2 + 1)^3 = 1, within b (4/2 + 1)^3 = 27,
    # between them 8, 1, 1, 8 for 2/2, 0/2, 0/2 and 2/2.
    a, b = torch.tensor([[1.0, 0.0], [0.0, 1.0]]), torch.tensor([[2.0, 0.0], [2.0, 2.0]])
    between = (8 + 1 + 8 + 8) / 4  # (1,0).(2,0) = 2, (0,1).(2,0) = 0, (1,0).(2,2) = 2, (0,1).(2,2) = 2
    assert kernel_distance(a, b) == pytest.approx(1 + 27 - 2 * between)


def test_kernel_distance_of_unequal_sets_equals_loops():
    a, b = draws(5, 0).double(), draws(7, 1, 0.5).double()

    def kernel(x, y):
        return float((x @ y / 4 + 1) ** 3)

    def within(s):
        pairs = [kernel(s[i], s[j]) for i in range(len(s)) for j in range(len(s)) if i != j]
        return sum(pairs) / len(pairs)

    between = [kernel(x, y) for x in a for y in b]
    wanted = within(a) + within(b) - 2 * sum(between) / len(between)
    assert kernel_distance(a, b) == pytest.approx(wanted, rel=1e-12)
    assert kernel_distance(b, a) == pytest.approx(wanted, rel=1e-12)


def test_kernel_distance_has_no_bias_and_grows():
    same = torch.tensor([kernel_distance(draws(8, 2 * i), draws(12, 2 * i + 1)) for i in range(400)])
    error = same.std() / 20  # of the mean of 400
    assert same.mean().abs() < 3 * error
    assert 0.2 < (same < 0).float().mean() < 0.8
    far = [kernel_distance(draws(200, 0), draws(200, 1, shift)) for shift in (0.0, 0.3, 0.6, 1.2)]
    assert far == sorted(far)


def test_kernel_distance_of_large_sets_is_a_mean_over_subsets():
    a, b = draws(300, 0), draws(120, 1, 0.5)
    whole = kernel_distance(a, b)
    parts = kernel_distance(a, b, subsets=200, size=50)
    assert parts == kernel_distance(a, b, subsets=200, size=50)
    assert parts != kernel_distance(a, b, subsets=200, size=50, seed=1)
    # Both estimate the same number without bias. One subset's deviation is about a third of it here, so that of the
    # mean over 200 (which share vectors) is well below a tenth.
    assert parts == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize(
    ("a", "b", "more", "argument"),
    [
        (draws(1, 0), draws(4, 0), {}, "a"),
        (draws(4, 0), draws(1, 0), {}, "b"),
        (draws(4, 0), draws(4, 0, length=3), {}, "b"),
        (draws(4, 0), draws(4, 0), {"subsets": 0}, "subsets"),
        (draws(4, 0), draws(4, 0), {"size": 1}, "size"),
    ],
)
def test_kernel_distance_refuses(a, b, more, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        kernel_distance(a, b, **more)


def test_vectors_of_a_timm_model(weights):
    state = torch.get_rng_state()
    vectors = TimmEmbedder(MODEL, weights)
    assert torch.equal(torch.get_rng_state(), state)
    images = torch.rand(2, 3, 40, 56, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = vectors(images)
    deepest = timm.create_model(MODEL, features_only=True).feature_info.channels()[-1]
    assert found.shape == (2, deepest)
    assert not found.requires_grad
    torch.testing.assert_close(vectors(torch.cat([images, images[:, :1]], 1)), found)  # alpha is not looked at
    grey = vectors(images[:, :1])
    # One kernel's sums over three equal channels and over a broadcast one may differ in their last bits.
    torch.testing.assert_close(grey, vectors(images[:, :1].expand(-1, 3, -1, -1)), rtol=1e-4, atol=1e-5)


def test_zebras_are_nearer_to_zebras_than_their_negatives_are(weights):
    # Weights as they are drawn see little more than brightness and contrast: hence not horses against zebras.
    toy = ToyHorses(size=32, train=12, test=12)
    distance = KernelDistance(TimmEmbedder(MODEL, weights), toy.split("testB"), torch.device("cpu"))
    zebras = [to_float(image) for image in toy.split("trainB")]
    assert distance(zebras) < distance([-zebra for zebra in zebras])


def folders(root):
    """The toy pictures as folders: a data set without a score."""
    toy = ToyHorses(size=32, train=4, test=3)
    for split in ("trainA", "trainB", "testA", "testB"):
        (root / split).mkdir(parents=True)
        for name, image in zip(toy.split(split).names, toy.split(split), strict=True):
            as_pil(image).save(root / split / name)
    small = [s for s in TINY if not s.startswith("data.")]
    return toy, (*small, f"data={{type: folders, root: {root}, resize: 32, crop: 32}}")


def test_a_run_on_folders_is_scored_and_its_best_kept(workplace, weights):
    toy, settings = folders(workplace / "data")
    kid = f"evaluate.kid={{model: {MODEL}, weights: {weights}}}"
    run = Run.create(load_recipe("toy", (*settings, kid)), workplace / "run")
    assert load_recipe(run.folder / "recipe.yaml") == run.recipe
    scores = fit(run)
    logged = events(run, "evaluate")
    assert [list(e["scores"]) for e in logged] == [["kid", "swd"]] * 2
    assert logged[-1]["scores"] == scores
    lowest = min(logged, key=lambda e: e["scores"]["kid"])
    assert logged[-1]["best"] == {
        "score": "kid",
        "value": lowest["scores"]["kid"],
        "step": lowest["step"],
        "evaluations": 2,
        "scored_on": logged[0]["best"]["scored_on"],
    }
    # The same number from the outside: the saved generator, the pictures, the distance.
    vectors = TimmEmbedder(MODEL, weights)
    generator = load(run.folder).generator
    translated = [translate(generator, to_float(image)[None]) for image in toy.split("testA")]
    targets = [to_float(image)[None] for image in toy.split("testB")]
    a, b = (torch.cat([vectors(image) for image in images]) for images in (translated, targets))
    # Batches of other sizes sum in another order; the distance is a difference of nearly equal numbers.
    assert scores["kid"] == pytest.approx(kernel_distance(a, b), rel=1e-2, abs=1e-5)


def test_scores_of_another_network_or_of_another_name_begin_anew(workplace, weights):
    _, settings = folders(workplace / "data")
    other = workplace / "other.safetensors"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        save_file(timm.create_model(MODEL).state_dict(), other)
    settings = (*settings, "evaluate.every=1")
    run = Run.create(load_recipe("toy", (*settings, "train.steps=2")), workplace / "run")
    fit(run)
    counts = []
    for steps, file in ((4, weights), (6, weights), (8, other)):
        kid = f"evaluate.kid={{model: {MODEL}, weights: {file}}}"
        goes_on = Run(run.folder, load_recipe("toy", (*settings, kid, f"train.steps={steps}")))
        fit(goes_on)
        counts.append(run.last("evaluate")["best"]["evaluations"])
    assert counts == [2, 4, 2]  # after two by swd
    notes = [note for event in events(run, "start") for note in event["notes"] if "in another way" in note]
    assert len(notes) == 2


def test_a_data_set_with_a_score_of_its_own_is_led_by_that(workplace, weights):
    kid = f"evaluate.kid={{model: {MODEL}, weights: {weights}}}"
    scores = fit(Run.create(load_recipe("toy", (*TINY, kid, "train.steps=1")), workplace / "run"))
    assert list(scores) == ["coat_distance", "background_change", "kid"]


@pytest.mark.parametrize("value", [torch.tensor(1.5), float("nan"), float("inf")])
def test_a_score_of_ones_own_may_be_any_number(workplace, monkeypatch, value):
    monkeypatch.setattr(ToyHorses, "score", lambda *given: {"mine": value})
    run = Run.create(load_recipe("toy", (*TINY, "train.steps=2", "evaluate.every=1")), workplace / "run")
    assert fit(run) == {"mine": pytest.approx(float(value), nan_ok=True)}
    assert run.checkpoints.best.is_file() == (float(value) < math.inf)
    write_report(run)


def test_a_score_that_fails_costs_no_steps(workplace, monkeypatch):
    run = Run.create(load_recipe("toy", (*TINY, "train.steps=3", "evaluate.every=2")), workplace / "run")
    monkeypatch.setattr(ToyHorses, "score", lambda *given: {}["mine"])
    with pytest.raises(KeyError, match="mine"):
        fit(run)
    assert run.checkpoints.steps() == [2]


@pytest.mark.parametrize(
    ("kid", "message"),
    [
        ("convnext_tinyy", "timm .* has no model 'convnext_tinyy'; did you mean 'convnext_tiny'"),
        ("{model: test_convnext, weights: nowhere.safetensors}", "there is no file .*nowhere.safetensors"),
    ],
)
def test_a_model_that_cannot_be_had_is_named_in_the_recipe(workplace, kid, message):
    run = Run.create(load_recipe("toy", (*TINY, f"evaluate.kid={kid}")), workplace / "run")
    with pytest.raises(UserError, match=rf"recipe\.yaml:\d+: evaluate\.kid: .*{message}"):
        fit(Run.open(run.folder))


@pytest.mark.parametrize("split", ["testA", "testB"])
def test_test_images_of_both_domains_are_needed(workplace, weights, split):
    _, settings = folders(workplace / "data")
    for picture in sorted((workplace / "data" / split).iterdir())[1:]:
        picture.unlink()
    kid = f"evaluate.kid={{model: {MODEL}, weights: {weights}}}"
    run = Run.create(load_recipe("toy", (*settings, kid)), workplace / "run")
    with pytest.raises(UserError, match=r"evaluate\.kid: needs two images of test"):
        fit(run)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ("{modell: x}", r"evaluate\.kid\.modell: there is no such key"),
        ("{weights: x}", r"evaluate\.kid\.model: is missing"),
        ("[a]", r"evaluate\.kid: must be a mapping, got a list"),
        ("{model: [a]}", r"evaluate\.kid\.model: must be text"),
    ],
)
def test_recipes_that_say_kid_wrongly(written, message):
    with pytest.raises(UserError, match=message):
        load_recipe("toy", (*TINY, f"evaluate.kid={written}"))


def test_recipes_that_say_kid():
    off, name, both = (
        load_recipe("toy", (*TINY, f"evaluate.kid={kid}")) for kid in ("null", "resnet18", "{model: resnet18}")
    )
    assert off.evaluate.kid is None
    assert name == both
    assert (both.evaluate.kid.model, both.evaluate.kid.weights) == ("resnet18", None)
    assert Recipe.from_yaml(both.to_yaml()) == both
    assert Recipe.from_dict(both.to_dict()) == both


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("evaluate.kid=test_convnex", "timm .* has no model 'test_convnex'; did you mean 'test_convnext'"),
        ("evaluate.kid={model: test_convnext, weights: nowhere.safetensors}", "there is no file .*nowhere.safetensors"),
    ],
)
def test_a_model_that_is_not_there_is_said_when_a_run_is_built(setting, message):
    with pytest.raises(UserError, match=rf"evaluate\.kid: {message}"):
        part_table(Session(load_recipe("toy", (*TINY, setting))))
