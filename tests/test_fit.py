"""Training runs from recipe to checkpoint: the same bytes again, carrying on, refusing what would lose work."""

from __future__ import annotations

import json
import math
import signal
import warnings
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import find
from qsattn_plugin.registry.generators import Resnet4Blocks
from qsattn_plugin.registry.recipe import RecipeError, load_recipe
from qsattn_plugin.storage import load_tensors
from qsattn_plugin.training.ema import EMA
from qsattn_plugin.training.interrupts import Interrupted
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.loop import FiniteGuard, NonFiniteLossError, fit
from qsattn_plugin.training.methods.cut import QSAttn
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import GeneratorMismatchWarning, Session
from qsattn_plugin.translation.load import find_weights, load
from tests.conftest import TINY


def build(folder: Path, *overrides: str, recipe: str = "toy") -> Run:
    return Run.create(load_recipe(recipe, (*TINY, *overrides)), folder)


def run_networks(run: Run) -> list[str]:
    return [name for name, network in Session(run.recipe).method.named_children() if list(network.parameters())]


def events(run: Run, kind: str) -> list[dict]:
    lines = (run.folder / "metrics.jsonl").read_text().splitlines()
    return [e for e in map(json.loads, lines) if e["event"] == kind]


def last_checkpoint(run: Run) -> bytes:
    return run.checkpoints.path(run.checkpoints.steps()[-1]).read_bytes()


WAYS = ("forward", "backward")
CONTRASTIVE = {"D_real", "D_fake", "G_GAN", "NCE"}
CYCLES = {f"{name}_{way}" for name in ("D_real", "D_fake", "G_GAN", "cycle", "identity") for way in WAYS}


@pytest.mark.parametrize(
    ("method", "losses"),
    [
        ("qsattn", CONTRASTIVE),
        ("cut", CONTRASTIVE),
        ("fastcut", CONTRASTIVE),
        ("sincut", CONTRASTIVE),
        ("cyclegan", CYCLES),
    ],
)
def test_a_run_trains_logs_draws_and_saves(workplace, method, losses):
    identity = ["objective.identity=true"] if method in ("cut", "qsattn") else []
    run = build(workplace / "run", f"method={method}", "data.direction=BtoA", *identity)
    before = Session(run.recipe).method.state_dict()
    fit(run)
    assert run.checkpoints.steps() == [2, 4]
    assert sorted(p.name for p in run.grids.iterdir()) == ["step-000000002.png", "step-000000004.png"]
    logged = events(run, "train")
    assert [e["step"] for e in logged] == [1, 2, 3, 4]
    assert losses <= logged[0]["losses"].keys()
    assert ("NCE_identity" in logged[0]["losses"]) == (method in ("cut", "qsattn", "sincut"))
    assert all(math.isfinite(v) for e in logged for v in e["losses"].values())
    assert ("tap_12/largest_probability" in logged[0]["losses"]) == (method == "qsattn")
    assert list(events(run, "evaluate")[-1]["scores"]) == ["coat_distance", "background_change"]
    after, document = load_tensors(run.checkpoints.path(4), "model/")
    assert after.keys() == before.keys()
    assert document["step"] == 4
    assert load_recipe(run.folder / "recipe.yaml") == run.recipe
    for network in run_networks(run):
        weights = [k for k in after if k.startswith(f"{network}.") and k.endswith("weight")]
        assert weights
        assert all(not torch.equal(after[k], before[k]) for k in weights), f"{network} did not learn"


def test_the_same_recipe_gives_the_same_bytes_and_another_seed_others(workplace):
    # The folder's name does not enter the checkpoint; the recipe's does.
    runs = [build(workplace / name, f"train.seed={seed}") for name, seed in (("a", 0), ("b", 0), ("c", 1))]
    for run in runs:
        torch.rand(3)  # the global generator must not matter
        fit(run)
    a, b, c = map(last_checkpoint, runs)
    assert a == b
    assert a != c


CROPPED = ("data.preprocess=resize_and_crop", "data.resize=40", "data.random_crop=until_decay")


