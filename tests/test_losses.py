"""The objectives against plain re-statements of their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from qsattn_plugin.losses import PatchNCE
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import create


def unit(*shape: int, seed: int) -> torch.Tensor:
    return F.normalize(torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64), dim=-1)


def nce_by_hand(anchors: list[torch.Tensor], positives: list[torch.Tensor], temperature: float) -> list[float]:
    """Equation 3 of CUT, one anchor at a time, over one pool of negatives."""
    losses = []
    for i, anchor in enumerate(anchors):
        terms = [math.exp(float(anchor @ p) / temperature) for p in positives]
        losses.append(-math.log(terms[i] / sum(terms)))
    return losses


@pytest.mark.parametrize("negatives", ["internal", "batch"])
def test_patch_nce_is_the_equation(negatives):
    anchors, positives = unit(2, 5, 8, seed=0), unit(2, 5, 8, seed=1)
    if negatives == "internal":
        expected = [nce_by_hand(list(a), list(p), 0.07) for a, p in zip(anchors, positives, strict=True)]
    else:
        expected = nce_by_hand(list(anchors.flatten(0, 1)), list(positives.flatten(0, 1)), 0.07)
    loss = PatchNCE(negatives=negatives)(anchors, positives)
    assert loss.shape == (2, 5)
    # float32 logits of size 1 / 0.07: a few units in the seventh digit of 14.
    torch.testing.assert_close(loss.double(), torch.tensor(expected).view(2, 5).double(), rtol=1e-5, atol=1e-5)


def test_positives_are_detached_unless_told():
    for detach in (True, False):
        anchors, positives = unit(1, 4, 3, seed=0).requires_grad_(), unit(1, 4, 3, seed=1).requires_grad_()
        PatchNCE(detach_positives=detach)(anchors, positives).sum().backward()
        assert anchors.grad is not None
        assert (positives.grad is None) == detach


def test_patch_nce_stays_in_float32_under_autocast():
    anchors, positives = unit(1, 64, 32, seed=0).float(), unit(1, 64, 32, seed=1).float()
    expected = PatchNCE()(anchors, positives)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(PatchNCE()(anchors, positives), expected)


@pytest.mark.parametrize(
    ("name", "real", "fake", "fool"),
    [
        ("lsgan", lambda s: (s - 1) ** 2, lambda s: s**2, lambda s: (s - 1) ** 2),
        (
            "vanilla",
            lambda s: -math.log(1 / (1 + math.exp(-s))),
            lambda s: -math.log(1 - 1 / (1 + math.exp(-s))),
            lambda s: -math.log(1 / (1 + math.exp(-s))),
        ),
        ("hinge", lambda s: max(0, 1 - s), lambda s: max(0, 1 + s), lambda s: -s),
    ],
)
def test_adversarial_losses(name, real, fake, fool):
    loss = create("objective", name)
    reals, fakes = [0.3, -1.2, 2.0], [-0.5, 0.1, 1.7]
    got = loss.discriminator(torch.tensor(reals), torch.tensor(fakes))
    expected = (sum(map(real, reals)) / 3, sum(map(fake, fakes)) / 3)
    assert [float(g) for g in got] == pytest.approx(expected, rel=1e-5)
    assert float(loss.generator(torch.tensor(fakes))) == pytest.approx(sum(map(fool, fakes)) / 3, rel=1e-5)


def test_several_score_maps_count_as_their_mean():
    loss = create("objective", "lsgan")
    small, large = torch.tensor([0.5]), torch.zeros(100)
    assert float(loss.generator([small, large])) == pytest.approx((0.25 + 1) / 2)


def test_heads_give_unit_vectors_and_know_their_parameters_from_the_start():
    heads = ProjectionHeads([3, 5], width=7)
    assert {n: tuple(p.shape) for n, p in heads.named_parameters()} == {
        "mlp_0.0.weight": (7, 3),
        "mlp_0.0.bias": (7,),
        "mlp_0.2.weight": (7, 7),
        "mlp_0.2.bias": (7,),
        "mlp_1.0.weight": (7, 5),
        "mlp_1.0.bias": (7,),
        "mlp_1.2.weight": (7, 7),
        "mlp_1.2.bias": (7,),
    }
    torch.nn.init.normal_(heads.mlp_0[2].bias)  # away from zero, where the guard would show
    out = heads([torch.randn(2, 4, 3), torch.randn(2, 4, 5)])
    assert out[0].shape == out[1].shape == (2, 4, 7)
    torch.testing.assert_close(out[0].norm(dim=-1), torch.ones(2, 4), rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="routed: expected 2 tensors, one per head, got 1"):
        heads([torch.randn(2, 4, 3)])
