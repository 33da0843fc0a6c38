"""What a step eats: random crops, and the whole pictures after them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import Tensor

from qsattn_plugin.data.pixels import to_float
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.registry.recipe import load_recipe, shipped_recipes
from qsattn_plugin.training.loader import TrainingLoader

STEPS = ("train={steps: 6, decay_from: 3, batch_size: 1}", "augmentations=[]", "train.device=cpu")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two domains of two pictures of noise, 50 x 44."""
    for domain, seed in (("trainA", 0), ("trainB", 1)):
        (tmp_path / domain).mkdir()
        draws = torch.Generator().manual_seed(seed)
        for name in "ab":
            pixels = torch.randint(0, 256, (44, 50, 3), generator=draws, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / domain / f"{name}.png")
    return tmp_path


def loader(folder: Path, *settings: str, **options: object) -> TrainingLoader:
    data = f"data={{type: folders, root: {folder}, preprocess: resize_and_crop, resize: 40, crop: 32}}"
    return TrainingLoader(load_recipe("toy", (data, *STEPS, *settings)), torch.device("cpu"), **options)


def prepared(folder: Path, prepare: Preprocess) -> list[Tensor]:
    """All pictures as ``prepare`` makes them."""
    paths = sorted(folder.glob("train?/*.png"))
    pixels = [
        torch.frombuffer(bytearray(Image.open(path).tobytes()), dtype=torch.uint8).view(44, 50, 3) for path in paths
    ]
    return [to_float(prepare(p.permute(2, 0, 1).contiguous())) for p in pixels]


@pytest.mark.parametrize("mode", ["resize_and_crop", "scale_width_and_crop", "scale_shortside_and_crop"])
def test_while_the_rate_decays_pictures_are_resized_to_the_crop_itself(folder, mode):
    kept = loader(folder, f"data.preprocess={mode}", "data.random_crop=until_decay")
    cropped, small = (prepared(folder, Preprocess(mode, resize, 32)) for resize in (40, 32))
    for step in range(6):
        for x in kept.batch(step)[0].values():
            places = cropped if step < 3 else small
            windows = [p.unfold(1, 32, 1).unfold(2, 32, 1) for p in places]
            assert any((w == x[0][:, None, None]).all(dim=(0, 3, 4)).any() for w in windows), step
            if mode == "resize_and_crop":
                assert any(torch.equal(x[0], p) for p in small) == (step >= 3)


def test_where_a_run_carries_on_does_not_matter(folder):
    whole = loader(folder, "data.random_crop=until_decay")
    steps = [whole.batch(step)[0] for step in range(6)]
    for first in (2, 3, 5):
        later = loader(folder, "data.random_crop=until_decay", first=first)
        for step in range(first, 6):
            assert all(torch.equal(later.batch(step)[0][k], steps[step][k]) for k in "AB")


def test_pictures_are_decoded_again_once_and_only_where_it_changes_them(folder):
    def decoded(*settings: str) -> int:
        seen = []
        kept = loader(folder, *settings, progress=lambda what, done, total: seen.append(what))
        for step in range(6):
            kept.batch(step)
        return len(seen)

    assert decoded("data.random_crop=always") == 4
    assert decoded("data.random_crop=until_decay") == 8
    assert decoded("data.random_crop=until_decay", "data.resize=32") == 4
    assert decoded("data.random_crop=until_decay", "data.preprocess=crop") == 4
    assert decoded("data.random_crop=until_decay", "train.decay_from=0") == 4


@pytest.mark.parametrize("name", shipped_recipes())
def test_crops_end_where_the_reference_code_of_a_method_ends_them(name):
    """CUT and what was made of it; CycleGAN's own crops to the end, and CUT's data set for single pictures too."""
    recipe = load_recipe(name)
    said = recipe.discriminator.type == "projected"  # the mobile recipes crop to the end, and say so
    expected = (
        "until_decay" if recipe.method in ("cut", "fastcut", "qsattn", "dclgan", "simdcl") and not said else "always"
    )
    assert recipe.data.random_crop == expected


def test_augmentations_are_drawn_anew_for_each_domain_step_and_rank(folder):
    class Recorded(list):
        def __call__(self, x: Tensor, draws: torch.Generator) -> Tensor:
            self.append(draws.initial_seed())
            return x

    seeds = Recorded([0])  # an empty one would not be called
    for rank in (0, 1):
        kept = loader(folder, rank=rank, world=2)
        kept.augment = seeds
        for step in range(3):
            kept.batch(step)
    assert len(set(seeds)) == 1 + 2 * 2 * 3
