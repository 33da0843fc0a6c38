"""Augmentations: what they do to pictures, where their draws come from, and gradients through them."""

from __future__ import annotations

import pytest
import torch

from qsattn_plugin.registry import create, list_parts
from qsattn_plugin.registry.augmentations import Augmentations

PARTS = [part.name for part in list_parts("augmentations")]


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def images(count: int = 8, channels: int = 3, height: int = 24, width: int = 32) -> torch.Tensor:
    return torch.rand(count, channels, height, width, generator=seeded(1)) * 2 - 1


def build(name: str, **arguments):
    sized = {"size": 16} if name in ("crop", "resize") else {}
    return create("augmentation", name, **sized | arguments)


def test_flip_mirrors_some_images_and_leaves_the_others():
    x = images(64)
    out = build("flip")(x, seeded())
    mirrored = [torch.equal(o, i.flip(-1)) for o, i in zip(out, x, strict=True)]
    untouched = [torch.equal(o, i) for o, i in zip(out, x, strict=True)]
    assert all(m != u for m, u in zip(mirrored, untouched, strict=True))
    assert 16 < sum(mirrored) < 48  # of 64, four deviations to either side of a half
    assert torch.equal(build("flip", p=1.0)(x, seeded()), x.flip(-1))


def test_crop_cuts_from_different_places():
    rows, columns = torch.meshgrid(torch.arange(24.0), torch.arange(32.0), indexing="ij")
    x = torch.stack([rows, columns, rows * 0]).div(32).expand(8, -1, -1, -1)
    out = build("crop")(x, seeded())
    assert out.shape == (8, 3, 16, 16)
    corners = set()
    for picture in out:
        top, left = (picture[:2, 0, 0] * 32).round().int().tolist()
        assert torch.equal(picture, x[0, :, top : top + 16, left : left + 16])
        corners.add((top, left))
    assert len(corners) > 3
    with pytest.raises(ValueError, match=r"^size: a crop of 25"):
        build("crop", size=25)(x, seeded())


def test_resize_keeps_colours_and_range():
    flat = torch.full((1, 3, 24, 32), 0.25)
    # Interpolation weights add up to 1 but for float32's rounding.
    torch.testing.assert_close(build("resize")(flat, seeded()), torch.full((1, 3, 16, 16), 0.25))
    edges = torch.ones(1, 1, 8, 8)
    edges[..., 4:] = -1
    assert build("resize", size=32)(edges, seeded()).abs().max() == 1, "cubic interpolation overshoots; it is cut off"


def test_affine_without_room_to_move_changes_nothing():
    x = images()
    still = build("affine", rotate=0.0, translate=0.0, scale=0.0)
    # Coordinates go through a matrix and back: an error of 1e-6 pixels times a slope of at most 2 a pixel, with room.
    torch.testing.assert_close(still(x, seeded()), x, rtol=0, atol=1e-4)
    moved = build("affine")(x, seeded())
    assert (moved - x).abs().mean() > 0.1
    ones = torch.ones(4, 1, 24, 32)
    torch.testing.assert_close(build("affine")(ones, seeded()), ones, rtol=0, atol=1e-5)  # the border is mirrored
    assert build("affine", translate=0.5, padding="zeros")(ones, seeded()).min() == 0


def test_colour_changes_colours_alone():
    x = images() * 0.5
    still = build("colour", brightness=0.0, contrast=0.0, saturation=0.0)
    torch.testing.assert_close(still(x, seeded()), x, rtol=0, atol=1e-6)  # to [0, 1] and back: float32's rounding
    flat = torch.tensor([0.5, -0.2, 0.1]).view(1, 3, 1, 1).expand(4, 3, 8, 8)
    out = build("colour", hue=0.2)(flat, seeded())
    assert (out - out[:, :, :1, :1]).abs().max() < 1e-6, "every pixel of one colour stays of one colour"
    assert len({tuple(c.tolist()) for c in out[:, :, 0, 0]}) == 4, "each image has its own"
    bright = build("colour", contrast=0.0, saturation=0.0, brightness=0.9)(torch.zeros(64, 3, 1, 1), seeded())
    factors = bright[:, 0, 0, 0] + 1  # mid-grey is 0.5 in [0, 1]: a factor f gives f / 2, which is f - 1 in [-1, 1]
    assert 0.1 <= factors.min() < 0.5 and 1.5 < factors.max() <= 1.9


