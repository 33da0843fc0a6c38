"""Translating many files: which become which, in which batches, and what happens when something goes wrong."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from torch import nn

from qsattn_plugin.cli import main
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import to_channels
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.generators import Resnet4Blocks
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.translation import job
from qsattn_plugin.translation import tiles as tiled
from qsattn_plugin.translation import translator as translating
from qsattn_plugin.translation.apply import evaluating, translate
from qsattn_plugin.translation.files import parse_shard, parse_size, plan
from qsattn_plugin.translation.job import Outcome, translate_files
from qsattn_plugin.translation.load import fresh, load
from qsattn_plugin.translation.tiles import translate_tiled
from qsattn_plugin.translation.translator import Translator, Untiled

ROOT = Path(__file__).parents[1]


def photo(path: str | Path, size: tuple[int, int] = (40, 32), mode: str = "RGB") -> Path:
    """A picture of noise, different for every name."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    channels = len(Image.new(mode, (1, 1)).getbands())
    seed = torch.Generator().manual_seed(sum(path.name.encode()))
    pixels = torch.randint(0, 256, (size[1], size[0], channels), generator=seed, dtype=torch.uint8).numpy()
    Image.fromarray(pixels[:, :, 0] if channels == 1 else pixels, mode if mode == "CMYK" else None).save(path)
    return path


@pytest.fixture
def translator() -> Translator:
    torch.manual_seed(0)
    return fresh("resnet_4blocks", width=4, init_gain=0.2)


@pytest.fixture
def model(workplace, translator) -> Path:
    """A weights file, as training writes it."""
    arguments = {"width": 4, "in_channels": 3, "out_channels": 3}
    spec = {"type": "resnet_4blocks", "arguments": arguments, "prefix": ""}
    save_tensors(workplace / "m.safetensors", translator.generator.state_dict(), {"generators": {"forward": spec}})
    return workplace / "m.safetensors"


def qsattn(*args: object) -> Result:
    result = CliRunner().invoke(main, ["translate", *map(str, args)])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def written(folder: str | Path = "out") -> list[str]:
    return sorted(p.relative_to(folder).as_posix() for p in Path(folder).rglob("*") if p.is_file())


# Which become which ---------------------------------------------------------------------------------------------------


def planned(*inputs: str, out: str = "out") -> dict[str, str]:
    return {str(source): target.relative_to(out).as_posix() for source, target in plan(inputs, Path(out))}


def test_folders_and_patterns_keep_their_structure(workplace):
    for name in ("in/a.png", "in/deep/b.bmp", "in/deep/er/c.jpg", "in/deep/a.png", "other/d.tif"):
        photo(name)
    Path("in/notes.txt").write_text("not a picture")
    everything = {
        "in/a.png": "a.png",
        "in/deep/a.png": "deep/a.png",
        "in/deep/b.bmp": "deep/b.png",
        "in/deep/er/c.jpg": "deep/er/c.jpg",
    }
    assert planned("in") == everything
    assert planned("in/**") == everything
    assert planned("in/*") == everything, "folders that a pattern names, and no files that are no pictures"
    assert planned("in/d*/*.png", "other/d.tif") == {"in/deep/a.png": "deep/a.png", "other/d.tif": "d.png"}
    assert planned("in/a.png", "in/../in/a.png", "in") == everything, "named twice, translated once"
    with pytest.raises(UserError, match=r"there is no picture at in/\*.webp"):
        plan(["in/*.webp"], Path("out"))
    with pytest.raises(UserError, match="there is no file or folder in/x.png"):
        plan(["in", "in/x.png"], Path("out"))


def test_pictures_that_differ_in_their_ending_alone(workplace):
    for name in ("in/a.bmp", "in/a.png", "in/a.tif", "in/b.bmp", "in/b.tif"):
        photo(name)
    names = planned("in")
    assert names["in/a.png"] == "a.png", "whose name it is, wherever it comes in the list"
    assert [names[f"in/{n}"] for n in ("a.bmp", "a.tif", "b.bmp", "b.tif")] == [
        "a.bmp.png",
        "a.tif.png",
        "b.png",
        "b.tif.png",
    ]
    Path("in/a.bmp").unlink()
    assert planned("in")["in/a.png"] == "a.png"


def test_patterns_do_not_follow_links_in_a_circle(workplace):
    photo("in/a.png")
    photo("in/deep/a.png")
    Path("in/loop").symlink_to(".")
    assert planned("in/**/a.png") == {"in/a.png": "a.png", "in/deep/a.png": "deep/a.png"}


