"""Large pictures in tiles: the same as whole, within bounds of memory and disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from qsattn_plugin.data.pixels import NaNImageError
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create
from qsattn_plugin.registry.generators import Resnet4Blocks, ResnetBlock
from qsattn_plugin.registry.layers import Downsample, Upsample
from qsattn_plugin.registry.layers.primitives import Skip
from qsattn_plugin.translation import tiles as tiled
from qsattn_plugin.translation.apply import translate
from qsattn_plugin.translation.tiles import SPILL, CannotTile, TiledTranslation, translate_tiled
from qsattn_plugin.translation.tiles.chain import chain_of, steps_of
from qsattn_plugin.translation.tiles.moments import Moments
from qsattn_plugin.translation.tiles.steps import Span, crop
from qsattn_plugin.translation.tiles.sweeps import plan_sweeps

PLAIN = {"antialias": False, "antialias_up": False}


def drawn(name: str, dtype: torch.dtype = torch.float32, **arguments) -> nn.Module:
    """A generator whose translations use much of their range, with biases and running statistics other than 0 and 1."""
    torch.manual_seed(0)
    generator = create("generator", name, **{"width": 8, "init_gain": 0.2, **arguments})
    for layer in generator.modules():
        if isinstance(layer, nn.Conv2d) and layer.bias is not None:
            nn.init.normal_(layer.bias, 0, 0.1)
        elif isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.normal_(0, 0.1)
            layer.running_var.uniform_(0.5, 2)
    return generator.eval().requires_grad_(False).to(dtype)


def picture(height: int, width: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return (torch.rand(1, 3, height, width, generator=generator) * 2 - 1).to(dtype)


CASES = [
    ("resnet_9blocks", {}, (131, 102)),
    ("resnet_6blocks", PLAIN, (96, 128)),
    ("resnet_4blocks", {"antialias": False}, (131, 102)),
    ("resnet_4blocks", {"antialias_up": False}, (64, 203)),
    ("resnet_4blocks", {"norm": "batch", "residual": True}, (131, 102)),
    ("resnet_4blocks", {"norm": "none", **PLAIN}, (131, 102)),
    ("mobile_resnet_9blocks", {}, (131, 102)),
    ("mobile_resnet_9blocks", {"residual": True, **PLAIN}, (103, 131)),
    ("swift_resnet_6blocks", {}, (131, 102)),
    ("swift_resnet_6blocks", {"norm": "instance", "residual": False}, (103, 131)),
    ("swift_resnet_6blocks", {"mask": True}, (131, 102)),
    ("unet_64", {}, (203, 131)),
    ("unet_256", {"width": 4}, (300, 203)),
    ("unet_64", {"norm": "batch", "init_gain": 0.5}, (64, 260)),
]


@pytest.mark.parametrize("tile", [32, 47, 1000])
@pytest.mark.parametrize(("name", "arguments", "size"), CASES)
def test_tiles_and_whole_pictures_agree(name, arguments, size, tile):
    generator, x = drawn(name, **arguments), picture(*size)
    whole = translate(generator, x)[0]
    # Float32 rounds sums in another order in tiles, and up to 23 norms in a row pass that on: 3e-6 was seen.
    assert (translate_tiled(generator, x[0], tile) - whole).abs().max() < 1e-5
    assert whole.std() > 0.01


@pytest.mark.parametrize(("name", "arguments", "size"), CASES)
def test_in_double_precision_nothing_but_rounding_is_left(name, arguments, size):
    generator, x = drawn(name, torch.float64, **arguments), picture(*size, torch.float64)
    torch.testing.assert_close(translate_tiled(generator, x[0], 40), translate(generator, x)[0], rtol=0, atol=1e-11)


@pytest.mark.parametrize("size", [(1, 3), (5, 70), (16, 16), (33, 17)])
@pytest.mark.parametrize("name", ["resnet_4blocks", "unet_64"])
def test_small_and_narrow_pictures(name, size):
    generator, x = drawn(name), picture(*size)
    assert (translate_tiled(generator, x[0], 8) - translate(generator, x)[0]).abs().max() < 1e-5


def test_pictures_of_bytes_differ_by_a_level_at_most():
    generator = drawn("resnet_4blocks")
    pixels = torch.randint(0, 256, (3, 101, 93), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    whole = translate(generator, pixels[None] / 127.5 - 1)[0]
    found = translate_tiled(generator, pixels, 32)
    assert found.dtype == torch.uint8 and found.float().std() > 3
    assert (found.float() - (whole + 1) * 127.5).abs().max() < 0.51  # rounded to nearest, up to float32's own error


def test_half_precision_keeps_whole_statistics():
    generator, x = drawn("resnet_4blocks"), picture(96, 80)
    whole = translate(generator, x)[0]
    found = translate_tiled(generator.bfloat16(), x[0], 32)
    assert found.dtype == torch.float32
    # bfloat16 has 8 bits: translating whole in it is off by about as much.
    assert (found - whole).abs().mean() < 0.02


@pytest.mark.parametrize("name", ["resnet_4blocks", "swift_resnet_6blocks"])
def test_what_the_caller_has_set_for_other_work_does_not_reach_the_tiles(name):
    """Autocast, which would change the number format from layer to layer, and a default device."""
    generator, x = drawn(name), picture(90, 70)[0]
    expected = translate_tiled(generator, x, 32)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(translate_tiled(generator, x, 32), expected)
    with torch.device("meta"):
        assert torch.equal(translate_tiled(generator, x, 32), expected)


def test_grey_in_and_two_channels_out():
    generator = drawn("resnet_4blocks", in_channels=1, out_channels=2)
    x = picture(60, 52)[:, :1]
    assert (translate_tiled(generator, x[0], 24) - translate(generator, x)[0]).abs().max() < 1e-5


LAYERS = [
    nn.Conv2d(4, 6, 3, padding=1),
    nn.Conv2d(4, 6, (5, 3), stride=(2, 3), padding=(2, 0), dilation=(1, 2), padding_mode="reflect"),
    nn.Conv2d(4, 4, 4, stride=2, padding=1, groups=4, padding_mode="replicate"),
    nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1, output_padding=1),
    nn.ConvTranspose2d(4, 6, 4, stride=2, padding=1, bias=False),
    nn.ConvTranspose2d(4, 6, (2, 5), stride=3, dilation=2, groups=2),
    nn.ReflectionPad2d((1, 5, 3, 2)),
    nn.ReplicationPad2d((4, 0, 9, 30)),
    nn.ZeroPad2d((0, 7, 3, 11)),
    nn.PixelShuffle(2),
    nn.PixelUnshuffle(2),
    nn.LeakyReLU(0.2),
    nn.Tanh(),
    Downsample(4),
    Upsample(4),
]


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: type(layer).__name__)
def test_every_layer_computes_any_part_from_what_it_asks_for(layer):
    """All spans of rows, with some of columns; all else that the layer is shown is left out."""
    torch.manual_seed(0)
    x = torch.randn(1, 4, 14, 18, dtype=torch.float64)
    layer = layer.double()
    with torch.inference_mode():
        whole = layer(x)
        height, width = whole.shape[-2:]
        for start in range(height):
            for stop in range(start + 1, height + 1):
                want = (Span(start, stop), Span(start * width // (2 * height), width - start % 3))
                sizes = [(14, 18)]
                steps = steps_of(layer)
                for step in steps:
                    sizes.append(tuple(step.size(n, axis) for axis, n in enumerate(sizes[-1])))
                assert sizes[-1] == (height, width)
                boxes = [want]
                for step, size in zip(steps[::-1], sizes[-2::-1], strict=True):
                    boxes.insert(
                        0, tuple(step.need(s, n, a) for a, (s, n) in enumerate(zip(boxes[0], size, strict=True)))
                    )
                part = crop(x, (Span(0, 14), Span(0, 18)), boxes[0]).clone()
                for i, step in enumerate(steps):
                    part = step.run(part, boxes[i], boxes[i + 1], sizes[i], owned=False)
                expected = crop(whole, (Span(0, height), Span(0, width)), want)
                torch.testing.assert_close(part, expected, rtol=0, atol=1e-13)


def test_moments_of_parts_are_those_of_the_whole():
    """Also far from zero, where sums of squares would lose everything in float32: 1000 plus noise of 0.01."""
    torch.manual_seed(0)
    x = torch.randn(1, 3, 210, 97) * torch.tensor([1.0, 0.01, 5.0])[:, None, None]
    x += torch.tensor([0.0, 1000.0, -3.0])[:, None, None]
    moments = Moments(3)
    for part in (x[..., :100, :], x[..., 100:101, :3], x[..., 100:101, 3:], x[..., 101:, :]):
        moments.add(part)
    variance, mean = torch.var_mean(x.double(), dim=(0, 2, 3), correction=0)
    torch.testing.assert_close(moments.mean, mean, rtol=1e-7, atol=1e-7)
    # float32 holds 1000 plus noise to 6e-5, and the mean that is taken off to as much.
    torch.testing.assert_close(moments.variance, variance, rtol=1e-4, atol=0)


class Spied(TiledTranslation):
    """Looks at the files on disk after every tile."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs, progress=self.look)
        self.most, self.done = 0, 0.0

    def look(self, share: float) -> None:
        self.done += share
        self.most = max(self.most, sum(os.fstat(m.file).st_size for m in self.spill.maps.values()))


