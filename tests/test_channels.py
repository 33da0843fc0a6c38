"""Images of any number of bands, and of other bands in the two domains: parts, recipes, training and what follows."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from qsattn_plugin.data.images import read_image, read_raster
from qsattn_plugin.data.pixels import shown
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.data.raster import Raster
from qsattn_plugin.data.writing import write_raster
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.mapping import draw_maps, entropy_maps
from qsattn_plugin.evaluation.scoring import Evaluation
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.registry.recipe import Recipe, RecipeError
from qsattn_plugin.registry.timm_features import TimmFeatures
from qsattn_plugin.storage import read_document
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.python import Training
from qsattn_plugin.training.report.maps import write_maps
from qsattn_plugin.training.resuming import check_architecture
from qsattn_plugin.training.run import Run
from qsattn_plugin.training.session import Session
from qsattn_plugin.training.trial import try_recipe
from qsattn_plugin.translation.export import export, subject_of
from qsattn_plugin.translation.files import plan
from qsattn_plugin.translation.job import translate_files
from qsattn_plugin.translation.load import fresh, load
from qsattn_plugin.translation.publish import publish
from qsattn_plugin.translation.tiles import translate_tiled
from qsattn_plugin.web import write_site
from tests.test_parts import SIDE, arguments

SIDES = 24


def disc(draws: np.random.Generator) -> np.ndarray:
    """A bright disc on a dark ground, in [-1, 1]."""
    y, x = np.mgrid[:SIDES, :SIDES]
    cy, cx, radius = draws.uniform(6, SIDES - 6, 3)
    return np.clip(radius / 2 - np.hypot(y - cy, x - cx), -1, 1)


def write_set(root: Path, make) -> Path:
    """Write three training and two test pictures of each domain; ``make`` makes the picture of a disc and a domain."""
    draws = np.random.default_rng(0)
    for split in ("trainA", "trainB", "testA", "testB"):
        for number in range(3 if split.startswith("train") else 2):
            values = make(disc(draws), split[-1])
            write_raster(Raster(values), root / split / f"{number}{'.png' if values.dtype == np.uint8 else '.tif'}")
    return root


def scan(image: np.ndarray, domain: str) -> np.ndarray:
    """Hounsfield units, one band, in A; RGB of 8 bits in B."""
    if domain == "A":
        return (1000 + 1900 * image).astype(np.int16)[..., None]
    return (128 + 100 * np.stack([image, -image, image * 0.5], -1)).astype(np.uint8)


def satellite(image: np.ndarray, domain: str) -> np.ndarray:
    """Thirteen bands of 16 bits, whose contrast falls or rises over the bands."""
    bands = np.arange(13) if domain == "A" else np.arange(13)[::-1]
    return (3000 + image[..., None] * (2000 - 150 * bands)).astype(np.uint16)


@pytest.fixture(scope="module")
def tifffile():
    pytest.importorskip("tifffile")
    pytest.importorskip("imagecodecs")


@pytest.fixture(scope="module")
def scans(tmp_path_factory, tifffile) -> Path:
    return write_set(tmp_path_factory.mktemp("scans"), scan)


@pytest.fixture(scope="module")
def satellites(tmp_path_factory, tifffile) -> Path:
    return write_set(tmp_path_factory.mktemp("satellites"), satellite)


RECIPE = """
name: channels
method: cut
data: {root: ROOT, resize: 18, crop: 16}
generator: {type: resnet_4blocks, width: 4}
discriminator: {type: patchgan, width: 4, layers: 1}
train: {steps: 2, device: cpu, precision: fp32}
evaluate: {every: 2}
"""
ATTENDING = ("method=qsattn", "sampler.queries=8", "objective.head_width=8")
SCANS = ("data.channels={A: 1, B: 3}", "data.range={A: [-1000, 3000], B: null}")
SATELLITES = ("data.channels=13", "data.range=dtype", "evaluate.bands=[4, 3, 2]")
NO_IDENTITY = "objective.identity=false"


def recipe(root, *overrides: str) -> Recipe:
    return Recipe.from_yaml(RECIPE.replace("ROOT", str(root)), "my.yaml", overrides)


# Parts.


@pytest.mark.parametrize("part", list_parts("generators"), ids=lambda part: part.name)
@pytest.mark.parametrize(("before", "after"), [(13, 13), (1, 3), (64, 2)])
def test_generators_take_and_give_any_channels(part, before, after):
    generator = create("generator", part.name, **arguments(part), in_channels=before, out_channels=after).to("meta")
    side = SIDE.get(part.name, 64)
    image, features = generator(
        torch.empty(1, before, side, side, device="meta"), taps=[tap.index for tap in generator.taps]
    )
    assert image.shape == (1, after, side, side)
    assert [f.shape[1] for f in features] == [tap.channels for tap in generator.taps]


@pytest.mark.parametrize("argument", ["residual", "mask"])
@pytest.mark.parametrize("part", list_parts("generators"), ids=lambda part: part.name)
def test_an_image_is_added_to_one_of_its_own_channels_alone(part, argument):
    if argument not in part.signature.parameters:
        return
    given = arguments(part) | {argument: True}
    same = create("generator", part.name, **given, in_channels=5, out_channels=5)
    assert getattr(same, argument)
    with pytest.raises(ValueError, match=f"^{argument}: images of 1 input and 3 output channels cannot be added"):
        create("generator", part.name, **given, in_channels=1, out_channels=3)


@pytest.mark.parametrize("part", list_parts("discriminators"), ids=lambda part: part.name)
@pytest.mark.parametrize("channels", [2, 13])
def test_discriminators_judge_any_channels(part, channels):
    discriminator = create("discriminator", part.name, **arguments(part), in_channels=channels)
    images = torch.rand(2, channels, 64, 64).requires_grad_()
    scores = discriminator(images)
    sum(s.square().mean() for s in ([scores] if isinstance(scores, torch.Tensor) else scores)).backward()
    assert (images.grad.abs().amax((0, 2, 3)) > 0).all(), "every band counts"


@pytest.mark.parametrize("name", ["test_convnext", "test_vit"])
def test_timm_models_get_more_bands_as_timm_gives_them(name, tmp_path):
    """The filters of the first layer are repeated, and with them means and deviations; equal bands give equal maps."""
    torch.manual_seed(7)
    whole = timm.create_model(name)
    save_file(whole.state_dict(), tmp_path / "w.safetensors")
    three, six = (TimmFeatures(name, weights=tmp_path / "w.safetensors", size=64, in_channels=n) for n in (3, 6))
    overlay = {"state_dict": whole.state_dict()}
    theirs = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, in_chans=6, features_only=True)
    first = next(p for p in six.model.parameters() if p.ndim == 4)
    assert torch.equal(first, next(p for p in theirs.parameters() if p.ndim == 4))
    torch.testing.assert_close(first[:, :3], next(p for p in three.model.parameters() if p.ndim == 4) / 2)
    assert torch.equal(six.mean, three.mean.repeat(1, 2, 1, 1))
    images = torch.rand(2, 3, 64, 64)
    for a, b in zip(three(images), six(images.repeat(1, 2, 1, 1)), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)  # sums in another order, through some layers


def test_a_timm_model_that_cannot_be_widened_is_refused(monkeypatch, tmp_path):
    from timm.models import _builder

    def refuse(*_, **__):
        raise NotImplementedError

    monkeypatch.setattr(_builder, "adapt_input_conv", refuse)
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="cannot widen the first layer of test_convnext to 6 channels"):
        TimmFeatures("test_convnext", weights=tmp_path / "w.safetensors", in_channels=6)


@pytest.mark.parametrize(("before", "after"), [(13, 13), (1, 3)])
@pytest.mark.parametrize("name", ["resnet_4blocks", "swift_resnet_6blocks"])
def test_tiles_are_the_whole(name, before, after):
    torch.manual_seed(0)
    generator = create("generator", name, width=4, in_channels=before, out_channels=after).eval()
    image = torch.rand(before, 48, 64) * 2 - 1
    found = translate_tiled(generator, image, 16)
    with torch.no_grad():
        torch.testing.assert_close(found, generator(image[None])[0].clamp(-1, 1), rtol=0, atol=1e-5)


def test_bytes_of_many_bands_are_resized_by_bands():
    image = torch.randint(0, 256, (5, 24, 24), dtype=torch.uint8)
    small = Preprocess("resize_and_crop", resize=12, crop=12)(image)
    assert small.shape == (5, 12, 12)
    grey = Preprocess("resize_and_crop", resize=12, crop=12)(image[2:3])
    assert (small[2:3].int() - grey.int()).abs().max() <= 1  # Pillow rounds bytes between its two passes


@pytest.mark.parametrize(("count", "bands", "expected"), [(1, None, "000"), (2, None, "000"), (4, (4, 1, 2), "301")])
def test_people_are_shown_three_bands(count, bands, expected):
    image = torch.arange(count)[:, None, None].expand(-1, 4, 4) / 5
    values = np.asarray(shown(image, bands))[0, 0]
    assert values.tolist() == [round((int(band) / 5 + 1) * 127.5) for band in expected]


# Recipes.


@pytest.mark.parametrize(
    ("overrides", "key", "problem"),
    [
        (("data.channels=5",), "data.channels", "must be 1, 2, 3 or 4 for pictures of 8 bits, got 5; others need a"),
        (("data.channels={A: 1}",), "data.channels", "a mapping must have both A and B, got A"),
        (("data.channels={A: 1, B: 65}",), "data.channels.B", "must be at most 64, got 65"),
        (("data={type: toy, channels: {A: 1, B: 3}}",), "data.channels", "must be an integer, got a mapping"),
        (SCANS, "objective.identity", "set it to false"),
        ((*SCANS, NO_IDENTITY, "objective.identity_l1=1"), "objective.identity_l1", "set it to 0"),
        ((*SCANS, "method=cyclegan"), "objective.identity_weight", "set it to 0"),
        ((*SCANS, "method=dclgan"), "objective.identity_l1", "set it to 0"),
        ((*SCANS, NO_IDENTITY, "generator.residual=true"), "generator.residual", "1 input and 3 output channels"),
        ((*SCANS, NO_IDENTITY, "generator.in_channels=3"), "generator.in_channels", "must be data.channels, 1, got 3"),
        (
            (*SATELLITES, "data.channels={A: 13, B: 3}", NO_IDENTITY, "encoder={type: timm, model: test_convnext}"),
            "encoder",
            "one timm model cannot encode images of 13 channels and translations of 3; use encoder",
        ),
        ((*SATELLITES, "augmentations=[flip, colour]"), "augmentations", "colour: changes grey and RGB, not 13"),
        (
            (*SATELLITES, "objective.nce={type: lsesim, learned: true}"),
            "objective.nce.augment",
            "colour: changes grey and RGB, not 13 channels",
        ),
        (
            (*SATELLITES, "evaluate.bands=[4, 3, 14]"),
            "evaluate.bands",
            "band 14 is shown, but images of A have 13 channels",
        ),
    ],
)
def test_what_does_not_fit_is_refused_where_it_is_said(overrides, key, problem, tmp_path):
    (tmp_path / "trainA").mkdir()

    def build():
        found = recipe(tmp_path, *overrides)
        found.build("data")
        Session(found)

    with pytest.raises(RecipeError) as error:
        build()
    assert f": {key}: " in str(error.value)
    assert problem in str(error.value)


def test_equal_channels_are_one_number(tmp_path):
    found = recipe(tmp_path, "data.channels={B: 3, A: 3}")
    assert found == recipe(tmp_path)
    other = recipe(tmp_path, *SCANS)
    assert Recipe.from_yaml(other.to_yaml()) == other
    assert other.data.ends("channels") == (1, 3) and other.data.ends("channels", back=True) == (3, 1)
    assert recipe(tmp_path, *SCANS, "data.direction=BtoA").data.ends("channels") == (3, 1)
    document = {"recipe": json.loads(json.dumps(other.to_dict()))}
    check_architecture(other, document, tmp_path)
    with pytest.raises(RecipeError, match="data.channels: is 3"):
        check_architecture(recipe(tmp_path, "data.range={A: [-1000, 3000], B: null}"), document, tmp_path)


@pytest.mark.parametrize(("section", "made"), [("generator", "1 channels, and 3"), ("encoder", "maps of [3]")])
def test_parts_that_give_other_channels_than_they_should_are_named(section, made, scans, monkeypatch):
    """As one of somebody else's that takes no ``out_channels``, or says wrong ``channels``."""

    class Wrong(torch.nn.Conv2d):
        taps, channels, strides = [0], [4], [1]

        def features(self, generator, image):
            return [image.expand(-1, 3, -1, -1)]

    build = Recipe.build
    monkeypatch.setattr(
        Recipe, "build", lambda self, part, **given: Wrong(1, 1, 1) if part == section else build(self, part, **given)
    )
    with pytest.raises(RecipeError, match=rf"{section}: .* fails on images of 16 x 16 .*it gives {re.escape(made)}"):
        Session(recipe(scans, *SCANS, NO_IDENTITY))


