"""Contrastive objectives: each against its equation, and every one of them with every sampler."""

from __future__ import annotations

import functools
import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qsattn_plugin.attention.routes import AttentionRoute, PointRoute
from qsattn_plugin.errors import Misfit, UserError
from qsattn_plugin.losses.enco import EnCo, mirrored_layers
from qsattn_plugin.losses.lsesim import LSeSim, contrast_maps
from qsattn_plugin.losses.monce import MoNCE
from qsattn_plugin.losses.negcut import NEGCUT
from qsattn_plugin.losses.semantic import HDCE, SRC
from qsattn_plugin.losses.srunit import SRUNIT
from qsattn_plugin.projection import ProjectionHeads
from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.registry.recipe import load_recipe
from qsattn_plugin.registry.yaml_lines import RecipeError
from qsattn_plugin.storage import save_tensors
from qsattn_plugin.training.building import RecipeParts
from qsattn_plugin.training.describe import part_table
from qsattn_plugin.training.methods.contrast import Contrast
from qsattn_plugin.training.session import Session
from tests.conftest import TINY
from tests.test_losses import unit

#: float64 rounds at 1e-16; a loss is a sum of some hundred terms of its own size.
CLOSE = {"rtol": 1e-12, "atol": 1e-12}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def points(shape: tuple[int, int], places: list[int], batch: int = 1) -> PointRoute:
    return PointRoute(torch.tensor(places).expand(batch, -1), shape)


# The equations, one number at a time ----------------------------------------------------------------------------------


def softmax(values: list[float]) -> list[float]:
    total = sum(math.exp(v) for v in values)
    return [math.exp(v) / total for v in values]


def hdce_by_hand(a: Tensor, p: Tensor, gamma: float, weighting: str) -> list[float]:
    """Equations 8 and 9 of Jung et al.; ``similarity`` as the authors' code has it."""
    losses = []
    for i in range(len(a)):
        others = [j for j in range(len(p)) if j != i]
        weights = softmax([float(p[i] @ p[j]) / gamma for j in others])
        if weighting == "density":
            terms = [
                w * len(others) * math.exp(float(a[i] @ p[j]) / 0.07) for w, j in zip(weights, others, strict=True)
            ]
        else:
            terms = [
                math.exp(w / max(weights) * float(a[i] @ p[j]) / 0.07) for w, j in zip(weights, others, strict=True)
            ]
        losses.append(math.log(sum(terms)) - float(a[i] @ p[i]) / 0.07)
    return losses


@pytest.mark.parametrize("weighting", ["similarity", "density"])
@pytest.mark.parametrize(("progress", "release", "gamma"), [(0, None, 50), (0.25, None, 40), (0.75, 0.5, 1)])
def test_hdce_is_the_equation_along_the_curriculum(weighting, progress, release, gamma):
    anchors, positives = unit(2, 5, 8, seed=0), unit(2, 5, 8, seed=1)
    objective = HDCE(weighting=weighting, release=release)
    objective.progress = progress
    expected = [hdce_by_hand(a, p, gamma, weighting) for a, p in zip(anchors, positives, strict=True)]
    torch.testing.assert_close(objective(anchors, positives), torch.tensor(expected, dtype=torch.float64), **CLOSE)


def test_src_is_the_equation():
    def divergence(p: list[float], q: list[float]) -> float:
        m = [(x + y) / 2 for x, y in zip(p, q, strict=True)]
        return sum(0.5 * (x * math.log(x / z) + y * math.log(y / z)) for x, y, z in zip(p, q, m, strict=True))

    anchors, positives = unit(2, 5, 8, seed=0), unit(2, 5, 8, seed=1)
    for a, p, loss in zip(anchors, positives, SRC()(anchors, positives), strict=True):
        rows = [[softmax([float(x[i] @ x[j]) for j in range(5)]) for i in range(5)] for x in (a, p)]
        expected = sum(divergence(*pair) for pair in zip(*rows, strict=True))
        assert float(loss.mean()) == pytest.approx(expected, rel=1e-12)  # summed over the patches