@pytest.mark.parametrize("a_pixel", [20, 60, SPILL])
def test_the_disk_s_limit_is_kept_and_changes_nothing(a_pixel, tmp_path):
    generator, x = drawn("resnet_9blocks", width=16), picture(96, 120)
    job = Spied(generator, x[0], 48, spill=a_pixel * 96 * 120, folder=tmp_path)
    found = job.run()
    assert 0 < job.most <= job.spill.peak <= a_pixel * 96 * 120
    assert job.done == pytest.approx(1)
    assert (found - translate(generator, x)[0]).abs().max() < 1e-5
    assert not list(tmp_path.iterdir()) and not job.spill.maps


@pytest.mark.parametrize("name", ["resnet_9blocks", "mobile_resnet_9blocks", "swift_resnet_6blocks", "unet_256"])
def test_the_plan_for_4096_pixels(name):
    """Within 5 GB of disk; no step of a tile holds more than 350 MB; and little is computed twice."""
    with torch.device("meta"):
        generator = create("generator", name).eval()
    chain = chain_of(generator, 3, (4096, 4096))
    work = sum(
        chain.elements(p + 1) / chain.channels[p + 1] * s.work(chain.channels[p]) for p, s in enumerate(chain.steps)
    )
    kept: frozenset[int] = frozenset()
    for sweep in plan_sweeps(chain, 512, SPILL * 4096**2):
        after = chain.needed_at(sweep.keep)
        assert sum(4 * chain.elements(p) for p in kept | after) <= 5e9
        kept = after
        for position in range(sweep.start + 1, sweep.stop + 1):
            share = sweep.tile**2 / (chain.sizes[sweep.stop][0] * chain.sizes[sweep.stop][1])
            assert 4 * share * chain.elements(position) < 350e6
    # A multiply-add is rated at 1.5e-11 s; reading and writing come to it.
    assert sum(s.seconds for s in plan_sweeps(chain, 512, SPILL * 4096**2)) < 3 * work * 1.5e-11 + 120


