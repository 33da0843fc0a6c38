"""The built-in data set: toy horses and zebras, drawn from a seed, with the ground truth to score against."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from qsattn_plugin.data import SPLITS
from qsattn_plugin.data.pixels import as_pil, check_channels, to_channels, to_float
from qsattn_plugin.data.toy.drawing import draw, picture_seed
from qsattn_plugin.data.toy.score import background_change, coat_distance
from qsattn_plugin.errors import Misfit, one_of
from qsattn_plugin.registry import register

__all__ = ["ToyHorses", "ToyImages"]

#: The most pictures of a split: more would take hours to draw.
_MOST = 100_000
#: Groups of seeds. The two test sets share theirs, as they show the same animals.
_GROUPS = {"trainA": 0, "trainB": 1, "testA": 2, "testB": 2}


class ToyImages:
    """Drawn horses, or zebras (``striped``), in ``snow`` or not, as an :class:`~qsattn_plugin.data.ImageSet`.

    A picture (``channels``, ``size``, ``size``) is drawn at each access, from a seed each.
    """

    def __init__(self, seeds: list[int], size: int, striped: bool, channels: int = 3, snow: bool = False):
        self.seeds = seeds
        self.size = size
        self.striped = striped
        self.snow = snow
        self.channels = check_channels(channels)
        self.names = [f"animal_{index:04d}.png" for index in range(len(seeds))]
        self.skipped: list[tuple[str, str]] = []

    def __len__(self) -> int:
        return len(self.seeds)

    def __getitem__(self, index: int) -> Tensor:
        """Draw picture ``index``: uint8 (C, H, W)."""
        picture = draw(self.seeds[index], self.size, self.striped, self.snow).picture
        return picture if self.channels == 3 else to_channels(as_pil(picture), self.channels)


@register("dataset", "toy")
class ToyHorses:
    """Toy horses (A) and toy zebras (B) in landscapes, drawn from a seed; no download.

    The training sets share no animals and no landscapes. Image i of ``testA`` and image i of ``testB`` show the same
    animal in the same place, pose and light, once with each coat, so that translations can be scored. A picture depends
    only on the seed, its split, its index and the size.

    With the pair ``seasons`` both domains show horses: on summer's ground (A), and in snow (B).

    Args:
        size: height and width in pixels, 32 to 4096. Stripes are about 3 pixels wide at 64.
        train: pictures in each of ``trainA`` and ``trainB``, at most 100,000.
        test: pictures in each of ``testA`` and ``testB``, at most 100,000.
        seed: of all the pictures.
        pair: what A and B are: coats (horses and zebras) or seasons.
        channels: channels of every image: 1 grey, 2 grey and alpha, 3 RGB, 4 RGB and alpha; alpha is opaque.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        size: int = 64,
        train: int = 400,
        test: int = 32,
        seed: int = 0,
        channels: int = 3,
        pair: Literal["coats", "seasons"] = "coats",
    ):
        one_of(("coats", "seasons"), pair=pair)
        if size > 4096:
            raise ValueError(f"size: must be at most 4096, got {size}")
        if size < 32:
            raise ValueError(f"size: must be at least 32, for the animals to have legs, got {size}")
        for name, count in (("train", train), ("test", test)):
            if not 1 <= count <= _MOST:
                raise ValueError(f"{name}: must be 1 to {_MOST}, got {count}")
        self.size = size
        self.train = train
        self.test = test
        self.seed = seed
        self.channels = check_channels(channels)
        self.pair = pair
        self._truth: tuple[dict[str, Tensor], Tensor] | None = None

    def _seeds(self, name: str) -> list[int]:
        one_of(SPLITS, name=name)
        count = self.train if name.startswith("train") else self.test
        return [picture_seed(self.seed, _GROUPS[name], index) for index in range(count)]

    def has(self, name: str) -> bool:
        """Return whether there is a split ``name``: true for all four."""
        return bool(self._seeds(name))

    def split(self, name: str) -> ToyImages:
        """Return the pictures of a split; none of them is drawn yet.

        Raises:
            ValueError: ``name`` is not the name of a split.
        """
        coats, target = self.pair == "coats", name.endswith("B")
        return ToyImages(self._seeds(name), self.size, coats and target, self.channels, not coats and target)

    def silhouettes(self, name: str) -> Tensor:
        """Return the silhouettes of a split's animals: float (N, H, W), the share of each pixel that is the animal.

        Raises:
            ValueError: ``name`` is not the name of a split.
        """
        return torch.stack([draw(seed, self.size, name.endswith("B")).silhouette for seed in self._seeds(name)])

    def _test_set(self) -> tuple[dict[str, Tensor], Tensor]:
        """Return the test images by domain, float (N, C, H, W) in [-1, 1], and what is to change in them."""
        if self._truth is None:
            both = {}
            for domain in "AB":
                images = self.split(f"test{domain}")
                both[domain] = to_float(torch.stack([images[i] for i in range(len(images))]))
            masks = self.silhouettes("testA")
            if self.pair == "seasons":
                masks = torch.stack([draw(seed, self.size, striped=False).ground for seed in self._seeds("testA")])
            self._truth = both, masks
        return self._truth

    def score(self, images: Tensor, direction: str) -> dict[str, float]:
        """Score translations (N, C, H, W) in [-1, 1] of the first N test images against the ground truth.

        ``coat_distance`` is 0 for the ground truth, 1 for the untranslated images
        (:func:`~qsattn_plugin.data.toy.score.coat_distance`); ``background_change`` the mean absolute change of pixels
        outside the animals, in [-1, 1] units. Smaller is better for both; alpha is ignored. Of seasons they are
        ``ground_distance`` and ``change_elsewhere``: the same on the ground and outside it.

        Raises:
            ValueError: ``direction`` is neither.
            UserError: the images differ from the test set in size or channels, or are too many.
        """
        one_of(("AtoB", "BtoA"), direction=direction)
        both, masks = self._test_set()
        source, target = both[direction[0]], both[direction[-1]]
        if images.ndim != 4 or images.shape[1:] != source.shape[1:] or not 1 <= len(images) <= len(source):
            wanted = f"1 to {len(source)} images of {' x '.join(map(str, source.shape[1:]))}"
            got = " x ".join(map(str, images.shape))
            raise Misfit(
                f"the toy score compares pixel by pixel: it needs {wanted} (channels, height, width), got {got}; "
                f"translate the test images at their own size, {self.size} x {self.size} (a recipe's data.crop)",
                "data.crop",
            )
        count, colours = len(images), {2: 1, 4: 3}.get(self.channels, self.channels)
        images = images.detach().float()[:, :colours]
        source, target = (truth[:count, :colours].to(images.device) for truth in (source, target))
        masks = masks[:count].to(images.device)
        names = (
            ("coat_distance", "background_change") if self.pair == "coats" else ("ground_distance", "change_elsewhere")
        )
        return {
            names[0]: coat_distance(images, source, target, masks),
            names[1]: background_change(images, source, masks),
        }