@pytest.mark.parametrize(("cost", "easy"), [("hard", 0), ("easy", 1), ("mixed", 0.25)])
def test_monce_is_the_equation(cost, easy):
    anchors, positives = unit(1, 5, 8, seed=0), unit(1, 5, 8, seed=1)
    similarity = (anchors[0] @ positives[0].T).tolist()
    scores = [[(1 - easy) * s + easy * (1 - s) for s in row] for row in similarity]
    plan = [[math.exp(scores[i][j] / 0.5) * (i != j) for j in range(5)] for i in range(5)]
    for _ in range(200):
        plan = [[value / sum(row) for value in row] for row in plan]
        sums = [sum(row[j] for row in plan) for j in range(5)]
        plan = [[row[j] / sums[j] for j in range(5)] for row in plan]
    expected = []
    for i in range(5):
        positive = math.exp(similarity[i][i] / 0.07)
        negatives = [1.5 * 4 * plan[i][j] * math.exp(similarity[i][j] / 0.07) for j in range(5) if j != i]
        expected.append(-math.log(positive / (positive + sum(negatives))))
    loss = MoNCE(cost=cost, eps=0.5, strength=1.5)(anchors, positives)
    # The authors add 1e-8 to every weight; fifty rounds of scaling do the rest.
    torch.testing.assert_close(loss[0], torch.tensor(expected, dtype=torch.float64), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("window", [3, 64])
@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_lsesim_s_maps_are_the_equation(similarity, window):
    features, places = normal(1, 4, 5, 6, seed=0), [0, 8, 17, 29]
    objective = LSeSim(similarity=similarity, window=window)
    (maps,) = objective.maps([features], [points((5, 6), places)])
    centred = features[0] - features[0].mean((1, 2), keepdim=True)
    for place, got in zip(places, maps[0], strict=True):
        y, x = divmod(place, 6)
        top, left = (min(max(y - 1, 0), 2), min(max(x - 1, 0), 3)) if window == 3 else (0, 0)
        height, width = (3, 3) if window == 3 else (5, 6)
        expected = []
        for v in range(top, top + height):
            for u in range(left, left + width):
                query, key = centred[:, y, x], centred[:, v, u]
                if similarity == "dot":
                    expected.append(math.tanh(float(query @ key) / 4 / 10))
                else:
                    expected.append(float(query @ key / query.norm() / key.norm()))
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), **CLOSE)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_lsesim_with_attention_learns_through_the_translation_s_maps_alone(similarity):
    objective = LSeSim(similarity=similarity)
    source, features = normal(1, 6, 5, 5, seed=0).requires_grad_(), normal(1, 6, 5, 5, seed=1)
    cross, own = (create("sampler", "qsattn_global", queries=4, routing=r) for r in ("cross", "own"))
    pair = SimpleNamespace(source=[source], features=[features], routes=cross.choose([source]))
    (got,) = torch.autograd.grad(objective.compare(pair), source, retain_graph=True)
    wanted, maps = (objective.maps([f], pair.routes)[0] for f in (source, features))
    (expected,) = torch.autograd.grad(objective.compare_maps(wanted.detach(), maps), source)
    assert expected.any()
    torch.testing.assert_close(got, expected, **CLOSE)
    # The source's own rows are those that route it.
    torch.testing.assert_close(objective.maps([source], own.choose([source]))[0], wanted, **CLOSE)


def test_lsesim_s_contrast_is_the_equation():
    source, same, other = (unit(1, 4, 7, seed=seed)[0] for seed in range(3))
    losses = []
    for i in range(4):
        negatives = [source[i] @ o for o in other] + [same[i] @ o for o in other]
        terms = [math.exp(float(s) / 0.07) for s in [*(source[i] @ s for s in same), *negatives]]
        losses.append(-math.log(terms[i] / sum(terms)))
    got = contrast_maps(source[None], same[None], other[None], 0.07)
    assert float(got) == pytest.approx(sum(losses) / 4, rel=1e-12)


