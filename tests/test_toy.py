"""The drawn toy data set and its score."""

import pytest
import torch
import torch.nn.functional as F

from qsattn_plugin.data import SPLITS, Dataset, ImageSet
from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.toy import ToyHorses, ToyImages
from qsattn_plugin.data.toy import coat as toy_coat
from qsattn_plugin.data.toy.drawing import draw, picture_seed
from qsattn_plugin.data.toy.score import background_change, coat_distance
from qsattn_plugin.distances import patches, sliced_wasserstein
from qsattn_plugin.errors import UserError
from qsattn_plugin.registry import create


@pytest.fixture(scope="module")
def toy() -> ToyHorses:
    return ToyHorses(train=30, test=16)


@pytest.fixture(scope="module")
def truth(toy):
    """Horses, zebras (N, 3, 64, 64) in [-1, 1] and the silhouettes (N, 1, 64, 64) of the test set."""
    horses, zebras = (to_float(torch.stack(list(toy.split(name)))) for name in ("testA", "testB"))
    return horses, zebras, toy.silhouettes("testA")[:, None]


def test_it_is_a_dataset_of_image_sets(toy):
    made = create("dataset", "toy", size=32, train=3, test=2)
    assert isinstance(made, Dataset)
    for name in SPLITS:
        images = made.split(name)
        assert made.has(name)
        assert isinstance(images, ImageSet)
        assert len(images) == len(images.names) == len(set(images.names)) == (3 if "train" in name else 2)
        assert images.skipped == []
        assert images[0].dtype == torch.uint8
        assert images[-1].shape == (3, 32, 32)
        with pytest.raises(IndexError):
            images[len(images)]
    assert toy.split("testA").names[7] == toy.split("testB").names[7] == "animal_0007.png"


def test_a_picture_depends_on_its_seed_alone():
    first, again = ToyHorses(train=4), ToyHorses(train=9)
    late = again.split("trainB")[3]
    torch.rand(100)  # the global generator plays no part
    assert torch.equal(first.split("trainB")[3], late)
    assert torch.equal(first.split("trainB")[3], late)
    assert not torch.equal(ToyHorses(seed=1).split("trainB")[3], late)


def test_the_same_seed_gives_the_same_scene_at_every_size():
    large, small = (draw(picture_seed(0, 2, 5), size, striped=True) for size in (128, 64))
    reduced = F.avg_pool2d(large.picture.float(), 2)
    # Edges and fine noise are averaged from more points; another scene differs by 40 on average.
    assert (reduced - small.picture.float()).abs().mean() < 2
    assert (F.avg_pool2d(large.silhouette[None], 2)[0] - small.silhouette).abs().mean() < 0.01


def test_no_two_pictures_share_a_seed_but_the_test_pairs(toy):
    whole = ToyHorses()
    seeds = {name: whole.split(name).seeds for name in SPLITS}
    assert seeds["testA"] == seeds["testB"]
    assert len({*seeds["trainA"], *seeds["trainB"], *seeds["testA"]}) == 400 + 400 + 32
    # torch's generator keeps only 32 bits of a seed: those must differ.
    assert max(seeds["trainA"] + seeds["trainB"] + seeds["testA"]) < 2**32
    outlines = torch.cat([toy.silhouettes(name) for name in ("trainA", "trainB", "testA")]).flatten(1)
    nearest = torch.cdist(outlines, outlines, p=1).fill_diagonal_(torch.inf).min()
    assert nearest > 50  # pixels of an outline's area that two animals at least do not share


def test_test_pairs_differ_inside_the_silhouette_alone(toy, truth):
    horses, zebras, mask = truth
    assert torch.equal(toy.silhouettes("testB"), mask[:, 0])
    outside = (mask == 0).expand_as(horses)
    assert torch.equal(horses[outside], zebras[outside])
    inside = (mask == 1).expand_as(horses)
    assert (horses - zebras).abs()[inside].mean() > 0.3
    assert mask.dtype == torch.float32
    assert mask.min() >= 0
    assert mask.max() <= 1


