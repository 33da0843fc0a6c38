"""What a swap would leave out is said, never trained around in silence; ``inside=True`` leaves nothing out."""

from __future__ import annotations

import copy
import sys
import types
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import qsattn_plugin
from qsattn_plugin.attention.routes import AttentionRoute, WindowRoute
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks import PatchSampler, swap_sampler
from qsattn_plugin.forks.guard import compare
from qsattn_plugin.forks.ids import route_of
from qsattn_plugin.forks.swap import ForkWarning, Swap
from tests import fork_clients as clients
from tests.fork_support import N, features, fresh_classes  # noqa: F401


def make(signature: str, before: str, result: str = "rows, ids") -> type:
    """A class whose ``forward`` has this signature; ``before`` sets n and ids, and may change feats and mlp."""
    source = f"""
def forward(self, {signature}):
    mlp = self.use_mlp
    {before}
    if not self.mlp_init:
        self.create_mlp(feats)
    ids = [self.draw(f, n) for f in feats] if ids is None else ids
    rows = [self.pick(f, i) for f, i in zip(feats, ids)]
    rows = [self.project(r, i) if mlp else r / (r.norm(dim=1, keepdim=True) + 1e-7) for i, r in enumerate(rows)]
    everywhere = [self.project(f.flatten(2).transpose(1, 2).flatten(0, 1), i).T[None] for i, f in enumerate(feats)]
    maps = [e.unflatten(2, f.shape[2:]) for e, f in zip(everywhere, feats)]
    return {result}
"""
    names: dict = {}
    exec(source, names)
    return type("PatchSampleF", (clients.PatchSampleF,), {"forward": names["forward"]})


READ = "n, ids = num_patches, patch_ids"
#: What is changed -> the signature (or what it has beside CUT's arguments), what it is read by, the call, what is
#: returned, and whether the swap is "right", right with inside=True alone ("inside"), or "refused" in words.
MUTANTS = {
    "none is as built": ("use_mlp=None", "mlp = mlp if use_mlp is None else use_mlp", "", "", "right"),
    "none, renamed": ("with_mlp=None", "mlp = mlp if with_mlp is None else with_mlp", "", "", "right"),
    "off by default": ("use_mlp=False", "mlp = use_mlp", "", "", "right"),
    "off, renamed": ("heads=False", "mlp = heads", "", "", "inside"),
    "off, told to be on": ("heads=False", "mlp = heads", "f, N, ids, heads=True", "", "inside"),
    "by name alone": ("*, use_mlp=True", "mlp = use_mlp", "", "", "right"),
    "ids first": ("feats, patch_ids=None, num_patches=64", READ, "f, ids, N", "", "right"),
    "features last": ("num_patches, patch_ids, feats", READ, "N, ids, f", "", "refused"),
    "features renamed": ("x, num_patches=64, patch_ids=None", f"{READ}; feats = x", "", "", "right"),
    "number renamed": ("feats, num_points=64, patch_ids=None", "n, ids = num_points, patch_ids", "", "", "right"),
    "number unknown": ("feats, k=64, patch_ids=None", "n, ids = k, patch_ids", "", "", "refused"),
    "number by default": (
        *("feats, num_patches=None, patch_ids=None", "n, ids = num_patches or 24, patch_ids"),
        *("f, patch_ids=ids", "", "refused"),
    ),
    "ids renamed": ("feats, num_patches=64, sample_ids=None", "n, ids = num_patches, sample_ids", "", "", "right"),
    "ids unknown": ("feats, num_patches=64, at=None", "n, ids = num_patches, at", "", "", "refused"),
    "no names": ("feats, *args", "n, ids = args", "", "", "refused"),
    "maps by default": ("return_all=True", "", "", "rows, maps, ids", "right"),
    "maps by another name": ("everything=True", "", "", "rows, maps, ids", "inside"),
    "a third value": ("mats=None", "", "", "rows, ids, [None, None]", "inside"),
    "ids by name": ("source=None", "", "", "rows, dict(enumerate(ids))", "refused"),
    "a factor": ("scale=1.0", "feats = [f * scale + scale for f in feats]", "f, N, ids, scale=2.0", "", "inside"),
    "an offset by default": ("offset=0.1", "feats = [f + offset for f in feats]", "", "", "inside"),
    "an argument that is not read": ("source=None", "", "f, N, ids, source=f", "", "right"),
    "fewer maps": ("first=1", "ids = ids and ids[first:]; feats = feats[first:]", "", "", "refused"),
}


