"""``qsattn build`` finds out what ``qsattn fit`` would run into, how long it takes, and which precision fits."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner, Result

from qsattn_plugin.cli import main
from qsattn_plugin.data.pixels import as_pil
from qsattn_plugin.data.toy import ToyHorses
from qsattn_plugin.registry import timm_features
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.registry.timm_features import TimmFeatures
from qsattn_plugin.text import duration
from qsattn_plugin.training import precision, trial
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.training.trial import Trial, describe_trial
from tests.conftest import TINY


def qsattn(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def build(recipe: str, *settings: str, tiny: tuple[str, ...] = TINY) -> Result:
    """Build a recipe of this text, made small."""
    Path("mine.yaml").write_text(recipe)
    return qsattn("build", "mine.yaml", *(word for setting in (*tiny, *settings) for word in ("-s", setting)))


#: What is asked for, the line that is blamed, and the one message.
MISTAKES = {
    "a generator of other channels": (
        "generator: {in_channels: 1}",
        2,
        r"generator.in_channels: must be data.channels, 3, got 1; leave it out, or set data.channels",
    ),
    "a discriminator of other channels": (
        "discriminator: {type: patchgan, in_channels: 1}",
        2,
        r"discriminator.in_channels: must be data.channels, 3, got 1; leave it out, or set data.channels",
    ),
    "cycles of images of 1 and 3 channels": (
        "method: cyclegan\ngenerator: {out_channels: 1}",
        3,
        r"generator.out_channels: must be data.channels, 3, got 1; leave it out, or set data.channels",
    ),
    "a model that is built for another size": (
        "data: {size: 256, crop: 256}\nencoder: {type: timm, model: crossvit_tiny_240}",
        2,
        r"data.crop: encoder.model: crossvit_tiny_240 fails on 256 x 256 pixels \(.+\); set data.crop or .* to 240",
    ),
    "a model whose blocks do not divide the images": (
        "data: {size: 32, crop: 32}\nencoder: {type: timm, model: halonet26t}",
        2,
        r"data.crop: encoder.model: halonet26t fails on 32 x 32 pixels \(AssertionError\); set data.crop to 256 or 128",
    ),
    "a model that is none": (
        "encoder: {type: timm, model: crossvit_tinny_240}",
        2,
        r"encoder.*: .*no model 'crossvit_tinny_240'; did you mean 'crossvit_tiny_240'\?.*",
    ),
    "a score by a model that is none": (
        "evaluate: {kid: convnext_tinny}",
        2,
        r"evaluate.kid: timm \S+ has no model 'convnext_tinny'; did you mean 'convnext_tiny'\?",
    ),
    "a score by weights that cannot be had": (
        "evaluate: {kid: test_convnext}",
        2,
        r"evaluate.kid: could not get pretrained weights of test_convnext: .*set weights: path/to/model.safetensors .*",
    ),
}


#: timm 1.0.16, the oldest, builds neither all networks on shapes alone nor all for their features.
newer_timm = pytest.mark.skipif(timm.__version__ == "1.0.16", reason="timm 1.0.16 cannot build them on shapes alone")


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(case, marks=[newer_timm] * case.startswith(("a model that is built", "a model whose")))
        for case in MISTAKES
    ],
)
def test_what_does_not_fit_is_said_once_with_file_line_and_key(workplace, no_hub, case):
    asked, line, message = MISTAKES[case]
    left_out = "data." if "data:" in asked else "objective." if "cyclegan" in asked else "-"
    done = build(f"extends: toy\n{asked}\n", tiny=tuple(each for each in TINY if not each.startswith(left_out)))
    assert done.exit_code == 1
    assert re.findall("^Error: .*", done.output, re.M) == [done.output.splitlines()[-1]]
    assert re.search(rf"^Error: \S*mine\.yaml:{line}: {message}\n\Z", done.output, re.M), done.output
    assert not Path("runs").exists()


@newer_timm
def test_patches_that_do_not_divide_the_sides_are_padded():
    with torch.device("meta"):
        encoder = TimmFeatures("vit_small_patch14_dinov2", size=56)
        assert [m.shape[2:] for m in encoder(torch.empty(1, 3, 356, 32))] == [(26, 3)] * len(encoder.taps)


def test_an_encoder_that_looks_at_values_is_taken(workplace, no_hub, monkeypatch):
    """Networks are tried on shapes alone first, which is no reason to refuse one that cannot run so."""
    whole = timm_features._build

    def looks(*args, **kwargs):
        model = whole(*args, **kwargs)
        model.register_forward_pre_hook(lambda _, images: images if images[0].sum().item() < 1e9 else None)
        return model

    monkeypatch.setattr(timm_features, "_build", looks)
    done = build("extends: toy\nencoder: {type: timm, model: lcnet_035}\n", "encoder.pretrained=false")
    assert done.exit_code == 0, done.output


def test_the_trial_says_time_and_memory(workplace):
    done = build("extends: toy\n")
    assert done.exit_code == 0, done.output
    assert re.search(
        r"^It takes about .+ here: \S+ (ms|s) a step, 4 steps \(fp32 on cpu, \d+\.\d GB of memory\)\.",
        done.output,
        re.M,
    )
    done = qsattn("build", "mine.yaml", "--no-trial", *(word for setting in TINY for word in ("-s", setting)))
    assert done.exit_code == 0 and "It takes" not in done.output


def test_what_takes_longer_than_an_hour_is_compared_with_what_does_not(monkeypatch):
    monkeypatch.setattr(trial, "shipped_recipes", lambda: {"toy": "", "horse2zebra": "", "horse2zebra_mobile": ""})
    like_it = ("data.size=64", "data.crop=64", "generator.width=24")
    session = Session(load_recipe("toy", [*TINY, *like_it, "name=mine", "train.batch_size=1"]))
    said = describe_trial(session, Trial(step=0.5, evaluation=10, training=36_000, memory=2 * 10**9))
    # The toy's generator is this one on two images instead of one: a second for each of its steps.
    time = duration(load_recipe("toy").train.steps)
    assert said == (
        "It takes about 10 h here: 0.5 s a step, 4 steps (fp32 on cpu, 2.0 GB of memory). Recipes that fit an hour "
        f"here, by their generators' multiply-adds: toy ({time})."
    )
    session.recipe.train.__dict__["steps"] = 70_000
    assert " 70000 steps " in (said := describe_trial(session, Trial(0.5, 10, 36_000, 10**9)))
    assert "An hour is 7000 of them (-s train.steps=7000)." in said


@pytest.mark.parametrize("method", ["cut", "simdcl"])
@pytest.mark.parametrize("nce", ["patchnce", "negcut", "enco"])
def test_a_loss_that_needs_more_positions_says_so_before_the_training(workplace, nce, method):
    done = build("extends: toy\n", f"method={method}", f"objective.nce={nce}", "sampler.queries=1")
    assert done.exit_code == 1
    assert re.search(
        r"^Error: -s sampler\.queries=1: sampler\.queries: .*needs at least [23] positions", done.output, re.M
    )


@pytest.fixture
def pretend(monkeypatch):
    """Pretend a CPU with bf16 in hardware or without."""

    def on(has_bf16: bool) -> None:
        monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: has_bf16)
        monkeypatch.setattr(precision, "time_ratio", lambda name: 0.5 if has_bf16 else 5.0)

    return on


MOBILE = (
    *("data={type: toy, size: 64, train: 4, test: 2}", "data.resize=64", "data.crop=64", "generator.width=8"),
    *("discriminator={model: test_efficientnet, pretrained: false, width: 8}", "objective.head_width=8"),
    *("sampler.queries=16", "train.device=cpu", "train.steps=8"),
)


@pytest.mark.parametrize(("has_bf16", "chosen"), [(True, "bf16"), (False, "fp32")])
def test_the_precision_is_what_the_cpu_computes_in_hardware(workplace, pretend, has_bf16, chosen):
    pretend(has_bf16)
    done = build("extends: horse2zebra_mobile\n", tiny=MOBILE)
    assert done.exit_code == 0, done.output
    assert re.search(rf"It takes about .* \({chosen} on cpu, .* GB of memory\)", done.output)


def test_a_precision_that_the_cpu_lacks_is_warned_of_and_a_run_keeps_the_one_that_it_began_in(workplace, pretend):
    pretend(True)
    assert build("extends: toy\n", "train.precision=auto").exit_code == 0
    assert " in bf16, " in qsattn("fit", "mine", "--max-steps", "2").output
    pretend(False)
    done = qsattn("fit", "mine")
    assert "carrying on at step 2 on cpu in bf16" in done.output
    assert "bf16, as this training began in it: this CPU has no instructions for it, a convolution took 5 times" in (
        done.output
    )
    began = [event["environment"]["precision"] for event in Run.open("mine").events("start")]
    assert began == ["bf16", "bf16"] and "bf16" in Path("runs/mine/report.html").read_text()
    done = build("extends: toy\nname: other\n", "train.precision=bf16")
    assert done.exit_code == 0 and "train.precision: bf16: this CPU has no instructions for it" in done.output


def test_a_stranger_s_pictures_are_shown_and_scored(workplace):
    """Twelve pictures a domain of several sizes, one more that is broken, no test pictures, and `build && fit`."""
    toy = ToyHorses(size=48, train=12, test=1)
    for split in ("trainA", "trainB"):
        Path("data", split).mkdir(parents=True)
        for i, image in enumerate(toy.split(split)):
            as_pil(image).resize((48, 40 + i)).save(f"data/{split}/{i:02}.png")
    Path("data/trainA/000.png").write_bytes(b"not a picture")
    tiny = [setting for setting in TINY if not setting.startswith(("data.", "train.steps", "train.log", "evaluate"))]
    mine = "extends: toy\ndata: {type: folders, root: data, preprocess: resize_and_crop, resize: 36, crop: 32}\n"
    built = build(mine, "train.steps=30", tiny=(*tiny,))
    assert built.exit_code == 0, built.output
    done = qsattn("fit")
    assert done.exit_code == 0, done.output
    assert "there are no test pictures: the first of trainA are shown and scored" in done.output
    assert "skipped trainA/000.png" in done.output
    run = Run.open("mine")
    evaluations = run.events("evaluate")
    assert [event["step"] for event in evaluations] == [5, 10, 15, 20, 25, 30]
    assert all(list(event["scores"]) == ["swd"] and event["scores"]["swd"] > 0 for event in evaluations)
    assert all(Path(event["grid"]).is_file() and event["pictures"] == ["trainA", "trainB"] for event in evaluations)
    assert re.search(r"swd \d+\.\d+ at step \d+ is the best of 6 evaluations\n", done.output)
    page = run.report.read_text()
    assert "swd" in page and "trainA" in page
    done = qsattn("translate", "data/trainA/01.png", "-m", "mine@best", "-o", "out")
    assert done.exit_code == 0 and Path("out/01.png").is_file(), done.output