def test_images_of_other_channels_than_the_recipe_s_are_named(scans):
    with pytest.raises(RecipeError, match=r"data: none of 3 pictures could be read \(0.tif: has 1 band, and 2"):
        try_recipe(Session(recipe(scans, *SCANS, "data.channels={A: 2, B: 3}", NO_IDENTITY)))


# From pictures to a model and what is done with it.


def last(run: Run) -> Path:
    return run.checkpoints.path(run.checkpoints.steps()[-1])


def trained(folder: Path, root: Path, *overrides: str) -> Run:
    """Train two steps, and the same two with a stop between them: they are the same bytes."""
    whole, parts = (Run.create(recipe(root, *overrides), folder / name) for name in ("whole", "parts"))
    fit(whole)
    fit(parts, max_steps=1)
    fit(parts)
    assert last(whole).read_bytes() == last(parts).read_bytes()
    return whole


def test_scans_become_colours(scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, scans, *SCANS, *ATTENDING, NO_IDENTITY)
    described = read_document(last(run))["generators"]["forward"]
    assert (described["channels"], described["out_channels"]) == (1, 3)
    assert described["ranges"] == [[-1000, 3000], None]
    encoder = Session(run.recipe).method.encoder
    assert encoder.entrance.weight.shape == (1, 3, 1, 1)  # colours to the generator's grey
    translator = load(run.folder)
    targets = [target for _, target in plan([scans / "testA"], tmp_path / "out", *translator.kept[:1])]
    assert {target.suffix for target in targets} == {".png"}
    outcome = translate_files(translator, zip(sorted((scans / "testA").iterdir()), targets, strict=True), at=16)
    assert outcome.carried == {16: 2} and not translator.carries  # enlarged: there is no change to add
    made = [read_image(path) for path in outcome.written]
    assert {(one.mode, one.size) for one in made} == {("RGB", (SIDES, SIDES))}
    small = read_raster(scans / "testA" / "0.tif")
    assert np.asarray(made[0]).std() < 128 and np.asarray(translator.preview(small)).shape == (SIDES, SIDES, 3)
    scores = Evaluation(str(run.folder), real=scans / "testB", source=scans / "testA", metrics=("swd",), size=16).run()
    assert np.isfinite(scores.figures[0].value)
    (drawn, numbers), *_ = draw_maps([scans / "testA" / "0.tif"], str(run.folder), tmp_path / "maps")
    assert read_image(drawn).mode == "RGB" and json.loads(numbers.read_text())["image_size"] == [SIDES, SIDES]
    assert run.report.is_file() and list(run.maps.iterdir()) and list(run.grids.iterdir())
    exported = export(subject_of(translator), "torchscript", tmp_path / "model.pt")
    assert exported.shapes[0][1] == 1 and exported.difference < 1e-5
    files = {"qsattn.json": ""}
    torch.jit.load(exported.path, _extra_files=files)
    facts = json.loads(files["qsattn.json"])
    assert (facts["channels"], facts["out_channels"]) == (1, 3) and "of 3 channels" in facts["about"]
    done = publish(run.folder, tmp_path / "published")
    assert done.facts["images"] == "1 channel (values -1000 to 3000) to 3 channels (8 bits)"
    assert json.loads((tmp_path / "published" / "config.json").read_text())["out_channels"] == 3
    again = load(done.path)
    assert (again.channels, again.out_channels, again.ranges) == (1, 3, ((-1000, 3000), None))
    with pytest.raises(UserError, match="channels translates 1 channels to 3; the page shows colours, 3 to 3"):
        write_site([(None, translator)], tmp_path / "site")
    assert Training.open(run.folder).translate(scans / "testA" / "0.tif", at=16).mode == "RGB"
    with pytest.raises(UserError, match="a value range"):
        translator.translate_values(Image.new("L", (32, 32)))
    for refused in (translator.translate, lambda picture: entropy_maps(picture, str(run.folder))):
        with pytest.raises(UserError, match="this model's pictures have a value range"):
            refused(Image.new("L", (32, 32)))