def names_moved(module, rows) -> list[str]:
    """The parameters that get a gradient from the rows."""
    if not any(r.requires_grad for r in rows):
        return []
    names, parameters = zip(*module.named_parameters(), strict=True)
    gradients = torch.autograd.grad(sum(r.square().sum() for r in rows), parameters, allow_unused=True)
    return [name for name, g in zip(names, gradients, strict=True) if g is not None]


@pytest.mark.parametrize(("signature", "read", "call", "result", "expected"), MUTANTS.values(), ids=MUTANTS)
def test_a_changed_signature_is_right_or_refused_in_words(signature, read, call, result, expected):
    torch.manual_seed(0)
    np.random.seed(0)
    if "feats," not in signature and "patch_ids" not in signature:
        signature, read = f"feats, num_patches=64, patch_ids=None, {signature}", f"{READ}; {read}"
    kind = make(signature, read, result or "rows, ids")
    module, source, target = kind(), features(1), features(1, 1)

    def ask(module, f, ids):
        return eval(f"module({call or 'f, N, ids'})", {"module": module, "f": f, "N": N, "ids": ids})

    own = ask(module, source, None)  # half trained
    plain = copy.deepcopy(module)

    def swapped(inside):
        """What the swapped module returns is what its own function returns at the same positions."""
        swap_sampler(module, routing="select", inside=inside)  # gathers the features at the queries, as CUT does
        first = ask(module, source, None)
        where = next(i for i, value in enumerate(own) if getattr(value[0], "dtype", None) == torch.long)
        for f, got in ((source, first), (target, ask(module, target, first[where]))):
            wanted = ask(plain, f, first[where])
            assert len(got) == len(wanted) and all(g is i for g, i in zip(got[where], first[where], strict=True))
            torch.testing.assert_close(got[0], wanted[0], rtol=1e-4, atol=1e-5)
            moved = [names_moved(m, rows) for m, rows in ((module, got[0]), (plain, wanted[0]))]
            assert moved[0] == moved[1]

    with warnings.catch_warnings():
        warnings.simplefilter("error", ForkWarning)
        if expected == "right":
            swapped(inside=False)
            swapped(inside=True)
            return
        with pytest.raises(UserError) as caught:
            swapped(inside=False)
        assert "\n" not in str(caught.value)
        if expected == "inside":
            assert "inside=True" in str(caught.value)
            swapped(inside=True)
        else:
            with pytest.raises(UserError):
                swapped(inside=True)


@pytest.mark.parametrize(
    ("client", "words"),
    [
        (clients.Shuffled, "feature map 0 (8 x 10 x 10) gives 24 x 16, "),
        (clients.Centred, "with centre=True, which only its own sampler understands"),
        (clients.Placed, "a swapped sampler fails (RuntimeError: "),
    ],
)
def test_work_of_the_classs_own_stops_a_swap_with_what_differs(client, words):
    model = client()
    swap_sampler(model)
    with pytest.raises(UserError) as caught:
        model.step(features(1), features(1, 1), N)
    assert (words in str(caught.value) or "a swapped sampler fails" in str(caught.value)) and "--inside" in str(
        caught.value
    )


@pytest.mark.parametrize("sampler", ["qsattn_global", "qsattn_local", "random"])
@pytest.mark.parametrize("batch", [1, 2])
def test_inside_an_ordinary_class_gives_what_a_swap_gives(sampler, batch):
    modules = [clients.PatchSampleF(), clients.NamedOnlyF(), clients.CentredF()]
    for module in modules:
        module(features(batch), num_patches=N, patch_ids=None)
        plain = copy.deepcopy(module)
        swap_sampler(plain, sampler)
        swap_sampler(module, sampler, inside=True)
        source, target = features(batch, grad=True), features(batch, 1, grad=True)
        torch.manual_seed(0)
        want, want_ids = plain(source, num_patches=N, patch_ids=None)
        torch.manual_seed(0)
        got, ids = module(source, num_patches=N, patch_ids=None)
        assert all(a.equal(b) for a, b in zip(ids, want_ids, strict=True))
        moved = [m(target, num_patches=N, patch_ids=i)[0] for m, i in ((plain, want_ids), (module, ids))]
        torch.testing.assert_close([*got, *moved[1]], [*want, *moved[0]], rtol=1e-5, atol=1e-6)
        gradients = [torch.autograd.grad(sum(r.square().sum() * n for n, r in enumerate(m, 1)), target) for m in moved]
        torch.testing.assert_close(*gradients, rtol=1e-4, atol=1e-5)


