"""The store, and which images a step sees."""

import os
from itertools import combinations, pairwise

import pytest
import torch
from PIL import Image

from qsattn_plugin.data import ImageSet
from qsattn_plugin.data.batches import UnpairedBatches
from qsattn_plugin.data.folders import Folders
from qsattn_plugin.data.images import UnreadableImage
from qsattn_plugin.data.preprocess import Preprocess
from qsattn_plugin.data.seeding import derive_seed
from qsattn_plugin.data.store import Store
from qsattn_plugin.errors import UserError


class Made:
    """An image set in memory. Image i of size (h, w) has its own number in channel 0, row and column in 1 and 2."""

    def __init__(self, sizes, bad=()):
        self.sizes = sizes
        self.names = [f"{i:02}.png" for i in range(len(sizes))]
        self.bad = set(bad)
        self.skipped = []
        self.read = []

    def __len__(self):
        return len(self.names)

    def __getitem__(self, index):
        self.read.append(index)
        if index in self.bad:
            raise UnreadableImage("made to be bad", self.names[index])
        height, width = self.sizes[index]
        rows = torch.arange(height, dtype=torch.uint8)[:, None].expand(height, width)
        columns = torch.arange(width, dtype=torch.uint8)[None].expand(height, width)
        return torch.stack([torch.full((height, width), index, dtype=torch.uint8), rows, columns])


def store(count, size=(20, 24), **options):
    return Store(Made([size] * count), **options)


VARIED = [(8 + i, 30 - i) for i in range(12)]
BYTES = 3 * sum(h * w for h, w in VARIED)


@pytest.mark.parametrize("budget", [0, BYTES // 2, BYTES - 1, BYTES])
def test_a_spilled_store_equals_one_in_memory(budget, tmp_path):
    images = Made(VARIED, bad=[3])
    kept = Store(images)
    progress = []
    other = Store(
        Made(VARIED, bad=[3]),
        budget=budget - 3 * 11 * 27,  # image 3 is not there
        spill_to=tmp_path / "spill",
        progress=lambda done, total: progress.append((done, total)),
    )
    assert isinstance(kept, ImageSet)
    assert kept._file is None
    assert (other._file is not None) == (budget < BYTES)
    assert progress == [(i + 1, 12) for i in range(12)]
    assert sorted(images.read) == list(range(12))  # each is decoded once
    assert kept.names == other.names == [name for name in images.names if name != "03.png"]
    assert kept.skipped == other.skipped == [("03.png", "made to be bad")]
    assert kept.nbytes == other.nbytes == BYTES - 3 * 11 * 27
    for i in range(-11, 11):
        assert torch.equal(kept[i], other[i])
        assert int(kept[i][0, 0, 0]) == [j for j in range(12) if j != 3][i]
    with pytest.raises(IndexError):
        other[11]
    assert not list(tmp_path.glob("spill/*"))  # the file has no name that could be left behind


def test_the_spilled_file_is_closed_with_the_store(tmp_path):
    before = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else pytest.skip("needs /proc")
    spilled = store(4, budget=0, spill_to=tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + 1
    del spilled
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_full_disk_and_a_bad_place_are_said(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"cannot keep decoded images in .*file"):
        store(2, budget=0, spill_to=tmp_path / "file")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(UserError, match="No space left on device; give another folder or a larger budget"):
        store(2, budget=0, spill_to=tmp_path)


def test_short_reads_and_writes_are_carried_on(tmp_path, monkeypatch):
    pwrite, pread = os.pwrite, os.pread
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:1000], offset))
    monkeypatch.setattr(os, "pread", lambda fd, count, offset: pread(fd, min(count, 700), offset))
    short, kept = store(3, budget=0, spill_to=tmp_path), store(3)
    assert all(torch.equal(a, b) for a, b in zip(kept, short, strict=True))