def test_enco_is_the_equation():
    """Linear layers, each image's places normalised over, a predictor on the decoder's side."""
    generator = create("generator", "resnet_4blocks", width=4).double()
    objective = EnCo(pairs=(("down_1", "up_1"),), width=6).double()
    objective.build(generator, None, nn.Identity())
    objective.double()
    with torch.no_grad():
        for seed, parameter in enumerate(objective.parameters()):
            parameter.copy_(normal(*parameter.shape, seed=seed))
    inner, outer = (generator.find_taps([name])[0].index for name in ("down_1", "up_1"))
    passed = {inner: normal(2, 8, 4, 4, seed=50), outer: normal(2, 8, 4, 4, seed=51)}
    route = points((4, 4), [1, 5, 6, 11], 2)
    pair = SimpleNamespace(passed=passed, mirrored=False, choose=lambda *_: [route])

    def linear(layer: nn.Conv1d, x: Tensor) -> Tensor:
        return x @ layer.weight[..., 0].T + (0 if layer.bias is None else layer.bias)

    def norm(layer: nn.InstanceNorm1d, x: Tensor) -> Tensor:
        x = (x - x.mean(0)) / (x.var(0, unbiased=False) + 1e-5).sqrt()
        return x if layer.weight is None else x * layer.weight + layer.bias

    (p,), (q,) = objective.projectors, objective.predictors
    losses = []
    for image in range(2):
        there, here = (
            norm(p[4], linear(p[3], norm(p[1], linear(p[0], route(f)[image])).relu()))
            for f in (passed[outer], passed[inner])
        )
        there = linear(q[3], norm(q[1], linear(q[0], there)).relu())
        losses += [2 - 2 * float((a @ b / a.norm() / b.norm()).detach()) for a, b in zip(there, here, strict=True)]
    assert float(objective.compare(pair).detach()) == pytest.approx(sum(losses) / 8, rel=1e-10)


def test_srunit_divides_by_the_noise_that_it_added():
    generator = create("generator", "resnet_4blocks", width=4).double()
    heads = ProjectionHeads([8], width=5, init_gain=1.0).double()
    tap = generator.find_taps(["down_1"])[0].index
    image, route = normal(1, 3, 16, 16, seed=0), points((8, 8), [3, 9, 40])
    source = generator(image, taps=[tap], encode_only=True)
    pair = SimpleNamespace(
        input=image, image=image, taps=[tap], source=source, routes=[route], draws=torch.Generator().manual_seed(0),
        generator=generator, heads=heads, translation_heads=heads,
        encode=lambda x: generator(x, taps=[tap], encode_only=True),
    )  # fmt: skip
    objective = SRUNIT(noise=0.5, start=0.0)
    got = float(objective.compare(pair).detach())
    draws = torch.Generator().manual_seed(0)
    torch.randint(1, (), generator=draws)
    direction, length = objective.draw(source[0], draws)
    torch.testing.assert_close(direction.norm(dim=1), torch.ones(1, 8, 8, dtype=torch.float64))
    assert length.min() > 0 and length.max() <= 0.5
    layers = list(generator.model)
    moved = source[0] + direction * length
    for layer in layers[tap + 1 :]:
        moved = layer(moved)
    for layer in layers[: tap + 1]:
        moved = layer(moved)
    (anchors,), (positives,) = heads([route(moved)]), heads([route(source[0])])
    expected = (anchors - positives).norm(dim=-1) / length.flatten()[[3, 9, 40]]
    assert got == pytest.approx(float(expected.mean().detach()), rel=1e-6)  # 1e-12 under the root
    waiting = SRUNIT(start=0.25)
    waiting.progress = 0.2
    assert float(waiting.compare(pair)) == 0


# Three patches, by hand -----------------------------------------------------------------------------------------------

#: East, north and west, as anchors and as positives: similarities 1, 0 and -1.
COMPASS = torch.tensor([[[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]]], dtype=torch.float64)


