"""What must work on an accelerator as it does on the CPU. Run by tests/test_accelerator.py, in a process of its own.

On CUDA where there is one, else on the pretended device of tests/pretended.py.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from torch import Tensor, nn

import qsattn_plugin
from qsattn_plugin.cli import main
from qsattn_plugin.data.images import read_image
from qsattn_plugin.data.pixels import from_tensor, to_channels
from qsattn_plugin.evaluation.sources import feature_source
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.storage import load_tensors
from qsattn_plugin.training.finite_guard import FiniteGuard
from qsattn_plugin.training.kid import KernelDistance
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.session import Session
from qsattn_plugin.translation.apply import translate
from qsattn_plugin.translation.tiles import translate_tiled
from tests import pretended
from tests.conftest import TINY
from tests.fork_clients import Model
from tests.fork_support import N, features

REAL = torch.cuda.is_available()
if not REAL:
    pretended.install()
DEVICE = torch.device("cuda" if REAL else pretended.NAME, 0)
CPU = torch.device("cpu")

#: Of a loss after three steps. float32 rounds at 6e-8 and sums are taken in another order; Adam's first steps are as
#: long for a gradient that is all rounding as for a large one, so that such weights go either way.
CLOSE = {"rel": 1e-3, "abs": 1e-5}
#: bfloat16 rounds at 4e-3, and not in the same places on both devices.
ROUGH = {"rel": 5e-2, "abs": 1e-2}


@pytest.fixture(autouse=True)
def device(monkeypatch):
    """The device, with float32 that is float32."""
    if REAL:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
        yield
    else:
        with pretended.present():
            yield


@contextlib.contextmanager
def never_waiting() -> Iterator[None]:
    """Fail where the host waits for the device."""
    if not REAL:
        with pretended.never_waiting():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


def trained(device: torch.device, *settings: str, steps: int = 3) -> tuple[Session, list[dict[str, float]]]:
    """A tiny training's session and losses."""
    recipe = load_recipe("toy", (*TINY, *settings))
    session, loader, guard = Session(recipe, device), TrainingLoader(recipe, device), FiniteGuard()
    found = []
    for _ in range(steps):
        session.method.set_rate(recipe.train.rate_factor(session.step))
        batch, draws = loader.batch(session.step)
        # The first step makes what later ones reuse: optimizers' moments, and on CUDA the libraries' workspaces.
        with never_waiting() if session.step else contextlib.nullcontext():
            losses = session.method.step(batch, draws, observe=session.step + 1 == steps)
            for average in session.averages.values():
                average.update(session.step)
            session.step += 1
            guard.record(session.step, losses)
        found.append(guard.to_floats(losses))
    return session, found


def names(kind: str, tag: str | None = None) -> list[str]:
    return [part.name for part in list_parts(kind) if tag is None or tag in part.tags]


# kornia copies its factors without waiting for CUDA, and waits for every other device.
LEARNED = "colour" if REAL else "null"
SETTINGS = [
    *((f"method={name}",) for name in names("method")),
    *((f"sampler={{type: {name}, queries: 16}}",) for name in names("sampler")),
    *((f"sampler={{type: qsattn_global, queries: 16, significance: {name}}}",) for name in names("significance")),
    *(("method=cut", f"objective.gan={name}") for name in names("objective", "gan")),
    *(("method=cut", f"objective.nce={name}", "objective.head_width=8") for name in names("objective", "contrastive")),
    (
        "method=cut",
        f"objective.nce=[{{type: lsesim, learned: true, augment: {LEARNED}}}, {{type: srunit, start: 0}}]",
        "objective.head_width=8",
    ),
    ("method=cyclegan", "objective.pool=2", "objective.gan=wgan-gp"),
    ("generator=swift_resnet_6blocks", "objective.r1=1.0"),
    ("generator={type: resnet_4blocks, width: 4, norm: instance}", "train.channels_last=true"),
    ("encoder={type: timm, model: resnet18, pretrained: false, taps: [1, 2]}", "sampler.taps=[2]"),
    ("train.accumulate=2", "train.ema=0"),
    (
        "discriminator={type: ensemble, of: [{type: projected, model: test_efficientnet, width: 4, pretrained: false},"
        " {type: patchgan, width: 4, layers: 1}], weights: [1, 0.5], r1: [0, 0.1]}",
    ),
]