@pytest.mark.parametrize(
    "settings",
    [("method=qsattn",), ("method=cyclegan",), CROPPED, (*CROPPED, "train.decay_from=1")],
    ids=["qsattn", "cyclegan", "crops until step 2", "crops until step 1"],
)
def test_a_run_that_stops_and_carries_on_ends_with_the_same_bytes(workplace, settings):
    more = (*settings, "train.ema=0.9")
    whole, parts = build(workplace / "whole", *more), build(workplace / "parts", *more)
    fit(whole)
    fit(parts, max_steps=1)
    assert parts.checkpoints.steps() == [1]
    fit(parts, time_limit=0)  # no time: no step, nothing lost
    assert parts.checkpoints.steps() == [1]
    fit(parts, max_steps=2)
    fit(parts)
    assert last_checkpoint(whole) == last_checkpoint(parts)
    assert [e["step"] for e in events(parts, "train")] == [1, 2, 3, 4]


def test_steps_after_the_checkpoint_leave_the_log_when_they_are_taken_again(workplace):
    run = build(workplace / "run")
    fit(run, max_steps=2)
    run.log("train", step=3, losses={"NCE": 1.0})
    with open(run.folder / "metrics.jsonl", "a") as file:
        file.write('{"event": "train", "st')  # a crash in the middle of a line
    fit(run)
    assert [e["step"] for e in events(run, "train")] == [1, 2, 3, 4]


def test_a_damaged_newest_checkpoint_is_named_and_the_one_before_is_used(workplace):
    run = build(workplace / "run", "checkpoint={every: 1, keep: 2}")
    fit(run, max_steps=2)
    newest = run.checkpoints.path(2)
    newest.write_bytes(newest.read_bytes()[:-100])
    fit(run)
    start = events(run, "start")[-1]
    assert start["step"] == 1
    assert "step-000000002.safetensors is damaged" in start["damaged"][0]
    assert run.checkpoints.steps() == [3, 4]


def test_two_fits_on_one_run(workplace):
    run = build(workplace / "run")
    with run.lock(), pytest.raises(UserError, match="another process is training"):
        fit(run)
    fit(run)
    assert run.checkpoints.steps() == [2, 4]


def test_building_over_a_training_is_refused_unless_told(workplace):
    run = build(workplace / "run")
    build(workplace / "run")  # nothing trained yet: fine
    fit(run)
    with pytest.raises(UserError, match=r"holds a training of 4 steps; .*--overwrite"):
        build(workplace / "run")
    Run.create(run.recipe, workplace / "run", overwrite=True)
    assert run.checkpoints.steps() == []
    assert not (run.folder / "metrics.jsonl").exists()


def test_the_run_built_last_is_found_and_a_missing_one_named(workplace):
    with pytest.raises(UserError, match="no run was built here yet"):
        Run.open()
    build(workplace / "elsewhere" / "mine")
    assert Run.open().folder == workplace / "elsewhere" / "mine"
    Run.create(load_recipe("toy", TINY))
    assert Run.open("toy").folder == Path("runs/toy")
    with pytest.raises(UserError, match="did you mean 'toy'"):
        Run.open("toyy")


@pytest.mark.parametrize("ema", [0.0, 0.9])
def test_init_from_takes_weights_and_nothing_else(workplace, ema):
    first = build(workplace / "first", f"train.ema={ema}")
    fit(first)
    path = first.checkpoints.path(4)
    # Another discriminator: what does not fit starts anew.
    second = build(workplace / "second", f"train.init_from={path}", "discriminator.width=6")
    session = Session(second.recipe)
    trained, _ = load_tensors(path, "model/")
    assert torch.equal(session.method.generator.state_dict()["model.1.weight"], trained["generator.model.1.weight"])
    assert session.step == 0
    assert session.method.optimizer_state() == {}
    with pytest.raises(UserError, match="the generator in .* does not fit the recipe's"):
        Session(load_recipe("toy", (*TINY, f"train.init_from={path}", "generator.width=5")))