def test_hdce_of_three_patches():
    objective = HDCE(temperature=1.0, gamma=1.0, gamma_end=1.0)
    # East: north weighs 1, west 1 / e; north: both weigh 1; west is east's mirror image.
    side = math.log(1 + math.exp(-math.exp(-1))) - 1
    torch.testing.assert_close(objective(COMPASS, COMPASS)[0].tolist(), [side, math.log(2) - 1, side], **CLOSE)


def test_src_of_three_patches():
    def entropy(p: list[float]) -> float:
        return -sum(x * math.log(x) for x in p)

    same = torch.tensor([[[1.0, 0.0]] * 3], dtype=torch.float64)  # all alike: every relation is a third
    expected = []
    for p in (softmax([1, 0, -1]), softmax([0, 1, 0]), softmax([-1, 0, 1])):
        middle = [(x + 1 / 3) / 2 for x in p]
        expected.append(3 * (entropy(middle) - (entropy(p) + math.log(3)) / 2))
    torch.testing.assert_close(SRC()(COMPASS, same)[0].tolist(), expected, **CLOSE)


def test_monce_of_three_patches():
    """A plan without a diagonal mixes both ways round; the scores along each way say how much of each."""
    anchors = unit(1, 3, 2, seed=4)
    s = (anchors[0] @ COMPASS[0].T).tolist()
    ratio = math.exp((s[0][1] + s[1][2] + s[2][0] - s[0][2] - s[1][0] - s[2][1]) / 3)
    clockwise = ratio / (1 + ratio)
    expected = []
    for i in range(3):
        weights = {(i + 1) % 3: clockwise, (i + 2) % 3: 1 - clockwise}
        negatives = sum(2 * w * math.exp(s[i][j]) for j, w in weights.items())
        expected.append(math.log(math.exp(s[i][i]) + negatives) - s[i][i])
    got = MoNCE(temperature=1.0)(anchors, COMPASS)[0].tolist()
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-7)  # the authors' 1e-8, fifty rounds of scaling


def test_negcut_of_three_patches(monkeypatch):
    objective = NEGCUT(temperature=1.0, diversity=2.0)
    pair = SimpleNamespace(anchors=[COMPASS], positives=[COMPASS], own={})
    monkeypatch.setattr(objective, "negatives", lambda pair: [COMPASS])
    # The positive's similarity is 1; the negatives' are 1, 0, -1 for east and west, 0, 1, 0 for north.
    e = math.e
    loss = (2 * math.log((2 * e + 1 + 1 / e) / e) + math.log((2 * e + 2) / e)) / 3
    assert float(objective.compare(pair)) == pytest.approx(loss, rel=1e-12)
    # Halves of three are one and one: east and north differ by 1 in both numbers.
    assert float(pair.own["negatives"]) == pytest.approx(-loss - 2 * 1, rel=1e-12)


@pytest.mark.parametrize("similarity", ["dot", "cosine"])
def test_lsesim_of_three_patches(similarity):
    translation = torch.tensor([[[3.0, 1, 2, 0], [0, 1, 0, 2], [1, 1, 0, 0]]], dtype=torch.float64)
    source = torch.tensor([[[1.0, 5, 2, 7], [3, 4, 3, 3], [2, 2, 2, 2]]], dtype=torch.float64)
    # Kept are the two largest of the translation: (3, 2) and (1, 2); (1, 2) and (4, 3); (1, 1) and (2, 2).
    off = [1 - 7 / math.sqrt(13 * 5), 1 - 10 / math.sqrt(5 * 25), 0]
    expected = sum(off) / 3 if similarity == "cosine" else sum(d * d / 2 for d in off) / 3
    objective = LSeSim(similarity=similarity)
    assert float(objective.compare_maps(source, translation)) == pytest.approx(expected, rel=1e-12)