def test_the_output_folder_inside_an_input_folder_is_no_input(workplace):
    photo("a.png")
    photo("sub/b.png")
    photo("out/a.png")
    assert planned(".") == {"a.png": "a.png", "sub/b.png": "sub/b.png"}
    assert planned("*") == {"a.png": "a.png", "sub/b.png": "sub/b.png"}


def test_the_output_folder_among_the_inputs_is_none(workplace, model):
    """A shell writes it for * from the second time on."""
    photo("in/a.png")
    photo("in/b/c.jpg")
    for skipped in ("", ", 2 existing skipped"):
        given = sorted(map(str, Path("in").iterdir()))
        done = qsattn(*given, "-m", model, "-o", "in/out")
        assert done.exit_code == 0 and f"pictures written to in/out{skipped}" in done.output
        assert written("in/out") == ["a.png", "c.jpg"]
        assert ("in/out is the output folder" in done.output) == bool(skipped)
    assert planned("in/out", out="in/out/again")  # by itself it is what was meant


def test_an_empty_input_is_not_the_current_folder(workplace, model):
    photo("a.png")
    done = qsattn("", "-m", model, "-o", "out")
    assert done.exit_code == 1 and "one of the inputs is empty" in done.output


def test_links_that_lead_nowhere_are_said_and_the_others_translated(workplace, model):
    photo("in/a.jpg")
    Path("in/gone.jpg").symlink_to("nowhere")
    Path("in/itself.jpg").symlink_to("itself.jpg")
    done = qsattn("in/*.jpg", "-m", model, "-o", "out")
    assert done.exit_code == 1 and written() == ["a.jpg"]
    assert "in/gone.jpg: there is no such file" in done.output and "in/itself.jpg: cannot be read" in done.output


def test_a_folder_that_cannot_be_looked_into_is_not_passed_over(workplace, model, monkeypatch):
    photo("in/a/1.png")
    photo("in/b/c/2.png")
    Path("in/empty").mkdir()
    scandir = os.scandir

    def locked(path):
        if Path(path).name == "c":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", locked)
    done = qsattn("in/*", "-m", model, "-o", "out")
    assert done.exit_code == 1 and "cannot read the folder in/b/c" in done.output


def test_a_name_that_is_too_long_for_the_disk_does_not_end_the_job(workplace, model):
    name = "n" * 251 + ".jpg"
    for path in (f"a/{name}", f"b/{name}", "b/z.jpg"):  # the second becomes NAME-2.jpg
        photo(path)
    done = qsattn("a", "b", "-m", model, "-o", "out")
    assert done.exit_code == 1 and written() == [name, "z.jpg"]
    assert "File name too long" in done.output


def test_a_folder_that_may_not_be_written_to_is_known_before_the_work(workplace, translator, monkeypatch):
    photo("a.png")
    Path("out").mkdir()
    monkeypatch.setattr(os, "access", lambda path, mode: not Path(path).samefile("out"))
    monkeypatch.setattr(translator.generator, "forward", None)  # would fail
    outcome = translate_files(translator, [(Path("a.png"), Path("out/below/a.png"))])
    assert outcome.failed == [(Path("a.png"), "a.png: cannot write out/below/a.png: Permission denied")]


def test_a_picture_without_room_for_its_maps_does_not_stop_the_others(workplace, model, monkeypatch):
    for name, size in (("a", (16, 16)), ("b", (64, 64)), ("c", (16, 16))):
        photo(f"in/{name}.png", size)
    monkeypatch.setattr(tiled.shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, 100))
    done = qsattn("in", "-m", model, "-o", "out", "--tile", 32)
    assert done.exit_code == 1 and written() == ["a.png", "c.png"]
    assert "in/b.png: a picture of 64 x 64 pixels takes" in done.output


@pytest.mark.parametrize("way", ["itself", "suffix", "link to the folder", "link to the file", "hard link"])
def test_no_input_is_ever_written_over(way, workplace, model):
    photo("in/a.png")
    inputs, out = ["in"], Path("out")
    if way == "itself":
        out = Path("in")
    elif way == "suffix":  # a.bmp would become a.png, which is the other input
        photo("in/a.bmp")
        inputs, out = ["in/a.bmp", "in/a.png"], Path("in")
    elif way == "link to the folder":
        out.symlink_to("in")
    elif way == "link to the file":
        out.mkdir()
        (out / "a.png").symlink_to(Path("in/a.png").absolute())
    else:
        out.mkdir()
        os.link("in/a.png", out / "a.png")
    before = {p: p.read_bytes() for p in Path("in").iterdir()}
    done = qsattn(*inputs, "-m", model, "-o", out, "--overwrite")
    assert done.exit_code == 1 and "would be overwritten" in done.output
    assert {p: p.read_bytes() for p in Path("in").iterdir()} == before