def test_an_average_that_is_switched_on_later_begins_with_the_weights_of_that_step(workplace):
    run = build(workplace / "run", "train.ema=0")
    fit(run, max_steps=2)
    session = Session(load_recipe(run.folder / "recipe.yaml", ("train.ema=0.9",)))
    session.restore(run.checkpoints.path(2))
    trained, _ = load_tensors(run.checkpoints.path(2), "model/generator.")
    average = session.averages["forward"].average.state_dict()
    assert average.keys() == trained.keys() and all(torch.equal(average[key], trained[key]) for key in average)


@pytest.mark.parametrize("name", ["toy", "pretrained/toy"])
def test_init_from_takes_the_name_of_a_published_model(workplace, name):
    recipe = load_recipe("toy", ("train.device=cpu", f"train.init_from={name}"))
    assert recipe.train.init_from == find_weights("toy").path
    ours, theirs = Session(recipe).method.generator.state_dict(), load("toy").generator.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).touch()  # a file goes first
    assert load_recipe("toy", (f"train.init_from={name}",)).train.init_from == workplace / name


def test_a_training_that_began_with_other_weights_goes_on_without_them(workplace):
    first = build(workplace / "first", "train.steps=1")
    fit(first)
    start = first.checkpoints.path(1)
    second = build(workplace / "second", f"train.init_from={start}")
    fit(second, max_steps=1)
    start.unlink()
    fit(second)
    assert second.checkpoints.steps()[-1] == 4
    with pytest.raises(UserError, match="first"):
        fit(build(workplace / "third", f"train.init_from={start}"))


def test_overwriting_never_removes_the_weights_to_start_from(workplace):
    run = build(workplace / "run", "train.steps=1")
    fit(run)
    settings = (*TINY, f"train.init_from={run.checkpoints.path(1)}")
    with pytest.raises(UserError, match=r"train\.init_from: .*--overwrite would remove; choose another folder"):
        Run.create(load_recipe("toy", settings), workplace / "run", overwrite=True)
    assert run.checkpoints.steps() == [1]


def test_a_run_goes_on_in_another_precision(workplace):
    fit(build(workplace / "run"), max_steps=1)
    recipe = workplace / "run" / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("precision: fp32", "precision: fp16"))
    run = Run.open(workplace / "run")
    assert run.recipe.train.precision == "fp16"
    fit(run)
    assert run.checkpoints.steps()[-1] == 4


def test_weights_that_are_no_numbers_are_not_saved(workplace, monkeypatch):
    run = build(workplace / "run", "checkpoint={every: 1, keep: 1}")
    fit(run, max_steps=1)
    before = run.checkpoints.path(1).read_bytes()

    def spoil(method, batch, draws, observe=False):
        with torch.no_grad():
            method.heads.mlp_0[0].weight[0, 0] = torch.nan
        return {"NCE": torch.zeros(())}

    monkeypatch.setattr(QSAttn, "step", spoil)
    with pytest.raises(NonFiniteLossError, match=r"the first is heads\.mlp_0\.0"):
        fit(run)
    assert run.checkpoints.path(1).read_bytes() == before


def test_memory_that_is_too_small_is_said_in_words(workplace, monkeypatch):
    run = build(workplace / "run")

    def fails(*arguments, **options):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")

    monkeypatch.setattr(QSAttn, "step", fails)
    with pytest.raises(UserError, match=r"smaller train\.batch_size .*\nnothing is saved yet"):
        fit(run)


@pytest.mark.parametrize("fits", [1, 0])
def test_test_images_are_translated_singly_where_a_batch_is_too_large(workplace, monkeypatch, fits):
    def limited(self, x, *arguments, **options):
        if not torch.is_grad_enabled() and len(x) > fits:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(self, x, *arguments, **options)

    forward = Resnet4Blocks.forward
    whole = fit(build(workplace / "whole"), max_steps=1)
    monkeypatch.setattr(Resnet4Blocks, "forward", limited)
    run = build(workplace / "run")
    if fits:
        assert fit(run, max_steps=1) == pytest.approx(whole, rel=1e-4)  # a batch's sums may be in another order
    else:
        with pytest.raises(UserError, match="out of memory on cpu in translating a test image of 32 x 32 pixels"):
            fit(run, max_steps=1)
        assert run.checkpoints.path(1).is_file()