def test_srunit_of_three_patches(monkeypatch):
    """With a generator, an encoder and heads that change nothing, a patch has moved as far as the noise is long."""
    still = SimpleNamespace(project=lambda tap, features: features)
    features, length = normal(1, 2, 1, 3, seed=0), torch.tensor([[[[0.1, 0.2, 0.4]]]], dtype=torch.float64)
    direction = torch.tensor([[[[1.0, 0.0, 0.6]], [[0.0, 1.0, 0.8]]]], dtype=torch.float64)
    objective = SRUNIT(start=0.0)
    monkeypatch.setattr(objective, "draw", lambda *_: (direction, length))
    pair = SimpleNamespace(
        input=features, taps=[0], source=[features], routes=[points((1, 3), [0, 1, 2])], draws=torch.Generator(),
        heads=still, translation_heads=still, generator=lambda x, change: x + change[0], encode=lambda x: [x],
    )  # fmt: skip
    assert float(objective.compare(pair)) == pytest.approx(1.0, rel=1e-9)
    pair.generator = lambda x, change: x + 3 * change[0]
    assert float(objective.compare(pair)) == pytest.approx(3.0, rel=1e-9)
    # Rows of attention learn from the distance, not from what it is divided by.
    rows = torch.tensor([[[0.5, 0.3, 0.2]]], dtype=torch.float64, requires_grad=True)
    pair.routes = [AttentionRoute(rows, torch.tensor([[0]]), (1, 3))]
    (got,) = torch.autograd.grad(objective.compare(pair), rows)
    distance = (rows @ (3 * direction * length).flatten(2).mT).norm()
    (expected,) = torch.autograd.grad(distance / (rows.detach() @ length.flatten()), rows)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=0)


def test_enco_of_three_patches():
    objective = EnCo()
    objective.inner, objective.outer = [0], [1]
    objective.projectors, objective.predictors = nn.ModuleList([nn.Identity()]), nn.ModuleList([nn.Identity()])
    east = torch.tensor([[[[2.0, 3.0, 4.0]], [[0.0, 0.0, 0.0]]]])
    compass = COMPASS.float().transpose(1, 2).unsqueeze(2)
    pair = SimpleNamespace(passed={0: east, 1: compass}, mirrored=False, choose=lambda *_: [points((1, 3), [0, 1, 2])])
    assert float(objective.compare(pair)) == pytest.approx((0 + 2 + 4) / 3)


# Every sampler with every objective -----------------------------------------------------------------------------------

#: Where an objective is more than its name.
SETTINGS = {
    "lsesim, learned": "objective.nce={type: lsesim, learned: true, weight: 10}",
    "hdce + src": "objective.nce=[{type: hdce, weight: 0.1}, {type: src, weight: 0.05}]",
    "srunit": "objective.nce=[patchnce, {type: srunit, start: 0, weight: 2e-4}]",
}
OBJECTIVES = [part.name for part in list_parts("objectives") if "contrastive" in part.tags]
SAMPLERS = [part.name for part in list_parts("samplers")]
CASES = {
    **{name: ("method=cut", SETTINGS.get(name, f"objective.nce={name}")) for name in [*OBJECTIVES, *SETTINGS]},
    **{name: (f"method={name}",) for name in ("dclgan", "simdcl")},
    "dclgan, lsesim": ("method=dclgan", "objective.nce={type: lsesim, learned: true}"),
}
#: Cases of which each half is trained with every sampler.
TOGETHER = ("hdce + src", "dclgan, lsesim")
TAPS = "encoder={type: generator, taps: [4, 12]}"
TIMM = "encoder={type: timm, model: test_convnext, taps: [0, 1]}"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Networks are not run on the meta device first, to see whether they take the images: half of a test's time."""
    monkeypatch.setattr(RecipeParts, "_try", lambda self, *_: None)


def small(*settings: str, sampler: str = "random") -> Any:
    at = (f"sampler={{type: {sampler}, queries: 6}}", "objective.head_width=8", "generator.norm=instance", TAPS)
    return load_recipe("toy", (*TINY, settings[0], *at, "data.crop=16", *settings[1:]))


