"""A registered sampler inside other people's samplers: every family of calls, before and after the swap."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from torch import nn

import qsattn_plugin
from qsattn_plugin.attention.routes import AttentionRoute, PointRoute
from qsattn_plugin.errors import UserError
from qsattn_plugin.forks import PatchSampler, swap_sampler
from qsattn_plugin.forks.ids import route_of
from qsattn_plugin.registry import register
from qsattn_plugin.samplers import AttendsNowhere, QSAttnSampler
from tests import fork_clients as clients
from tests.fork_support import SIZES, N, features, fresh_classes, is_plain  # noqa: F401


@pytest.mark.parametrize(
    ("client", "batch"),
    [pytest.param(c, b, id=f"{c.__name__}-{b}") for c in clients.CLIENTS for b in ([1, 2] if c.several else [1])],
)
def test_every_family_of_forks_trains_before_and_after_the_swap(client, batch):
    torch.manual_seed(0)
    np.random.seed(0)
    model = client()
    source, target = features(batch, sizes=client.sizes), features(batch, 1, grad=True, sizes=client.sizes)
    losses = [model.step(source, target, N)]
    shapes = {
        k: v.shape for k, v in nn.ModuleList(vars(model)[n] for n in vars(model) if "netF" in n).state_dict().items()
    }
    parameters = model.parameters()
    objects = dict(vars(model))

    found = swap_sampler(model, "qsattn_global", inside=client.inside)
    losses.append(model.step(source, target, N))

    swap = next(iter(found.values()))._qsattn_instead
    assert set(found) == {n for n in objects if n.startswith("netF")}
    assert swap.counts["chosen"] >= 1 and swap.counts["given"] >= 1 and swap.counts["lost"] == 0
    assert vars(model) == objects  # the very same modules, under the very same names
    assert all(a is b for a, b in zip(parameters, model.parameters(), strict=True))
    after = nn.ModuleList(vars(model)[n] for n in vars(model) if "netF" in n).state_dict()
    assert {k: v.shape for k, v in after.items()} == shapes
    trained = []
    for loss in losses:
        gradients = torch.autograd.grad(loss, [*target, *parameters], allow_unused=True)
        assert loss.isfinite() and all(g is None or g.isfinite().all() for g in gradients)
        assert all(g is not None and g.abs().sum() > 0 for g in gradients[: len(target)])
        trained.append([g is not None and bool(g.any()) for g in gradients[len(target) :]])
    assert trained[0] == trained[1] and (any(trained[0]) or not parameters)


@pytest.mark.parametrize("sampler", ["qsattn_global", "qsattn_local", "qsattn_local_global", "mixture", "random"])
@pytest.mark.parametrize("batch", [1, 2])
def test_what_comes_back_is_the_route_through_the_forks_own_layers(sampler, batch):
    model = clients.Model()
    source, target = features(batch), features(batch, 1)
    swap_sampler(model, sampler)
    pooled, ids = model.netF(source, N, None)
    moved, same = model.netF(target, N, ids)
    for index in range(2):
        assert is_plain(ids[index]) and ids[index].shape == ((N,) if batch == 1 else (batch, N))
        assert same[index] is ids[index]
        route = route_of(ids[index])
        assert route.queries.equal(ids[index].view(batch, N))
        mlp = getattr(model.netF, f"mlp_{index}")
        for rows, map_ in ((pooled[index], source[index]), (moved[index], target[index])):
            want = nn.functional.normalize(mlp(route(map_)), dim=2).flatten(0, 1)  # image by image
            # The norm's guard against 0 is 1e-7 added in one and a maximum of 1e-12 in the other.
            torch.testing.assert_close(rows, want, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", [clients.CurvedF, clients.ListedF])
@pytest.mark.parametrize("begun", [False, True], ids=["new", "half trained"])
@pytest.mark.parametrize("batch", [1, 2])
def test_a_head_of_another_kind_stays_the_forks(kind, begun, batch):
    """Through its own function, also where it is made at the first call."""
    module, source, target = kind(), features(batch), features(batch, 1)
    if begun:
        module(source, N, None)
    swap_sampler(module, "qsattn_global")
    rows, ids = module(source, N, None)
    moved, _ = module(target, N, ids)
    for index, (given, found, f, g) in enumerate(zip(ids, rows, source, target, strict=True)):
        for features_, seen in ((f, found), (g, moved[index])):
            expected = module.project(route_of(given)(features_).flatten(0, 1), index)
            torch.testing.assert_close(seen, expected, rtol=1e-5, atol=1e-6)  # rows are multiplied in other shapes
    sum(m.square().sum() * n for n, m in enumerate(moved, 1)).backward()
    assert all(p.grad is not None for p in module.parameters()) and len(list(module.parameters())) in (4, 8)
    maps, _ = module(source, 0, None)  # no sampling is asked for: what the fork's own function makes of that
    assert len(maps) == len(source)


def test_all_rows_by_a_negative_number_are_the_forks_affair():
    module = clients.DeafF()
    swap_sampler(module, "qsattn_global")
    rows, ids = module(features(2), -1, None)
    assert [r.shape for r in rows] == [(2 * 100, 8), (2 * 36, 12)] and ids == []


def test_an_argument_that_the_forks_sampler_reads_is_refused_in_one_line():
    class Reads(clients.PatchSampleF):
        def forward(self, feats, num_patches=64, patch_ids=None, source=None):
            return super().forward([f + source for f in feats], num_patches, patch_ids)

    module = Reads()
    swap_sampler(module, "qsattn_global")
    module(features(1), N, None)
    with pytest.raises(UserError, match="with source=a tensor of 1 x 1 x 1 x 1, which only its own sampler"):
        module(features(1), N, None, source=torch.ones(1, 1, 1, 1))


def test_the_selected_positions_are_the_samplers():
    source = features(1)
    model = clients.Model()
    swap_sampler(model, "qsattn_global", routing="select")
    _, ids = model.netF(source, N)
    want = [r.queries for r in QSAttnSampler(queries=N).choose(source)]
    assert all(i.equal(w[0]) for i, w in zip(ids, want, strict=True))


def test_as_many_rows_as_asked_for_or_as_there_are_places():
    model = clients.Model()
    swap_sampler(model)
    rows, ids = model.netF(features(2), 64, None)
    assert [len(r) for r in rows] == [2 * 64, 2 * 36]
    assert [i.shape for i in ids] == [(2, 64), (2, 36)]


@pytest.mark.parametrize("kind", [clients.PatchSampleF, clients.QueryF, PatchSampler])
def test_no_patches_asks_for_maps_of_unit_vectors(kind):
    module = kind(use_mlp=True, nc=16)
    swap_sampler(module)
    maps, ids, *_ = module(features(2), num_patches=0, patch_ids=None)
    assert [m.shape for m in maps] == [(2, 16, 10, 10), (2, 16, 6, 6)]
    assert all(len(i) == 0 for i in ids)
    for m in maps:
        torch.testing.assert_close(m.norm(dim=1), torch.ones_like(m[:, 0]), rtol=1e-4, atol=1e-4)  # 1e-7 is added


def test_attention_is_decided_by_size_and_by_setting():
    sizes = ((3, 70, 70), (4, 64, 64), (4, 8, 8))
    model = clients.Model()
    for settings, want in (
        ({}, [False, True, True]),
        ({"positions": 64}, [False, False, True]),
        ({"taps": "all"}, [True, True, True]),
        ({"taps": [0]}, [True, False, False]),
    ):
        swap_sampler(model, "qsattn_global", **settings)
        _, ids = model.netF(features(1, sizes=sizes), N, None)
        assert [isinstance(route_of(i), AttentionRoute) for i in ids] == want
        assert [flag for _, flag in model.netF._qsattn_instead.layers] == want


def test_a_layer_asked_for_alone_keeps_its_name():
    model = clients.Regularised()
    swap_sampler(model, taps=[1])
    for choice, want in ((0, PointRoute), (1, AttentionRoute)):
        _, ids = model.netF.forward(features(1), N, None), None
        _, ids = model.netF([features(1)[choice]], N, None, choice=choice)
        assert type(route_of(ids[0])) is want


def test_a_large_map_asked_for_alone_is_no_reason_to_warn(recwarn):
    model = clients.Regularised()
    swap_sampler(model, positions=40)
    model.netF(features(1), N, None)
    for choice, want in ((0, PointRoute), (1, AttentionRoute)):
        _, ids = model.netF([features(1)[choice]], N, None, choice=choice)
        assert type(route_of(ids[0])) is want
    assert not [one for one in recwarn if one.category is AttendsNowhere]


def test_a_warning_is_shown_once():
    model = clients.Model()
    swap_sampler(model, positions=4)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        model.netF(features(1), N, None)
        first = [one.category for one in said]
        for _ in range(3):
            model.netF(features(1), N, None)
    assert AttendsNowhere in first and len(said) == len(first)


def test_a_swapped_module_is_not_pickled(tmp_path):
    """Where it is loaded, its class would be the fork's own, and sample as that does."""
    model = clients.Model()
    swap_sampler(model)
    with pytest.raises(UserError, match="save its state_dict"):
        torch.save(model.netF, tmp_path / "netF.pth")
    torch.save(model.netF.state_dict(), tmp_path / "netF.pth")


