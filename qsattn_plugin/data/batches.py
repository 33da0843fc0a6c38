"""The images and crops of a training step: a pure function of the seed, the step and the rank."""

from __future__ import annotations

import torch
from torch import Tensor

from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.store import Store
from qsattn_plugin.errors import UserError, at_least

__all__ = ["UnpairedBatches"]

# The purposes that seeds are derived for, beside the domain.
_ORDER, _TOP, _LEFT = 0, 1, 2


class UnpairedBatches:
    """Unpaired batches of two domains.

    Each domain is shuffled anew for every pass over it, so no image is repeated before all were used once. CUT shuffles
    only A (part of it twice per epoch if B is larger) and draws B with replacement, which misses a third of B or more
    per epoch. Two independent orders give pairs just as random and treat both domains alike.

    A step uses the images with running numbers step * world * batch_size and following. Each rank takes its slice of
    them, so two ranks with batch size b see exactly, crops included, what one rank sees with batch size 2b. The only
    state kept between steps are the two newest orders.

    Args:
        store_a: the decoded images of domain A.
        store_b: the decoded images of domain B.
        batch_size: images of each domain per step and rank.
        crop: side of the random square crop in pixels, or ``None`` for whole images.
        seed: the run's seed.
        rank: this process's rank, among the ``world`` that share a step.

    Raises:
        UserError: images are smaller than the crop; or, without a crop, a batch would hold images of different sizes.
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        store_a: Store,
        store_b: Store,
        batch_size: int,
        crop: int | None,
        seed: int,
        rank: int = 0,
        world: int = 1,
    ):
        at_least(1, batch_size=batch_size)
        if not 0 <= rank < world:
            raise ValueError(f"rank: must be at least 0 and below world ({world}), got {rank}")
        self._domains = (_Domain(store_a, 0, seed), _Domain(store_b, 1, seed))
        for domain, letter in zip(self._domains, "AB", strict=True):
            domain.check(letter, batch_size, crop)
        self.batch_size, self.crop, self.rank, self.world = batch_size, crop, rank, world

    def batch(self, step: int) -> dict[str, Tensor]:
        """Return the batch of a step, counted from 0.

        Returns:
            ``A`` and ``B``: uint8 or int16 (B, C, h, w), new tensors; ``index_a`` and ``index_b``: int64 (B,), the
            indices of the images in their stores.

        Raises:
            ValueError: ``step`` is negative.
        """
        at_least(0, step=step)
        first = (step * self.world + self.rank) * self.batch_size
        drawn = {}
        for domain, letter in zip(self._domains, "AB", strict=True):
            numbers = range(first, first + self.batch_size)
            drawn[letter] = torch.stack([domain.image(number, self.crop) for number in numbers])
            drawn[f"index_{letter.lower()}"] = torch.tensor([domain.index(number) for number in numbers])
        return drawn


class _Domain:
    """One domain's endless sequence of images and crops, addressed by running number."""

    def __init__(self, store: Store, number: int, seed: int):
        self.store = store
        self._number = number
        self._seed = seed
        self._orders: dict[int, list[int]] = {}

    def check(self, letter: str, batch_size: int, crop: int | None) -> None:
        """Raise :class:`UserError` if a batch could not be formed at some step."""
        sizes = self.store.sizes
        if crop is not None:
            small = [i for i, size in enumerate(sizes) if min(size) < crop]
            if small:
                name, (height, width) = self.store.names[small[0]], sizes[small[0]]
                raise UserError(
                    f"{len(small)} of {len(sizes)} images of domain {letter} are smaller than the crop, {crop} pixels; "
                    f"the first is {name} with {width} x {height}; use a smaller crop"
                )
        elif batch_size > 1 and len(set(sizes)) > 1:
            other = next(i for i, size in enumerate(sizes) if size != sizes[0])
            shown = " and ".join(f"{self.store.names[i]} with {sizes[i][1]} x {sizes[i][0]}" for i in (0, other))
            raise UserError(
                f"images of domain {letter} differ in size and cannot form a batch of {batch_size}: {shown}; "
                "use a preprocess mode with a crop, or batch size 1"
            )

    def index(self, number: int) -> int:
        """Return the index of a running number: position ``number % n`` in the order of epoch ``number // n``."""
        epoch, position = divmod(number, len(self.store))
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch may span two epochs; older orders are no longer needed
                del self._orders[min(self._orders)]
            generator = torch.Generator().manual_seed(derive_seed(self._seed, _ORDER, self._number, epoch))
            self._orders[epoch] = torch.randperm(len(self.store), generator=generator).tolist()
        return self._orders[epoch][position]

    def image(self, number: int, crop: int | None) -> Tensor:
        """Return the image of a running number, or its random crop, the same on every rank."""
        image = self.store[self.index(number)]
        if crop is None:
            return image
        # 63 random bits modulo a few hundred: the bias is below 1e-16, and no generator is needed.
        top = derive_seed(self._seed, _TOP, self._number, number) % (image.shape[1] - crop + 1)
        left = derive_seed(self._seed, _LEFT, self._number, number) % (image.shape[2] - crop + 1)
        return image[:, top : top + crop, left : left + crop]