def pictures(count: int = 2) -> dict[str, Tensor]:
    draws = torch.Generator().manual_seed(3)
    return {letter: torch.rand(count, 3, 16, 16, generator=draws) * 2 - 1 for letter in "AB"}


def step(session: Session, count: int = 2) -> dict[str, Tensor]:
    session.method.progress = session.step / session.recipe.train.steps
    losses = session.method.step(pictures(count), torch.Generator().manual_seed(session.step))
    session.method.end_step()
    session.step += 1
    assert all(value.isfinite() for value in losses.values()), losses
    return losses


def check_that_everything_learned(session: Session) -> None:
    """Every network of every optimizer got a gradient."""
    method = session.method
    moments = {name: t for name, t in method.optimizer_state().items() if name.endswith("/exp_avg")}
    names = {id(module): name for name, module in method.named_modules()}
    for role, networks in method.roles().items():
        for network in networks:
            if any(p.requires_grad for p in network.parameters()):
                found = [t for name, t in moments.items() if name.startswith(f"{role}/{names[id(network)]}.")]
                assert max((float(t.abs().max()) for t in found), default=0.0) > 0, names[id(network)]


@functools.cache
def built(case: str) -> list[Session]:
    """Two sessions of a case; building one takes as long as two steps."""
    return [Session(small(*CASES[case])) for _ in range(2)]


@pytest.mark.parametrize("sampler", SAMPLERS)
@pytest.mark.parametrize("case", [case for case in CASES if case not in TOGETHER])
def test_every_sampler_trains_with_every_objective_and_carries_on_with_the_same_bytes(case, sampler, tmp_path):
    first, second = built(case)
    for session in (first, second):
        looks = create("sampler", sampler, queries=6)
        for contrast in (v for v in vars(session.method).values() if isinstance(v, Contrast)):
            contrast.sampler = looks
        session.step = 0
        for optimizer in session.method.optimizers.values():
            optimizer.state.clear()
    step(first)
    tensors, document = first.state()
    save_tensors(tmp_path / "one.safetensors", tensors, {**document, "step": 1})
    step(first)
    check_that_everything_learned(first)
    second.restore(tmp_path / "one.safetensors")
    step(second)
    (one, _), (other, _) = first.state(), second.state()
    assert one.keys() == other.keys()
    assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


@pytest.mark.parametrize("case", CASES)
def test_objectives_train_on_the_features_of_a_timm_model(case):
    settings = (*CASES[case], TIMM)
    if case == "srunit":
        with pytest.raises(RecipeError, match=r"objective\.nce\.1: srunit changes the generator's layers"):
            Session(small(*settings))
        return
    session = Session(small(*settings))
    step(session)
    check_that_everything_learned(session)


def test_an_objective_that_waits_for_its_time_may_be_the_only_loss():
    session = Session(small("objective={nce: {type: srunit, start: 0.5}, gan_weight: 0, identity: false}"))
    weights = {name: value.clone() for name, value in session.method.generator.state_dict().items()}
    assert step(session)["NCE"] == 0
    assert all(torch.equal(weights[name], value) for name, value in session.method.generator.state_dict().items())


def test_signatures_need_heads_of_three_numbers():
    with pytest.raises(UserError, match=r"objective\.head_width: .*must be at least 3"):
        Session(small("method=simdcl", "objective.head_width=2"))


@pytest.mark.parametrize("case", CASES)
def test_objectives_train_mirrored_divided_and_in_half_precision(case):
    flip = () if "dclgan" in CASES[case][0] or "simdcl" in CASES[case][0] else ("objective.flip_equivariance=true",)
    # Heads that are never dead, at full strength: no gradient leaves float16's range, and no step is passed over.
    settings = ("objective={head_gain: 1, head_width: 32}", "train={accumulate: 2, precision: fp16}")
    session = Session(small(*CASES[case], *flip, *settings, sampler="guided"))
    session.method.scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    step(session)
    step(session)
    check_that_everything_learned(session)


