"""Penalties on the discriminator's slope: in every precision, and with networks whose fast kernels have no slope."""

from __future__ import annotations

import pytest
import torch

from qsattn_plugin.registry import create
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.training.methods.adversary import _squared_gradient
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.test_gradients import draws, pictures

DISCRIMINATORS = {
    "patchgan": "discriminator={type: patchgan, width: 4, layers: 2, norm: instance}",
    "projected": "discriminator={type: projected, model: test_efficientnet, width: 4, pretrained: false}",
    "vit": "discriminator={type: timm, model: test_vit, taps: [0], pretrained: false}",
}


def step(*settings: str):
    session = Session(load_recipe("toy", (*TINY, "method=cut", "objective.identity=false", *settings)))
    method = session.method
    if method.dtype is torch.float16:
        method.scaler = torch.amp.GradScaler("cpu", init_scale=256.0)  # not the first guess, which skips some steps
    before = [p.clone() for p in method.discriminator.parameters() if p.requires_grad]
    log = method.step(pictures(dtype=torch.float32), draws())
    after = [p for p in method.discriminator.parameters() if p.requires_grad]
    return log, [(a - b).abs().sum() for a, b in zip(after, before, strict=True)]


@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("discriminator", DISCRIMINATORS)
@pytest.mark.parametrize(("penalty", "name"), [("objective.r1=1.0", "D_R1"), ("objective.gan=wgan-gp", "D_penalty")])
def test_a_penalty_is_finite_and_teaches(penalty, name, discriminator, precision):
    log, changes = step(penalty, DISCRIMINATORS[discriminator], f"train.precision={precision}")
    assert all(value.isfinite() for value in log.values())
    assert log[name] > 0
    assert all(change.isfinite() for change in changes)
    assert sum(change > 0 for change in changes) > len(changes) / 2
    expected, _ = step(penalty, DISCRIMINATORS[discriminator])
    # bfloat16 rounds at 4e-3 in every layer, and slopes are sums over all of them.
    assert log[name].item() == pytest.approx(expected[name].item(), rel=0.2)


def test_r1_in_float16_is_float32_s():
    """Slopes of a network without norms are squares of small weights, which float16 does not hold."""
    network = create("discriminator", "patchgan", width=16, layers=2, norm="none", init_gain=0.02)
    real = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)).mul_(2).sub_(1).requires_grad_()
    found = []
    for dtype in (None, torch.float16):
        with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
            penalty = _squared_gradient(network, real, network(real))
        found.append((penalty, *torch.autograd.grad(penalty, list(network.parameters()), allow_unused=True)))
    for got, expected in zip(*reversed(found), strict=True):
        assert (got is None) == (expected is None)
        if got is not None:
            torch.testing.assert_close(got, expected, rtol=1e-4, atol=0)
    assert found[0][0] > 0