def test_bad_files_among_good_ones_are_skipped_and_named(tmp_path):
    folder = tmp_path / "trainA"
    folder.mkdir()
    noise = torch.randint(0, 256, (40, 50, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    Image.fromarray(noise.numpy()).save(folder / "good.png")
    Image.fromarray(noise.numpy()).save(folder / "cut.jpg")
    (folder / "cut.jpg").write_bytes((folder / "cut.jpg").read_bytes()[:1500])
    (folder / "text.jpg").write_text("hello")
    Image.new("RGB", (4000, 1)).save(folder / "line.png")
    images = Folders(tmp_path).split("trainA")
    kept = Store(images, Preprocess("crop", crop=256))
    assert kept.names == ["good.png"]
    assert kept.sizes == [(256, 320)]
    reasons = dict(kept.skipped)
    assert list(reasons) == ["cut.jpg", "line.png", "text.jpg"]
    assert "cut off" in reasons["cut.jpg"]
    assert "not a picture" in reasons["text.jpg"]
    assert "1024000 x 256" in reasons["line.png"]
    (folder / "good.png").unlink()
    with pytest.raises(UserError, match=r"none of 3 pictures could be read \(cut\.jpg: .*text\.jpg: "):
        Store(Folders(tmp_path).split("trainA"), Preprocess("crop", crop=256))


def test_other_errors_are_not_taken_for_bad_files():
    def broken(image):
        raise RuntimeError("a defect")

    with pytest.raises(RuntimeError, match="a defect"):
        store(5, prepare=broken)


def test_small_pictures_are_enlarged_for_the_crop():
    kept = Store(Made([(6, 9), (40, 30)]), Preprocess("crop", crop=16))
    assert kept.sizes == [(16, 24), (40, 30)]
    assert UnpairedBatches(kept, kept, 2, 16, seed=0).batch(0)["A"].shape == (2, 3, 16, 16)
    with pytest.raises(UserError, match=r"1 of 2 images of domain A are smaller than the crop.*00\.png with 9 x 6"):
        UnpairedBatches(Store(Made([(6, 9), (40, 30)])), kept, 2, 16, seed=0)


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def test_batches_are_a_pure_function_of_seed_step_and_rank(tmp_path):
    a, b = store(7), store(5)
    steps = [0, 1, 2, 3, 9, 10, 40, 3, 0, 41, 1_000_000_007]
    there = UnpairedBatches(a, b, 3, 16, seed=1)
    drawn = [there.batch(step) for step in steps]
    again = UnpairedBatches(store(7, budget=0, spill_to=tmp_path), b, 3, 16, seed=1)
    for step, batch in reversed(list(zip(steps, drawn, strict=True))):
        assert same(again.batch(step), batch)
    assert not same(drawn[0], UnpairedBatches(a, b, 3, 16, seed=2).batch(0))
    assert all(not same(x, y) for x, y in pairwise(drawn))


def test_a_batch_holds_the_crops_that_its_indices_name():
    a, b = store(7), store(5)
    batches = UnpairedBatches(a, b, 2, 16, seed=3)
    tops, lefts = set(), set()
    for batch in map(batches.batch, range(300)):
        for images, indices, source in ((batch["A"], batch["index_a"], a), (batch["B"], batch["index_b"], b)):
            assert images.dtype == torch.uint8
            assert images.shape == (2, 3, 16, 16)
            for image, index in zip(images, indices.tolist(), strict=True):
                top, left = int(image[1, 0, 0]), int(image[2, 0, 0])
                assert torch.equal(image, source[index][:, top : top + 16, left : left + 16])
                tops.add((index, top))
                lefts.add((index, left))
    # 20 - 16 + 1 places down, 24 - 16 + 1 across: every image is seen at all of them, both ends included.
    assert tops == {(index, top) for index in range(7) for top in range(5)}
    assert lefts == {(index, left) for index in range(7) for left in range(9)}


def test_top_and_left_of_both_domains_are_drawn_independently():
    # As many places down as across: two that were drawn from one seed would always be equal.
    batches = UnpairedBatches(store(3, (20, 20)), store(3, (20, 20)), 8, 16, seed=4)
    steps = [batches.batch(step) for step in range(160)]
    places = torch.cat([torch.cat((b["A"], b["B"]), dim=1)[:, [1, 2, 4, 5], 0, 0] for b in steps]).long()
    for first, second in combinations(places.T, 2):
        counts = torch.bincount(5 * first + second, minlength=25)
        # 1280 draws of 25 pairs: 51 of each, with a standard deviation of 7.
        assert len(counts) == 25
        assert counts.min() > 51 / 2
        assert counts.max() < 51 * 2


@pytest.mark.parametrize(("batch_size", "world"), [(1, 1), (3, 1), (2, 2)])
def test_every_epoch_sees_every_image_of_a_domain_once(batch_size, world):
    sizes = {"index_a": 7, "index_b": 4}
    ranks = [UnpairedBatches(store(7), store(4), batch_size, 16, 5, rank, world) for rank in range(world)]
    steps = 28 // batch_size // world * batch_size * world + 12
    for key, count in sizes.items():
        seen = [i for step in range(steps) for rank in ranks for i in rank.batch(step)[key].tolist()]
        epochs = [seen[at : at + count] for at in range(0, len(seen) - count + 1, count)]
        assert len(epochs) >= 5
        assert all(sorted(epoch) == list(range(count)) for epoch in epochs)
        assert len({tuple(epoch) for epoch in epochs}) > 3  # a new order each time


def test_domains_of_equal_size_are_not_paired():
    batches = UnpairedBatches(store(6), store(6), 6, 16, seed=0)
    pairs = {
        pair for step in range(60) for pair in zip(*(batches.batch(step)[k].tolist() for k in INDICES), strict=True)
    }
    assert len(pairs) == 36  # all pairs come


INDICES = ("index_a", "index_b")


def test_two_ranks_see_what_one_sees_at_twice_the_batch():
    a, b = store(7), store(5)
    one = UnpairedBatches(a, b, 4, 16, seed=9)
    two = [UnpairedBatches(a, b, 2, 16, seed=9, rank=rank, world=2) for rank in (0, 1)]
    for step in (0, 1, 17):
        halves = [rank.batch(step) for rank in two]
        assert same(one.batch(step), {key: torch.cat([half[key] for half in halves]) for key in halves[0]})


def test_whole_images_need_one_size_to_share_a_batch():
    varied, alike = Store(Made(VARIED)), store(3)
    with pytest.raises(UserError, match=r"domain B differ in size .* 00\.png with 30 x 8 and 01\.png with 29 x 9"):
        UnpairedBatches(alike, varied, 2, None, seed=0)
    single = UnpairedBatches(alike, varied, 1, None, seed=0)
    for step in range(12):
        batch = single.batch(step)
        assert torch.equal(batch["B"][0], varied[int(batch["index_b"])])
    whole = UnpairedBatches(alike, alike, 2, None, seed=0).batch(0)["A"]
    assert whole.shape == (2, 3, 20, 24)
    whole.zero_()  # a batch is nobody else's memory
    assert any(image.any() for image in alike)


@pytest.mark.parametrize(
    ("arguments", "name"),
    [({"batch_size": 0}, "batch_size"), ({"rank": 2, "world": 2}, "rank"), ({"rank": -1}, "rank")],
)
def test_numbers_out_of_range_are_refused(arguments, name):
    with pytest.raises(ValueError, match=f"^{name}: must be"):
        UnpairedBatches(store(2), store(2), **{"batch_size": 1, "crop": 16, "seed": 0, **arguments})
    with pytest.raises(ValueError, match=r"^step: must be"):
        UnpairedBatches(store(2), store(2), 1, 16, seed=0).batch(-1)


def test_derive_seed():
    # The first output of splitmix64 for state 0 is published: e220a8397b1dcdaf. A seed is its upper 63 bits.
    assert derive_seed(0) == 0xE220A8397B1DCDAF >> 1
    seeds = [
        derive_seed(*values)
        for values in [(), (0,), (0, 0), (1,), (0, 1), (1, 0), (-1,), (2**63,), (1, 2, 3), (3, 2, 1)]
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(2**64 + 5) == derive_seed(5)
    # One changed bit of the input changes half of the 63: 31.5 on average, far from it only if mixing failed.
    changed = [(derive_seed(7, 1 << bit) ^ derive_seed(7, 0)).bit_count() for bit in range(64)]
    assert 28 < sum(changed) / 64 < 35
    torch.Generator().manual_seed(max(seeds))