@pytest.mark.parametrize("case", ["negcut", "lsesim, learned"])
def test_what_trains_an_objective_s_own_network_reaches_nothing_else_and_the_other_way_round(case):
    method = Session(small(*CASES[case])).method
    made = method.contrast.translate(pictures()["A"])
    pair = method.contrast.pair(made, torch.Generator().manual_seed(0), {}, "NCE", pictures()["B"])
    loss, own = method.contrast.loss(pair, {}, "NCE")
    mine = [p for p in method.nce.parameters() if p.requires_grad]
    others = [*method.generator.parameters(), *method.heads.parameters()]

    def reached(value: Tensor, parameters: list[nn.Parameter]) -> list[bool]:
        gradients = torch.autograd.grad(value, parameters, retain_graph=True, allow_unused=True)
        return [g is not None and bool(g.abs().max() > 0) for g in gradients]

    assert not any(reached(own, others)) and not any(reached(loss, mine))
    assert any(reached(own, mine)) and any(reached(loss, others))


def test_negcut_s_slow_heads_follow():
    method = Session(small("method=cut", "objective.nce=negcut")).method
    (objective,) = method.nce
    before = [p.clone() for p in objective.slow.parameters()]
    method.step(pictures(), torch.Generator().manual_seed(0))
    for slow, old, heads in zip(objective.slow.parameters(), before, method.heads.parameters(), strict=True):
        torch.testing.assert_close(slow, 0.9 * old + 0.1 * heads, rtol=1e-6, atol=1e-8)  # float32's rounding


def test_a_sum_of_objectives_is_the_weighted_sum_of_each():
    def losses(nce: str) -> dict[str, Tensor]:
        return step(Session(small("method=cut", f"objective.nce={nce}")))

    both = losses("[{type: patchnce, weight: 2}, {type: src, weight: 0.5}]")
    patchnce, src = losses("patchnce"), losses("src")
    torch.testing.assert_close(both["NCE_patchnce"], patchnce["NCE"])
    torch.testing.assert_close(both["NCE_src"], src["NCE"])
    torch.testing.assert_close(both["NCE"], 2 * patchnce["NCE"] + 0.5 * src["NCE"])
    torch.testing.assert_close(both["NCE_identity"], 2 * patchnce["NCE_identity"])
    assert "NCE_identity_src" not in both and "NCE_identity" not in src
    twice = losses("[{type: patchnce, temperature: 0.1}, patchnce]")
    torch.testing.assert_close(twice["NCE_patchnce_1"], patchnce["NCE"])
    assert twice["NCE_patchnce_0"] != twice["NCE_patchnce_1"]


def test_objectives_take_the_method_s_temperature_unless_they_have_one():
    (first, second) = Session(
        small("method=cut", "objective={nce: [hdce, {type: monce, temperature: 0.2}], temperature: 0.1}")
    ).method.nce
    assert (first.temperature, second.temperature) == (0.1, 0.2)


@pytest.mark.parametrize(
    ("nce", "message"),
    [
        ("patchnse", r"objective\.nce: there is no objective 'patchnse'; did you mean 'patchnce'\?"),
        ("lsgan", r"objective\.nce: the objective 'lsgan' is not contrastive"),
        ("[]", r"objective\.nce: names no objective; to train without one, set nce_weight to 0"),
        (
            "{type: monce, cost: hrad}",
            r"objective\.nce\.cost: must be 'hard', 'easy' or 'mixed', got 'hrad'; did you mean 'hard'",
        ),
        ("[patchnce, {type: src, weight: -1}]", r"objective\.nce\.1\.weight: must be at least 0\.0, got -1"),
        (
            "[patchnce, {type: src, wieght: 1}]",
            r"objective\.nce\.1\.wieght: there is no such key; did you mean 'weight'\?",
        ),
        ("{type: monce, eps: 0.001}", r"objective\.nce\.eps: must be at least 0\.03, got 0\.001"),
        (
            "{type: enco, pairs: [[stem, block_1]]}",
            r"objective\.nce\.pairs: layers of a pair must have the same channels",
        ),
        (
            "{type: enco, pairs: [[stem, up_3]]}",
            r"objective\.nce: the generator has no tap 'up_3'; did you mean 'up_2'",
        ),
        ("{type: lsesim, learned: true, augment: flop}", r"objective\.nce\.augment: there is no augmentation 'flop'"),
    ],
)
def test_mistakes_are_reported_with_their_key(nce, message):
    with pytest.raises((RecipeError, UserError), match=message):
        Session(small("method=cut", f"objective.nce={nce}"))