def test_inside_a_class_the_attention_is_that_of_its_own_features():
    module = clients.ShuffledF()
    swap_sampler(module, "qsattn_local", inside=True, window=3)
    source, target = features(2), features(2, 1)
    _, ids = module(source, 20, None)
    rows, same = module(target, 20, ids)
    assert all(a is b for a, b in zip(ids, same, strict=True))
    route = route_of(ids[0])
    assert isinstance(route, WindowRoute) and route.shape == (5, 5)  # of 10 x 10, space to depth
    (want,) = qsattn_plugin.samplers.QSAttnSampler(attention="local", queries=20, window=3).choose(
        [nn.functional.pixel_unshuffle(source[0], 2)]
    )
    assert route.queries.equal(want.queries)
    expected = module.project(want(nn.functional.pixel_unshuffle(target[0], 2)).flatten(0, 1), 0)
    torch.testing.assert_close(rows[0], expected)


def test_inside_a_class_that_chooses_by_attention_of_its_own_is_refused():
    module = clients.QueryF()
    swap_sampler(module, inside=True)
    with pytest.raises(UserError, match="QueryF does not gather feature map 1 at the ids that it is given"):
        module(features(1), N, None)


def test_inside_ids_that_lost_their_route_are_gathered_by_the_class():
    module = clients.PatchSampleF()
    swap_sampler(module, inside=True)
    _, ids = module(features(1), N, None)
    with pytest.warns(ForkWarning, match="without their route"):
        rows, _ = module(features(1, 1), N, [i.clone() for i in ids])
    torch.testing.assert_close(rows[0], module.project(module.pick(features(1, 1)[0], ids[0]), 0))


def test_a_comparison_leaves_no_trace():
    class Stated(clients.PatchSampleF):
        def head(self, channels):
            return nn.Sequential(nn.Linear(channels, self.nc), nn.BatchNorm1d(self.nc), nn.Dropout(0.5))

        def draw(self, feat, num_patches):
            return torch.randperm(feat[0, 0].numel())[:num_patches]

    module, maps = Stated(), features(2)
    module(maps, N, None)
    module.mlp_0.eval()
    modes, state = [m.training for m in module.modules()], copy.deepcopy(module.state_dict())
    calls = []
    qsattn_plugin.forks.take_over(module, lambda _, call: calls.append(call))
    module(maps, N, None)
    qsattn_plugin.forks.take_over(module, None)
    before = torch.random.get_rng_state(), np.random.get_state()[1].tolist()
    found = compare(Swap().at_own_positions, module, calls[0])
    assert found.problem == "" and found.difference < 1e-6  # dropout is off
    assert len(found.own) == 8 and found.own == found.ours
    assert torch.random.get_rng_state().equal(before[0]) and np.random.get_state()[1].tolist() == before[1]
    assert [m.training for m in module.modules()] == modes
    assert all(v.equal(module.state_dict()[k]) for k, v in state.items())


def test_heads_start_different_and_as_without_a_swap():
    first, second = clients.PatchSampleF(), clients.PatchSampleF()
    torch.manual_seed(0)
    clients.PatchSampleF()(features(1), N, None)
    state = torch.random.get_rng_state()
    swap_sampler(first), swap_sampler(second)
    torch.manual_seed(0)
    first(features(1), N, None)
    assert torch.random.get_rng_state().equal(state)
    second(features(1), N, None)
    assert not first.mlp_0[0].weight.equal(second.mlp_0[0].weight)