def test_shards_share_the_work_and_the_names(workplace, model):
    for folder in ("one", "two"):
        for number in range(3):
            photo(f"{folder}/{number}.png", (16, 16))
    for shard in ("1/4", "2/4", "4/4", "3/4"):
        before = written()
        done = qsattn("one", "two", "-m", model, "-o", "out", "--shard", shard)
        count = {"1": 2, "2": 2, "3": 1, "4": 1}[shard[0]]
        assert f"{count} pictures written" in done.output and len(written()) == len(before) + count
    assert written() == sorted(f"{n}{twin}.png" for n in range(3) for twin in ("", "-2"))


@pytest.mark.parametrize("text", ["0/4", "5/4", "1", "a/b", "1/0", "-1/4"])
def test_shards_that_are_none(text):
    with pytest.raises(ValueError, match="the first of four is 1/4"):
        parse_shard(text)


def test_sizes():
    assert (parse_size("256"), parse_size("640x480"), parse_shard("2/3")) == (256, (640, 480), (2, 3))
    for text in ("0", "12x", "x", "1x0", "-3", "1.5"):
        with pytest.raises(ValueError, match="is not a size"):
            parse_size(text)


# How they are translated ----------------------------------------------------------------------------------------------


def test_pictures_of_equal_size_share_batches_wherever_they_stand(workplace, translator, monkeypatch):
    sizes = [(32, 16), (16, 32)]
    sources = [photo(f"in/{i}.png", sizes[i % 2]) for i in range(7)]
    seen = []
    translate = translator.translate
    monkeypatch.setattr(translator, "translate", lambda p, *how: seen.append([x.size for x in p]) or translate(p, *how))
    pairs = [(source, Path("out") / source.name) for source in sources]
    outcome = translate_files(translator, pairs, batch=3)
    assert seen == [[sizes[0]] * 3, [sizes[1]] * 3, [sizes[0]]]
    assert written() == [f"{i}.png" for i in range(7)] and sorted(outcome.written) == [t for _, t in pairs]
    for source, target in pairs:
        alone = to_channels(translate([read_image(source)])[0], 3).int()
        assert (to_channels(read_image(target), 3).int() - alone).abs().max() <= 1  # batches round otherwise

    seen.clear()
    with monkeypatch.context() as patch:
        patch.setattr(job, "_WAITING", 2 * 32 * 16)  # no more than two pictures may wait: the oldest size goes first
        translate_files(translator, pairs, overwrite=True, batch=3)
    assert [len(batch) for batch in seen] == [2, 2, 2, 1]
    seen.clear()
    translate_files(translator, pairs, overwrite=True)
    assert [len(batch) for batch in seen] == [1] * 7, "on the CPU every picture goes by itself"
    seen.clear()
    translate_files(translator, pairs, overwrite=True, batch=3, tile=32)
    assert [len(batch) for batch in seen] == [2, 2, 2, 1], "as many as the memory of one tile takes"


def test_large_pictures_go_in_tiles_with_the_same_result(workplace, model):
    photo("in/a.png", (101, 67), "RGBA")
    photo("in/b.jpg", (60, 60), "CMYK")
    photo("in/c.png", (30, 30), "L")
    assert qsattn("in", "-m", model, "-o", "whole", "--tile", 0).exit_code == 0
    done = qsattn("in", "-m", model, "-o", "tiled", "--tile", 32)
    assert done.exit_code == 0, done.output
    assert written("whole") == written("tiled") == ["a.png", "b.jpg", "c.png"]
    for name in ("a.png", "c.png"):
        whole, tiled = (read_image(Path(folder, name)) for folder in ("whole", "tiled"))
        assert whole.mode == tiled.mode and whole.size == tiled.size == read_image(Path("in", name)).size
        assert (to_channels(whole, 4).int() - to_channels(tiled, 4).int()).abs().max() <= 1
    alpha = [read_image(Path(folder, "a.png")).getchannel("A").tobytes() for folder in ("in", "tiled")]
    assert alpha[0] == alpha[1]


def test_toy_weights_in_tiles(workplace):
    """The published generator at a size that it was not trained on: at most one level apart, and rarely that."""
    photo("in/a.png", (150, 118))
    for folder, tile in (("whole", 0), ("tiled", 48)):
        translate_files(load("toy"), plan(["in"], Path(folder)), tile=tile)
    whole, tiled = (to_channels(read_image(Path(folder, "a.png")), 3).int() for folder in ("whole", "tiled"))
    assert (whole - tiled).abs().max() <= 1
    assert (whole != tiled).float().mean() < 0.001


