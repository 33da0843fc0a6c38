"""Which images a training step sees: a pure function of the seed, the step and the rank."""

from __future__ import annotations

import torch
from torch import Tensor

from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.store import Store
from qsattn_plugin.errors import UserError

__all__ = ["Store", "UnpairedBatches"]

# What a seed is for; the domain is mixed in beside it.
_ORDER, _TOP, _LEFT = 0, 1, 2


class UnpairedBatches:
    """Unpaired batches of two domains.

    Every domain is gone through in a random order, again and again, in a new order each time: no image comes twice
    before all came once. CUT shuffles A only (some of it twice an epoch where B is larger) and draws B with
    replacement, which leaves out a third of B and more per epoch. Two independent orders give pairs just as random and
    treat both domains alike.

    The images of a step are those with the running numbers step * world * batch_size and following. A rank takes its
    slice of them, so two ranks at batch b see exactly, crops included, what one rank sees at batch 2b. Nothing is
    remembered between steps but the two newest orders.

    Args:
        store_a: images of domain A, decoded.
        store_b: images of domain B.
        batch_size: images of each domain for this rank.
        crop: side of the random square crop in pixels, or ``None`` to see images whole.
        seed: the run's seed.
        rank: this process's number, 0 to world - 1.
        world: how many processes share a step.

    Raises:
        UserError: images are smaller than the crop; without a crop, a batch would hold images of different sizes.
        ValueError: a number out of range.

    Attributes:
        epoch_steps: steps until the larger domain has been gone through once, as CUT counts epochs, rounded up.
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
        if batch_size < 1:
            raise ValueError(f"batch_size: must be at least 1, got {batch_size}")
        if not 0 <= rank < world:
            raise ValueError(f"rank: must be at least 0 and below world ({world}), got {rank}")
        self._domains = (_Domain(store_a, 0, seed), _Domain(store_b, 1, seed))
        for domain, letter in zip(self._domains, "AB", strict=True):
            domain.check(letter, batch_size, crop)
        self.batch_size, self.crop, self.rank, self.world = batch_size, crop, rank, world
        self.epoch_steps = -(-max(len(store_a), len(store_b)) // (batch_size * world))

    def batch(self, step: int) -> dict[str, Tensor]:
        """Give the batch of step ``step``, counted from 0.

        Returns:
            ``A`` and ``B``: uint8 (B, C, h, w), newly made; ``index_a`` and ``index_b``: int64 (B,), the indices
            of the images in their stores.
        """
        if step < 0:
            raise ValueError(f"step: must be at least 0, got {step}")
        first = (step * self.world + self.rank) * self.batch_size
        drawn = {}
        for domain, letter in zip(self._domains, "AB", strict=True):
            numbers = range(first, first + self.batch_size)
            indices = [domain.index(number) for number in numbers]
            images = [domain.image(i, number, self.crop) for i, number in zip(indices, numbers, strict=True)]
            drawn[letter] = torch.stack(images)
            drawn[f"index_{letter.lower()}"] = torch.tensor(indices)
        return drawn


class _Domain:
    """One domain's endless order of images and crops, addressed by running number."""

    def __init__(self, store: Store, number: int, seed: int):
        self.store = store
        self._number = number
        self._seed = seed
        self._orders: dict[int, list[int]] = {}

    def check(self, letter: str, batch_size: int, crop: int | None) -> None:
        """Refuse what would fail at some step, before the first one."""
        sizes = self.store.sizes
        if crop is not None:
            small = [i for i, size in enumerate(sizes) if min(size) < crop]
            if small:
                name, (height, width) = self.store.names[small[0]], sizes[small[0]]
                raise UserError(
                    f"{len(small)} of {len(sizes)} images of domain {letter} are smaller than the crop, {crop} pixels; "
                    f"the first is {name} with {width} x {height}; take a smaller crop"
                )
        elif batch_size > 1 and len(set(sizes)) > 1:
            other = next(i for i, size in enumerate(sizes) if size != sizes[0])
            shown = " and ".join(f"{self.store.names[i]} with {sizes[i][1]} x {sizes[i][0]}" for i in (0, other))
            raise UserError(
                f"images of domain {letter} differ in size and cannot share a batch of {batch_size}: {shown}; "
                "use a preprocess mode with a crop, or batch size 1"
            )

    def index(self, number: int) -> int:
        """The image with a running number: position ``number % n`` in the order of epoch ``number // n``."""
        epoch, position = divmod(number, len(self.store))
        if epoch not in self._orders:
            while len(self._orders) > 1:  # a batch may lie across two epochs; older orders are not asked for again
                del self._orders[min(self._orders)]
            generator = torch.Generator().manual_seed(derive_seed(self._seed, _ORDER, self._number, epoch))
            self._orders[epoch] = torch.randperm(len(self.store), generator=generator).tolist()
        return self._orders[epoch][position]

    def image(self, index: int, number: int, crop: int | None) -> Tensor:
        """The image, or its crop for a running number. Seeded by the number, so that it hangs on no rank's place."""
        image = self.store[index]
        if crop is None:
            return image
        # 63 random bits modulo a few hundred: the bias is below 1e-16, and no generator has to be seeded.
        top = derive_seed(self._seed, _TOP, self._number, number) % (image.shape[1] - crop + 1)
        left = derive_seed(self._seed, _LEFT, self._number, number) % (image.shape[2] - crop + 1)
        return image[:, top : top + crop, left : left + crop]