@pytest.mark.parametrize("settings", SETTINGS, ids=" ".join)
def test_a_step_never_waits_and_gives_the_cpus_losses(settings):
    session, losses = trained(DEVICE, *settings)
    assert all(t.device == DEVICE for t in session.method.state_dict().values())
    _, expected = trained(CPU, *settings)
    for got, want in zip(losses, expected, strict=True):
        assert got == pytest.approx(want, **CLOSE)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision(precision):
    _, losses = trained(DEVICE, f"train.precision={precision}", "method=cut")
    _, expected = trained(CPU, f"train.precision={precision}", "method=cut")
    for got, want in zip(losses, expected, strict=True):
        assert got == pytest.approx(want, **ROUGH)


def pictures(count: int = 4, height: int = 32, width: int = 32) -> Tensor:
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(1)) * 2 - 1


@pytest.mark.parametrize("name", names("augmentation"))
def test_augmentations(name):
    augment = create("augmentation", name, **({"size": 24} if name in ("crop", "resize") else {}))
    there, here = (augment(pictures().to(d), torch.Generator().manual_seed(3)) for d in (DEVICE, CPU))
    assert there.device == DEVICE
    torch.testing.assert_close(there.cpu(), here, atol=1e-5, rtol=0)  # float32's rounding of coordinates


