"""The command line as a person meets it: what it prints, what it refuses, and how it says so."""

from __future__ import annotations

import doctest
import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from PIL import Image

from qsattn_plugin import text
from qsattn_plugin.cli import COMMANDS, main
from qsattn_plugin.cli.progress import StageBars, TrainingDisplay
from qsattn_plugin.data.images import read_image
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.progress import TrainingEvent
from qsattn_plugin.training.run import Run
from tests.conftest import TINY

SETTINGS = [part for override in TINY for part in ("-s", override)]


def qsattn(*args: object) -> Result:
    """Run a command; an exception that is no exit is a traceback on a user's screen."""
    result = CliRunner().invoke(main, [str(a) for a in args])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def refused(*args: object) -> str:
    """Run a command that must fail, and return what it says."""
    result = qsattn(*args)
    assert result.exit_code != 0
    assert "Traceback" not in result.output
    assert result.output.strip()
    return result.output


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """A run that has finished."""
    from qsattn_plugin.registry.recipe import load_recipe

    folder = tmp_path_factory.mktemp("trained") / "run"
    old = os.getcwd()
    os.chdir(folder.parent)
    try:
        fit(Run.create(load_recipe("toy", TINY), folder))
    finally:
        os.chdir(old)
    return folder


@pytest.mark.parametrize(
    "args", [["--help"], ["list", "--help"], ["build", "--help"], ["fit", "--help"], ["publish", "--help"]]
)
def test_help_does_not_import_torch(args):
    program = (
        "import sys\nfrom qsattn_plugin.cli import main\n"
        f"try: main({args!r})\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'kornia', 'pydantic', 'PIL', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Usage: " in done.stdout


@pytest.mark.parametrize("args", [["list"], ["list", "horse"], ["schema"], ["show", "recipe/toy"], ["show", "train"]])
def test_what_is_asked_about_recipes_is_answered_without_torch(args):
    program = (
        f"import sys\nfrom qsattn_plugin.cli import main\nmain({args!r}, standalone_mode=False)\n"
        "heavy = {'torch', 'timm', 'kornia', 'numpy'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.splitlines()) >= 6


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_itself(command):
    text = qsattn(command, "--help").output
    assert "Usage: " in text
    assert COMMANDS[command][1].endswith(".")


def test_build_fit_translate(workplace):
    built = qsattn("build", "toy", *SETTINGS)
    assert built.exit_code == 0, built.output
    for role in ("generator", "resnet_4blocks", "discriminator", "heads", "trainA 4, trainB 4, testA 2, testB 2"):
        assert role in built.output
    assert "qsattn fit" in built.output
    assert (workplace / "runs/toy/recipe.yaml").is_file()

    fitted = qsattn("fit", "--max-steps", "2")
    assert "stopped at step 2 of 4" in fitted.output
    fitted = qsattn("fit")
    assert "carrying on at step 2" in fitted.output
    assert "finished at step 4" in fitted.output
    again = qsattn("fit", "toy")
    assert again.exit_code == 0
    assert "is finished: 4 steps" in again.output
    assert "coat_distance" in again.output
    assert "step-000000004.png" in again.output

    data = qsattn("data", "toy", "--root", "images", "--split", "testA", "-s", "size=40", "-s", "test=3")
    assert "3 pictures" in data.output
    done = qsattn("translate", "images/testA", "-m", "runs/toy", "-o", "out")
    assert done.exit_code == 0, done.output
    assert "3 pictures written" in done.output
    assert {read_image(p).size for p in (workplace / "out").iterdir()} == {(40, 40)}
    done = qsattn("translate", "images/testA", "-m", "runs/toy", "-o", "out")
    assert "0 pictures written to out, 3 existing skipped" in done.output


def test_translate_takes_every_kind_of_picture_at_its_size(workplace, trained):
    (workplace / "in/deep").mkdir(parents=True)
    kinds = {
        "rgb.png": Image.new("RGB", (37, 50), "red"),
        "grey.png": Image.new("L", (64, 64), 9),
        "palette.png": Image.new("P", (20, 31), 3),
        "clear.png": Image.new("RGBA", (33, 33), (1, 2, 3, 77)),
        "cmyk.jpg": Image.new("CMYK", (48, 40), (9, 9, 9, 9)),
        "deep/16.tif": Image.new("I;16", (24, 24), 40000),
        "tiny.png": Image.new("RGB", (1, 3), "blue"),
    }
    for name, picture in kinds.items():
        picture.save(workplace / "in" / name)
    (workplace / "in/text.jpg").write_text("not a picture")
    whole = (workplace / "in/cmyk.jpg").read_bytes()
    (workplace / "in/cut.jpg").write_bytes(whole[: len(whole) // 2])
    done = qsattn("translate", "in", "-m", trained, "-o", "out")
    assert done.exit_code == 1
    assert "7 pictures written" in done.output
    assert done.output.count("not translated: ") == 2
    assert "text.jpg" in done.output
    assert "cut.jpg" in done.output
    for name, picture in kinds.items():
        out = read_image((workplace / "out" / name).with_suffix(".jpg" if name.endswith("jpg") else ".png"))
        assert out.size == picture.size
    clear = read_image(workplace / "out/clear.png")
    assert clear.mode == "RGBA"
    assert clear.getchannel("A").getextrema() == (77, 77)


def test_translate_refuses_to_write_over_its_inputs(workplace, trained):
    (workplace / "in").mkdir()
    Image.new("RGB", (32, 32)).save(workplace / "in/a.png")
    before = (workplace / "in/a.png").read_bytes()
    assert "would be overwritten" in refused("translate", "in", "-m", trained, "-o", "in", "--overwrite")
    assert (workplace / "in/a.png").read_bytes() == before


def test_two_pictures_of_one_name_both_come_out(workplace, trained):
    for folder in ("one", "two"):
        (workplace / folder).mkdir()
        Image.new("RGB", (32, 32)).save(workplace / folder / "a.png")
    qsattn("translate", "one", "two/a.png", "-m", trained, "-o", "out")
    assert sorted(p.name for p in (workplace / "out").iterdir()) == ["a-2.png", "a.png"]


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["bild", "toy"], "did you mean 'build'"),
        (["build", "toi"], "did you mean 'toy'"),
        (["build", "toy", "-s", "train.stepz=3"], "did you mean 'steps'"),
        (["build", "toy", "-s", "generator=resnet_9block"], "did you mean 'resnet_9blocks'"),
        (
            ["build", "toy", "-s", "sampler.taps=[17]"],
            "-s sampler.taps=[17]: sampler.taps: the sampler names tap 17",
        ),
        (
            ["build", "toy", "-s", "discriminator.layers=5"],
            "data.crop: discriminator.layers: this PatchGAN needs images of at least 96",
        ),
        (["build", "toy", "-s", "generator=unet_128"], "data.crop: unet_128 takes multiples of 128 pixels, got 64"),
        (["build", "horse2zebra"], "datasets/horse2zebra"),
        (["fit"], "no run was built here yet"),
        (["fit", "nothing"], "nothing is not a run"),
        (["fit", "--time-limit", "soon"], "is not a duration"),
        (["translate", "nowhere", "-m", "toy", "-o", "out"], "there is no file or folder nowhere"),
        (["translate", ".", "-m", "no-such-model", "-o", "out"], "there is no run, file or published model"),
        (["translate", ".", "-m", "toy", "-o", "out"], "no picture"),
        (["list", "generatorz"], "did you mean 'generator"),
        (
            ["show", "unet_64", "--size", "100"],
            "Invalid value for --size: this generator takes sides that are multiples",
        ),
        (["fit", "toy", "-s", "train.steps=3"], "settings are build's"),
        (["data", "toyy", "--root", "x"], "did you mean 'toy'"),
        (["data", "toy", "--root", "x", "-s", "size=3"], "must be at least 32"),
        (["data", "toy", "--root", "x", "-s", "crop=128"], "-s crop=128: crop: how a training prepares pictures"),
        (["data", "toy", "--root", "x", "-s", "nonsense"], "-s nonsense: expected key=value, for example -s size=128"),
        (["data", "toy", "--root", "x", "-s", "type=folders"], "-s type=folders: the data set is toy"),
        (["show", "data.root"], "data.root is an argument of parts; see qsattn show dataset/folders"),
        (["build", "toy", "-s", "data.root=x"], "data.root: dataset 'toy' takes no such key, but folders does"),
        (["build", "toy", "-s", "train.init_from=."], "that is a folder: give a file in it"),
    ],
)
def test_mistakes_are_answered_in_words(workplace, args, message):
    assert message in refused(*args)


@pytest.mark.parametrize(
    "args",
    [
        ("translate", "a.png", "-m", "toy", "-o", ""),
        ("translate", "a.png", "-m", "", "-o", "out"),
        ("data", "toy", "--root", ""),
        ("build", "toy", "--run", ""),
        ("fit", ""),
        ("report", ""),
    ],
)
def test_an_empty_path_is_not_this_folder(workplace, args):
    Image.new("RGB", (32, 32)).save(workplace / "a.png")
    assert "is empty; is a variable of the command not set?" in refused(*args)
    assert [path.name for path in workplace.iterdir()] == ["a.png"]


def test_a_model_that_is_none_is_named(workplace, trained):
    Image.new("RGB", (32, 32)).save(workplace / "a.png")
    assert "there is no run, file or published model 'x'" in refused("translate", "a.png", "-m", "x", "-o", "out")
    assert "@best is for runs: write pretrained/toy" in refused("translate", "a.png", "-m", "toy@best", "-o", "out")
    (workplace / "w.safetensors").write_bytes(b"junk")
    assert "is damaged" in refused("translate", "a.png", "-m", "w.safetensors", "-o", "out")
    qsattn("build", "toy", *SETTINGS)
    assert "holds no checkpoint yet" in refused("translate", "a.png", "-m", "runs/toy", "-o", "out")
    (workplace / "runs/toy").rename(workplace / "a run")
    assert "train it with `qsattn fit 'a run'`" in refused("translate", "a.png", "-m", "a run", "-o", "out")
    (workplace / "a run").rename(workplace / "runs/toy")
    assert "write runs/toy or pretrained/toy" in refused("translate", "a.png", "-m", "toy", "-o", "out")


def test_a_folder_without_pictures_is_named(workplace):
    for split in ("trainA", "trainB"):
        (workplace / "data" / split).mkdir(parents=True)
    text = refused("build", "horse2zebra", "-s", "data.root=data", "-s", "generator.width=2")
    assert "trainA" in text
    assert "picture" in text


def test_unreadable_pictures_among_good_ones_are_named_and_counted(workplace):
    for split in ("trainA", "trainB"):
        (workplace / "data" / split).mkdir(parents=True)
        for i in range(2):
            Image.new("RGB", (40, 40), (60 * i, 99, 0)).save(workplace / "data" / split / f"{i}.jpg")
    (workplace / "data/trainA/text.jpg").write_text("not a picture")
    small = [s for o in TINY if not o.startswith("data.") for s in ("-s", o)]
    sizes = ["-s", "data={root: data, resize: 36, crop: 32}", "-s", "sampler.taps=[12]"]
    assert qsattn("build", "horse2zebra", "--run", "run", *small, *sizes).exit_code == 0
    fitted = qsattn("fit", "run", "--max-steps", "1")
    assert fitted.exit_code == 0, fitted.output
    assert "skipped trainA/text.jpg: " in fitted.output
    assert "1 unreadable picture was skipped" in fitted.output
    assert "2 and 2 images" in fitted.output


def test_a_run_folder_that_cannot_be_written(workplace):
    # Root may write anywhere, so permissions alone would not do: a file stands where a folder should be.
    (workplace / "file").write_text("")
    assert "cannot be created" in refused("build", "toy", *SETTINGS, "--run", "file/run")


@pytest.mark.skipif(os.geteuid() != 0 and not hasattr(os, "seteuid"), reason="needs permissions that bind")
def test_a_read_only_run_folder(workplace):
    folder = workplace / "run"
    assert qsattn("build", "toy", *SETTINGS, "--run", folder).exit_code == 0
    root = os.geteuid() == 0
    for path in (workplace, *workplace.parents[:3]):
        if root:
            path.chmod(path.stat().st_mode | 0o055)
    folder.chmod(0o555)
    if root:
        os.seteuid(65534)
    try:
        text = refused("fit", folder)
    finally:
        if root:
            os.seteuid(0)
        folder.chmod(0o755)
    assert "cannot write to the run folder" in text
    assert "Permission denied" in text


def test_list_shows_parts_and_recipes():
    text = qsattn("list").output
    for name in ("generator/resnet_9blocks", "sampler/qsattn_global", "recipe/toy", "method/cut", "dataset/folders"):
        assert name in text
    samplers = qsattn("list", "*qsattn*").output
    assert "sampler/qsattn_local" in samplers
    assert "generator/" not in samplers
    assert qsattn("list", "generators").output.count("generator/") == len(
        qsattn("list", "generators").output.splitlines()
    )
    assert "recipe/horse2zebra" in qsattn("list", "recipes").output


@pytest.mark.parametrize("terminal", [True, False])
def test_bars_are_drawn_on_a_terminal_only(monkeypatch, terminal):
    stderr = io.StringIO()
    stderr.isatty = lambda: terminal
    monkeypatch.setattr(sys, "stderr", stderr)
    bars = StageBars(announce=True)
    for done in range(3):
        bars("reading", done, 2)
    bars("checking", 5, None)
    bars.close()
    if terminal:
        assert "reading: 100%" in stderr.getvalue() and "2/2" in stderr.getvalue() and "5it" in stderr.getvalue()
    else:
        assert stderr.getvalue() == "reading ...\nchecking ...\n"


def test_evaluations_count_in_the_time_left_and_not_in_that_of_a_step(capsys):
    show = TrainingDisplay()
    start = {"damaged": [], "skipped": [], "images": {}, "resumed": False, "environment": {"precision": "fp32"}}
    start |= {"device": "cpu", "notes": [], "log_every": 4, "evaluate_every": 2}
    show(TrainingEvent("start", 0, 10, start))
    for step in range(1, 9):  # a step takes 2 s, an evaluation 30 s
        show(TrainingEvent("step", step, 10, {"training": 2.0 * step, "paused": 30.0 * ((step - 1) // 2)}))
        if step % 4 == 0:
            show(TrainingEvent("train", step, 10, {"losses": {}, "images_per_second": 0.5}))
        if step % 2 == 0:
            show(TrainingEvent("evaluate", step, 10, {"scores": {}, "grid": ""}))
    lines = capsys.readouterr().err.splitlines()
    assert lines[1:] == [
        "step 1/10  2.0 s/step  18 s left",  # nothing is known of evaluations
        "step 4/10  2.0 s/step  2 min 12 s left",  # 6 steps, and the evaluations of steps 4, 6, 8 and 10
        "step 8/10  2.0 s/step  1 min 4 s left",
    ]


def test_tables_have_aligned_columns():
    result = doctest.testmod(text)
    assert result.attempted and not result.failed
    shown = qsattn("show", "generator/resnet_9blocks").output.splitlines()
    taps = shown[shown.index("taps (* is used by default):") + 1 :]
    assert len(taps) > 5 and taps[0].split() == ["index", "name", "channels", "stride"]
    assert len({line.rindex(line.split()[-1]) + len(line.split()[-1]) for line in taps}) == 1


def test_map_draws_the_selected_points(workplace, trained):
    qsattn("data", "toy", "--root", "images", "--split", "testA", "-s", "size=64", "-s", "test=1")
    done = qsattn("map", "images/testA", "-m", trained, "--tap", "12", "--queries", "7", "--at", "full", "-o", "maps")
    assert done.exit_code == 0, done.output
    numbers = json.loads((workplace / "maps/animal_0000-tap-12.json").read_text())
    assert len(numbers["queries"]) == 7
    sheet = read_image(workplace / "maps/animal_0000-tap-12.png")
    # Three panels and two gaps of 4; the picture of 64 pixels is drawn three times as large.
    assert sheet.size == (3 * 192 + 8, 192)
    third = sheet.crop((2 * 196, 0, 2 * 196 + 192, 192))
    for x, y in numbers["query_pixels"]:
        assert third.getpixel((round(x * 3), round(y * 3))) == (255, 40, 200)
    h, w = numbers["shape"]
    assert (h, w) == (16, 16)
    flat = [(v, i) for i, v in enumerate(v for row in numbers["log_entropy"] for v in row)]
    chosen = {y * w + x for y, x in numbers["queries"]}
    threshold = sorted(flat)[6][0]
    assert all(flat[i][0] <= threshold for i in chosen)


def test_cyclegan_translates_both_ways_and_maps(workplace):
    settings = [part for s in TINY if not s.startswith(("objective", "sampler")) for part in ("-s", s)]
    assert qsattn("build", "toy_cyclegan", *settings, "-s", "train.steps=1").exit_code == 0
    assert qsattn("fit").exit_code == 0
    qsattn("data", "toy", "--root", "images", "--split", "testB", "-s", "size=32", "-s", "test=1")
    for way in ("forward", "backward"):
        done = qsattn("translate", "images/testB", "-m", "toy_cyclegan", "-o", way, "--generator", way)
        assert "1 pictures written" in done.output
    name = "animal_0000.png"
    assert (workplace / "forward" / name).read_bytes() != (workplace / "backward" / name).read_bytes()
    wrong = refused("translate", "images/testB", "-m", "toy_cyclegan", "-o", "x", "--generator", "back")
    assert "did you mean 'backward'" in wrong
    assert qsattn("map", "images/testB", "-m", "toy_cyclegan", "-o", "maps").exit_code == 0
    assert len(list((workplace / "maps").iterdir())) == 2


def test_maps_of_a_model_with_a_timm_encoder(workplace):
    encoder = ("-s", "encoder={type: timm, model: test_convnext.r160_in1k, taps: [0, 1]}", "-s", "train.steps=1")
    assert qsattn("build", "toy", *SETTINGS, *encoder).exit_code == 0
    assert qsattn("fit").exit_code == 0
    qsattn("data", "toy", "--root", "images", "--split", "testA", "-s", "size=64", "-s", "test=1")
    done = qsattn("map", "images/testA", "-m", "runs/toy", "-o", "maps", "--tap", "0", "--queries", "5", "--at", "full")
    assert done.exit_code == 0, done.output
    numbers = json.loads((workplace / "maps/animal_0000-tap-0.json").read_text())
    assert (numbers["shape"], len(numbers["queries"])) == ([16, 16], 5)
    text = refused("map", "images/testA", "-m", "timm:test_convnext.r160_in1k", "-o", "maps")
    assert "weights" in text  # nothing to download them from: the message names the way with a file


def test_what_lies_beside_the_toy_data_is_counted(workplace):
    (workplace / "d" / "trainA").mkdir(parents=True)
    (workplace / "d" / "trainA" / "mine.png").write_bytes(b"a picture, by its name")
    said = qsattn("data", "toy", "--root", "d", "-s", "size=32", "-s", "train=2", "-s", "test=1").output
    assert "d/trainA: 2 pictures, beside 1 from before" in said.replace("\\", "/")
    assert "d/trainB: 2 pictures\n" in said.replace("\\", "/")


def test_a_run_without_test_pictures_is_told_so(workplace):
    qsattn("data", "toy", "--root", "d", "-s", "size=32", "-s", "train=2", "-s", "test=1")
    settings = [*(s for s in TINY if not s.startswith("data.")), "data={type: folders, root: d, resize: 32, crop: 32}"]
    build = ["build", "toy", "--run", "r", *(part for s in settings for part in ("-s", s))]
    assert "nothing to translate" not in qsattn(*build).output
    shutil.rmtree(workplace / "d" / "testA")
    said = qsattn(*build, "--overwrite").output
    assert "trainB 2, testB 1; no testA: the first of trainA are shown instead" in said


def test_recipes_can_be_shown(workplace):
    said = qsattn("show", "recipe/horse2zebra_mobile").output
    assert "name: horse2zebra_mobile" in said and "swift_resnet_6blocks" in said
    assert "there is no recipe" in refused("show", "recipe/horse")
    path = workplace / "below" / "mine.yaml"
    path.parent.mkdir()
    path.write_text("extends: toy\n")
    for name in (path, "below/mine.yaml", "./below/mine.yaml", f"recipe/{path}"):
        assert "name: mine" in qsattn("show", name).output


def test_show_describes_a_network_that_a_recipe_alone_can_build():
    said = qsattn("show", "discriminator/projected")
    assert (
        said.exit_code == 0
        and "pretrained: true | false | null = null" in said.output
        and "parameters" not in said.output
    )


def test_arguments_that_name_parts_are_shown_as_such():
    assert "of: list of discriminators" in qsattn("show", "discriminator/ensemble").output
    assert "gan: objective = lsgan" in qsattn("show", "method/cut").output
    said = qsattn("show", "objective.nce_weight").output
    assert "number = 1.0 (fastcut: 10.0, sincut: 4.0)\n      of cut, fastcut, qsattn, sincut: the weight" in said
    assert "number = 2.0 (simdcl: 1.0)\n      of dclgan, simdcl: the weight" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("qsattn translate -m z", {"zebra2horse", "zebra2horse_mobile", "zonkey"}),
        ("qsattn export runs/", {"runs/toy"}),
        ("qsattn publish pre", {"pretrained/toy"}),
        ("qsattn evaluate to", set()),
        ("qsattn build single", {"single_image"}),
        ("qsattn fit z", {"zonkey"}),
        ("qsattn show generator/unet_", {"generator/unet_64", "generator/unet_128", "generator/unet_256"}),
        ("qsattn list pretrained/to", {"pretrained/toy"}),
        ("qsattn show recipe/single", {"recipe/single_image"}),
    ],
)
def test_shells_complete_names(workplace, words, expected):
    for run in ("zonkey", "toy"):
        (workplace / "runs" / run).mkdir(parents=True)
        (workplace / "runs" / run / "recipe.yaml").touch()
    asked = {"_QSATTN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(len(words.split()) - 1)}
    done = CliRunner().invoke(main, [], env=asked, prog_name="qsattn")
    lines = [line.partition(",") for line in done.output.splitlines()]
    found = {value for kind, _, value in lines if kind == "plain"}
    assert found == expected


@pytest.mark.parametrize("command", ["translate", "map", "evaluate", "export", "publish"])
def test_completion_does_not_wait_for_torch(command):
    words = f"qsattn {command} x -m z"
    program = "import sys; from qsattn_plugin.cli import run\ntry: run()\nfinally: assert 'torch' not in sys.modules"
    asked = {"_QSATTN_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "4"}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=os.environ | asked)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_the_line_for_each_shell_is_in_the_help(shell):
    assert f"{shell}_source" in qsattn("--help").output
    done = CliRunner().invoke(main, [], env={"_QSATTN_COMPLETE": f"{shell}_source"}, prog_name="qsattn")
    assert "_QSATTN_COMPLETE" in done.output or "Bash" in done.output


def test_versions_are_told_without_importing_torch():
    program = "import sys; from qsattn_plugin.cli import run\ntry: run()\nfinally: assert 'torch' not in sys.modules"
    done = subprocess.run([sys.executable, "-c", program, "--version"], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0].startswith("qsattn, version ") and lines[1].startswith("Python "), done.stderr
    assert {"torch", "timm", "pillow"} <= {line.split()[0] for line in lines}


def test_no_hint_installs_a_package_by_a_name_that_is_not_published():
    root = Path(__file__).parents[1]
    for room in ("qsattn_plugin", "registry", "cli"):
        for path in (root / room).rglob("*.py"):
            assert not re.search(r"pip install [^\n]*qsattn", path.read_text(encoding="utf-8")), path
