"""FID, KID, LPIPS and SWD: by hand, and against the library that the published ones come from."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch_fidelity
from safetensors.torch import save_file
from torch_fidelity import feature_extractor_base, sample_similarity_lpips
from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_kid import kid_features_to_metric

from benchmarks.inception2015 import features as partial_inception
from qsattn_plugin.distances import frechet_distance, kernel_distance, kernel_distances, sliced_wasserstein
from qsattn_plugin.evaluation.features import extract, load_extractor
from qsattn_plugin.evaluation.pictures import Pictures
from qsattn_plugin.evaluation.scoring import Evaluation
from qsattn_plugin.evaluation.texture import laplacian_pyramid, levels, texture_distance
from tests.metric_parts import Small, folder, noise, random_inception

CPU = torch.device("cpu")


def draws(count: int, seed: int, width: int, shift: float = 0.0) -> torch.Tensor:
    made = torch.randn(count, width, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return made * torch.linspace(0.2, 2, width) + shift


def test_frechet_distance_by_hand():
    # Means 1 and 3, variances 2 and 8 (n - 1 below): (3 - 1)^2 + (sqrt 8 - sqrt 2)^2 = 4 + 2.
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[1.0], [5.0]])) == pytest.approx(6)
    # Two numbers that do not vary together: their distances add. Four points of a cross, 4 d^2 / 3 the variance.
    a = torch.tensor([[1.0, 0], [-1, 0], [1, 0], [-1, 0]])
    b = torch.tensor([[3.0, 1], [3, -1], [3, 1], [3, -1]])
    assert frechet_distance(a, b) == pytest.approx(9 + 4 / 3 + 4 / 3)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("p", "q", "width"), [(200, 150, 20), (12, 30, 64), (30, 30, 30)])
def test_fid_and_kid_are_the_librarys(p, q, width):
    a, b = draws(p, 0, width), draws(q, 1, width, 0.3)
    fid = fid_statistics_to_metric(*map(fid_features_to_statistics, (a, b)), verbose=False)
    # With fewer vectors than numbers the library takes roots of eigenvalues that are 0 but for rounding (1e-14 or so):
    # each of the 52 here adds up to 1e-7 to its trace.
    assert frechet_distance(a, b) == pytest.approx(fid["frechet_inception_distance"], abs=1e-5, rel=1e-9)
    size = min(p, q, 100)
    kid = kid_features_to_metric(a, b, kid_subsets=20, kid_subset_size=size, rng_seed=2020, verbose=False)
    found = kernel_distances(a, b, 20, size)
    assert float(found.mean()) == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)
    assert float(found.std(correction=0)) == pytest.approx(kid["kernel_inception_distance_std"], rel=1e-6, abs=1e-12)


def test_kid_of_whole_sets_has_no_deviation():
    a, b = draws(9, 0, 5), draws(9, 1, 5)
    found = kernel_distances(a, b, 4)
    torch.testing.assert_close(found, torch.full((4,), kernel_distance(a, b), dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "argument"),
    [
        (lambda: frechet_distance(draws(1, 0, 2), draws(3, 0, 2)), "a"),
        (lambda: frechet_distance(draws(3, 0, 2), draws(3, 0, 3)), "b"),
        (lambda: kernel_distances(draws(3, 0, 2), draws(1, 0, 2)), "b"),
        (lambda: kernel_distances(draws(3, 0, 2), draws(3, 0, 2), subsets=0), "subsets"),
        (lambda: kernel_distances(draws(3, 0, 2), draws(3, 0, 2), size=1), "size"),
    ],
)
def test_distances_refuse(call, argument):
    with pytest.raises(ValueError, match=f"^{argument}: "):
        call()


@pytest.fixture(scope="module")
def inception(tmp_path_factory) -> tuple[torch.nn.Module, Path]:
    """The library's Inception with random weights, and the file of them."""
    network = random_inception()
    file = tmp_path_factory.mktemp("weights") / "inception.pth"
    torch.save(network.state_dict(), file)
    return network, file


@pytest.fixture(scope="module")
def sets(tmp_path_factory) -> tuple[Path, Path]:
    place = tmp_path_factory.mktemp("pictures")
    return folder(place / "a", noise(7, 0)), folder(place / "b", noise(9, 1, shade=90), "jpg")