@pytest.mark.parametrize("count", [N, 0])
@pytest.mark.parametrize("sampler", ["qsattn_global", "qsattn_local", "random"])
def test_gradients_lie_in_memory_as_the_features_do(sampler, count):
    # PyTorch's CPU instance norm at batch size 1 is wrong for transposed ones, which CUT's own way of gathering makes.
    module = clients.PatchSampleF()
    swap_sampler(module, sampler)
    norm = nn.InstanceNorm2d(8)
    start = torch.randn(1, 8, 12, 12, generator=torch.Generator().manual_seed(1), requires_grad=True)
    seen = []

    def gradient(module, image):
        out = norm(image)
        out.register_hook(lambda g: seen.append(g.is_contiguous()))
        torch.manual_seed(0)
        rows, _ = module([out], count, None)
        return torch.autograd.grad((rows[0] * torch.linspace(-1, 1, rows[0].numel()).view_as(rows[0])).sum(), image)[0]

    got = gradient(module, start)
    assert seen == [True]
    if sampler != "random":  # which would draw other positions in another precision
        want = gradient(copy.deepcopy(module).double(), start.double())
        torch.testing.assert_close(got.double(), want, rtol=1e-3, atol=1e-5)  # rounding through attention and a norm


def test_a_swap_can_be_taken_back():
    model = clients.Model()
    swap_sampler(model)
    swap_sampler(model, None)
    np.random.seed(0)
    _, ids = model.netF(features(1), N, None)
    np.random.seed(0)
    assert ids[0].equal(torch.from_numpy(np.random.permutation(100)[:N])) and route_of(ids[0]) is None