def test_seasons_differ_on_the_ground_alone(truth):
    toy = ToyHorses(test=4, pair="seasons")
    summer, winter = (to_float(torch.stack(list(toy.split(name)))) for name in ("testA", "testB"))
    assert torch.equal(summer, truth[0][:4]), "horses of the other pair"
    ground = torch.stack([draw(seed, 64, striped=False).ground for seed in toy.split("testA").seeds])[:, None]
    assert torch.equal(*(season[(ground == 0).expand_as(summer)] for season in (summer, winter)))
    assert winter[(ground == 1).expand_as(winter)].mean() > 0.5 > summer[(ground == 1).expand_as(summer)].mean() + 0.5
    assert toy.score(summer, "AtoB") == {"ground_distance": 1, "change_elsewhere": 0}
    assert toy.score(winter, "AtoB") == {"ground_distance": 0, "change_elsewhere": 0}
    # Pixels of which the ground covers less than a 255th count as outside.
    painted = torch.where(ground > 0, summer, winter + 0.5)
    assert toy.score(painted, "AtoB")["change_elsewhere"] == pytest.approx(0.5, abs=1e-3)


def test_animals_fill_the_frame_and_are_not_cut(truth):
    for mask in truth[2][:, 0] > 0.5:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert 0.25 < mask[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1].numel() / mask.numel() < 0.66
        assert min(rows.min(), columns.min()) > 0
        assert max(rows.max(), columns.max()) < 63


def test_stripes_are_wide_enough_for_their_pixels(truth):
    """Along the middle of the trunk, black and white each last about 3 pixels at 64, and both are really there."""
    _, zebras, mask = truth
    runs = []
    for zebra, shape in zip(zebras.mean(1), mask[:, 0], strict=True):
        columns = (shape > 0.5).any(0).nonzero()
        left, right = int(columns.min()), int(columns.max())
        third = (right - left) // 3
        middle = slice(left + third, right - third)
        centre = (shape[:, middle].sum(1) * torch.arange(64)).sum() / shape[:, middle].sum()
        dark = (zebra[int(centre) - 3, middle] < 0).int()
        assert 0 < dark.float().mean() < 1
        runs.append(len(dark) / (1 + int((dark.diff() != 0).sum())))
    assert 2.5 < sum(runs) / len(runs) < 5


@pytest.mark.parametrize(("channels", "kept"), [(1, 1), (2, 1), (3, 3), (4, 3)])
def test_channels(channels, kept):
    toy = ToyHorses(size=32, test=2, channels=channels)
    image = toy.split("testB")[0]
    assert image.shape == (channels, 32, 32)
    assert (image[kept:] == 255).all()
    if kept == 1:
        weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
        grey = (ToyHorses(size=32, test=2).split("testB")[0] * weights).sum(0)
        assert (image[0] - grey).abs().max() <= 1  # Pillow's fixed-point luminance
    given = to_float(torch.stack(list(toy.split("testB"))))
    given[:, kept:] = -1  # alpha is not scored
    assert toy.score(given, "AtoB") == {"coat_distance": 0, "background_change": 0}


@pytest.mark.parametrize("wrong", [{"size": 31}, {"train": 0}, {"test": 0}, {"channels": 5}, {"pair": "x"}])
def test_bad_arguments_are_named(wrong):
    (name,) = wrong
    with pytest.raises(ValueError, match=f"^{name}: must be .*got {wrong[name]!r}"):
        ToyHorses(**wrong)


def test_bad_calls_are_explained(toy, truth):
    with pytest.raises(ValueError, match=r"^name: must be one of trainA, .* got 'valA'"):
        toy.split("valA")
    with pytest.raises(ValueError, match=r"^direction: must be one of AtoB, BtoA, got 'AB'"):
        toy.score(truth[0], "AB")
    for images in (torch.zeros(2, 3, 32, 32), torch.zeros(2, 1, 64, 64), torch.zeros(17, 3, 64, 64), truth[0][:0]):
        with pytest.raises(UserError, match="it needs 1 to 16 images of 3 x 64 x 64"):
            toy.score(images, "AtoB")


@pytest.mark.parametrize("direction", ["AtoB", "BtoA"])
@pytest.mark.parametrize("count", [1, 16])
def test_truth_scores_zero_and_nothing_done_scores_one(toy, truth, direction, count):
    source, target = (truth["AB".index(letter)][:count] for letter in (direction[0], direction[-1]))
    assert toy.score(target, direction) == {"coat_distance": 0, "background_change": 0}
    assert toy.score(source, direction) == {"coat_distance": 1, "background_change": 0}


def test_the_leading_figure_is_the_coat(toy, truth):
    assert next(iter(toy.score(truth[0], "AtoB"))) == "coat_distance"


