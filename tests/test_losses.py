"""The objectives against plain re-statements of their equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from qsattn_plugin.losses import PatchNCE
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import create
from qsattn_plugin.training.methods.adversary import Adversary
from qsattn_plugin.training.methods.cyclegan import CycleGAN, ImagePool


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


def test_wgan_gp_takes_a_point_of_its_own_between_each_pair():
    seen = []

    def scores(images: torch.Tensor) -> torch.Tensor:
        seen.append(images.detach())
        return images

    real, fake = torch.ones(4, 1, 2, 2), torch.zeros(4, 1, 2, 2)
    penalty = create("objective", "wgan-gp").gradient_penalty(scores, real, fake, torch.Generator().manual_seed(0))
    shares = seen[0].flatten(1)
    assert torch.equal(shares, shares[:, :1].expand(4, 4)) and shares.min() >= 0 and shares.max() <= 1
    assert len(shares[:, 0].unique()) == 4
    # The mean of four values: a gradient of four quarters, whose norm is 1/2. Too small is punished as well.
    assert float(penalty) == pytest.approx(10 * 0.5**2)


def test_the_discriminator_learns_from_translations_without_a_way_back_to_the_generator():
    layer = torch.nn.Conv2d(1, 1, 1)
    torch.nn.init.constant_(layer.weight, 3.0)
    adversary = Adversary(layer, create("objective", "lsgan"), r1=0.1)
    real, fake = (unit(2, 1, 4, 5, seed=s).float().requires_grad_() for s in (0, 1))
    log: dict[str, torch.Tensor] = {}
    loss = adversary.discriminator_loss(real, fake, torch.Generator(), log)
    # R1: the scores' sum has a gradient of 3 at each of the 20 pixels of an image.
    assert float(log["D_R1"]) == pytest.approx(20 * 3**2)
    assert loss.item() == pytest.approx(float(0.5 * (log["D_real"] + log["D_fake"]) + 0.1 / 2 * 20 * 3**2), rel=1e-5)
    loss.backward()
    assert layer.weight.grad is not None and layer.bias.grad is not None
    assert real.grad is None and fake.grad is None


def test_a_pool_shows_every_earlier_translation():
    pool, draws = ImagePool(3), torch.Generator().manual_seed(0)
    images = torch.arange(60.0).view(60, 1, 1, 1)
    shown = torch.cat([pool.exchange(batch, draws) for batch in images.split(2)]).flatten().long().tolist()
    assert shown[:3] == [0, 1, 2]  # shown while the pool fills
    older = [s for i, s in enumerate(shown) if s != i]
    assert {0, 1, 2} <= set(older)
    # After the first three, whatever is shown has left the pool or has never been in it. Half of the 57 are older ones;
    # the bounds are 3.5 standard deviations away.
    assert 15 <= len(older) <= 42
    assert sorted([*shown[3:], *map(int, pool.images)]) == list(range(60))


def test_a_pool_is_restored_in_its_order():
    cyclegan = object.__new__(CycleGAN)
    cyclegan.__dict__ |= {"device": torch.device("cpu"), "pools": {"forward": ImagePool(20000)}}
    cyclegan.pools["forward"].images = [torch.tensor(float(i)) for i in range(10050)]
    cyclegan.load_memory(dict(sorted(cyclegan.memory().items())))
    assert [float(image) for image in cyclegan.pools["forward"].images] == list(range(10050))


def test_a_pool_shows_translations_of_other_sizes_one_at_a_time_and_forgets_them_in_any_case():
    pool, draws = ImagePool(4), torch.Generator().manual_seed(0)
    images = [torch.full((1, 1, 1 + i % 3, 2), float(i)) for i in range(200)]
    shown = [pool.exchange(image, draws) for image in images]
    older = [s for s, image in zip(shown, images, strict=True) if not torch.equal(s, image)]
    # About half of the 196 after the first four; the bounds are 4 standard deviations away.
    assert 70 <= len(older) <= 126 and len({tuple(s.shape) for s in older}) == 3
    strict = ImagePool(4, mixed=False)  # as a gradient penalty needs it
    assert all(strict.exchange(image, draws).shape == image.shape for image in images)
    for number in range(100):  # of one size, two at a time, as after a change of the crop
        assert pool.exchange(torch.full((2, 1, 5, 5), float(number)), draws).shape == (2, 1, 5, 5)
    assert {tuple(image.shape) for image in pool.images} == {(1, 5, 5)}


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
