"""Settings that change how a step is computed and not what it computes, and what a step must never do."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qsattn_plugin.errors import UserError
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training import tuning
from qsattn_plugin.training.loader import TrainingLoader
from qsattn_plugin.training.loop import fit
from qsattn_plugin.training.run import Run
from tests.conftest import TINY
from tests.test_gradients import build, draws, pictures


def test_accumulated_steps_see_the_images_of_one_large_batch():
    steps = []
    for settings in (("train.batch_size=4",), ("train.batch_size=2", "train.accumulate=2")):
        loader = TrainingLoader(load_recipe("toy", (*TINY, *settings)), torch.device("cpu"))
        steps.append([loader.batch(step)[0] for step in (0, 1)])
    for large, divided in zip(*steps, strict=True):
        assert torch.equal(large["A"], divided["A"])
        assert torch.equal(large["B"], divided["B"])


@pytest.mark.parametrize("method", ["qsattn", "cyclegan"])
def test_a_run_with_settings_carries_on_with_the_same_bytes(workplace, method):
    settings = (f"method={method}", "train.accumulate=2", "train.channels_last=true", "train.ema=0.9")
    ends = []
    for name, stops in (("whole", (None,)), ("parts", (1, 2, None))):
        run = Run.create(load_recipe("toy", (*TINY, *settings)), workplace / name)
        for stop in stops:
            fit(run, max_steps=stop)
        ends.append(run.checkpoints.path(4).read_bytes())
    assert ends[0] == ends[1]


def test_weights_that_leave_nothing_to_train_are_refused():
    with pytest.raises(UserError, match=r"objective\.gan_weight: 0, and nce_weight too"):
        build("objective={gan_weight: 0, nce_weight: 0}")


def test_without_a_compiler_compiling_is_refused_in_words(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(torch, "__version__", "2.4.1")
    with pytest.raises(UserError, match=r"^train\.compile: PyTorch 2\.4\.1 is too old"):
        build("train.compile=true")
    monkeypatch.setattr(torch, "__version__", "2.11.0")
    with pytest.raises(UserError, match=r"^train\.compile: .* there is no no-such-compiler here; install one"):
        build("train.compile=true")
    # An accelerator's kernels are not C++.
    tuning.compile_networks([torch.nn.Linear(1, 1)], torch.device("cuda"))


def test_penalties_on_slopes_leave_the_discriminator_uncompiled():
    for setting in ("objective.r1=1.0", "objective.gan=wgan-gp"):
        method = build(setting)
        assert method.discriminator not in method.compilable()
        assert method.generator in method.compilable()
    cycle = build("method=cyclegan", "objective.gan=wgan-gp")
    assert cycle.compilable() == [cycle.generator, cycle.generator_back]


class Reading(TorchDispatchMode):
    """Takes note of operators that hand a device's values, or a size that hangs on them, to the host."""

    WAITING = ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "masked_select", "unique", "equal", "allclose")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func.overloadpacket.__name__
        by_mask = name in ("index", "index_put", "index_put_") and any(
            i is not None and i.dtype == torch.bool for i in args[1]
        )
        self.count += 1
        if by_mask or any(name == w or name.startswith(f"{w}_") for w in self.WAITING):
            self.seen.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_never_waits_for_the_device(precision):
    """A value that is read back makes the host wait until the device has done all that was asked of it."""
    method = build("method=qsattn", f"train.precision={precision}", dtype=torch.float32)
    for observe in (False, True):
        with Reading() as reading:
            method.step(pictures(dtype=torch.float32), draws(), observe=observe)
        assert reading.count > 1000
        assert reading.seen == []
    for look in (torch.ones(2)[0].item, lambda: torch.ones(2)[torch.ones(2) > 0], lambda: bool(torch.ones(()))):
        with Reading() as reading:
            look()
        assert reading.seen