def test_parts_that_draw_from_the_global_generator_draw_the_same_in_every_run(workplace, monkeypatch):
    """A dropout, say, of somebody's own generator; also in a run that was interrupted."""

    def noisy(self, x, *arguments, **options):
        return forward(self, torch.nn.functional.dropout(x, 0.5), *arguments, **options)

    forward, ends = Resnet4Blocks.forward, []
    monkeypatch.setattr(Resnet4Blocks, "forward", noisy)
    for name, stops in (("whole", (None,)), ("parts", (2, None))):
        run = build(workplace / name)
        for stop in stops:
            torch.rand(5)  # whatever was drawn before
            fit(run, max_steps=stop)
        ends.append(run.checkpoints.path(4).read_bytes())
    assert ends[0] == ends[1]


@pytest.mark.parametrize("side", [45, 68])
@pytest.mark.parametrize("name", ["swift_resnet_6blocks", "unet_64"])
def test_pictures_that_are_seen_whole_get_sides_that_the_generator_takes(workplace, name, side):
    for folder in ("trainA", "trainB"):
        picture = Image.new("RGB", (side, side + 3), (50, 90, 20))
        (workplace / "data" / folder).mkdir(parents=True)
        picture.save(workplace / "data" / folder / "a.png")
    settings = ("data={type: folders, root: data, preprocess: none}", f"generator={{type: {name}, width: 4}}")
    recipe = load_recipe("horse2zebra", (*[s for s in TINY if not s.startswith(("data", "generator"))], *settings))
    run = Run.create(recipe, workplace / "run")
    fit(run, max_steps=1)
    multiple = find("generator", name).target(width=4).multiple
    loader = TrainingLoader(recipe, torch.device("cpu"), multiple=multiple)
    assert run.checkpoints.steps() == [1]
    assert all(side % multiple == 0 for images in loader.batch(0)[0].values() for side in images.shape[-2:])


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        (
            "discriminator.layers=3",
            r"data\.preprocess: discriminator\.layers: this PatchGAN needs images of at least",
        ),
        ("augmentations=[{type: crop, size: 40}]", r"augmentations: cannot be applied to images of 20 x 20 pixels"),
        ("discriminator_augmentations=[{type: crop, size: 40}]", r"discriminator_augmentations: cannot be applied"),
        ("augmentations=[{type: crop, size: 20}]", None),
    ],
)
def test_the_smallest_picture_is_tried_before_the_first_step_where_pictures_are_not_cropped(workplace, setting, said):
    for folder in ("trainA", "trainB"):
        (workplace / "data" / folder).mkdir(parents=True)
        for number in range(12):  # more than a trial reads
            side = 20 if (folder, number) == ("trainB", 9) else 48
            Image.new("RGB", (side, side), (50, 90, 20)).save(workplace / "data" / folder / f"{number:02}.png")
    data = "data={type: folders, root: data, preprocess: none}"
    own = [s for s in TINY if not s.startswith(("data", "train.batch_size", "discriminator"))]
    whole = ("train.batch_size=1", "discriminator.layers=1", setting)
    run = Run.create(load_recipe("horse2zebra", (*own, data, *whole)), workplace / "run")
    if said is None:
        fit(run, max_steps=1)
        return
    with pytest.raises(RecipeError, match=rf"{said}.* \(trainB/09\.png is the smallest picture\)$"):
        fit(run)
    assert not run.checkpoints.steps()


def test_crops_that_the_generator_cannot_take_are_refused_when_a_run_is_built():
    with pytest.raises(UserError, match=r"data\.crop: swift_resnet_6blocks takes multiples of 8 pixels, got 36"):
        Session(load_recipe("toy", (*TINY, "data.size=36", "data.crop=36", "generator=swift_resnet_6blocks")))