def test_one_module_of_two_can_be_swapped():
    model = clients.Crossed()
    assert swap_sampler(model.netF1)[""] is model.netF1
    assert route_of(model.netF1(features(1), N, None)[1][0]) is not None
    assert route_of(model.netF2(features(1), N, None)[1][0]) is None


def test_a_half_trained_fork_goes_on_with_its_parameters_and_optimizer():
    model = clients.Model()
    target = features(1, 1)
    for _ in range(2):
        model.step(features(1), target, N).backward()
        model.optimizer_F.step()
    before = {k: v.clone() for k, v in model.netF.state_dict().items()}
    swap_sampler(model)
    assert all(v.equal(before[k]) for k, v in model.netF.state_dict().items())
    model.optimizer_F.zero_grad()
    model.step(features(1), target, N).backward()
    model.optimizer_F.step()
    assert all(not v.equal(before[k]) for k, v in model.netF.state_dict().items() if k.endswith("weight"))
    other = clients.Model()
    other.netF.create_mlp(target)
    other.netF.load_state_dict(model.netF.state_dict())  # the names and shapes of the unswapped module


def test_a_class_can_be_swapped_before_its_modules_are_made():
    early = clients.PatchSampleF  # as `from models.networks import PatchSampleF` keeps it
    swap_sampler(clients.PatchSampleF, "qsattn_local")
    module = early(use_mlp=True)
    assert type(module) is clients.PatchSampleF
    _, ids = module(features(1), N, None)
    assert route_of(ids[0]) is not None
    assert route_of(copy.deepcopy(module)(features(1), N, None)[1][0]) is not None


def test_layers_are_made_where_the_features_are():
    class OnTheGPU(clients.PatchSampleF):
        def create_mlp(self, feats):  # as some forks do, whatever device was asked for
            super().create_mlp(feats)
            self.cuda()

    module = OnTheGPU()
    swap_sampler(module)
    module(features(1), N, None)
    assert module.mlp_1[0].weight.device == features(1)[0].device
    assert nn.Module.cuda.__module__ == "torch.nn.modules.module"  # PyTorch's own again


def test_half_precision_and_float64_come_back_as_they_came():
    module = PatchSampler(use_mlp=True, nc=16)
    module.create_mlp([8, 12])
    for dtype in (torch.float64, torch.bfloat16):
        maps = [f.to(dtype) for f in features(1)]
        rows, _ = module.to(dtype)(maps, N)
        assert all(r.dtype == dtype for r in rows)


