"""From files to models: parts of one's own, damaged documents; and what a model makes of pictures of any mode."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

import qsattn_plugin
from qsattn_plugin.errors import UserError
from qsattn_plugin.evaluation.scoring import Evaluation
from qsattn_plugin.registry import create
from qsattn_plugin.storage import DamagedFile, load_tensors, save_tensors
from qsattn_plugin.translation.apply import padded_size
from qsattn_plugin.translation.export import place_of, subject_of
from qsattn_plugin.translation.job import translate_files
from qsattn_plugin.translation.tiles import is_large
from qsattn_plugin.translation.translator import Translator
from tests.conftest import TINY

ROOT = Path(__file__).parents[1]
MINE = """
from qsattn_plugin.registry import register
from qsattn_plugin.registry.generators import Resnet4Blocks

@register("generator", "my_generator")
class Mine(Resnet4Blocks):
    \"\"\"Somebody's own.\"\"\"
"""


def test_a_generator_of_ones_own_is_found_again_by_every_command(workplace):
    """In processes of their own: this one would know the generator from the training."""
    Path("mine.py").write_text(MINE)
    Path("mine.yaml").write_text("extends: toy\nname: own\nimport: [./mine.py]\ngenerator: {type: my_generator}\n")
    settings = [part for s in TINY for part in ("-s", s)]
    Path("in").mkdir()
    Image.new("RGB", (32, 32), "tan").save("in/a.png")
    program = "from qsattn_plugin.cli import main\nfor args in {}: main(args, standalone_mode=False)"

    def run(*commands: list[str]) -> subprocess.CompletedProcess:
        command = [sys.executable, "-c", program.format(list(commands))]
        return subprocess.run(command, capture_output=True, text=True, env=None, cwd=workplace)

    done = run(["build", "mine.yaml", *settings, "-s", "train.steps=1"], ["fit"])
    assert done.returncode == 0, done.stderr
    done = run(
        ["translate", "in", "-m", "own", "-o", "out"],
        ["map", "in", "-m", "own", "-o", "maps"],
        ["export", "own", "--format", "torchscript", "-o", "x.pt"],
    )
    assert done.returncode == 0, done.stderr
    assert Path("out/a.png").is_file() and Path("x.pt").is_file()
    shutil.copy(next(Path("runs/own/checkpoints").glob("step-*")), "loose.safetensors")
    said = run(["translate", "in", "-m", "loose.safetensors", "-o", "out2"]).stderr
    assert "there is no generator 'my_generator'" in said and "trained with parts from" in said and "mine.py" in said


@pytest.mark.parametrize(
    "generators",
    [
        [1],
        {"forward": "resnet"},
        {"forward": {"type": "resnet_4blocks", "prefix": ""}},
        {"forward": {"type": "resnet_4blocks", "arguments": {}, "prefix": ""}},
        {"forward": {"type": 3, "arguments": {"in_channels": 3}, "prefix": ""}},
    ],
    ids=["a list", "no mapping", "no arguments", "no channels", "no name"],
)
def test_a_file_that_describes_its_generator_badly_is_refused_in_words(workplace, generators):
    save_tensors(Path("w.safetensors"), {"x": torch.zeros(1)}, {"kind": "weights", "generators": generators})
    with pytest.raises(DamagedFile, match="w.safetensors has no valid description of its generators"):
        qsattn_plugin.load("w.safetensors")


def test_a_forks_checkpoint_has_to_be_imported_first(workplace):
    torch.save({"x": torch.zeros(1)}, "latest_net_G.pth")
    with pytest.raises(UserError, match="`qsattn import latest_net_G.pth -o latest_net_G.safetensors` first"):
        qsattn_plugin.load("latest_net_G.pth")


def test_an_export_stays_in_the_folder_that_was_asked_for(workplace):
    tensors, document = load_tensors(ROOT / "registry/weights/toy.safetensors")
    document["recipe"] = {**(document.get("recipe") or {}), "name": "../../escaped"}
    save_tensors(Path("w.safetensors"), tensors, document)
    subject = subject_of(qsattn_plugin.load("w.safetensors"))
    place = place_of(subject, "torchscript", Path("x/y/"))
    assert place.parent == Path("x/y") and place.name == "_.._escaped.pt"


class Copy(nn.Module):
    """Gives back what it is given, and tells what that was."""

    multiple = 1

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.seen: list[torch.Tensor] = []

    def forward(self, x):
        self.seen.append(x)
        return x


RAMP = Image.linear_gradient("L").resize((64, 64))


@pytest.mark.parametrize(
    ("picture", "bands"),
    [
        (RAMP.convert("I").point(lambda v: v * 257).convert("I;16"), "RGB"),
        (RAMP.convert("F").point(lambda v: v / 255), "RGB"),
        (RAMP, "RGB"),
        (RAMP.convert("HSV"), "RGB"),
        (Image.merge("LA", (RAMP, RAMP)).convert("La"), "RGBA"),
        (Image.merge("RGBA", (RAMP,) * 4), "RGBA"),
    ],
    ids=["16 bits", "floats", "grey", "HSV", "La", "RGBA"],
)
def test_pictures_of_any_mode_are_seen_as_they_are(picture, bands):
    translator = Translator(Copy(), 3)
    result = translator.translate(picture)
    assert result.size == picture.size and "".join(result.getbands()) == bands
    if "A" not in bands:
        expected = torch.tensor(list(RAMP.tobytes())).view(64, 64) / 127.5 - 1
        assert (translator.generator.seen[0][0, 0] - expected).abs().max() <= 1.01 / 127.5


def test_a_palettes_transparency_is_kept_and_an_orientation_followed(workplace):
    palette = RAMP.convert("P")
    palette.info["transparency"] = 0
    assert Translator(Copy(), 3).translate(palette).mode == "RGBA"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (80, 40), "red").save("a.jpg", exif=exif)
    assert Translator(Copy(), 3).translate(Image.open("a.jpg")).size == (40, 80)
    with pytest.raises(TypeError, match="must be PIL images, got str"):
        Translator(Copy(), 3).translate(["a.jpg"])


def test_pictures_come_from_any_iterable(workplace):
    photos = [Image.new("RGB", (24, 16), (shade, 0, 0)) for shade in (10, 200)] + [Image.new("RGB", (16, 16))]
    translator = Translator(Copy(), 3)
    expected = [result.tobytes() for result in translator.translate(photos)]
    for given in (iter(photos), (photo for photo in photos), map(Image.Image.copy, photos), tuple(photos)):
        assert [result.tobytes() for result in translator.translate(given)] == expected
    assert translator.translate([]) == []
    with pytest.raises(TypeError, match="must be PIL images, got str"):
        translator.translate(iter([photos[0], "a.jpg"]))
    with pytest.raises(ValueError, match="no pixels, its size is 0 x 4"):
        translator.translate([photos[0], Image.new("RGB", (0, 4))])


def test_translations_that_are_kept_replace_none_of_the_given_pictures(workplace):
    for folder in ("src", "real"):
        Path(folder).mkdir()
        for number in range(2):
            Image.effect_noise((64, 64), 50).convert("RGB").save(f"{folder}/{number}.png")
    before = [p.read_bytes() for p in sorted(Path("real").iterdir())]
    with pytest.raises(UserError, match="real/0.png is one of the given pictures"):
        Evaluation("toy", real="real", source="src", metrics=("swd",), keep="real").run()
    assert [p.read_bytes() for p in sorted(Path("real").iterdir())] == before
    shutil.copytree("real", "toy/testB")
    with pytest.raises(UserError, match=r"write \./toy or pretrained/toy"):
        Evaluation("toy", real="real", source="src", metrics=("swd",)).run()
    assert Evaluation("pretrained/toy", real="real", source="src", metrics=("swd",)).run().figures


def test_a_line_of_pixels_counts_as_what_it_is_padded_to(workplace):
    generator = create("generator", "resnet_4blocks", width=2)
    assert padded_size(generator, (70_000, 2)) == (70_000, 16)
    assert not is_large((70_000, 2)) and is_large(padded_size(generator, (70_000, 2)))
    Image.new("RGB", (1, 20_000)).save("a.png")
    outcome = translate_files(Translator(generator, 3), [(Path("a.png"), Path("out/a.png"))], size=1024)
    assert outcome.failed == [(Path("a.png"), "a.png: 1 x 20000 pixels would have to become 1024 x 20480000")]