def test_the_rate_falls_linearly_to_zero_over_the_second_half():
    for start in (50, 0.5, "null"):
        train = load_recipe("toy", (*TINY, "train.steps=100", f"train.decay_from={start}")).train
        factors = [train.rate_factor(step) for step in (0, 49, 50, 75, 99, 100)]
        assert factors == pytest.approx([1, 1, 1, 0.5, 0.02, 0])
    always = load_recipe("toy", (*TINY, "train.steps=100", "train.decay_from=1.0")).train
    assert always.decay_step == 100 and always.rate_factor(99) == 1
    assert load_recipe("toy", (*TINY, "train.steps=100", "train.decay_from=1")).train.decay_step == 1


def test_the_average_follows_the_generator(workplace):
    run = build(workplace / "run", "train.ema=0.5", "train.steps=1")
    session = Session(run.recipe)
    start = session.method.generator.state_dict()["model.1.weight"].clone()
    fit(run)
    tensors, document = load_tensors(run.checkpoints.path(1))
    raw, mean = tensors["model/generator.model.1.weight"], tensors["ema/forward/model.1.weight"]
    # The first step's decay is (1 + 0) / (10 + 0) = 0.1, not 0.5: early averages forget the start.
    torch.testing.assert_close(mean, 0.1 * start + 0.9 * raw, rtol=1e-5, atol=1e-7)
    assert document["generators"]["forward"]["prefix"] == "ema/forward/"


def test_the_average_is_a_copy_that_takes_buffers_as_they_are():
    network = nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1))
    ema = EMA(network, decay=0.5)
    assert not ema.average.training and not any(p.requires_grad for p in ema.average.parameters())
    start = network[0].weight.detach().clone()
    with torch.no_grad():
        network[0].weight += 1
    network[1].running_mean += 2
    assert torch.equal(ema.average[0].weight, start)
    ema.update(100)
    torch.testing.assert_close(ema.average[0].weight, start + 0.5)
    assert float(ema.average[1].running_mean) == 2
    network[1].running_mean += 1
    assert float(ema.average[1].running_mean) == 2


def test_watch_names_the_first_step_and_the_losses():
    guard = FiniteGuard()
    guard.record(1, {"NCE": torch.tensor(1.0), "G_GAN": torch.tensor(1.0), "tap_0/peak": torch.tensor(math.nan)})
    guard.check()
    guard.record(2, {"NCE": torch.tensor(math.nan), "G_GAN": torch.tensor(1.0)})
    guard.record(3, {"NCE": torch.tensor(math.nan), "G_GAN": torch.tensor(math.inf)})
    with pytest.raises(NonFiniteLossError, match=r"the loss NCE became NaN or infinite at step 2"):
        guard.check()


def test_translations_that_are_not_finite_end_the_run_in_words(workplace):
    run = build(workplace / "run", "train.lr=2e4", "evaluate.every=1", "train.steps=10")
    with pytest.raises(NonFiniteLossError, match=r"^the translations are NaN .* a smaller train\.lr"):
        fit(run)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint_before(workplace):
    run = build(workplace / "run", "train.lr=1e30", "train.steps=40", "checkpoint={every: 1, keep: 50}")
    with pytest.raises(NonFiniteLossError, match="became NaN or infinite at step"):
        fit(run)
    for step in run.checkpoints.steps():
        tensors, _ = load_tensors(run.checkpoints.path(step), "model/")
        assert step < 40
        assert tensors


def test_half_precision_trains_on_the_cpu_with_losses_in_float32(workplace):
    run = build(workplace / "run", "train.precision=bf16")
    fit(run)
    losses = [e["losses"] for e in events(run, "train")]
    assert all(math.isfinite(v) for each in losses for v in each.values())
    tensors, _ = load_tensors(run.checkpoints.path(4))
    assert {t.dtype for k, t in tensors.items() if k.startswith("model/")} == {torch.float32}