def test_the_class_of_ours_makes_its_layers_as_cut_does():
    module = PatchSampler(True, "xavier", 0.5, 32, [], something="else")
    assert not module.mlp_init and not list(module.parameters())
    rows, ids = module(features(2), N)
    assert module.mlp_init and [r.shape for r in rows] == [(2 * N, 32)] * 2
    assert {k: tuple(v.shape) for k, v in module.state_dict().items() if k.startswith("mlp_0")} == {
        "mlp_0.0.weight": (32, 8),
        "mlp_0.0.bias": (32,),
        "mlp_0.2.weight": (32, 32),
        "mlp_0.2.bias": (32,),
    }
    deviation = 0.5 * (2 / (8 + 32)) ** 0.5  # Xavier: gain * sqrt(2 / (in + out)); 256 weights give it within 20 %
    assert module.mlp_0[0].weight.std().item() == pytest.approx(deviation, rel=0.2)
    assert not module.mlp_0[0].bias.any()
    assert len(module(features(2), N, ids, True)) == 3  # return_all
    assert module(features(2), N, None, None)[2][1].shape == (2, N, 36)  # attn_mats
    rows, ids = PatchSampler()(features(2), N)  # without MLPs: features of unit length
    assert [r.shape for r in rows] == [(2 * N, 8), (2 * N, 12)] and [r.requires_grad for r in rows] == [False] * 2
    assert all(torch.allclose(r.norm(dim=1), torch.ones(2 * N)) for r in rows)
    again = pickle.loads(pickle.dumps(PatchSampler(sampler="qsattn_local", arguments={"window": 3}, use_mlp=True)))
    assert again.swap.name == "qsattn_local" and again.swap.arguments == {"window": 3}
    assert again(features(2), np.int64(N))[1][0].shape == (2, N)
    assert copy.deepcopy(again).swap is again.swap  # as of every swapped module
    by_counts = PatchSampler(use_mlp=True)
    by_counts.create_mlp([8, 12])
    assert by_counts.mlp_1[0].in_features == 12
    assert swap_sampler(module, "random")[""] is module and module.swap.name == "random"
    with pytest.raises(ValueError, match="init_type: must be one of normal, xavier"):
        PatchSampler(init_type="uniform")


def test_a_sampler_of_ones_own_can_be_plugged_in():
    if not hasattr(test_a_sampler_of_ones_own_can_be_plugged_in, "done"):

        @register("sampler", "first_places_of_a_test")
        class First:
            """The first places."""

            def choose(self, features, taps=None, generator=None, observe=False):
                first = torch.arange(N).expand(features[0].shape[0], -1)
                return [PointRoute(first, f.shape[-2:]) for f in features]

    module = clients.PatchSampleF()
    swap_sampler(module, "first_places_of_a_test")
    assert module(features(1), N, None)[1][0].equal(torch.arange(N))


def test_torch_is_all_that_a_fork_needs_and_a_little_more_the_command():
    program = (
        "import sys\n"
        "for name in ('timm', 'kornia', 'PIL', 'torchvision', 'safetensors', *sys.argv[1:]):\n"
        "    sys.modules[name] = None\n"
        "import torch\n"
        "from qsattn_plugin import PatchSampler\n"
        "rows, ids = PatchSampler(use_mlp=True)([torch.randn(1, 8, 9, 9)], 16)\n"
        "print(rows[0].shape[0])\n"
        "if not sys.argv[1:]:\n"
        "    from qsattn_plugin.cli import main\n"
        "    main(['fork', '-s', 'scale=2', '--', 'no.py'])\n"
    )
    more = ("yaml", "pydantic", "click")
    alone, command = (
        subprocess.run([sys.executable, "-c", program, *missing], capture_output=True, text=True)
        for missing in (more, ())
    )
    assert alone.stdout == "16\n" and alone.returncode == 0, alone.stderr
    assert command.stdout == "16\n" and command.stderr.startswith("Error: there is no script no.py")


def test_the_public_names_are_the_modules():
    assert qsattn_plugin.swap_sampler is swap_sampler and qsattn_plugin.PatchSampler is PatchSampler


def test_a_class_that_is_no_module_is_refused_in_words():
    with pytest.raises(UserError, match=r"dict is not a torch\.nn\.Module; pass the class of the fork's sampler"):
        swap_sampler(dict)
