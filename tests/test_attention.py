"""Row entropy, its logarithm under saturation, and the selection of queries."""

from __future__ import annotations

import math
from decimal import Decimal, localcontext
from pathlib import Path

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from qsattn_plugin.attention import GlobalAttention, LocalAttention, entropy, row_entropy, select_queries
from tests import equations

PICTURES = Path(__file__).parents[2] / "shared" / "data" / "horse2zebra" / "testA"


def normal(*shape, s=1.0, seed=0):
    return s * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def chosen(log_entropy, n=256):
    return set(select_queries(-log_entropy.unsqueeze(0), n)[0].tolist())


class Watch(TorchDispatchMode):
    """Records the largest tensor made and the operators that read a value back to the host."""

    HOST = ("_local_scalar_dense", "nonzero", "item", "is_nonzero", "masked_select", "unique", "equal")

    def __init__(self):
        super().__init__()
        self.largest = 0
        self.read_back = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for t in torch.utils._pytree.tree_flatten(out)[0]:
            if isinstance(t, torch.Tensor):
                self.largest = max(self.largest, t.untyped_storage().nbytes() // t.element_size())
        if any(name in str(func) for name in self.HOST):
            self.read_back.append(str(func))
        return out


@pytest.mark.parametrize("tile", [None, 1, 7])
@pytest.mark.parametrize("scale", [1.0, 0.3])
@pytest.mark.parametrize("columns", [None, 13])
def test_row_entropy_is_the_equation(tile, scale, columns, monkeypatch):
    if columns:  # rows in several parts of columns, which are merged
        monkeypatch.setattr(entropy, "CPU_TILE_BYTES", columns * 4 * (tile or 63))
    features = normal(2, 5, 9, 7, s=0.7)
    expected = torch.stack([equations.entropy(equations.attention(f, scale=scale)) for f in features])
    flat = features.flatten(2).transpose(1, 2)
    got = row_entropy(flat, tile=tile, scale=scale)
    assert got.dtype == torch.float32
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        row_entropy(flat, tile, log=True, scale=scale).double().exp(), expected, rtol=1e-5, atol=0
    )
    exact = row_entropy(flat.double(), tile=tile, scale=scale)
    torch.testing.assert_close(exact, expected, rtol=1e-12, atol=0)


@pytest.mark.parametrize("attention", [GlobalAttention(), LocalAttention(5), LocalAttention(11, scale=0.5)])
def test_entropy_and_largest_probability_of_an_attention(attention):
    window, scale = getattr(attention, "window", None), attention.scale
    features = normal(2, 4, 5, 6, s=0.7)  # the window of 11 is larger than the map
    rows = [equations.attention(f, window, scale) for f in features]
    expected = torch.stack([equations.entropy(a) for a in rows])
    torch.testing.assert_close(attention.log_entropy(features).double().exp(), expected, rtol=1e-5, atol=0)
    largest = torch.stack([a.amax(1) for a in rows])
    torch.testing.assert_close(attention.log_odds(features).double().sigmoid(), largest, rtol=1e-5, atol=0)
    torch.testing.assert_close(attention.log_odds(features.double()), largest.logit(), rtol=1e-9, atol=1e-9)