@pytest.mark.parametrize("channels", [1, 2, 4])
def test_images_of_other_than_three_channels(workplace, channels):
    run = build(workplace / "run", f"data.channels={channels}", "train.steps=1", "augmentations=[flip]")
    fit(run)
    tensors, document = load_tensors(run.checkpoints.path(1), "model/")
    assert tensors["generator.model.1.weight"].shape[1] == channels
    assert document["generators"]["forward"]["arguments"]["in_channels"] == channels
    assert len(list(run.grids.iterdir())) == 1


@pytest.mark.parametrize(
    "settings",
    [
        ["objective.gan={type: wgan-gp, weight: 5}"],
        ["objective.gan=hinge", "objective.r1=1.0"],
        ["objective.gan=vanilla", "discriminator_augmentations=[translation, cutout, colour]"],
        ["objective.negatives=batch", "objective.identity=false", "objective.identity_l1=2"],
        ["objective.nce_weight=0"],
        ["method=cyclegan", "objective.gan={type: wgan-gp}", "discriminator_augmentations=[translation]"],
        ["method=cyclegan", "objective={identity_weight: 0, pool: 0}"],
        ["discriminator={type: multi_scale, width: 4, layers: 1}"],
        ["sampler.routing=own", "sampler.significance=norm"],
    ],
    ids=lambda settings: settings[0],
)
def test_objectives_can_be_exchanged(workplace, settings):
    run = build(workplace / "run", *settings, "train.steps=2", "evaluate.every=2")
    fit(run)
    losses = [e["losses"] for e in events(run, "train")]
    assert len(losses) == 2
    assert all(math.isfinite(v) for each in losses for v in each.values())
    if "wgan" in settings[0] + settings[-1]:
        assert any(name.startswith("D_penalty") for name in losses[0])


def test_an_objective_that_is_not_adversarial_is_refused_where_it_stands():
    for text, message in (("lsgann", "did you mean 'lsgan'"), ("patchnce", "is not an adversarial loss")):
        with pytest.raises(UserError, match=rf"objective\.gan: .*{message}"):
            Session(load_recipe("toy", (*TINY, f"objective.gan={text}")))


def test_query_selection_adds_no_parameter(workplace):
    shapes = []
    for method in ("cut", "qsattn"):
        state = Session(load_recipe("toy", (*TINY, f"method={method}", "objective.head_width=8"))).method.state_dict()
        shapes.append({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("augmentations=[{type: resize, size: 8}]", r"augmentations: .*at least 12"),
        ("augmentations=[{type: crop, size: 64}]", r"augmentations: cannot be applied to images of 32 x 32 pixels"),
        (
            "augmentations=[{type: crop, size: 30}]",
            r"augmentations: resnet_4blocks takes multiples of 4 pixels, got 30",
        ),
        ("discriminator_augmentations=[{type: crop, size: 4}]", r"discriminator_augmentations: "),
    ],
)
def test_augmentations_that_leave_no_image_for_a_network_are_refused_when_it_is_built(workplace, setting, message):
    networks = ("generator={type: resnet_4blocks, width: 4}", "discriminator={type: patchgan, width: 4, layers: 2}")
    run = build(workplace / "run", *networks, setting)
    with pytest.raises(UserError, match=message):
        Session(run.recipe)


def test_a_run_that_is_training_keeps_its_recipe(workplace):
    run = build(workplace / "run")
    before = (run.folder / "recipe.yaml").read_bytes()
    with run.lock(), pytest.raises(UserError, match="another process is training"):
        build(workplace / "run", "train.steps=30")
    assert (run.folder / "recipe.yaml").read_bytes() == before
    with pytest.raises(UserError, match="cannot be created: File name too long"):
        build(workplace / ("n" * 256))


def test_a_damaged_log_does_not_keep_a_run_from_going_on(workplace):
    run = build(workplace / "run")
    fit(run, max_steps=2)
    with open(run.folder / "metrics.jsonl", "ab") as file:
        file.write(b"\xff\xfe\x00garbage\n5\n[1]\n")
    fit(run)
    assert [e["step"] for e in events(run, "train")] == [1, 2, 3, 4]