def test_another_objective_drops_the_arguments_of_the_one_below(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "extends: toy\nmethod: cut\nobjective: {nce: {type: hdce, gamma: 5}, gan: {type: wgan-gp, weight: 2}}\n"
    )
    recipe = load_recipe(path, ["objective.nce.type=monce", "objective.gan={type: lsgan}"])
    assert recipe.objective["nce"] == {"type": "monce"} and recipe.objective["gan"] == {"type": "lsgan"}
    recipe = load_recipe(path, ["objective.nce={type: hdce, gamma_end: 2}"])
    assert recipe.objective["nce"] == {"type": "hdce", "gamma": 5, "gamma_end": 2}
    listed = load_recipe("toy", ["method=cut", "objective.nce=[patchnce, {type: src}]", "objective.nce.1.weight=0.5"])
    assert listed.objective["nce"] == ["patchnce", {"type": "src", "weight": 0.5}]
    assert load_recipe("toy", ["objective.nce={type: lsesim, augment: null}"]).objective["nce"]["augment"] is None


def test_one_position_has_no_negatives():
    for name in ("hdce", "monce"):
        with pytest.raises(Misfit, match="the loss needs at least 2 positions at a tap, got 1"):
            create("objective", name)(unit(2, 1, 4, seed=0), unit(2, 1, 4, seed=1))
        assert (
            create("objective", name, negatives="batch")(unit(2, 1, 4, seed=0), unit(2, 1, 4, seed=1)).isfinite().all()
        )


@pytest.mark.parametrize("name", [part.name for part in list_parts("generators")])
def test_generators_have_mirrored_layers_and_noise_is_added_where_it_is_said(name):
    side = {"unet_256": 256, "unet_128": 128}.get(name, 64)
    generator = create("generator", name, width=4).eval()
    pairs = mirrored_layers(generator.taps)
    assert len(pairs) > 1
    image, taps = normal(1, 3, side, side, seed=0).float(), [tap.index for pair in pairs for tap in pair]
    with torch.no_grad():
        plain, features = generator(image, taps=taps)
        by_tap = dict(zip(sorted(taps), features, strict=True))
        assert all(by_tap[inner.index].shape == by_tap[outer.index].shape for inner, outer in pairs)
        index = pairs[0][0].index
        change = torch.ones_like(by_tap[index])
        moved, noisy = generator(image, taps=[index], change={index: change})
        assert torch.equal(noisy[0], by_tap[index] + change) and not torch.equal(moved, plain)
        assert torch.equal(generator(image, change={index: 0 * change}), plain)


def test_qsattn_build_shows_the_objectives():
    rows = part_table(Session(small("method=cut", "objective.nce=[negcut, {type: src}]")))
    assert [row[1] for row in rows if row[0] == "objective"] == ["negcut", "src"]
    assert "heads" in [row[0] for row in rows]
    assert "heads" not in [row[0] for row in part_table(Session(small("method=cut", "objective.nce=enco")))]


@pytest.mark.parametrize("objective", ["gan=wgan-gp", "nce={type: lsesim, learned: true}"])
def test_losses_that_need_images_of_one_size_say_so(objective):
    method = Session(small("method=cut", f"objective.{objective}")).method
    batch = {"A": pictures()["A"], "B": torch.nn.functional.pad(pictures()["B"], (0, 8))}
    with pytest.raises(Misfit, match=r"needs images of one size in both domains, got \S+ x \S+ and ") as error:
        method.step(batch, torch.Generator().manual_seed(0))
    assert error.value.key == "data.preprocess"