@pytest.fixture(scope="module")
def other_stripes(toy):
    """Zebras of the test set whose stripes lie elsewhere on them, by a fraction of a cycle."""
    skin = toy_coat._skin

    def moved(coat, surface, *rest):
        return skin(coat, surface._replace(phase=surface.phase + moved.by), *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(toy_coat, "_skin", moved)
        found = {}
        for by in (0.25, 0.5):
            moved.by = by
            found[by] = to_float(torch.stack(list(toy.split("testB"))))
    return found


@pytest.mark.parametrize("by", [0.25, 0.5])
def test_stripes_have_no_right_phase(toy, truth, other_stripes, by):
    _, zebras, mask = truth
    moved = other_stripes[by]
    assert (moved - zebras).abs()[(mask == 1).expand_as(moved)].mean() > 0.4  # as pixels they are far apart
    assert toy.score(moved, "AtoB")["coat_distance"] < 0.1


def _grey(horses, zebras, mean, spread, noise):
    return mean.expand_as(zebras)


def _noise_on_the_horse(horses, zebras, mean, spread, noise):
    return horses + spread * noise


def _noise_with_the_zebras_mean_and_variance(horses, zebras, mean, spread, noise):
    return mean + spread * noise


def _grey_noise(horses, zebras, mean, spread, noise):
    return (mean + spread * noise[:, :1]).expand_as(zebras)


def _black_and_white_pixels(horses, zebras, mean, spread, noise):
    return (mean + spread * noise[:, :1].sign()).expand_as(zebras)


def _averaged_across(horses, zebras, mean, spread, noise):
    return F.avg_pool2d(zebras, (1, 7), stride=1, padding=(0, 3), count_include_pad=False)


def _half_contrast(horses, zebras, mean, spread, noise):
    return mean + 0.5 * (zebras - mean)


def _half_horse(horses, zebras, mean, spread, noise):
    return (horses + zebras) / 2


def _stripes_turned(horses, zebras, mean, spread, noise):
    return zebras.transpose(2, 3)


@pytest.mark.parametrize(
    "fake",
    [
        _grey,
        _noise_on_the_horse,
        _noise_with_the_zebras_mean_and_variance,
        _grey_noise,
        _black_and_white_pixels,
        _averaged_across,
        _half_contrast,
        _half_horse,
        _stripes_turned,
    ],
)
def test_the_score_is_not_fooled(toy, truth, fake):
    horses, zebras, mask = truth
    weight = mask.sum()
    mean = (zebras * mask).sum((0, 2, 3), keepdim=True) / weight
    spread = ((zebras - mean).square() * mask).sum().div(3 * weight).sqrt()
    noise = torch.randn(zebras.shape, generator=torch.Generator().manual_seed(3))
    coat = fake(horses, zebras, mean, spread, noise)
    score = toy.score((coat * mask + horses * (1 - mask)).clamp(-1, 1), "AtoB")
    # Stripes elsewhere score about 0.05, a product must reach 0.2; the hardest of these is noise with the right
    # mean and variance, at about 0.4.
    assert score["coat_distance"] > 0.35
    assert score["background_change"] < 1e-6  # the blend's rounding


def test_background_change_counts_the_background_alone(toy, truth):
    horses, _, mask = truth
    assert toy.score(horses + 0.25, "AtoB")["background_change"] == pytest.approx(0.25, abs=1e-6)
    inside = torch.where(mask > 0, torch.rand(horses.shape), horses)
    assert toy.score(inside, "AtoB")["background_change"] == 0
    # A soft outline, one pixel beyond the animal, is forgiven; a whole different background is not.
    beyond = F.max_pool2d(mask, 3, stride=1, padding=1)
    assert toy.score(torch.where(beyond > 0, -horses, horses), "AtoB")["background_change"] == 0
    assert toy.score(horses.roll(1, 0), "AtoB")["background_change"] > 0.2


def test_scores_at_other_sizes_see_the_same_stripes():
    """A score at 128 pixels means what it means at 64, as the patches see the same share of the animal."""
    blurred = {}
    for size in (64, 128):
        toy = ToyHorses(size=size, test=4)
        zebras = to_float(torch.stack(list(toy.split("testB"))))
        width = 3 * size // 64
        soft = F.interpolate(F.avg_pool2d(zebras, width, stride=1), size=(size, size), mode="bilinear")
        blurred[size] = toy.score(soft, "AtoB")["coat_distance"]
    assert blurred[128] == pytest.approx(blurred[64], abs=0.1)  # the blur's own widths differ by a sixth of a stripe


def test_score_functions_check_shapes(truth):
    horses, zebras, mask = truth
    with pytest.raises(ValueError, match=r"^target: must be \(16, 3, 64, 64\) as translated, got \(15, "):
        coat_distance(zebras, horses, zebras[:15], mask[:, 0])
    with pytest.raises(ValueError, match=r"^silhouettes: must be \(16, 64, 64\)"):
        background_change(zebras, horses, mask)
    with pytest.raises(ValueError, match=r"^silhouettes: contain no 7x7 patch"):
        coat_distance(zebras, horses, zebras, torch.zeros(16, 64, 64))
    with pytest.raises(ValueError, match=r"^silhouettes: leave no background"):
        background_change(zebras, horses, torch.ones(16, 64, 64))
    with pytest.raises(ValueError, match=r"^source: has the target's coat already"):
        coat_distance(horses, zebras, zebras, mask[:, 0])


def test_sliced_wasserstein_of_a_shift_is_known():
    """Moving every vector by v moves each projection by <v, theta>: the p = 2 distance is |v| / sqrt(D)."""
    a = torch.randn(500, 10, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    shift = torch.full((10,), 0.3, dtype=torch.float64)
    # 4000 directions: the mean of squares has a relative standard error of sqrt(2 / 4000), its root half of that.
    assert sliced_wasserstein(a, a + shift, projections=4000) == pytest.approx(0.3, rel=0.05)
    assert sliced_wasserstein(a, a.flip(0)) == 0
    # E|theta_1| on the unit sphere of 10 dimensions, times |v|: gamma(5) / (sqrt(pi) gamma(5.5)).
    expected = 0.3 * 10**0.5 * 0.258742
    assert sliced_wasserstein(a, a + shift, projections=4000, power=1) == pytest.approx(expected, rel=0.05)


def test_sliced_wasserstein_with_unequal_counts():
    a = torch.randn(3000, 6, generator=torch.Generator().manual_seed(1))
    b = torch.randn(1000, 6, generator=torch.Generator().manual_seed(2))
    same, apart = sliced_wasserstein(a, b), sliced_wasserstein(a, 2 * b)
    assert same < 0.1  # sampling alone, about sqrt(1 / 1000 + 1 / 3000) and a little more in the tails
    assert apart == pytest.approx(1, abs=0.1)  # N(0, 1) against N(0, 4): the standard deviations' difference
    assert sliced_wasserstein(b, a) == pytest.approx(same)
    # Any number of copies of a set is the same distribution; at the quantiles between copies there is a step.
    assert sliced_wasserstein(a, a.repeat(2, 1)) < 0.02


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b": torch.zeros(3, 5)}, "^b: both sets must be"),
        ({"b": torch.zeros(0, 4)}, "^b: must hold at least one vector"),
        ({"projections": 0}, "^projections: must be at least 1, got 0"),
        ({"power": 0}, "^power: must be at least 1, got 0"),
    ],
)
def test_sliced_wasserstein_refuses(arguments, message):
    with pytest.raises(ValueError, match=message):
        sliced_wasserstein(**{"a": torch.zeros(3, 4), "b": torch.zeros(3, 4), **arguments})


def test_patches_are_those_in_the_mask():
    images = torch.arange(2 * 3 * 9 * 9.0).view(2, 3, 9, 9)
    assert patches(images).shape == (2 * 9, 3 * 49)
    assert torch.equal(patches(images)[10], images[1, :, 0:7, 1:8].flatten())
    masks = torch.zeros(2, 9, 9)
    masks[1, 2:, 1:8] = 1
    assert torch.equal(patches(images, masks, coverage=1.0), images[1:, :, 2:9, 1:8].flatten(1))
    assert patches(images, masks * 0).shape == (0, 147)
    with pytest.raises(ValueError, match=r"^images: must be"):
        patches(images, size=10)
    with pytest.raises(ValueError, match=r"^masks: must be"):
        patches(images, masks[:1])


def test_an_image_set_stands_alone():
    images = ToyImages([11, 12], 48, striped=True, channels=1)
    assert [tuple(image.shape) for image in (images[0], images[1])] == [(1, 48, 48)] * 2