def test_memory_does_not_grow_with_the_picture():
    """In tiles the process grows by a fraction of what the whole picture takes."""
    program = """
import torch
from qsattn_plugin.registry import create
from qsattn_plugin.translation.apply import translate
from qsattn_plugin.translation.tiles import translate_tiled
torch.set_num_threads(1)
# Not getrusage's peak, which a process takes over from the one that started it.
peak = lambda: int(open("/proc/self/status").read().split("VmHWM:")[1].split()[0])
generator = create("generator", "resnet_4blocks", width=16).eval()
x = torch.zeros(3, 512, 512)
translate_tiled(generator, x[:, :200, :200], 64)
begin = peak()
translate_tiled(generator, x, 64)
tiled = peak()
translate(generator, x[None])
print((tiled - begin) / 1024, (peak() - begin) / 1024)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=Path(__file__).parents[1]
    )
    assert done.returncode == 0, done.stderr
    tiled_mb, whole_mb = map(float, done.stdout.split())
    assert whole_mb > 60, "one map of 32 channels alone has 34 MB"
    assert tiled_mb < 20, "the translation itself has 3 MB"


def full(*_: object) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


@pytest.mark.parametrize("call", ["posix_fallocate", "pwritev"])
def test_a_disk_that_fills_up_is_said_in_words(call, monkeypatch, tmp_path):
    monkeypatch.setattr(os, call, full)
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(UserError, match="No space left.*TMPDIR"):
        translate_tiled(drawn("resnet_4blocks"), picture(64, 64)[0], 32, folder=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_disk_that_will_not_do_is_known_before_the_work(monkeypatch):
    monkeypatch.setattr(tiled.shutil, "disk_usage", lambda folder: type("", (), {"free": 1000}))
    monkeypatch.setattr(TiledTranslation, "_sweep", full)
    with pytest.raises(UserError, match="64 x 64 pixels takes 0.1 MB.* where 0.0 MB are free.*TMPDIR"):
        translate_tiled(drawn("resnet_4blocks"), picture(64, 64)[0], 32)


def test_the_room_that_is_asked_for_is_what_the_work_takes(monkeypatch, tmp_path):
    generator, x = drawn("resnet_4blocks"), picture(64, 64)[0]
    job = Spied(generator, x, 32, folder=tmp_path)
    job.run()
    monkeypatch.setattr(tiled.shutil, "disk_usage", lambda folder: type("", (), {"free": job.most}))
    Spied(generator, x, 32, folder=tmp_path).run()
    job.most -= 1
    with pytest.raises(UserError, match="TMPDIR"):
        translate_tiled(generator, x, 32, folder=tmp_path)


def test_a_file_system_that_cannot_reserve_room(monkeypatch):
    def unable(*_: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "not supported")

    monkeypatch.setattr(os, "posix_fallocate", unable)
    generator, x = drawn("resnet_4blocks"), picture(64, 64)
    assert (translate_tiled(generator, x[0], 32) - translate(generator, x)[0]).abs().max() < 1e-5


class Inverted(ResnetBlock):
    """A block that runs something else than its base says of itself."""

    def forward(self, x):
        return x - self.conv_block(x)


class Attentive(nn.Module):
    def forward(self, x):
        return x * x.mean()


def test_a_generator_that_does_not_say_what_it_runs_is_refused():
    class Other(Resnet4Blocks):
        block_type = Inverted

    with pytest.raises(
        CannotTile, match="Other cannot be translated in tiles: it is not defined how its layer Inverted.*--tile 0"
    ):
        translate_tiled(Other(width=4), picture(64, 64)[0], 32)

    class Whole(Resnet4Blocks):
        def forward(self, x):
            return 1 - super().forward(x)

    with pytest.raises(CannotTile, match="its layer Whole"):
        translate_tiled(Whole(width=4), picture(64, 64)[0], 32)
    watched = drawn("resnet_4blocks")
    torch.nn.utils.spectral_norm(watched.model[1])  # a hook computes its weight at every call
    with pytest.raises(CannotTile, match="Conv2d with hooks"):
        translate_tiled(watched, picture(64, 64)[0], 32)
    generator = drawn("resnet_4blocks")
    generator.model[3] = Attentive()
    with pytest.raises(CannotTile, match="Attentive"):
        translate_tiled(generator, picture(64, 64)[0], 32)


@pytest.mark.parametrize(("norm", "tile"), [("instance", 32), ("none", 1000)])  # in sweeps, and all at once
def test_a_generator_of_others_may_describe_itself(norm, tile):
    class Scaled(Resnet4Blocks):
        def forward(self, x):
            return x + super().forward(torch.tanh(x))

        def primitives(self):
            return [Skip.FORK, nn.Tanh(), *super().primitives(), Skip.ADD]

    torch.manual_seed(0)
    generator, x = Scaled(width=4, init_gain=0.2, norm=norm).eval(), picture(70, 61)
    assert (translate_tiled(generator, x[0], tile) - translate(generator, x)[0]).abs().max() < 1e-5


def test_numbers_that_are_none_do_not_become_black():
    generator = drawn("resnet_4blocks")
    generator.model[1].bias[0] = float("nan")
    with pytest.raises(NaNImageError, match="holds NaN"):
        translate_tiled(generator, torch.zeros(3, 64, 64, dtype=torch.uint8), 32)