def test_float64_log_entropy_against_200_digits():
    """Saturated rows: log H near -150 and -2000, where every float64 entropy computed directly is exactly 0."""
    features = torch.tensor([[3.0, 9.0, 0.5], [11.0, -2.5, 4.0], [8.5, 7.0, -40.0], [-6.0, 1.0, 30.5], [0.25, 12, 5]])
    with localcontext() as context:
        context.prec = 1200
        f = [[Decimal(x) for x in row] for row in features.double().tolist()]
        expected = []
        for a in f:
            scores = [sum(x * y for x, y in zip(a, b, strict=True)) for b in f]
            total = sum(s.exp() for s in scores)
            p = [s.exp() / total for s in scores]
            expected.append(float((-sum(q * q.ln() for q in p)).ln()))
    assert min(expected) < -1000
    assert max(expected) > -100
    for got in (row_entropy(features[None].double(), log=True)[0], equations.log_entropy(features)):
        torch.testing.assert_close(got, torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("s", [0.05, 0.1, 0.2, 0.35, 0.6, 1.0, 2.2])
def test_selection_survives_saturation(s):
    features = normal(4096, 256, s=s)
    same = chosen(equations.log_entropy(features)) & chosen(row_entropy(features[None], log=True)[0])
    assert len(same) >= (250 if s == 0.05 else 255)  # at 0.05 rows nearly tie


def test_forms_that_saturate_choose_other_queries():
    """The test of the test above: it tells a good form from a naive one."""
    features = normal(4096, 256, s=0.35)
    scores = features @ features.t()
    naive = scores.logsumexp(1) - (scores.softmax(1) * scores).sum(1)
    best = chosen(equations.log_entropy(features))
    assert len(best & chosen(naive.clamp(min=0).log())) < 64
    strong = normal(4096, 256, s=1.0)
    assert len(chosen(equations.log_entropy(strong)) & chosen(row_entropy(strong[None])[0])) < 64


@pytest.mark.parametrize("tap", [12, 16])
def test_selection_on_real_taps_of_a_fresh_generator(tap):
    if not PICTURES.is_dir():
        pytest.skip("the horse2zebra pictures are not here")
    from qsattn_plugin.registry import create

    image = pytest.importorskip("PIL.Image")
    torch.manual_seed(0)
    generator = create("generator", "resnet_9blocks")
    for path in sorted(PICTURES.iterdir())[:2]:
        pixels = bytearray(image.open(path).convert("RGB").resize((256, 256)).tobytes())
        x = torch.frombuffer(pixels, dtype=torch.uint8).view(1, 256, 256, 3).permute(0, 3, 1, 2) / 127.5 - 1
        with torch.no_grad():
            (features,) = generator(x, taps=[tap], encode_only=True)
        flat = features.flatten(2).transpose(1, 2)
        best = chosen(equations.log_entropy(flat[0]))
        assert len(best & chosen(row_entropy(flat, log=True)[0])) >= 255
        if tap == 16:  # two thirds of the entropies round to 0: without the logarithm the lowest positions are taken
            assert len(best & chosen(row_entropy(flat)[0])) < 128


@pytest.mark.parametrize("columns", [None, 5])
def test_edge_cases_of_the_entropy(columns, monkeypatch):
    if columns:
        monkeypatch.setattr(entropy, "CPU_TILE_BYTES", columns * 4 * 24)
    constant = torch.full((1, 24, 4), 3.0)
    torch.testing.assert_close(row_entropy(constant), torch.full((1, 24), math.log(24)), rtol=1e-6, atol=0)
    torch.testing.assert_close(row_entropy(torch.zeros(1, 24, 4)), torch.full((1, 24), math.log(24)), rtol=1e-6, atol=0)
    alone = torch.ones(2, 1, 4)
    assert row_entropy(alone).tolist() == [[0.0], [0.0]]
    assert row_entropy(alone, log=True).tolist() == [[-math.inf], [-math.inf]]
    assert GlobalAttention().log_odds(torch.ones(1, 4, 1, 1)).item() == math.inf
    assert LocalAttention(1).log_entropy(normal(1, 4, 3, 3)).isneginf().all()
    pair = torch.tensor([[[1.0], [1.0]]])  # two equal keys: both are the largest
    torch.testing.assert_close(row_entropy(pair), torch.full((1, 2), math.log(2)))


@pytest.mark.parametrize("bad", [math.inf, -math.inf, math.nan])
def test_nonfinite_features_give_a_selection_without_an_error(bad):
    features = normal(2, 30, 4)
    features[1, 3, 2] = bad
    entropy = row_entropy(features, log=True)
    assert entropy[0].isfinite().all()
    queries = select_queries(-entropy, 5)
    assert queries.shape == (2, 5)
    assert ((queries >= 0) & (queries < 30)).all()
    assert queries[1].unique().numel() == 5


def test_select_queries_orders_ties_and_nan():
    nan, inf = math.nan, math.inf
    significance = torch.tensor([[1.0, nan, 3.0, 1.0, 3.0, -inf], [nan, inf, -inf, 0.0, 0.0, inf]])
    assert select_queries(significance, 9).tolist() == [[2, 4, 0, 3, 5, 1], [1, 5, 3, 4, 2, 0]]
    assert select_queries(significance, 2).tolist() == [[2, 4], [1, 5]]
    assert select_queries(torch.zeros(1, 20_000), 300)[0].tolist() == list(range(300))
    assert select_queries(torch.tensor([[1, 5, 5]]), 2).tolist() == [[1, 2]]


@pytest.mark.parametrize(
    "dtype",
    [
        torch.bfloat16,
        pytest.param(
            torch.float16,
            marks=pytest.mark.skipif(torch.__version__ < "2.4", reason="PyTorch 2.1 has no float16 autocast on CPUs"),
        ),
    ],
)
def test_autocast_and_narrow_features_are_computed_in_float32(dtype):
    features = normal(1, 200, 16, s=0.6).to(dtype)
    expected = row_entropy(features.float())
    with torch.autocast("cpu", dtype=dtype):
        assert torch.equal(row_entropy(features), expected)
        assert torch.equal(row_entropy(features.float()), expected)
    assert expected.dtype == torch.float32


@pytest.mark.parametrize("setting", ["high", "medium"])
def test_matrix_products_stay_float32_and_the_setting_is_left_as_it_was(setting):
    features = normal(1, 64, 300, s=0.5)
    expected = row_entropy(features, log=True)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision(setting)
        assert torch.equal(row_entropy(features, log=True), expected)
        assert torch.get_float32_matmul_precision() == setting
    finally:
        torch.set_float32_matmul_precision(before)


@pytest.mark.skipif(not hasattr(torch.backends, "fp32_precision"), reason="PyTorch has them from 2.9 on")
def test_precisions_that_were_set_backend_by_backend_are_left_as_they_were():
    matmul, mkldnn, before = (
        torch.backends.cuda.matmul,
        torch.backends.mkldnn.matmul,
        torch.backends.cuda.matmul.allow_tf32,
    )
    try:
        matmul.allow_tf32 = True
        found = matmul.fp32_precision, mkldnn.fp32_precision
        row_entropy(normal(1, 64, 30, s=0.5))
        assert (matmul.fp32_precision, mkldnn.fp32_precision) == found
    finally:
        matmul.allow_tf32 = before


def test_each_image_is_as_in_a_batch_of_one_and_every_call_is_alike():
    features = normal(3, 500, 24, s=0.4)
    together = row_entropy(features)
    assert torch.equal(together, torch.cat([row_entropy(f[None]) for f in features]))
    assert torch.equal(together, row_entropy(features))


def test_no_square_matrix_and_no_host_sync():
    features = normal(1, 64, 64, 64)
    with Watch() as watch:
        for attention in (GlobalAttention(), LocalAttention(7)):
            select_queries(-attention.log_entropy(features), 256)
    assert watch.largest <= 4096 * 4096 // 8
    assert watch.read_back == []


def test_features_that_require_grad():
    features = normal(1, 30, 4).requires_grad_()
    assert not row_entropy(features).requires_grad


@pytest.mark.skipif(not hasattr(torch.library, "custom_op"), reason="the operators are compiled from PyTorch 2.4 on")
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiles_without_a_graph_break(backend):
    def choose(features):
        log_entropy = row_entropy(features, log=True)
        return log_entropy, select_queries(-log_entropy, 10)

    features = normal(2, 60, 8)
    compiled = torch.compile(choose, fullgraph=True, backend=backend)(features)
    for got, expected in zip(compiled, choose(features), strict=True):
        torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: row_entropy(torch.ones(2, 3)), "features: "),
        (lambda: row_entropy(torch.ones(1, 2, 3), scale=0.0), "scale: "),
        (lambda: row_entropy(torch.ones(1, 2, 3), tile=0), "tile: "),
        (lambda: select_queries(torch.ones(1, 2), 0), "n: "),
        (lambda: LocalAttention(4), "window: "),
        (lambda: GlobalAttention(scale=float("nan")), "scale: "),
    ],
)
def test_bad_arguments_are_named(call, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        call()
