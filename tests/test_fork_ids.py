"""The ids that a swapped sampler hands out, with and without their route, and what is wrong with a call or a swap."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from qsattn_plugin.attention.routes import PointRoute
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks import PatchSampler, swap_sampler
from qsattn_plugin.forks.ids import route_of, with_route
from qsattn_plugin.forks.swap import ForkWarning
from tests import fork_clients as clients
from tests.fork_support import SIZES, N, features, fresh_classes, is_plain  # noqa: F401


def test_a_route_travels_with_views_of_the_ids_and_not_with_copies_or_parts():
    ids = with_route(PointRoute(torch.arange(6).view(1, 6), (4, 4)))
    for view in (ids.view(-1), ids.detach(), ids.chunk(1)[0], ids.to(ids.device), [ids][0]):
        assert route_of(view) is route_of(ids) is not None
    for other in (ids.clone(), ids[:3], ids.numpy(), ids.tolist(), ids + 0):
        assert route_of(other) is None
    assert torch.arange(16)[ids].equal(ids) and len(ids) == 6 and ids.dtype == torch.long


def test_a_route_lives_as_long_as_its_ids():
    route = PointRoute(torch.arange(6).view(2, 3), (4, 4))
    ids, alive = with_route(route), weakref.ref(route)
    del route
    part = ids[0]
    del ids
    gc.collect()
    assert alive() is not None  # the memory of the ids is still in use
    del part
    with_route(PointRoute(torch.arange(3).view(1, 3), (4, 4)))  # before it, PyTorch 2.1 lets none go
    assert alive() is None


@pytest.mark.parametrize("lose", [torch.clone, torch.Tensor.numpy, torch.Tensor.tolist], ids=["copy", "numpy", "list"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_lost_route_leaves_the_selected_places_and_is_said_once(lose, batch):
    model = clients.Model()
    swap_sampler(model)
    source, target = features(batch), features(batch, 1)
    _, ids = model.netF(source, N, None)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            rows, again = model.netF(target, N, [lose(i) for i in ids])
    assert [w.category for w in caught] == [ForkWarning] and "without their route" in str(caught[0].message)
    for index, row in enumerate(rows):
        assert is_plain(again[index]) and again[index].equal(ids[index])
        points = PointRoute(ids[index].view(batch, N), SIZES[index][1:])(target[index])
        torch.testing.assert_close(row, model.netF.project(points.flatten(0, 1), index))


def test_ids_that_are_the_same_for_all_images_are_taken_for_each():
    model = clients.Model()
    source = features(2)
    np.random.seed(3)
    own, ids = model.netF(source, N, None)
    swap_sampler(model)
    with pytest.warns(ForkWarning):
        rows, _ = model.netF(source, N, ids)
    for a, b in zip(own, rows, strict=True):
        torch.testing.assert_close(a, b)


def test_rows_that_a_fork_hands_on_replace_a_lost_route():
    model = clients.Querying()
    swap_sampler(model, taps="all")
    source, target = features(2), features(2, 1)
    _, ids, mats = model.netF(source, N, None, None)
    assert [m.shape for m in mats] == [(2, N, 100), (2, N, 36)]
    want, _, _ = model.netF(target, N, ids, mats)
    got, _, _ = model.netF(target, N, [i.clone() for i in ids], mats)
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(a, b)


def test_an_attention_of_the_forks_own_is_understood():
    first, second = clients.QueryF(), clients.QueryF()
    source = features(2)
    _, ids, mats = first(source, N, None, None)
    swap_sampler(second)
    with pytest.warns(ForkWarning):  # for the map that is sampled at random
        rows, _, _ = second(source, N, ids, mats)
    want = second.project(torch.bmm(mats[1], source[1].flatten(2).transpose(1, 2)).flatten(0, 1), 1)
    torch.testing.assert_close(rows[1], want)


def wrong(message: str, act) -> None:
    with pytest.raises(UserError) as caught:
        act()
    text = str(caught.value)
    assert message in text and "\n" not in text


def test_mistakes_are_said_in_one_line():
    model = clients.Model()
    wrong(
        "there is no sampler 'qsattn_globl'; did you mean 'qsattn_global'?", lambda: swap_sampler(model, "qsattn_globl")
    )
    wrong("takes no argument 'window'", lambda: swap_sampler(model, "qsattn_global", window=3))
    wrong("queries: must be at least 1, got 0", lambda: swap_sampler(model, queries=0))
    wrong("taps: must be a list of tap names", lambda: swap_sampler(model, taps=1))
    wrong("window: must be odd", lambda: swap_sampler(model, "qsattn_local", window=4))
    wrong("holds no module that is called as CUT's sampler is", lambda: swap_sampler(nn.Conv2d(1, 1, 1)))
    wrong("Conv2d is not called as CUT's sampler is", lambda: swap_sampler(nn.Conv2d))
    wrong("PatchSampler has no sampling of its own", lambda: swap_sampler(PatchSampler(), None))
    model.netF = nn.Linear(2, 2)
    wrong("(its netF is not one)", lambda: swap_sampler(model))


def test_calls_that_cannot_be_met_are_said_in_one_line():
    sampler = clients.PatchSampleF()
    swap_sampler(sampler)
    source = features(1)
    _, ids = sampler(source, N, None)
    small = features(1, sizes=((8, 5, 5), (12, 6, 6)))
    wrong("chosen on 1 image(s) of 10 x 10 positions and cannot be applied", lambda: sampler(small, N, ids))
    wrong("cannot be applied to features of shape (2, 8, 10, 10)", lambda: sampler(features(2), N, ids))
    wrong("features of the same size in both calls", lambda: sampler(small, N, [i.clone() for i in ids]))
    wrong("2 feature maps with the ids of 1", lambda: sampler(source, N, ids[:1]))
    wrong("1 feature maps with the ids of 2", lambda: sampler(source[:1], N, ids))
    wrong("has no mlp_2, but was called with 3 feature maps", lambda: sampler([*source, source[0]], N, None))
    wrong(
        "takes feature maps (B, C, H, W), but feature map 1 is (1, 12)",
        lambda: sampler([source[0], source[1][..., 0, 0]], N),
    )
    wrong("patch ids must be integers", lambda: sampler(source, N, [None, None]))
    swap_sampler(sampler, queries=N)
    sampler(source, N, None)
    wrong("give the fork --num_patches 24", lambda: sampler(source, 64, None))
    swap_sampler(sampler, "grid")
    exactly = "chose 20 positions of feature map 0, but the fork's loss needs exactly 23"
    wrong(exactly, lambda: sampler(source, 23, None))


def test_an_argument_that_only_the_forks_own_sampler_understands_is_refused():
    class Special(clients.PatchSampleF):
        def forward(self, feats, num_patches=64, patch_ids=None, weight=1.0, mask=None):
            feats = [f * weight if mask is None else f * mask for f in feats]
            return super().forward(feats, num_patches, patch_ids)

    module = Special()
    swap_sampler(module)
    module(features(1), N, None, 1.0, mask=None)
    wrong("with weight=2.0, which only its own sampler understands", lambda: module(features(1), N, None, weight=2.0))