def test_python_callers_get_tiles_and_bounded_batches(workplace, translator, monkeypatch):
    large = read_image(photo("large.png", (101, 67), "RGBA"))
    whole, in_tiles = translator.translate(large, tile=0), translator.translate(large, tile=32)
    assert whole.mode == in_tiles.mode == "RGBA"
    assert (to_channels(whole, 4).int() - to_channels(in_tiles, 4).int()).abs().max() <= 1
    calls = []
    monkeypatch.setattr(tiled, "WHOLE", 64)
    monkeypatch.setattr(translating, "_BATCH_PIXELS", 2 * 32 * 32)
    monkeypatch.setattr(
        translating, "translate_tiled", lambda *given, **how: calls.append("tiles") or translate_tiled(*given, **how)
    )
    monkeypatch.setattr(translating, "translate", lambda g, x: calls.append(len(x)) or translate(g, x))
    pictures = [read_image(photo(f"{i}.png", (32, 32))) for i in range(5)]
    results = translator.translate([*pictures[:3], large, *pictures[3:]])
    assert [r.size for r in results] == [(32, 32)] * 3 + [large.size] + [(32, 32)] * 2
    assert calls == [2, 1, "tiles", 2]


def test_progress_counts_pictures_and_parts_of_large_ones(workplace, translator):
    photo("in/0.png", (100, 100))
    photo("in/1.png", (16, 16))
    Path("in/2.png").write_text("not a picture")
    steps: list[float] = []
    translate_files(translator, plan(["in"], Path("out")), progress=steps.append, tile=32)
    assert sum(steps) == pytest.approx(3) and len(steps) > 20


def test_resizing_is_asked_for(workplace, model):
    photo("in/a.png", (60, 30))
    for size, expected in ((None, (60, 30)), ("20", (40, 20)), ("17x50", (17, 50))):
        qsattn("in", "-m", model, "-o", "out", "--overwrite", *(["--size", size] if size else []))
        assert read_image("out/a.png").size == expected
    assert "'big' is not a size" in qsattn("in", "-m", model, "-o", "out", "--size", "big").output


# What goes wrong ------------------------------------------------------------------------------------------------------


def test_what_is_done_is_skipped_unless_overwritten(workplace, model):
    photo("in/a.png")
    photo("in/b.png")
    qsattn("in/a.png", "-m", model, "-o", "out")
    Path("out/b.png").touch()  # empty: nobody's translation
    before = Path("out/a.png").stat().st_mtime_ns
    assert "1 pictures written to out, 1 existing skipped" in qsattn("in", "-m", model, "-o", "out").output
    assert Path("out/a.png").stat().st_mtime_ns == before and read_image("out/b.png").size == (40, 32)
    assert "2 pictures written" in qsattn("in", "-m", model, "-o", "out", "--overwrite").output
    assert Path("out/a.png").stat().st_mtime_ns > before


def test_a_killed_job_leaves_whole_pictures_and_is_carried_on(workplace, model):
    for number in range(40):
        photo(f"in/{number:02}.png", (96, 96))
    command = [sys.executable, "-m", "qsattn_plugin.cli", "translate", "in", "-m", str(model), "-o", "out"]
    running = subprocess.Popen(
        command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        while running.poll() is None and not (Path("out").is_dir() and len(list(Path("out").iterdir())) > 3):
            time.sleep(0.005)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    there = sorted(Path("out").glob("[0-9]*.png"))
    assert 0 < len(there) < 40
    assert all(read_image(path).size == (96, 96) for path in there)
    done = qsattn("in", "-m", model, "-o", "out")
    assert f"{40 - len(there)} pictures written to out, {len(there)} existing skipped" in done.output
    assert len(list(Path("out").glob("[0-9]*.png"))) == 40


def test_a_full_disk_ends_the_job_in_words(workplace, model, monkeypatch):
    for number in range(4):
        photo(f"in/{number}.png")
    replace, calls = os.replace, []

    def full(source, target):
        calls.append(target)
        if len(calls) > 2:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, target)

    monkeypatch.setattr(os, "replace", full)
    done = qsattn("in", "-m", model, "-o", "out")
    assert done.exit_code == 1 and len(calls) == 3, "the fourth is not tried"
    assert "2 pictures written" in done.output and "could not write out/2.png: No space left on device" in done.output
    assert sorted(os.listdir("out")) == ["0.png", "1.png"], "nothing half written stays, hidden or not"


