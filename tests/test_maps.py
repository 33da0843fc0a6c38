"""Entropy maps: where a position lies in the picture, also in a padded one, and what is written for which file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image
from safetensors.torch import save_file

from qsattn_plugin.attention import GlobalAttention
from qsattn_plugin.cli import main
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import to_channels, to_float
from qsattn_plugin.evaluation.mapping import draw_maps, entropy_maps
from qsattn_plugin.evaluation.maps import EntropyMap, entropy_map
from qsattn_plugin.evaluation.sources import FeatureSource
from qsattn_plugin.registry import create
from qsattn_plugin.registry.encoders import TimmEncoder
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from tests.conftest import TINY
from tests.test_cli import trained

__all__ = ["trained"]


def seen(height: int, width: int, padded: tuple[int, int], cells: tuple[int, int], stride: int) -> EntropyMap:
    """A map whose entropy grows row by row, with a query at every position."""
    values = torch.arange(float(cells[0] * cells[1])).view(cells)
    queries = torch.stack(torch.meshgrid(*map(torch.arange, cells), indexing="ij"), dim=-1).view(-1, 2)
    return EntropyMap(torch.zeros(3, height, width), values, queries, stride, padded)


@pytest.mark.parametrize(
    ("size", "padded", "cells", "first"),
    [
        ((64, 64), (64, 64), (8, 8), (4.0, 4.0)),
        ((60, 50), (64, 56), (8, 7), (4.0, 4.0)),  # padding lies on the right and below: nothing moves
        ((64, 64), (64, 64), (10, 10), (0.0, 0.0)),  # an encoder's own padding lies all around
        ((60, 50), (64, 56), (10, 9), (0.0, 0.0)),
    ],
)
def test_positions_lie_where_the_encoder_saw_them(size, padded, cells, first):
    found = seen(*size, padded, cells, 8)
    centres = found.centres()
    assert centres[0] == first
    row, column = 3, 4
    around = [(n * 8 - p) / 2 for n, p in zip(cells, padded, strict=True)]
    expected = ((column + 0.5) * 8 - around[1], (row + 0.5) * 8 - around[0])
    assert centres[row * cells[1] + column] == expected
    assert centres[-1] == (
        min(size[1] - 1, (cells[1] - 0.5) * 8 - around[1]),
        min(size[0] - 1, (cells[0] - 0.5) * 8 - around[0]),
    )
    # The heat map's border between the two halves of the rows lies at the same place.
    half = cells[0] // 2
    split = EntropyMap(
        found.image, (torch.arange(cells[0]) < half).double()[:, None].expand(cells), found.queries, 8, padded
    )
    sheet = split.draw("linear")
    factor = sheet.height // size[0]
    middle = sheet.crop((size[1] * factor + 4, 0, 2 * size[1] * factor + 4, sheet.height)).convert("RGB")
    blue = [middle.getpixel((10, y))[2] - middle.getpixel((10, y))[0] for y in range(sheet.height)]
    crossing = next(y for y in range(sheet.height) if blue[y] < 0)  # cold above, warm below
    assert abs(crossing / factor - (half * 8 - around[0])) < 8 / 2


class OfOneSize:
    """An encoder that brings every picture to 64 x 64, as some of timm's do."""

    taps, strides, fixed_size = (0,), (16,), 64

    def resized(self, images: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(images, (64, 64), mode="bilinear", antialias=True)

    def features(self, generator: object, images: torch.Tensor) -> list[torch.Tensor]:
        assert images.shape[2:] == (64, 64)
        return [torch.nn.functional.avg_pool2d(images, 16)]


def test_positions_of_an_encoder_of_one_size_lie_all_over_the_picture():
    source = FeatureSource(None, OfOneSize(), 3, {}, (0,))
    sampler = create("sampler", "qsattn_global", queries=16)
    picture = torch.rand(3, 96, 160, generator=torch.Generator().manual_seed(0))
    whole, size = source.sees(picture[None])
    (features, stride), draws = source.features(whole)["0"], torch.Generator()
    centres = entropy_map(picture, features, sampler, stride, draws, whole.shape[2:], size).centres()
    assert sorted({x for x, _ in centres}) == [20, 60, 100, 140]
    assert sorted({y for _, y in centres}) == [12, 36, 60, 84]


def test_a_map_of_one_position_is_json():
    found = EntropyMap(torch.zeros(3, 8, 8), torch.tensor([[-torch.inf]]), torch.tensor([[0, 0]]), 8, (8, 8))
    numbers = json.loads(json.dumps(found.numbers(), allow_nan=False))
    assert numbers["log_entropy"] == [[None]] and numbers["entropy_quantiles"]["50%"] == 0


def test_without_taps_a_model_s_maps_are_those_that_its_sampler_attended_to_in_training(workplace):
    picture = Image.effect_noise((40, 40), 60).convert("RGB")
    for settings, expected in (
        (("sampler.positions=256",), ["8", "12"]),  # 38 x 38, 32 x 32, 16 x 16 and 8 x 8 at 32 pixels
        (("sampler.positions=9",), ["12"]),  # it attended nowhere
        (("sampler={type: qsattn_global, taps: [4, 12]}",), ["4", "12"]),
        (("sampler={type: random}",), ["12"]),
    ):
        run = Run.create(load_recipe("toy", (*TINY, *settings)), workplace / "run", overwrite=True)
        fit(run, max_steps=1)
        assert list(entropy_maps(picture, "run")) == expected


def test_a_picture_that_has_to_be_padded(workplace):
    Image.effect_noise((50, 62), 60).convert("RGB").save("a.png")
    assert maps("a.png").exit_code == 0
    numbers = json.loads(Path("maps/a-tap-15.json").read_text())
    assert numbers["image_size"] == [50, 62] and numbers["shape"] == [16, 13]
    for (row, column), (x, y) in zip(numbers["queries"], numbers["query_pixels"], strict=True):
        assert (x, y) == (min(49, (column + 0.5) * 4), min(61, (row + 0.5) * 4))


def maps(*arguments: str, out: str = "maps"):
    return CliRunner().invoke(main, ["map", *arguments, "-m", "toy", "--tap", "15", "--queries", "9", "-o", out])


def test_every_picture_gets_its_own_files(workplace):
    for number, ending in enumerate(("jpg", "png", "bmp")):
        Image.new("RGB", (32, 32), (80 * number, 0, 0)).save(f"a.{ending}")
    done = maps("a.jpg", "a.png", "a.bmp")
    assert done.exit_code == 0, done.output
    assert sorted(p.name for p in Path("maps").glob("*.png")) == [
        "a-tap-15.png",
        "a.bmp-tap-15.png",
        "a.png-tap-15.png",
    ]
    assert maps("a.jpg", out=".").exit_code == 0, "a-tap-15.png beside a.jpg is no input"
    refused = maps("a.png", "a-tap-15.png", out=".")
    assert refused.exit_code == 1 and "a-tap-15.png is one of the inputs" in refused.output


def test_a_model_may_be_a_path(workplace, trained):
    Image.new("RGB", (32, 32)).save("a.png")
    ((_, numbers),) = draw_maps(["a.png"], Path(trained), Path("maps"), taps="15")
    assert json.loads(numbers.read_text())["model"] == str(trained)


def test_a_picture_that_cannot_be_read_is_passed_over(workplace):
    Path("a.png").write_bytes(b"no picture")
    Image.new("RGB", (32, 32)).save("b.png")
    done = maps("a.png", "b.png")
    assert done.exit_code == 1 and "not drawn: a.png: not a picture" in done.output
    assert [p.name for p in Path("maps").glob("*.png")] == ["b-tap-15.png"]


def test_a_timm_network_takes_its_weights_from_a_file(workplace):
    torch.manual_seed(3)
    save_file(timm.create_model("resnet10t").state_dict(), "resnet.safetensors")
    Image.effect_noise((64, 64), 60).convert("RGB").save("a.png")
    arguments = ("map", "a.png", "-m", "timm:resnet10t", "-o", "maps", "--queries", "5")
    done = CliRunner().invoke(main, [*arguments, "--weights", "resnet.safetensors"])
    assert done.exit_code == 0, done.output
    with torch.no_grad():
        features = TimmEncoder("resnet10t", weights="resnet.safetensors").eval()(read_tensor("a.png"))[-1]
    (numbers,) = (json.loads(path.read_text()) for path in Path("maps").glob("*.json"))
    smallest = GlobalAttention().log_entropy(features).min().exp().item()
    assert numbers["entropy_quantiles"]["0%"] == pytest.approx(smallest, rel=1e-4)  # a float32 logarithm between


def read_tensor(path: str) -> torch.Tensor:
    return to_float(to_channels(read_image(Path(path)), 3))[None]


def test_weights_of_their_own_are_for_timm_networks(workplace):
    Path("w.safetensors").write_bytes(b"")
    Image.new("RGB", (32, 32)).save("a.png")
    done = maps("a.png", "--weights", "w.safetensors")
    assert done.exit_code == 1 and "toy comes with its own" in done.output