@pytest.mark.parametrize("name", names("generator"))
def test_translation_whole_and_in_tiles(name):
    torch.manual_seed(0)
    generator = create("generator", name, width=4, init_gain=0.2).eval().requires_grad_(False)
    side = 256 if name.startswith("unet") else 64
    x = pictures(1, side, side + side // 2)
    expected = translate(generator, x)
    generator.to(DEVICE)
    # float32's rounding, through thirty layers, of values up to 1.
    torch.testing.assert_close(translate(generator, x.to(DEVICE)).cpu(), expected, atol=1e-4, rtol=0)
    torch.testing.assert_close(translate_tiled(generator, x[0], side // 2), expected[0], atol=1e-3, rtol=0)


def test_a_swapped_fork():
    model, source, target = Model(), features(2), features(2, 1)
    model.step(source, target, N)  # makes the heads
    model.netF.to(DEVICE)
    source, target = ([f.to(DEVICE) for f in maps] for maps in (source, target))
    qsattn_plugin.swap_sampler(model, "qsattn_global")
    with never_waiting():
        found = [rows for side in model.features(source, target, N) for rows in side]
    assert found and all(rows.device == DEVICE and rows.isfinite().all() for rows in found)


def test_kernel_distance():
    vectors = nn.Sequential(nn.Conv2d(3, 8, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    images = (pictures(6) * 127.5 + 127.5).to(torch.uint8)
    here, there = (KernelDistance(vectors, images, device)(pictures(5)) for device in (CPU, DEVICE))
    assert there == pytest.approx(here, rel=1e-3, abs=1e-6)


def qsattn(*args: object) -> str:
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert result.exit_code == 0, result.output + repr(result.exception)
    return result.output


def there(place: Path) -> Path:
    """Where the device wrote what the CPU wrote to ``place``."""
    return place.parent.with_name(place.parent.name.replace("cpu", DEVICE.type)) / place.name


def extractor(weights: str | None, device: torch.device):
    """A small network of fixed weights, for scores."""
    assert device in (DEVICE, CPU)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    network.to(device)

    @torch.no_grad()
    def features(images: Tensor) -> dict[str, Tensor]:
        return {"4": network(images.to(device).float() / 255)}

    return features


def test_the_command_line(workplace):
    """A training that is interrupted ends with the weights of one that is not; pictures, maps, scores are the CPU's."""
    settings = [part for s in TINY if not s.startswith("train.device") for part in ("-s", s)]
    for run in ("straight", "again"):
        qsattn("build", "toy", "--run", run, *settings, "-s", f"train.device={DEVICE.type}")
    qsattn("fit", "straight")
    qsattn("fit", "again", "--max-steps", 3)
    assert f"carrying on at step 3 on {DEVICE.type}" in qsattn("fit", "again")
    straight, again = (
        load_tensors(sorted(workplace.glob(f"{run}/checkpoints/*"))[-1])[0] for run in ("straight", "again")
    )
    assert straight.keys() == again.keys() and straight
    for name, tensor in straight.items():
        # Kernels of CUDA add in no fixed order.
        torch.testing.assert_close(again[name], tensor, atol=1e-3 if REAL else 0, rtol=0, msg=name)
    for number, image in enumerate(pictures(2, 40, 36)):
        (workplace / "in").mkdir(exist_ok=True)
        from_tensor(image).save(workplace / "in" / f"{number}.png")
    for where in (CPU, DEVICE):
        for number, options in enumerate([(), ("--tile", 32)]):
            qsattn("translate", "in", "-m", "straight", "-o", f"{where.type}-{number}", "--device", where, *options)
        qsattn("map", "in", "-m", "straight", "-o", f"{where.type}-maps", "--device", where)
        pair = ("--source", "in", "--real", "in", "--device", where, "--json", f"{where.type}.json")
        qsattn(
            "evaluate", "straight", *pair, "--metrics", "swd,fid", "--extractor", "tests.accelerator_cases:extractor"
        )
    for place in sorted(workplace.glob("cpu-?/*.png")):
        found, expected = (to_channels(read_image(p), 3).int() for p in (there(place), place))
        assert (found - expected).abs().max() <= 1  # a value on the edge between two levels
    for place in sorted(workplace.glob("cpu-maps/*.json")):
        found, expected = (json.loads(p.read_text())["entropy_quantiles"] for p in (there(place), place))
        assert found == pytest.approx(expected, **CLOSE)
    scores = {}
    for where in (CPU, DEVICE):
        document = json.loads((workplace / f"{where.type}.json").read_text())
        scores[where.type] = {figure["name"]: figure["value"] for figure in document["figures"]}
    # The pictures differ by a level here and there.
    assert scores[DEVICE.type] == pytest.approx(scores["cpu"], rel=0.1) and len(scores["cpu"]) == 2
    source = feature_source("straight", device=DEVICE)
    assert all(f.device == DEVICE for f, _ in source.features(pictures(1).to(DEVICE)).values())


@pytest.mark.skipif(REAL, reason="of the pretended device")
class TestWhatThePretendedDeviceRefuses:
    def test_tensors_of_two_devices(self):
        with pytest.raises(pretended.Refused, match="beside one on the device"):
            torch.ones(3, device=DEVICE) + torch.ones(3)

    @pytest.mark.parametrize(
        "read",
        [float, bool, Tensor.cpu, Tensor.nonzero, lambda x: x[x > 0], lambda x: x[torch.tensor([0])]],
        ids=["float", "bool", "cpu", "nonzero", "mask", "positions"],
    )
    def test_reading(self, read):
        x = torch.ones(1, device=DEVICE)
        read(x)
        with pretended.never_waiting(), pytest.raises(pretended.Refused, match="wait"):
            read(x)

    def test_copies_that_wait(self):
        with pretended.never_waiting():
            torch.ones(3).to(DEVICE, non_blocking=True)
            with pytest.raises(pretended.Refused, match="waits"):
                torch.ones(3).to(DEVICE)
            with pytest.raises(pretended.Refused, match="waits"):
                torch.tensor([1.0, 2.0], device=DEVICE)