def test_heads_that_have_no_gradient_after_some_steps_are_said():
    for detached in (False, True):
        model = clients.Model()
        swap_sampler(model)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            for _ in range(4):
                loss = model.step(features(1), features(1, 1, grad=True), N)
                model.optimizer_F.zero_grad()
                (loss.detach().requires_grad_() if detached else loss).backward()
                model.optimizer_F.step()
        said = [str(w.message) for w in caught if w.category is ForkWarning]
        assert len(said) == detached
    assert said[0].startswith(
        "after 3 steps of their optimizer, 8 of 8 parameters of PatchSampleF have had no gradient"
    )


def test_parameters_that_only_the_own_choice_trains_are_said():
    class Learned(clients.PatchSampleF):
        def __init__(self):
            super().__init__()
            self.score = nn.Conv2d(8, 1, 1)

        def forward(self, feats, num_patches=64, patch_ids=None):
            rows, ids = super().forward(feats, num_patches, patch_ids)
            if patch_ids is None:  # straight through
                chosen = self.score(feats[0]).flatten(2)[:, 0, ids[0]].flatten().unsqueeze(1)
                rows = [rows[0] * (1 + chosen - chosen.detach()), *rows[1:]]
            return rows, ids

    module = Learned()
    swap_sampler(module)
    with pytest.warns(
        ForkWarning, match=r"2 of the 10 parameters of Learned .* get no gradient .*: score.bias, score.w"
    ):
        module(features(1), N, None)


def test_an_own_function_that_fails_here_is_said_and_the_swap_goes_on():
    class Old(clients.PatchSampleF):
        def pick(self, feat, ids):
            return feat.transpose(1, 2).view(feat.shape[0], -1, feat.shape[1])[:, ids]

    module = Old()
    swap_sampler(module)
    with pytest.warns(
        ForkWarning, match="Old could not be compared with what it does unswapped .RuntimeError: view size"
    ):
        rows, ids = module(features(1), N, None)
    assert len(rows[0]) == N and isinstance(route_of(ids[0]), AttentionRoute)


def test_a_block_of_code_is_swapped_and_what_was_before_comes_back(monkeypatch):
    fork = types.ModuleType("a_forks_networks")
    fork.PatchSampleF = type("PatchSampleF", (clients.PatchSampleF,), {"__module__": fork.__name__})
    fork.Other = type("Other", (clients.PatchSampleF,), {"__module__": fork.__name__})
    monkeypatch.setitem(sys.modules, fork.__name__, fork)
    module, other = fork.PatchSampleF(), fork.Other()

    def swaps(module) -> bool:
        return route_of(module(features(1), N, None)[1][0]) is not None

    swap_sampler(other, "random")
    with qsattn_plugin.swapped("a_forks_networks", "qsattn_local", window=3) as swap:
        assert swaps(module) and swaps(fork.PatchSampleF())
        with qsattn_plugin.swapped(module, "random") as inner:
            assert swaps(module) and inner.counts["chosen"] == 1
        assert swaps(module) and swap.counts["chosen"] == 3 and swap.name == "qsattn_local"
        with pytest.raises(ZeroDivisionError), qsattn_plugin.swapped(other):
            _ = 1 / 0
        assert other._qsattn_instead.name == "random"
    assert not swaps(module) and not swaps(fork.PatchSampleF())
    ours = PatchSampler()
    with (
        pytest.warns(ForkWarning, match="PatchSampler was swapped, but never called"),
        qsattn_plugin.swapped(ours, "grid"),
    ):
        assert ours.swap.name == "grid"
    assert ours.swap.name == "qsattn_global"


@pytest.mark.parametrize(
    ("target", "words"),
    [
        ("a_forks_networkz", "there is no module 'a_forks_networkz'; did you mean 'a_forks_networks'?"),
        (
            "a_forks_networks",
            "defines no class PatchSample... that is called as CUT's sampler is; pass one of",
        ),
    ],
)
def test_a_block_without_a_class_is_refused(monkeypatch, target, words):
    fork = types.ModuleType("a_forks_networks")
    fork.Other = type("Other", (clients.PatchSampleF,), {"__module__": fork.__name__})
    monkeypatch.setitem(sys.modules, fork.__name__, fork)
    with pytest.raises(UserError) as caught, qsattn_plugin.swapped(target):
        pass
    assert words in str(caught.value)
