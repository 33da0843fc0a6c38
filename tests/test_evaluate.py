"""``qsattn evaluate``: models and folders, what is refused and how, the table and the JSON."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest
import torch

from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import as_pil, from_tensor
from qsattn_plugin.data.toy import ToyHorses
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation import fidelity
from qsattn_plugin.evaluation.pictures import Pictures, translate_pictures
from qsattn_plugin.evaluation.scoring import Evaluation
from qsattn_plugin.registry import list_parts
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.storage.download import DownloadFailed
from qsattn_plugin.translation.load import fresh, load
from tests.metric_parts import folder, greys, noise
from tests.test_cli import qsattn, refused, trained
from tests.test_readme import ROOT, indented
from tests.web import site

__all__ = ["site", "trained"]

SMALL = ("--extractor", "tests.metric_parts:small")


@pytest.fixture
def sets(workplace) -> None:
    """Folders ``a`` and ``b``, of pictures, in the current directory."""
    folder(workplace / "a", noise(5, 0))
    folder(workplace / "b", noise(6, 1, shade=90), "jpg")


def test_a_folder_is_scored_and_everything_is_told(workplace, sets):
    done = qsattn("evaluate", "a", "--real", "b", *SMALL, "--subsets", 7, "--json", "out/scores.json")
    assert done.exit_code == 0, done.output
    document = json.loads((workplace / "out/scores.json").read_text())
    assert (document["scored"], document["kind"], document["real"]) == ("a", "folder", "b")
    figures = {figure["name"]: figure for figure in document["figures"]}
    assert list(figures) == ["fid-6", "fid-40", "kid-6", "kid-40", "swd"]
    for figure in figures.values():
        assert figure["images"] == {"scored": 5, "real": 6}
        assert figure["better"] == "lower"
        assert figure["resize"]
        assert f"{figure['value']:.6g}" in done.output
    kid = figures["kid-40"]
    assert (kid["settings"]["subsets"], kid["settings"]["subset_size"], kid["settings"]["seed"]) == (7, 5, 2020)
    assert kid["deviation"] > 0
    assert f"± {kid['deviation']:.2g}" in done.output
    assert figures["fid-6"]["settings"]["extractor"] == SMALL[1]
    # Five pictures are fewer than 6 and 40 features.
    (warning,) = document["warnings"]
    assert "fid-6, fid-40" in warning
    assert f"Warning: {warning}" in done.output
    rows = done.output.splitlines()
    header = next(i for i, row in enumerate(rows) if row.startswith("figure"))
    assert {len(row.split("5 scored, 6 real")[0]) for row in rows[header + 2 : header + 7]} == {
        rows[header].index("pictures")
    }


def test_figures_do_not_change_from_run_to_run_or_with_the_batch(workplace, sets):
    one, two = (
        Evaluation("a", real=Path("b"), extractor=SMALL[1], batch=batch).run().document()["figures"] for batch in (1, 4)
    )
    for a, b in zip(one, two, strict=True):
        assert a["value"] == pytest.approx(b["value"], rel=1e-4)  # batches sum in another order


def test_the_metrics_features_and_pictures_that_are_asked_for(workplace, sets):
    args = ("a", "--real", "b", *SMALL, "--metrics", "kid, fid", "--features", "40", "--first", 3, "--size", 24)
    done = qsattn("evaluate", *args, "--json", "x.json")
    assert done.exit_code == 0, done.output
    figures = json.loads((workplace / "x.json").read_text())["figures"]
    assert [figure["name"] for figure in figures] == ["kid-40", "fid-40"]
    assert figures[0]["images"] == {"scored": 3, "real": 6}
    assert figures[0]["resize"].startswith("brought to 24 x 24 (bicubic, antialiased)")
    assert figures[0]["settings"]["subset_size"] == 3


def test_no_warning_where_pictures_are_enough(workplace):
    folder(workplace / "a", noise(8, 0))
    done = qsattn("evaluate", "a", "--real", "a", *SMALL, "--features", "6", "--metrics", "fid")
    assert "Warning" not in done.output
    assert float(done.output.split("fid-6")[1].split()[0]) == pytest.approx(0, abs=1e-6)


def test_a_model_translates_its_source_first(workplace, trained):
    toy = ToyHorses(size=32, train=2, test=4)
    for split, ending in (("testA", "jpg"), ("testB", "png")):
        folder(workplace / split, list(toy.split(split)), ending)
    masks = greys(
        workplace / "masks", {f"{i:02}": (255 * s).round() for i, s in enumerate(toy.silhouettes("testA")[:4])}
    )
    args = ("--source", "testA", "--real", "testB", "--masks", masks, *SMALL, "--device", "cpu")
    done = qsattn("evaluate", trained, *args, "--keep", "kept", "--json", "model.json")
    assert done.exit_code == 0, done.output
    # The translations are what the model makes of the files, kept without loss.
    assert sorted(path.name for path in Path("kept").iterdir()) == ["00.png", "01.png", "02.png", "03.png"]
    wanted = load(trained).translate(read_image("testA/02.jpg"))
    assert read_image("kept/02.png").tobytes() == wanted.tobytes()
    again = qsattn("evaluate", "kept", *args, "--json", "folder.json")
    assert again.exit_code == 0, again.output
    model, kept = (json.loads(Path(f"{name}.json").read_text()) for name in ("model", "folder"))
    assert model["figures"] == kept["figures"]
    assert [figure["name"] for figure in model["figures"]][-2:] == ["swd", "background"]
    assert (model["kind"], model["step"]) == ("model", 4)
    without = qsattn("evaluate", trained, *args, "--json", "without.json")
    assert without.exit_code == 0
    assert json.loads(Path("without.json").read_text())["figures"] == model["figures"]


def test_the_picture_that_a_model_makes_no_numbers_of_is_named(workplace, monkeypatch):
    model = fresh("resnet_4blocks", width=4)
    whole = model._whole
    monkeypatch.setattr(model, "_whole", lambda seen: whole(seen) if seen[0].size != (40, 40) else from_nan())
    folder(workplace / "source", [noise(1, 0)[0], noise(1, 1, 40, 40)[0], noise(1, 2, 36, 36)[0]])
    with pytest.raises(UserError, match="source/01.png: the model produced NaN"):
        translate_pictures(model, Pictures.find("source"), Path("kept"))


def from_nan():
    return [from_tensor(torch.full((3, 40, 40), torch.nan))]


@pytest.mark.parametrize("channels", [3, 4])
def test_a_cut_out_is_scored_as_it_is_translated(workplace, channels):
    model = fresh("resnet_4blocks", width=4, in_channels=channels, out_channels=3)
    model.trained = 24
    picture = as_pil(torch.cat([noise(1, 0, 48, 48)[0], 255 * torch.ones(1, 48, 48, dtype=torch.uint8).tril()]))
    (workplace / "source").mkdir()
    picture.save("source/a.png")
    kept = translate_pictures(model, Pictures.find("source"), Path("kept"))
    assert read_image(kept.paths[0]).tobytes() == model.translate(picture).tobytes()


def test_background_by_hand(workplace):
    source = torch.full((3, 40, 40), 100, dtype=torch.uint8)
    after = source.clone()
    after[:, :, 20:] = 200  # the animal: may change as it likes
    after[:, :, :10] += 51  # half of the background changes by 51 of 255: by 0.4 on [-1, 1]
    mask = torch.zeros(40, 40)
    mask[:, 20:] = 255
    # A margin of 3 % of the height, 2 pixels, leaves 18 columns of background, of which 10 changed.
    masks = {"00": mask, "01": torch.full((40, 40), 255.0), "02": mask[::2, ::2]}
    folder(workplace / "source", [source] * 3)
    folder(workplace / "after", [after, after, source])
    greys(workplace / "masks", masks)
    scores = Evaluation("after", source=Path("source"), masks=Path("masks")).run()
    (figure,) = scores.figures
    assert figure.name == "background"
    assert figure.value == pytest.approx((0.4 * 10 / 18 + 0) / 2, rel=1e-5)
    assert figure.images == {"pairs": 2, "without background": 1}
    assert "1 masks brought" in figure.resize
    coloured = (torch.stack([0 * mask, mask, 0 * mask]) / 2).to(torch.uint8)  # an object's colour in a palette
    folder(workplace / "coloured", [coloured, torch.full_like(coloured, 255), coloured[:, ::2, ::2]])
    (again,) = Evaluation("after", source=Path("source"), masks=Path("coloured")).run().figures
    assert again.value == figure.value


def test_predicted_label_maps_beside_the_pictures(workplace, sets):
    numbers = torch.tensor([[0, 1], [2, 3]])
    greys(workplace / "true", {f"{i:02}_B": numbers for i in range(5)})
    greys(workplace / "predicted", {f"{i:02}_A": numbers.clamp(max=1) for i in range(5)})
    args = ("a", "--real", "b", "--labels", "true", "--predicted", "predicted", *SMALL, "--features", "6")
    done = qsattn("evaluate", *args, "--json", "x.json")
    assert done.exit_code == 0, done.output
    found = {figure["name"]: figure for figure in json.loads(Path("x.json").read_text())["figures"]}
    assert list(found) == ["fid-6", "kid-6", "swd", "pixel_accuracy", "class_accuracy", "miou"]
    assert found["pixel_accuracy"]["value"] == 0.5
    assert found["class_accuracy"]["value"] == 0.5
    assert found["miou"]["value"] == pytest.approx((1 + 1 / 3) / 4)
    assert found["miou"]["better"] == "higher"
    assert found["miou"]["settings"]["true_kind"] == "trainIds"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["a", "--real", "b", "--metrics", "fid,kdi"], "there is no metric 'kdi'; did you mean 'kid'?"),
        (["a", "--real", "b", "--metrics", ","], "expected a comma-separated list"),
        (["a"], "give --real"),
        (["a", "--metrics", "swd"], "swd needs --real"),
        (["a", "--metrics", "lpips"], "lpips needs --source"),
        (["a", "--real", "b", "--masks", "b"], "--masks needs --source"),
        (["a", "--real", "b", "--predicted", "b"], "--predicted needs --labels"),
        (["a", "--source", "b", "--metrics", "background"], "background needs --masks"),
        (["a", "--real", "bb"], "there is no folder bb; did you mean 'b'?"),
        (["./aa", "--real", "b"], "there is no folder, run or file aa; did you mean 'a'?"),
        (["nowhere", "--real", "b"], "there is no run"),
        (["a", "--real", "empty"], "no pictures in empty"),
        (["empty", "--real", "b"], "no pictures in empty"),
        (["a", "--source", "b", "--metrics", "lpips", "--masks", "b"], "could not be downloaded"),
        (["a", "--real", "b", "--metrics", "fid"], "could not be downloaded.*--extractor-weights"),
        (["a", "--real", "b", "--features", "76"], "no features '76'; did you mean '768'?"),
        (["a", "--real", "b", "--extractor-weights", "none.pth"], "there is no file none.pth"),
        (["a", "--real", "b", *SMALL, "--features", "41"], "no features '41'; did you mean '40'?"),
        (["a", "--real", "b", *SMALL, "--extractor-weights", "none.pth"], "there is no file none.pth"),
        (["a", "--real", "b", "--extractor", "nomodule:x"], "there is no module 'nomodule'"),
        (["a", "--real", "b", "--extractor", "./no.py:x"], "there is no file ./no.py"),
        (["a", "--real", "b", "--extractor", "tests.metric_parts"], "module:callable"),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:smal"], "did you mean 'small'?"),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:__doc__"], "cannot be called"),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:nothing"], "got None"),
        (
            ["a", "--real", "b", "--extractor", "tests.metric_parts:broken"],
            "RuntimeError: of two lines .*metric_parts.py",
        ),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:no_floats"], "must be floats .1, D., got torch.int64"),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:too_many"], "must be floats .1, D."),
        (["a", "--real", "b", "--extractor", "tests.metric_parts:not_numbers"], "not finite"),
        (["a", "--real", "b", "--extractor", "broken_module:x"], "ZeroDivisionError.*broken_module.py, line 1"),
        (["a", "--real", "b", *SMALL, "--first", "1"], "at least two pictures"),
        (["a", "--source", "c", "--masks", "a"], "1 of 5 pictures in a have no partner .* in c, the first is '02'"),
        (["a", "--source", "twice", "--masks", "a"], "twice/00.jpg and twice/00.png cannot be told apart"),
        (["a", "--source", "large", "--masks", "a"], "differ in size .32 x 32 and 40 x 32.; --size"),
        (["a", "--labels", "a", "--label-kind", "colour"], "did you mean 'color'?"),
        (["a", "--labels", "a", "--label-kind", "trainIds"], "is a coloured picture where numbers"),
        (["damaged", "--real", "b", "--metrics", "swd"], "damaged/x.png"),
        (
            ["a", "--real", "b", "--metrics", "fid", "--extractor-weights", "other.pth"],
            "other.pth does not hold the weights of torch-fidelity's Inception of 2015, weights-inception-2015",
        ),
    ],
)
def test_mistakes_are_answered_in_one_line(workplace, sets, monkeypatch, args, message):
    def offline(url, *args, **more):
        raise DownloadFailed(f"{url} could not be downloaded: there is no network")

    monkeypatch.setattr(fidelity, "download", offline)
    monkeypatch.setenv("TORCH_HOME", str(workplace / "torch"))
    (workplace / "empty").mkdir()
    (workplace / "broken_module.py").write_text("1 / 0\n")
    torch.save({"fc.weight": torch.zeros(1000, 2048)}, "other.pth")
    folder(workplace / "c", noise(4, 2), names=["00", "01", "03", "04"])
    folder(workplace / "twice", noise(5, 2))
    folder(workplace / "twice", noise(1, 2), "jpg")
    folder(workplace / "large", noise(5, 2, 32, 40))
    folder(workplace / "damaged", noise(2, 2))
    (workplace / "damaged" / "x.png").write_bytes(b"x")
    said = refused("evaluate", *args, "--device", "cpu")
    line = said.strip().splitlines()[-1]
    assert line.startswith("Error: ")
    assert re.search(message.replace("?", r"\?"), line), said


def test_what_is_wrong_is_said_before_anything_is_translated(workplace, sets, trained):
    args = (trained, "--source", "a", "--real", "b", "--device", "cpu", "--metrics", "kid", *SMALL)
    Path("file").touch()
    os.mkfifo("pipe")
    for more, message in (
        (("--features", "41"), "has no features '41'"),
        (("--json", "file/x/scores.json"), "nothing can be written to file/x"),
        (("--json", "pipe"), "pipe is a device or a pipe"),
        (("--keep", "file/x"), "nothing can be written to file/x"),
    ):
        said = refused("evaluate", *args, *more)
        assert message in said and "translating" not in said


def test_a_model_that_gives_no_numbers_is_not_scored(workplace, sets):
    with torch.no_grad():
        broken = fresh("resnet_4blocks", width=4)
        next(broken.generator.parameters()).fill_(torch.nan)
    spec = {"type": "resnet_4blocks", "arguments": {"width": 4, "in_channels": 3}, "prefix": ""}
    save_tensors(Path("nan.safetensors"), broken.generator.state_dict(), {"generators": {"forward": spec}})
    said = refused("evaluate", "nan.safetensors", "--source", "a", "--real", "b", "--metrics", "swd", "--device", "cpu")
    assert "a/00.png: the model produced NaN" in said
    done = qsattn("map", "a", "-m", "nan.safetensors", "-o", "maps")
    assert done.exit_code == 1 and "not drawn: a/00.png: the model produced NaN" in done.output
    assert not Path("maps").exists()


def test_kept_translations_replace_nothing_by_mistake(workplace, sets, trained):
    args = (trained, "--source", "a", "--real", "b", "--metrics", "swd", "--device", "cpu", "--keep", "kept")
    Path("kept").mkdir()
    Path("kept/00.png").write_text("mine")
    assert "kept/00.png exists already" in refused("evaluate", *args)
    assert Path("kept/00.png").read_text() == "mine"
    assert qsattn("evaluate", *args, "--overwrite").exit_code == 0
    assert read_image("kept/00.png").mode == "RGB"


def test_a_link_to_nothing_is_no_picture_less(workplace, sets):
    Path("a/linked.png").symlink_to("nowhere.png")
    assert "a/linked.png" in refused("evaluate", "a", "--real", "b", "--metrics", "swd", "--device", "cpu")


def test_options_of_features_are_for_their_metrics(workplace, sets):
    for option in (("--features", "64"), ("--extractor", "no:no"), ("--extractor-weights", "no")):
        said = refused("evaluate", "a", "--real", "b", "--metrics", "swd", *option)
        assert f"{option[0]} is for metrics of features" in said


def test_what_is_for_models_is_not_for_folders(workplace, sets):
    for option in ("--keep", "--generator"):
        said = refused("evaluate", "a", "--real", "b", "--metrics", "swd", option, "x")
        assert f"{option} is for a model's translations; a is a folder of pictures" in said


def test_a_model_needs_a_source_and_must_not_overwrite_it(workplace, sets, trained):
    assert "is a model: it needs --source" in refused("evaluate", trained, "--real", "b")
    args = (trained, "--source", "a", "--real", "b", "--metrics", "swd", "--device", "cpu")
    before = Path("a/00.png").read_bytes()
    assert "a/00.png is one of the given pictures" in refused("evaluate", *args, "--keep", "a")
    assert Path("a/00.png").read_bytes() == before


def test_weights_that_would_run_code_are_refused(workplace, sets):
    class Evil:
        def __reduce__(self):
            return Path.touch, (workplace / "ran",)

    torch.save({"x": Evil()}, "evil.pth")
    Path("cut.pth").write_bytes(Path("evil.pth").read_bytes()[:100])
    for file in ("evil.pth", "cut.pth"):
        said = refused("evaluate", "a", "--real", "b", "--metrics", "fid", "--extractor-weights", file)
        assert f"{file} " in said and ("holds more than tensors (" in said or "or it is damaged" in said)
    assert not (workplace / "ran").exists()


def test_without_the_library_one_is_told_what_to_install(workplace, sets, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    assert "pip install torch-fidelity" in refused("evaluate", "a", "--real", "b")
    assert qsattn("evaluate", "a", "--real", "b", *SMALL).exit_code == 0


def test_help_names_every_metric():
    said = qsattn("evaluate", "--help").output
    assert all(part.name in said for part in list_parts("metrics"))


def test_transparency_and_grey_are_read_as_colours(workplace):
    picture = noise(1, 0)[0]
    (workplace / "x").mkdir()
    as_pil(picture).convert("L").save("x/a.png")
    as_pil(picture).convert("RGBA").save("x/b.png")
    done = qsattn("evaluate", "x", "--real", "x", *SMALL, "--features", "6", "--metrics", "kid")
    assert done.exit_code == 0, done.output


def test_weights_are_downloaded_once(workplace, monkeypatch, site):
    monkeypatch.setenv("TORCH_HOME", str(workplace / "torch"))
    site.files["/some/w.pth"] = b"weights"
    for _ in range(2):
        place = fidelity.fetched(f"{site.url}/some/w.pth", "or else")
        assert place == workplace / "torch/hub/checkpoints/w.pth"
        assert place.read_bytes() == b"weights"
    assert len(site.requests) == 1
    with pytest.raises(UserError, match="404.*get the file elsewhere and put it at .*v.pth, or else"):
        fidelity.fetched(f"{site.url}/some/v.pth", "or else")


PAGE = (ROOT / "docs" / "scores.md").read_text(encoding="utf-8")


def test_the_pages_extractor_works(workplace, sets):
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.S)
    Path("my_features.py").write_text(block)
    Path("lazy.py").write_text(
        "def make(weights, device):\n    import my_features\n    return my_features.make(weights, device)\n"
    )
    shutil.copy("a/00.png", "weights.safetensors")  # any file: this network has none
    words = shlex.split(next(line for line in indented(PAGE) if "my_features" in line))[1:]
    words = [{"out/": "a", "testB": "b"}.get(word, word) for word in words]
    done = qsattn(*words)
    assert done.exit_code == 0, done.output
    assert "fid-12" in done.output
    assert "area means to 2 x 2" in done.output
    values = Evaluation("a", real="b", metrics=("kid",), extractor="my_features.py:make").run()
    assert f"{values['kid-12'].value:.6g}" in done.output
    lazy = Evaluation(Path("a"), real="b", metrics=("kid",), extractor="lazy:make").run()
    assert lazy["kid-12"].value == values["kid-12"].value and json.dumps(lazy.document())