def test_fid_and_kid_agree_with_the_librarys_own_command(inception, sets):
    command = [sys.executable, "-m", "torch_fidelity.fidelity", "--input1", sets[0], "--input2", sets[1]]
    command += ["--fid", "--kid", "--kid-subset-size", "5", "--kid-subsets", "10", "--cpu", "--json", "--silent"]
    command += ["--feature-layer-fid", "64", "--feature-layer-kid", "64", "--save-cpu-ram", "--no-cache"]
    command += ["--feature-extractor-weights-path", inception[1]]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    wanted = json.loads(done.stdout)
    scores = Evaluation(
        str(sets[0]),
        real=sets[1],
        metrics=("fid", "kid"),
        features=("64",),
        weights=inception[1],
        subsets=10,
        subset_size=5,
    ).run()
    # Batches differ, so that convolutions sum in another order: float32's last digits.
    assert scores["fid-64"].value == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert scores["kid-64"].value == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-4)
    assert scores["kid-64"].deviation == pytest.approx(wanted["kernel_inception_distance_std"], rel=1e-4)
    assert scores["fid-64"].settings["formulas"] == f"torch-fidelity {torch_fidelity.__version__}"
    assert scores["fid-64"].images == {"scored": 7, "real": 9}


class Registered(feature_extractor_base.FeatureExtractorBase):
    """The small extractor as the library wants one."""

    def __init__(self, name, features_list, **more):
        super().__init__(name, features_list)
        self.network = Small()

    @staticmethod
    def get_provided_features_list():
        return "6", "40"

    def forward(self, images):
        found = self.network(images)
        return tuple(found[name] for name in self.features_list)


@pytest.mark.parametrize("name", ["6", "40"])
def test_another_extractor_agrees_with_the_librarys_interface(sets, monkeypatch, name):
    from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY

    monkeypatch.setitem(FEATURE_EXTRACTORS_REGISTRY, "small", Registered)
    wanted = torch_fidelity.calculate_metrics(
        input1=str(sets[0]),
        input2=str(sets[1]),
        fid=True,
        kid=True,
        kid_subset_size=7,
        feature_extractor="small",
        feature_layer_fid=name,
        feature_layer_kid=name,
        cuda=False,
        cache=False,
        save_cpu_ram=True,
        verbose=False,
    )
    scores = Evaluation(str(sets[0]), real=sets[1], metrics=("kid", "fid"), extractor="tests.metric_parts:small").run()
    assert [figure.name for figure in scores.figures] == ["kid-6", "kid-40", "fid-6", "fid-40"]
    # The library's formulas run in float32 here where ours run in float64; KID is a difference of nearly equal means.
    assert scores[f"fid-{name}"].value == pytest.approx(wanted["frechet_inception_distance"], rel=1e-4)
    assert scores[f"kid-{name}"].value == pytest.approx(wanted["kernel_inception_distance_mean"], rel=1e-3, abs=1e-5)
    assert scores[f"kid-{name}"].deviation == pytest.approx(wanted["kernel_inception_distance_std"], rel=0.02, abs=1e-5)
    assert scores[f"kid-{name}"].settings["subset_size"] == 7
    assert "8 x 8 means" in scores[f"fid-{name}"].resize