def test_what_is_no_checkpoint_is_passed_over(workplace):
    run = build(workplace / "run")
    fit(run, max_steps=2)
    (run.folder / "checkpoints" / "step-000000098.safetensors").mkdir()
    (run.folder / "checkpoints" / "step-99.safetensors").write_bytes(run.checkpoints.path(2).read_bytes())
    fit(run)
    assert run.checkpoints.steps()[-1] == 4


def test_weights_of_another_generator_are_taken_over_with_a_word(workplace):
    first = build(workplace / "first", "generator.norm=none")
    fit(first, max_steps=1)
    start = f"train.init_from={first.checkpoints.path(1)}"
    with pytest.warns(GeneratorMismatchWarning, match="has other arguments: norm='none', here 'instance'"):
        Session(build(workplace / "second", "generator.norm=instance", start).recipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error", GeneratorMismatchWarning)
        Session(build(workplace / "third", "generator={norm: none, init_gain: 0.5}", start).recipe)
    with pytest.raises(UserError, match=r"train\.init_from: there is no file"):
        Session(build(workplace / "fourth", "train.init_from=nowhere").recipe)
    with pytest.raises(UserError, match=r"train\.init_from: there is no file .*~nobody-of-that-name"):
        Session(build(workplace / "fifth", "train.init_from=~nobody-of-that-name/x").recipe)


@pytest.fixture
def decaying(workplace) -> Run:
    """A run on files whose random crops end at step 2."""
    for folder in ("trainA", "trainB"):
        (workplace / "data" / folder).mkdir(parents=True)
        for number in range(4):
            Image.effect_noise((44, 44), 60 + number).convert("RGB").save(workplace / f"data/{folder}/{number}.png")
    data = "data={type: folders, root: data, preprocess: resize_and_crop, resize: 40, crop: 32}"
    settings = [s for s in TINY if not s.startswith(("data", "checkpoint"))]
    more = ("checkpoint={every: 100, keep: 2}", "data.random_crop=until_decay")
    return Run.create(load_recipe("toy", (data, *settings, *more)), workplace / "run")


def test_pictures_that_are_gone_when_crops_end_cost_no_step(workplace, decaying):
    def leave(progress):
        if progress.kind == "step" and progress.step == 2:
            (workplace / "data").rename(workplace / "elsewhere")

    with pytest.raises(UserError, match=r"(?s)the data folder .* does not exist .*\nstep 2 of 4 is saved"):
        fit(decaying, on_event=leave)
    (workplace / "elsewhere").rename(workplace / "data")
    fit(decaying)
    assert decaying.checkpoints.steps()[-1] == 4


def test_pictures_that_cannot_be_read_when_crops_end_are_said(workplace, decaying):
    def spoil(progress):
        if progress.kind == "step" and progress.step == 2:
            for number in range(3):
                (workplace / f"data/trainA/{number}.png").write_bytes(b"x")

    fit(decaying, on_event=spoil)
    (entry,) = events(decaying, "images")
    assert entry["images"] == {"A": 1, "B": 4} and [name for name, _ in entry["skipped"]] == [
        f"trainA/{number}.png" for number in range(3)
    ]
    assert "3 skipped" in decaying.report.read_text(encoding="utf-8")


def test_a_signal_while_pictures_are_decoded_again_ends_that_at_once(decaying):
    decoded = []

    def ends(progress):
        if progress.kind == "decode" and decaying.checkpoints.steps() == [2]:
            decoded.append(progress.step)
            signal.raise_signal(signal.SIGTERM)

    with pytest.raises(Interrupted, match="step 2 of 4 is saved"):
        fit(decaying, on_event=ends)
    assert decoded == [1]
    whole = Run.create(decaying.recipe, decaying.folder.with_name("whole"))
    fit(whole)
    fit(decaying)
    assert decaying.checkpoints.path(4).read_bytes() == whole.checkpoints.path(4).read_bytes()