def test_one_bad_place_does_not_end_the_job(workplace, model):
    for name in ("0", "1", "2"):
        photo(f"in/{name}.png")
    Path("out/1.png").mkdir(parents=True)
    done = qsattn("in", "-m", model, "-o", "out")
    assert done.exit_code == 1 and "2 pictures written" in done.output
    assert "not translated: in/1.png: its translation cannot be written: out/1.png is a folder" in done.output


def test_too_little_memory(workplace, translator, monkeypatch):
    sources = [photo(f"in/{i}.png", (32, 32)) for i in range(3)] + [photo("in/large.png", (64, 64))]
    translate = translator.translate

    def small(pictures, *how):
        if len(pictures) > 1 or pictures[0].width > 32:
            raise RuntimeError(
                "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 99 bytes"
            )
        return translate(pictures, *how)

    monkeypatch.setattr(translator, "translate", small)
    steps: list[float] = []
    pairs = [(source, Path("out", source.name)) for source in sources]
    outcome = translate_files(translator, pairs, progress=steps.append, batch=3)
    assert written() == ["0.png", "1.png", "2.png"], "one by one, where a batch is too much"
    ((source, reason),) = outcome.failed
    assert source.name == "large.png" and "64 x 64 pixels do not fit into memory; try --tile 32" in reason
    assert sum(steps) == pytest.approx(4)


def test_other_errors_are_defects_and_stay_errors(workplace, translator, monkeypatch):
    def broken(pictures, *how):
        raise RuntimeError("shapes do not fit")

    monkeypatch.setattr(translator, "translate", broken)
    outcome = Outcome()
    with pytest.raises(RuntimeError, match="shapes do not fit"):
        translate_files(translator, [(photo("a.png"), Path("out/a.png"))], outcome=outcome)
    assert not outcome.failed


@pytest.mark.parametrize("tile", [0, 16])
def test_a_broken_model_writes_nothing(workplace, translator, tile):
    translator.generator.model[1].bias.data.fill_(float("nan"))
    outcome = translate_files(translator, [(photo("a.png"), Path("out/a.png"))], tile=tile)
    assert "a.png: the model produced NaN" in outcome.failed[0][1]
    assert not Path("out").exists()


def test_a_picture_that_becomes_nan_does_not_take_its_batch_along(workplace, translator):
    class Standardised(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.ones(()))

        def forward(self, x):
            return self.gain * (x - x.mean((1, 2, 3), keepdim=True)) / x.std((1, 2, 3), keepdim=True)

    translator.generator = Standardised()
    Image.new("RGB", (32, 32)).save("flat.png")
    files = [(photo("a.png"), Path("out/a.png")), (Path("flat.png"), Path("out/flat.png"))]
    outcome = translate_files(translator, files, batch=2)
    assert outcome.written == [Path("out/a.png")]
    assert [path.name for path, _ in outcome.failed] == ["flat.png"]


@pytest.mark.parametrize("wrong", [Path("a.png"), None, 3, "a.png"])
def test_what_is_no_picture_is_refused_with_a_remedy(translator, wrong):
    with pytest.raises(TypeError, match=r"must be PIL images, got \w+; open it with PIL.Image.open"):
        translator.translate(wrong)


def test_generators_of_others_are_translated_whole_and_it_is_said(workplace, monkeypatch):
    class Other(Resnet4Blocks):
        def forward(self, x):
            return super().forward(x) / 2

    translator = Translator(Other(width=4), 3).eval()
    pairs = [(photo("a.png", (40, 40)), Path("out/a.png"))]
    monkeypatch.setattr(tiled, "WHOLE", 32)
    with pytest.warns(Untiled, match="Other cannot be translated in tiles.*translating it whole"):
        outcome = translate_files(translator, pairs)
    assert outcome.written and not outcome.failed
    with pytest.raises(UserError, match="Other cannot be translated in tiles"):
        translate_files(translator, pairs, overwrite=True, tile=32)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translate_files(translator, pairs, overwrite=True, tile=0)


def test_after_an_evaluation_every_module_is_as_it_was():
    network = torch.nn.Sequential(torch.nn.Dropout(), torch.nn.Sequential(torch.nn.BatchNorm2d(2)))
    network.train()
    network[1][0].eval()  # somebody froze it
    with evaluating(network):
        assert not any(module.training for module in network.modules())
    assert [module.training for module in network.modules()] == [True, True, True, False]