def test_grey_images_stay_grey():
    x = images(channels=1)
    one = build("colour", saturation=0.5, hue=0.3)(x, seeded())
    assert one.shape == x.shape and (one - x).abs().max() > 0.01
    three = build("colour", saturation=0.5, hue=0.3)(x.expand(-1, 3, -1, -1), seeded())
    torch.testing.assert_close(three, one.expand(-1, 3, -1, -1), rtol=0, atol=1e-5)  # hue goes through an angle


def test_translation_moves_by_whole_pixels():
    x = images(8, 3, 32, 32)
    out = build("translation", share=0.25)(x, seeded())
    padded = torch.nn.functional.pad(x, (8, 8, 8, 8))
    shifts = set()
    for picture, wide in zip(out, padded, strict=True):
        found = [
            (top, left)
            for top in range(17)
            for left in range(17)
            if torch.equal(picture, wide[:, top : top + 32, left : left + 32])
        ]
        assert len(found) == 1
        shifts.add(found[0])
    assert len(shifts) > 4


def test_cutout_covers_a_square():
    x = images(8, 3, 32, 32)
    out = build("cutout", share=0.5)(x, seeded())
    holes = (out == 0).all(1)
    for hole in holes:
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        assert len(rows) == len(columns) == 16 and hole.sum() == 16 * 16
    assert torch.equal(out[~holes[:, None].expand_as(out)], x[~holes[:, None].expand_as(x)])
    assert len({tuple(hole.nonzero()[0].tolist()) for hole in holes}) > 4


@pytest.mark.parametrize("name", PARTS)
def test_one_pair_gets_the_same(name):
    augmentation = build(name)
    x, twin = images(), images().clone()
    state = torch.random.get_rng_state()
    out = augmentation(x, seeded())
    assert torch.equal(augmentation(twin, seeded()), out)
    # Each image of the batch is treated as before, whatever the others show.
    half = torch.cat([x[:4], torch.zeros_like(x[4:])])
    torch.testing.assert_close(augmentation(half, seeded())[:4], out[:4], rtol=0, atol=1e-6)
    assert torch.equal(torch.random.get_rng_state(), state)


@pytest.mark.parametrize("name", PARTS)
def test_gradients_are_those_of_what_was_done(name):
    """Finite differences agree with the gradient, in float64, at colours away from where clipping bends it."""
    augmentation = build(name, **({"size": 4} if name in ("crop", "resize") else {}))
    x = (images(2, 3, 6, 7).double() * 0.4).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: augmentation(x, seeded(2)), (x,))


@pytest.mark.parametrize("name", PARTS)
def test_half_precision_goes_through(name):
    x = images()
    out = build(name)(x.bfloat16(), seeded())
    assert out.dtype == torch.bfloat16
    # The image is rounded to eight bits before, the result after: twice 2^-8 for values up to 1, and colour factors.
    torch.testing.assert_close(out.float(), build(name)(x.bfloat16().float(), seeded()), rtol=0, atol=2**-7)


def test_a_list_is_applied_in_order_from_one_generator():
    chain = Augmentations([build("crop"), build("flip"), build("colour")])
    x, generator = images(), seeded(4)
    state = torch.random.get_rng_state()
    out = chain(x, generator)
    expected, other = x, seeded(4)
    for name in ("crop", "flip", "colour"):
        expected = build(name)(expected, other)
    assert torch.equal(out, expected)
    assert torch.equal(generator.get_state(), other.get_state())
    assert torch.equal(chain(x, seeded(4)), out)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.equal(Augmentations()(x, generator), x)
    assert len(chain) == 3 and len(Augmentations()) == 0


@pytest.mark.parametrize(
    ("name", "arguments"),
    [
        ("flip", {"p": 1.5}),
        ("resize", {"size": 0}),
        ("crop", {"size": 0}),
        ("affine", {"scale": 1.0}),
        ("affine", {"rotate": -1.0}),
        ("colour", {"hue": 0.6}),
        ("colour", {"contrast": -0.1}),
        ("translation", {"share": 2.0}),
        ("cutout", {"share": -0.5}),
    ],
)
def test_values_out_of_range_are_refused(name, arguments):
    with pytest.raises(ValueError, match=f"^{next(iter(arguments))}: "):
        create("augmentation", name, **arguments)


@pytest.mark.parametrize("channels", [2, 4])
def test_colours_change_and_transparency_does_not(channels):
    x = images(channels=channels)
    out = build("colour")(x, seeded())
    assert torch.equal(out[:, -1], x[:, -1])
    colours = images(channels=channels)[:, :-1]
    assert torch.equal(out[:, :-1], build("colour")(colours, seeded()))
    assert not torch.equal(out[:, :-1], colours)