def test_satellites_of_thirteen_bands(satellites, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = trained(tmp_path, satellites, *SATELLITES, *ATTENDING)
    assert "out_channels" not in read_document(last(run))["generators"]["forward"]
    translator = load(run.folder)
    assert translator.carries and translator.kept[1] == ".tif"
    source = satellites / "testA" / "0.tif"
    outcome = translate_files(translator, [(source, tmp_path / "out.tif"), (source, tmp_path / "out.npy")], at=16)
    found = [read_raster(path).values for path in outcome.written]
    assert [(values.dtype, values.shape) for values in found] == [(np.uint16, (SIDES, SIDES, 13))] * 2
    assert np.array_equal(*found)
    tiled = translate_files(translator, [(source, tmp_path / "tiled.tif")], tile=8)
    whole = translate_files(translator, [(source, tmp_path / "whole.tif")], tile=0)
    tiled, whole = (read_raster(one.written[0]).values.astype(int) for one in (tiled, whole))
    assert np.abs(tiled - whole).max() <= 2  # of 65535: float32 in another order
    raster = read_raster(source)
    bands = raster.values[..., [3, 2, 1]] / 65535 * 255
    assert np.abs(np.asarray(translator.preview(raster)) - bands).max() <= 1  # rounding
    sheet = translate_files(translator, [(source, tmp_path / "sheet.png")], at=[16, "full"])
    assert read_image(sheet.written[0]).mode == "RGB"
    metrics = ("swd",)
    scores = Evaluation(
        str(run.folder), real=satellites / "testB", source=satellites / "testA", metrics=metrics, size=16
    )
    assert np.isfinite(scores.run().figures[0].value)
    (drawn, _), *_ = draw_maps([source], str(run.folder), tmp_path / "maps")
    # Dark, as 3000 of 65535 is; the picture is the first of three panels.
    assert np.asarray(read_image(drawn))[:64, :64].max() < 40
    assert export(subject_of(translator), "torchscript", tmp_path / "model.pt").shapes[0][1] == 13
    write_raster(Raster(raster.values[..., :12]), tmp_path / "twelve.tif")
    failed = translate_files(translator, [(tmp_path / "twelve.tif", tmp_path / "x.tif")]).failed
    assert "has 12 bands, and 13 are wanted (data.channels)" in failed[0][1]


@pytest.mark.parametrize(
    ("method", "objective"),
    [
        ("cyclegan", "objective={identity_weight: 0}"),
        ("dclgan", "objective={identity_l1: 0, nce: [{type: lsesim, learned: true}, {type: srunit, start: 0}]}"),
        ("simdcl", "objective={identity_l1: 0, head_width: 8}"),
    ],
)
def test_two_generators_have_their_own_channels(method, objective, scans, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    overrides = (*SCANS, "train.steps=1", f"method={method}", objective, "data.direction=BtoA")
    run = Run.create(recipe(scans, *overrides), tmp_path / "run")
    fit(run)
    there, back = (load(run.folder, name=name) for name in ("forward", "backward"))
    assert (there.channels, there.out_channels, there.ranges) == (3, 1, (None, (-1000, 3000)))
    assert (back.channels, back.out_channels, back.ranges) == (1, 3, ((-1000, 3000), None))
    translate_files(there, [(scans / "testB" / "0.png", tmp_path / "a.tif")])
    made = read_raster(tmp_path / "a.tif").values
    assert (made.dtype, made.shape) == (np.int16, (SIDES, SIDES, 1)) and made.min() >= -1000 and made.max() <= 3000
    translate_files(back, [(tmp_path / "a.tif", tmp_path / "b.png")])
    assert read_image(tmp_path / "b.png").mode == "RGB"


@pytest.mark.parametrize(
    "overrides",
    [
        (*SCANS, NO_IDENTITY, "encoder={type: timm, model: test_convnext, size: 32}"),
        (*SCANS, NO_IDENTITY, "objective.nce=[{type: lsesim, learned: true, window: 4}, srunit]"),
        (*SCANS, "method=fastcut", "train.precision=bf16", "objective.gan=wgan-gp"),
        (*SCANS, "method=dclgan", "objective={identity_l1: 0, nce: lsesim}"),
    ],
)
def test_other_losses_and_encoders_compare_a_scan_with_colours(overrides, scans):
    trial = try_recipe(Session(recipe(scans, *overrides)))
    assert trial.step > 0


@pytest.mark.parametrize(
    "overrides",
    [
        ("encoder={type: timm, model: test_convnext, size: 32}",),
        ("discriminator={type: timm, model: test_convnext, width: 4}", "augmentations=[flip, affine]"),
        ("discriminator_augmentations=[translation, cutout]",),
    ],
)
def test_other_parts_train_on_thirteen_bands(overrides, satellites):
    assert try_recipe(Session(recipe(satellites, *SATELLITES, *overrides))).step > 0


def test_a_score_of_many_bands_is_of_those_shown(satellites, tmp_path):
    torch.manual_seed(7)
    save_file(timm.create_model("test_convnext").state_dict(), tmp_path / "w.safetensors")
    kid = f"evaluate.kid={{model: test_convnext, weights: {tmp_path / 'w.safetensors'}}}"
    assert try_recipe(Session(recipe(satellites, *SATELLITES, kid))).evaluation > 0


def test_grey_pictures_become_colours_at_their_own_size():
    """Of 8 bits: in other channels than the model's they are converted; a translation of others is enlarged."""
    translator = fresh("resnet_4blocks", width=4, in_channels=1, out_channels=3)
    translator.trained = 16
    alpha = Image.frombytes("L", (48, 40), bytes(range(240)) * 8)  # the translation is made at 19 x 16
    picture = Image.merge("LA", (Image.new("L", (48, 40), 90), alpha))
    made = translator.translate([picture, picture.convert("RGB")])
    assert [(one.mode, one.size) for one in made] == [("RGBA", (48, 40)), ("RGB", (48, 40))]
    assert made[0].getchannel("A").tobytes() == alpha.tobytes()
    with pytest.raises(UserError, match="this model translates 13 to 3 channels, which a PIL image does not hold"):
        fresh("resnet_4blocks", width=4, in_channels=13).translate(picture)


def test_maps_of_a_training_are_of_its_source(satellites, tmp_path):
    session = Session(recipe(satellites, *SATELLITES, *ATTENDING))
    image = torch.zeros(13, 16, 16, dtype=torch.int16)
    paths = write_maps(session, [image], tmp_path)
    assert paths and all(read_image(path).mode == "RGB" for path in paths)