def test_the_partial_inception_is_the_librarys_up_to_mixed_7a(inception, tmp_path):
    network = inception[0]
    tensors = {}
    for name, part in network.named_modules():
        if hasattr(part, "bn"):  # fold the batch norm into its convolution, as the file has it
            scale = part.bn.weight / (part.bn.running_var + part.bn.eps).sqrt()
            tensors[f"{name}.conv.weight"] = part.conv.weight * scale[:, None, None, None]
            tensors[f"{name}.conv.bias"] = part.bn.bias - part.bn.running_mean * scale
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, tmp_path / "w.safetensors")
    ours = partial_inception(str(tmp_path / "w.safetensors"), CPU)
    x = torch.rand(1, 3, 299, 299, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.inference_mode():
        found = ours.maps(x)
        for name, part in list(network.named_children()):
            x = part(x)
            at = {"MaxPool_1": "64", "MaxPool_2": "192", "Mixed_6e": "768", "Mixed_7a": "1280"}.get(name)
            if at is not None:
                # Folding rounds once more in float32, and rounding grows through some forty layers.
                torch.testing.assert_close(found[at], x, rtol=1e-3, atol=1e-3 * float(x.abs().max()))
            if at == "1280":
                break
    assert list(found) == ["64", "192", "768", "1280"]
    picture = torch.zeros(2, 3, 20, 30, dtype=torch.uint8)
    assert {name: tuple(value.shape) for name, value in ours(picture).items()} == {n: (2, int(n)) for n in found}


def test_features_do_not_depend_on_the_batch(sets):
    extractor = load_extractor("tests.metric_parts:small", None, CPU)
    pictures = Pictures.find(sets[0])
    one, many = extract(extractor, pictures, batch=1), extract(extractor, pictures, ("40", "6"), batch=5)
    assert (list(one), list(many)) == (["6", "40"], ["40", "6"])
    for name in one:
        torch.testing.assert_close(one[name], many[name], rtol=1e-4, atol=1e-5)


def test_pictures_of_several_sizes_keep_their_order(tmp_path):
    some = noise(2, 0) + noise(2, 1, 24, 40) + noise(1, 2)
    pictures = Pictures.find(folder(tmp_path / "x", some))
    batches = list(pictures.batches(3))
    assert [len(batch) for batch in batches] == [2, 2, 1]
    assert all(torch.equal(a, b) for a, b in zip((p for batch in batches for p in batch), some, strict=True))
    found = extract(Small(), pictures)
    for index, picture in enumerate(some):  # batches sum in another order
        torch.testing.assert_close(found["40"][index], Small()(picture[None])["40"][0], rtol=1e-4, atol=1e-5)


def test_lpips_is_the_librarys_and_zero_for_equal_pictures(sets, tmp_path, monkeypatch):
    from torchvision.models.vgg import cfgs, make_layers

    def vgg():
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return torch.nn.ModuleDict({"features": make_layers(cfgs["D"])})

    heads = {f"lin{i}.model.1.weight": torch.rand(1, n, 1, 1) for i, n in enumerate((64, 128, 256, 512, 512))}
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    hub = tmp_path / "hub" / "checkpoints"
    hub.mkdir(parents=True)
    torch.save(heads, hub / "weights-vgg16-lpips.pth")
    torch.save({}, hub / "vgg16-397923af.pth")  # 553 MB, were it the real one; its place is taken by the line below
    monkeypatch.setattr(sample_similarity_lpips, "torchvision_load_pretrained_vgg16", vgg)
    source = folder(tmp_path / "source", noise(8, 5), "jpg")
    scores = Evaluation(str(sets[0]), source=source, metrics=("lpips",)).run()
    library = sample_similarity_lpips.SampleSimilarityLPIPS("lpips-vgg16").eval()
    a, b = (torch.stack([Pictures.find(f).read(i) for i in range(7)]) for f in (sets[0], source))
    wanted = library(a, b).double().flatten()
    assert scores["lpips"].value == pytest.approx(float(wanted.mean()), rel=1e-4)
    assert scores["lpips"].deviation == pytest.approx(float(wanted.std(correction=0)), rel=1e-3)
    assert Evaluation(str(sets[0]), source=sets[0], metrics=("lpips",)).run()["lpips"].value == 0


def test_a_laplacian_pyramid_adds_up_to_the_picture():
    images = torch.stack(noise(2, 0, 64, 48)).float()
    pyramid = laplacian_pyramid(images, 3)
    assert [tuple(level.shape[-2:]) for level in pyramid] == [(64, 48), (32, 24), (16, 12)]
    back = pyramid[-1]
    for level in pyramid[-2::-1]:
        # Its inverse, written otherwise: a transposed convolution with the same five taps, its border mirrored.
        kernel = torch.outer(*[torch.tensor([1.0, 4, 6, 4, 1]) / 8] * 2).expand(3, 1, 5, 5)
        spread = torch.zeros_like(level)
        spread[..., ::2, ::2] = back
        padded = torch.nn.functional.pad(spread, (2, 2, 2, 2), mode="reflect")
        back = torch.nn.functional.conv_transpose2d(padded, kernel, padding=4, groups=3) + level
    torch.testing.assert_close(back, images, rtol=1e-4, atol=1e-3)
    flat = laplacian_pyramid(torch.full((1, 3, 32, 32), 7.0), 2)
    torch.testing.assert_close(flat[0], torch.zeros(1, 3, 32, 32), rtol=0, atol=1e-5)
    torch.testing.assert_close(flat[1], torch.full((1, 3, 16, 16), 7.0))
    assert levels(256) == [256, 128, 64, 32, 16]
    assert levels(100) == [100, 50, 25]
    assert levels(31) == [31]


def flat(place: Path, shades: list[int]) -> Pictures:
    pictures = [torch.full((3, 16, 16), shade, dtype=torch.uint8) for shade in shades]
    return Pictures.find(folder(place, pictures), 16)


def test_swd_by_hand(tmp_path):
    # Pictures of one shade, one level. Half of a's patches are -1 and half 1, once brought to mean 0 and deviation 1;
    # of b's, three quarters are -1/sqrt 3 and one quarter is sqrt 3.
    a, b = flat(tmp_path / "a", [0, 0, 200, 200]), flat(tmp_path / "b", [50, 50, 50, 90])
    low, high = -1 / math.sqrt(3), math.sqrt(3)
    apart = (2 * abs(-1 - low) + abs(1 - low) + abs(1 - high)) / 4
    # A patch is its shade times 147 ones: along a direction it is the shade times the sum of the direction.
    directions = torch.randn(147, 512, generator=torch.Generator().manual_seed(3))
    directions /= directions.norm(dim=0)
    wanted = 1000 * apart * float(directions.sum(0).abs().mean())
    assert texture_distance(a, b, seed=3) == {16: pytest.approx(wanted, rel=1e-4)}
    # Brightness and contrast of a channel do not count, each channel's its own.
    rescaled = [torch.tensor([s // 2, s, 9 + s // 4], dtype=torch.uint8) for s in (0, 0, 200, 200)]
    c = Pictures.find(folder(tmp_path / "c", [s.view(3, 1, 1).expand(3, 16, 16) for s in rescaled]), 16)
    assert texture_distance(c, b, seed=3) == {16: pytest.approx(wanted, rel=1e-4)}
    assert texture_distance(a, a, seed=3) == {16: pytest.approx(0, abs=1e-3)}  # flat: every place is like the other
    scores = Evaluation(str(a.folder), real=b.folder, size=16, metrics=("swd",), seed=3).run()
    assert scores["swd"].value == pytest.approx(wanted, rel=1e-4)
    assert scores["swd"].settings["levels"].keys() == {"16"}


def test_swd_is_the_mean_of_its_levels_and_sees_texture(tmp_path):
    rough = noise(12, 0, 64, 64)
    smooth = [torch.nn.functional.avg_pool2d(p.float(), 5, 1, 2).to(torch.uint8) for p in rough]
    a, b, c = (
        Pictures.find(folder(tmp_path / n, p), 64) for n, p in (("a", rough[:6]), ("b", rough[6:]), ("c", smooth[6:]))
    )
    near, far = texture_distance(a, b, 0), texture_distance(a, c, 0)
    assert list(near) == [64, 32, 16]
    assert far[64] > 2 * near[64]
    assert texture_distance(a, b, 0) == near != texture_distance(a, b, 1)
    scores = Evaluation(str(a.folder), real=b.folder, size=64, metrics=("swd",)).run()
    assert scores["swd"].value == pytest.approx(sum(scores["swd"].settings["levels"].values()) / 3)
    with pytest.raises(ValueError, match="^b: "):
        texture_distance(a, Pictures(b.folder, b.paths))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.uint8, torch.float64])
def test_sliced_distances_of_any_number_type_are_those_of_float32(dtype):
    a, b = (torch.randint(0, 256, (count, 12), generator=torch.Generator().manual_seed(count)) for count in (40, 50))
    expected = sliced_wasserstein(a.float(), b.float() / 2)
    got = sliced_wasserstein(a.to(dtype), b.float().div(2).to(dtype))
    assert got == pytest.approx(expected, rel=0.02)  # of halves, uint8 keeps the whole number
